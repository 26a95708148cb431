"""Compute average precision and recall as defined by COCO, with faster-coco-eval.

Precision is sampled at 101 recall points and at IoU 0.50 to 0.95 in steps of 0.05. Small objects
have up to 32 x 32 pixels of the source image, large ones from 96 x 96. The area of an object is
that of its box (COCO uses that of its polygon). Crowd regions are not counted as missed objects,
and detections in them are not counted as false.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from y7edge.errors import needing
from y7edge.evaluation.tables import Tables

SMALL, LARGE = 32.0**2, 96.0**2
"""Limits of the area of medium objects, in square pixels."""

COUNTS = (1, 10, 100, 300)
"""Limits of boxes per image and class at which recall is computed; COCO's largest is 100."""

SIZES = ("all", "small", "medium", "large")
_AREAS = ((0.0, 1e10), (0.0, SMALL), (SMALL, LARGE), (LARGE, 1e10))


@dataclass(frozen=True, slots=True, eq=False)
class Averages:
    """Arrays of precision and recall; -1 if a class has no labels."""

    precision: NDArray[np.float64]  # (10 IoU, 101 recall, classes, ``SIZES``), at 300 boxes
    recall: NDArray[np.float64]  # (10 IoU, classes, ``SIZES``, ``COUNTS``)

    def mean_precision(self, size: str = "all") -> float | None:
        """Return the mean over IoU, recall and classes; None if no objects have this size."""
        return _mean(self.precision[..., SIZES.index(size)])

    def mean_recall(self, count: int = 300, size: str = "all") -> float | None:
        """Return the mean over IoU and classes; None if no objects have this size."""
        return _mean(self.recall[:, :, SIZES.index(size), COUNTS.index(count)])


def averages(tables: Tables, classes: int) -> Averages:
    """Compute precision and recall; ``classes`` is the number of classes.

    Raises:
        RuntimeMissing: faster-coco-eval is not installed.
    """
    with needing("faster-coco-eval", "eval", "evaluation"):
        from faster_coco_eval import COCO, COCOeval_faster
    reference = COCO(_annotations(tables, classes))
    # loadRes rejects an empty list; an empty box of score 0 does not change the result.
    found = tables.found if len(tables.found) else np.zeros((1, 7))
    coco = COCOeval_faster(reference, reference.loadRes(found), iouType="bbox")
    coco.params.maxDets = list(COUNTS)
    coco.params.areaRng, coco.params.areaRngLbl = [list(area) for area in _AREAS], list(SIZES)
    coco.evaluate()
    coco.accumulate()
    # summarize() is not called: it works only with a limit of 100 boxes.
    precision = np.asarray(coco.eval["precision"], np.float64)[..., -1]
    return Averages(precision, np.asarray(coco.eval["recall"], np.float64))


def _annotations(tables: Tables, classes: int) -> dict[str, object]:
    annotations = [
        {
            "id": number,  # from 1, since 0 means "no match" in COCO's code
            "image_id": int(image),
            "category_id": int(class_id),
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": int(crowd),
        }
        for number, (image, class_id, *box, crowd) in enumerate(tables.truth.tolist(), 1)
    ]
    return {
        "images": [{"id": index} for index in range(tables.images)],
        "categories": [{"id": index, "name": str(index)} for index in range(classes)],
        "annotations": annotations,
    }


def _mean(values: NDArray[np.float64]) -> float | None:
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else None
