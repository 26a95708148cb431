"""Training (needs torch).

In short::

    from y7edge.train.run.loop import train
    from y7edge.train.settings.config import TrainConfig

    result = train(TrainConfig(data="data.yaml", model="yolov7-tiny", imgsz=320, epochs=60))

Nothing is imported here: the parts are used separately, too. ``settings/`` says what to train,
``setup/`` builds the parts of a run, ``augment/`` and ``loading/`` make batches, ``loss/`` assigns
targets and computes the loss, ``run/`` is the loop and its state, ``averaging/`` averages weights,
``output/`` writes the run's folder.
"""
