"""Judging a model while it trains, by the same letterbox, decoding and suppression as the Detector.

So a checkpoint's figures in training and those of ``y7edge val`` afterwards mean the same
(``y7edge.evaluate.PROTOCOL``). The published training judged at NMS IoU 0.6, tested at 0.65 and
reported at 0.7.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from y7edge.data.dataset import Sample
from y7edge.detections import Detections
from y7edge.evaluate import Metrics, evaluate
from y7edge.manifest import LevelInfo
from y7edge.nn.build import Model, anchors_in_pixels
from y7edge.postprocess import EVALUATION, Criteria, Postprocessor
from y7edge.preprocess import Preprocessor


class ModelDetector:
    """Detects with a torch module in evaluation mode, one picture at a time.

    Args:
        model: on the device to use; anchors and strides are taken from it.
        names: class names.
        imgsz: side of the square input, pixels.
        criteria: which boxes to keep.
    """

    def __init__(
        self, model: Model, names: Sequence[str], imgsz: int, criteria: Criteria = EVALUATION
    ) -> None:
        self._model = model
        self._names = tuple(names)
        self._criteria = criteria
        self._preprocess = Preprocessor(imgsz, imgsz)
        levels = zip(model.spec.strides, anchors_in_pixels(model), strict=True)
        self._postprocess = Postprocessor(
            [LevelInfo(stride, anchors) for stride, anchors in levels], model.spec.nc
        )

    @torch.inference_mode()
    def __call__(self, frame: NDArray[np.uint8]) -> Detections:
        """Detections in a BGR picture (H, W, 3) uint8, in its pixels."""
        geometry = self._preprocess(frame)
        device = self._model.head.anchors.device
        heads = self._model(torch.from_numpy(self._preprocess.tensor).to(device))
        # (B, A, H, W, 5 + nc) back to the layout in which a convolution leaves it.
        planes = [head.permute(0, 1, 4, 2, 3).flatten(1, 2).cpu().numpy() for head in heads]
        (boxes,) = self._postprocess.heads(planes, self._criteria)
        return Detections(
            xyxy=geometry.to_source(boxes.xyxy),
            confidence=boxes.score,
            class_id=boxes.class_id,
            image_size=(frame.shape[1], frame.shape[0]),
            names=self._names,
        )


class Validation:
    """The pictures that a run is judged by.

    Attributes:
        samples: pictures and labels.
        names: class names.
        imgsz: side of the square input, pixels.
    """

    def __init__(self, samples: Sequence[Sample], names: Sequence[str], imgsz: int) -> None:
        self.samples = tuple(samples)
        self.names = tuple(names)
        self.imgsz = imgsz

    def __call__(self, model: Model) -> Metrics:
        """Average precision of a model in evaluation mode."""
        return evaluate(ModelDetector(model, self.names, self.imgsz), self.samples, self.names)
