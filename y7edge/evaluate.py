"""Mean average precision of anything that detects: checkpoints and artifacts, on any engine.

The definition is COCO's (101 recall points, IoU 0.50 to 0.95 in steps of 0.05), computed by
faster-coco-eval, with up to 300 boxes a picture instead of COCO's 100. Needs no torch, so that an
artifact can be judged on the machine where it will run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.data.dataset import Sample
from y7edge.data.images import read_image
from y7edge.detections import Detections
from y7edge.errors import ConfigError, DataError, RuntimeMissing

MAX_DETECTIONS = 300
PROTOCOL = (
    "square letterbox, multi-label, confidence 0.001, NMS IoU 0.65, 300 boxes a picture, "
    "COCO average precision by faster-coco-eval"
)

Predict = Callable[[NDArray[np.uint8]], Detections]
"""A BGR picture (H, W, 3) uint8 in, detections in its pixels out; found as ``PROTOCOL`` says."""


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """One class: its average precision at IoU 0.5 and over 0.5 to 0.95, and its count of labels.

    A class without labels has no precision (None) and no part in the means.
    """

    name: str
    ap50: float | None
    ap50_95: float | None
    labels: int


@dataclass(frozen=True, slots=True)
class Metrics:
    """What an evaluation gave; means are over the classes that have labels."""

    map50: float
    map50_95: float
    map75: float
    per_class: tuple[ClassMetrics, ...]
    images: int
    labels: int
    protocol: str = PROTOCOL

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


def evaluate(
    predict: Predict,
    samples: Sequence[Sample],
    names: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
) -> Metrics:
    """Detect in all pictures and compare with their labels.

    Args:
        predict: The detector, set up as ``PROTOCOL`` says.
        samples: Pictures and labels.
        names: Class names of the data set.
        progress: Called after each picture with how many are done, and how many there are.

    Raises:
        DataError: A picture cannot be read, or there are no labels to compare with.
        ConfigError: The detector knows more classes than the data set.
        RuntimeMissing: faster-coco-eval is not installed.
    """
    truth = [np.empty((0, 6))]
    found = [np.empty((0, 7))]
    for index, sample in enumerate(samples):
        image = read_image(sample.path)
        truth.append(_truth_rows(index, sample, image.shape[0], image.shape[1]))
        found.append(_found_rows(index, predict(image), len(names)))
        if progress is not None:
            progress(index + 1, len(samples))
    return score(np.concatenate(truth), np.concatenate(found), len(samples), names)


def _truth_rows(index: int, sample: Sample, height: int, width: int) -> NDArray[np.float64]:
    boxes = sample.boxes.astype(np.float64) * (width, height, width, height)
    boxes[:, :2] -= boxes[:, 2:] / 2
    return np.column_stack((np.full(len(boxes), index), sample.class_id, boxes))


def _found_rows(index: int, detections: Detections, classes: int) -> NDArray[np.float64]:
    class_id = detections.class_id
    if len(class_id) and class_id.max() >= classes:
        raise ConfigError(
            f"the detector gave class {class_id.max()}, but the data set has {classes} classes; "
            "evaluate it on a data set with the classes that it was trained for"
        )
    boxes = detections.xyxy.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    rows = (np.full(len(boxes), index), boxes, detections.confidence, class_id)
    return np.column_stack(rows)


def score(
    truth: NDArray[np.float64], found: NDArray[np.float64], images: int, names: Sequence[str]
) -> Metrics:
    """Average precision from tables of boxes.

    Args:
        truth: (m, 6): image, class, left, top, width, height.
        found: (n, 7): image, left, top, width, height, confidence, class.
        images: Count of images, which are numbered from 0.
        names: Class names.

    Raises:
        DataError: No labels.
        RuntimeMissing: faster-coco-eval is not installed.
    """
    labels = np.bincount(truth[:, 1].astype(int), minlength=len(names))
    if not labels.any():
        raise DataError(f"expected labels to compare with, found none in {images} pictures")
    precision = _average_precision(truth, found, images, len(names))
    labelled = labels > 0
    mean = precision[:, labelled].mean(axis=1)
    per_class = tuple(
        ClassMetrics(
            name,
            float(precision[0, index]) if labelled[index] else None,
            float(precision[:, index].mean()) if labelled[index] else None,
            int(labels[index]),
        )
        for index, name in enumerate(names)
    )
    return Metrics(
        map50=float(mean[0]),
        map50_95=float(mean.mean()),
        map75=float(mean[5]),
        per_class=per_class,
        images=images,
        labels=int(labels.sum()),
    )


def _average_precision(
    truth: NDArray[np.float64], found: NDArray[np.float64], images: int, classes: int
) -> NDArray[np.float64]:
    """Average precision (10, classes) at the ten IoU thresholds; -1 for a class without labels."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise RuntimeMissing(
            'evaluation needs faster-coco-eval: pip install "y7edge[eval]"'
        ) from error
    if not len(found):
        return np.zeros((10, classes))
    annotations = [
        {
            "id": number,  # from 1: 0 means "no match" to COCO's code
            "image_id": int(image),
            "category_id": int(class_id),
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for number, (image, class_id, *box) in enumerate(truth.tolist(), 1)
    ]
    reference = COCO(
        {
            "images": [{"id": index} for index in range(images)],
            "categories": [{"id": index, "name": str(index)} for index in range(classes)],
            "annotations": annotations,
        }
    )
    judge = COCOeval_faster(reference, reference.loadRes(found), iouType="bbox")
    judge.params.maxDets = [MAX_DETECTIONS]
    judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
    judge.evaluate()
    judge.accumulate()
    # Not its summary, which looks for COCO's 100 detections: (IoU, recall, class, area, count).
    precision = np.asarray(judge.eval["precision"], np.float64)[..., 0, -1]
    return np.asarray(precision.mean(axis=1))
