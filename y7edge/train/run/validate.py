"""Evaluate a model during training, with the Detector.

Training and ``y7edge val`` use the same protocol (``y7edge.evaluation.evaluate.PROTOCOL``). The
published code uses an NMS IoU threshold of 0.6 in training, 0.65 in tests and 0.7 in reports.
"""

from __future__ import annotations

from collections.abc import Sequence

from y7edge.data.dataset import Sample
from y7edge.data.images import read_image
from y7edge.detect.detector import Detector
from y7edge.errors import DataError
from y7edge.evaluation.evaluate import Metrics, evaluate
from y7edge.nn.build import Model, to_checkpoint
from y7edge.nn.eager import EagerSession, describe
from y7edge.runtimes.base import SessionOptions
from y7edge.train.loading.image_cache import in_threads


class Validation:
    """Evaluation on the validation images of a run.

    Raises:
        DataError: no image has a label, or an image cannot be read.
    """

    def __init__(self, samples: Sequence[Sample], names: Sequence[str], imgsz: int) -> None:
        """Check that all images can be read; ``imgsz`` is the input's side in pixels."""
        require_labels(samples, "evaluate on")

        def read(sample: Sample) -> None:  # returns None, so that the images are not kept
            read_image(sample.path)

        in_threads(read, samples)
        self.samples = tuple(samples)
        self.names = tuple(names)
        self._imgsz = imgsz

    def __call__(self, model: Model) -> Metrics:
        """Evaluate a model on its device; the model is switched to evaluation mode."""
        return evaluate(self.detector(model).detect_for_evaluation, self.samples, self.names)

    def detector(self, model: Model, conf: float | None = None) -> Detector:
        """Return a Detector that runs ``model``; None for ``conf`` is the default threshold."""
        manifest = describe(to_checkpoint(model, self.names), (self._imgsz, self._imgsz))
        options = SessionOptions(device=str(model.head.anchors.device))
        session = EagerSession(model, manifest, options)
        return Detector.from_session(session, manifest, conf=conf)


def require_labels(samples: Sequence[Sample], purpose: str) -> None:
    """Check that at least one image has a label; ``purpose`` ("train on") is for the message.

    Raises:
        DataError: no image has a label.
    """
    if not any(len(sample.boxes) for sample in samples):
        raise DataError(
            f"expected labels to {purpose}, found none for {len(samples)} images such as "
            f"{samples[0].path}; YOLO labels are .txt files in a folder labels/ beside images/"
        )
