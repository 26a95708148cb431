"""Train models (needs torch).

Example::

    from y7edge.train.run.loop import train
    from y7edge.train.settings.config import TrainConfig

    result = train(TrainConfig(data="data.yaml", model="yolov7-tiny", imgsz=320, epochs=60))
"""
