"""Training (needs torch).

In short::

    from y7edge.train.config import TrainConfig
    from y7edge.train.loop import train

    result = train(TrainConfig(data="data.yaml", model="yolov7-tiny", imgsz=320, epochs=60))

Nothing is imported here: the pieces are used apart, too. Where to look:

* what to train: ``config``, ``configfile``, ``recipe``, ``recipes``, ``start``, ``finetune``,
  ``freeze``, ``anchors``;
* pictures: ``dataset``, ``augment/``, ``loading/``;
* the loss: ``loss``, ``assign``, ``candidates``, ``auxiliary``, ``boxes``;
* the run: ``loop``, ``trainer``, ``steps``, ``optim``, ``schedule``, ``distributed``;
* averages of weights: ``average``, ``ema``, ``statistics``, ``soup``;
* what is left of it: ``state`` and ``resume``, ``record/``.
"""
