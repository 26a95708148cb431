"""Compute average precision and recall as defined by COCO, with faster-coco-eval.

101 recall points, IoU 0.50 to 0.95 in steps of 0.05; small is up to 32 x 32 pixels of the source
image, large from 96 x 96. An object's area is that of its box (COCO uses the outline's). Crowd
regions are ignored: neither misses of them nor detections in them count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from y7edge.errors import needing
from y7edge.evaluation.tables import Tables

SMALL, LARGE = 32.0**2, 96.0**2
"""Limits of medium areas, square pixels."""

COUNTS = (1, 10, 100, 300)
"""Numbers of boxes per image and class that are evaluated; COCO's largest is 100."""

SIZES = ("all", "small", "medium", "large")
_AREAS = ((0.0, 1e10), (0.0, SMALL), (SMALL, LARGE), (LARGE, 1e10))


@dataclass(frozen=True, slots=True, eq=False)
class Averages:
    """Precision and recall; -1 where a class has no labels."""

    precision: NDArray[np.float64]  # (10 IoU, 101 recall, classes, 4 ``SIZES``), at 300 boxes
    recall: NDArray[np.float64]  # (10 IoU, classes, 4 ``SIZES``, 4 ``COUNTS``)

    def mean_precision(self, size: str = "all") -> float | None:
        """Return the mean over IoU, recall and classes; None if no object has that size."""
        return _mean(self.precision[..., SIZES.index(size)])

    def mean_recall(self, count: int = 300, size: str = "all") -> float | None:
        """Return the mean over IoU and classes; None if no object has that size."""
        return _mean(self.recall[:, :, SIZES.index(size), COUNTS.index(count)])


def averages(tables: Tables, classes: int) -> Averages:
    """Compute precision and recall.

    Raises:
        RuntimeMissing: faster-coco-eval is not installed.
    """
    with needing("faster-coco-eval", "eval", "evaluation"):
        from faster_coco_eval import COCO, COCOeval_faster
    reference = COCO(_annotations(tables, classes))
    # An empty list is an error; an empty box of score 0 does not change the result.
    found = tables.found if len(tables.found) else np.zeros((1, 7))
    coco = COCOeval_faster(reference, reference.loadRes(found), iouType="bbox")
    coco.params.maxDets = list(COUNTS)
    coco.params.areaRng, coco.params.areaRngLbl = [list(area) for area in _AREAS], list(SIZES)
    coco.evaluate()
    coco.accumulate()
    # Without summarize(), which requires 100 boxes.
    precision = np.asarray(coco.eval["precision"], np.float64)[..., -1]
    return Averages(precision, np.asarray(coco.eval["recall"], np.float64))


def _annotations(tables: Tables, classes: int) -> dict[str, object]:
    annotations = [
        {
            "id": number,  # from 1: 0 means "no match" to COCO's code
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
