"""Judging a model while it trains, through the same Detector that runs on the robot.

So a checkpoint's figures in training and those of ``y7edge val`` afterwards mean the same
(``y7edge.evaluate.PROTOCOL``). The published training judged at NMS IoU 0.6, tested at 0.65 and
reported at 0.7.
"""

from __future__ import annotations

from collections.abc import Sequence

from y7edge.data.dataset import Sample
from y7edge.detector import Detector
from y7edge.evaluate import Metrics, evaluate
from y7edge.nn.build import Model, to_checkpoint
from y7edge.nn.eager import EagerSession, describe
from y7edge.runtimes.base import SessionOptions


class Validation:
    """The pictures that a run is judged by.

    Attributes:
        samples: pictures and labels.
        names: class names.
    """

    def __init__(self, samples: Sequence[Sample], names: Sequence[str], imgsz: int) -> None:
        """Keep what is needed; ``imgsz`` is the side of the square input, pixels."""
        self.samples = tuple(samples)
        self.names = tuple(names)
        self._imgsz = imgsz

    def __call__(self, model: Model) -> Metrics:
        """Average precision of a model in evaluation mode, on the device where it is."""
        return evaluate(self.detector(model).detect_for_evaluation, self.samples, self.names)

    def detector(self, model: Model) -> Detector:
        """A Detector over the module itself, at the default thresholds."""
        manifest = describe(to_checkpoint(model, self.names), (self._imgsz, self._imgsz))
        options = SessionOptions(device=str(model.head.anchors.device))
        return Detector.from_session(EagerSession(model, manifest, options), manifest)
