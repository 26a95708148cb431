"""Average precision and recall as COCO defines them, by faster-coco-eval.

101 recall points, IoU 0.50 to 0.95 in steps of 0.05; small is up to 32 x 32 pixels of the source
picture, large from 96 x 96. An object's area is that of its box: COCO's own figures by size use
the area of the outline, which readers of boxes don't have. Crowd regions are ignored: neither
missing them nor finding something in them counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from y7edge.errors import needing
from y7edge.evaluation.tables import Tables

SMALL, LARGE = 32.0**2, 96.0**2
"""Areas where medium begins and ends, square pixels."""

COUNTS = (1, 10, 100, 300)
"""Best boxes of a picture and class that are looked at; 300 is our protocol, COCO's ends at 100."""

SIZES = ("all", "small", "medium", "large")
_AREAS = ((0.0, 1e10), (0.0, SMALL), (SMALL, LARGE), (LARGE, 1e10))


@dataclass(frozen=True, slots=True, eq=False)
class Averages:
    """Precision and recall by IoU, class, size and count; -1 where a class has no labels.

    Attributes:
        precision: (10 IoU, 101 recall, classes, 4 ``SIZES``) float64, at 300 boxes.
        recall: (10 IoU, classes, 4 ``SIZES``, 4 ``COUNTS``) float64.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]

    def mean_precision(self, size: str = "all") -> float | None:
        """Mean over IoU, recall and classes; None if no object has that size."""
        return _mean(self.precision[..., SIZES.index(size)])

    def mean_recall(self, count: int = 300, size: str = "all") -> float | None:
        """Mean over IoU and classes; None if no object has that size."""
        return _mean(self.recall[:, :, SIZES.index(size), COUNTS.index(count)])


def averages(tables: Tables, classes: int) -> Averages:
    """Compare what was found with what was labelled.

    Raises:
        RuntimeMissing: faster-coco-eval is not installed.
    """
    with needing("faster-coco-eval", "eval", "evaluation"):
        from faster_coco_eval import COCO, COCOeval_faster
    if not len(tables.found):
        return _nothing_found(tables, classes)
    reference = COCO(_annotations(tables, classes))
    judge = COCOeval_faster(reference, reference.loadRes(tables.found), iouType="bbox")
    judge.params.maxDets = list(COUNTS)
    judge.params.areaRng, judge.params.areaRngLbl = [list(area) for area in _AREAS], list(SIZES)
    judge.evaluate()
    judge.accumulate()
    # Not its summary, which looks for COCO's 100 detections.
    precision = np.asarray(judge.eval["precision"], np.float64)[..., -1]
    return Averages(precision, np.asarray(judge.eval["recall"], np.float64))


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


def _nothing_found(tables: Tables, classes: int) -> Averages:
    """Zero where there was something to find; the judge takes no empty list."""
    objects = tables.truth[tables.truth[:, 6] == 0]
    area = objects[:, 4] * objects[:, 5]
    value = np.full((classes, len(SIZES)), -1.0)
    for index, (low, high) in enumerate(_AREAS):
        within = (area >= low) & (area <= high)
        value[np.unique(objects[within, 1]).astype(int), index] = 0.0
    precision = np.broadcast_to(value, (10, 101, *value.shape)).copy()
    recall = np.broadcast_to(value[:, :, None], (10, *value.shape, len(COUNTS))).copy()
    return Averages(precision, recall)


def _mean(values: NDArray[np.float64]) -> float | None:
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else None
