"""Training (needs torch): configuration, data for the loop, assignment, loss, optimiser, loop.

In short::

    from y7edge.train.config import TrainConfig
    from y7edge.train.loop import train

    result = train(TrainConfig(data="data.yaml", model="yolov7-tiny", imgsz=320, epochs=60))

Nothing is imported here: the pieces are used apart, too.
"""
