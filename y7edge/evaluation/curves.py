"""Compute precision, recall and F1 over the confidence threshold, and the best threshold.

All values are at IoU 0.5, over all images. Detections are matched as in COCO: in order of
confidence, each takes the unmatched object of its class with the largest IoU. The best threshold
has the highest F1, averaged over the classes with labels. It is saved in the checkpoint. Detectors
that are exported from the checkpoint use it by default.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from y7edge.evaluation.tables import Tables, overlaps

IOU = 0.5
THRESHOLDS = np.arange(1000) / 1000  # of confidence; detections above the threshold are kept

_WRONG, _RIGHT, _IGNORED = 0, 1, -1


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """Curves of each class over ``THRESHOLDS``; rows of classes without labels are NaN."""

    precision: NDArray[np.float64]  # (classes, 1000); NaN if no detection is above the threshold
    recall: NDArray[np.float64]  # (classes, 1000)
    f1: NDArray[np.float64]  # (classes, 1000); 0 if no detection is above the threshold
    by_recall: NDArray[np.float64]  # (classes, 101): monotone precision at recall 0, 0.01, ... 1

    @property
    def best(self) -> int | None:
        """Index of the best threshold; None if F1 is 0 everywhere.

        If several neighbouring thresholds are equally good, the middle one is the best.
        """
        mean = self.mean("f1")
        top = int(mean.argmax())
        if not mean[top] > 0:
            return None
        worse = np.flatnonzero(mean[top:] < mean[top])
        plateau = int(worse[0]) if len(worse) else len(mean) - top
        return top + (plateau - 1) // 2

    def mean(self, name: str) -> NDArray[np.float64]:
        """Return the mean of a curve over the classes that are not NaN; NaN if there are none."""
        values: NDArray[np.float64] = getattr(self, name)
        known = np.isfinite(values)
        count = known.sum(axis=0)
        total = np.where(known, values, 0).sum(axis=0)
        return np.asarray(np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0))


def curves(tables: Tables, classes: int, by_recall: NDArray[np.float64]) -> Curves:
    """Compute the curves; ``by_recall`` (101, classes) is -1 for classes without labels."""
    verdict = verdicts(tables)
    counted = verdict != _IGNORED
    confidence, class_id = tables.found[counted, 5], tables.found[counted, 6].astype(int)
    right = verdict[counted] == _RIGHT
    objects = tables.truth[tables.truth[:, 6] == 0, 1].astype(int)
    labels = np.bincount(objects, minlength=classes)
    precision, recall, f1 = (np.full((classes, len(THRESHOLDS)), np.nan) for _ in range(3))
    for index in np.flatnonzero(labels):
        own = class_id == index
        kept = _above(confidence[own])
        hits = _above(confidence[own & right])
        some = kept > 0
        precision[index, some] = hits[some] / kept[some]
        recall[index] = hits / labels[index]
        f1[index] = 2 * hits / (kept + labels[index])
    by_recall = np.where(by_recall > -1, by_recall, np.nan).T
    return Curves(precision, recall, f1, by_recall)


def verdicts(tables: Tables) -> NDArray[np.int8]:
    """Return for each detection: 1 correct, 0 false, -1 ignored (in a crowd of its class)."""
    verdict = np.zeros(len(tables.found), np.int8)
    for overlap in overlaps(tables):
        same = tables.found[overlap.found, 6][:, None] == tables.truth[overlap.truth, 1][None]
        fits = same & (overlap.iou >= IOU)
        crowd = tables.truth[overlap.truth, 6] > 0
        free = np.where(fits & ~crowd, overlap.iou, 0.0)
        for row in np.flatnonzero(free.any(axis=1)):  # best detection first
            column = int(free[row].argmax())
            if free[row, column] > 0:
                verdict[overlap.found[row]] = _RIGHT
                free[:, column] = 0
        in_crowd = overlap.found[(fits & crowd).any(axis=1)]
        verdict[in_crowd[verdict[in_crowd] == _WRONG]] = _IGNORED
    return verdict


def _above(confidence: NDArray[np.float64]) -> NDArray[np.intp]:
    """Count the confidences above each threshold."""
    return len(confidence) - np.searchsorted(np.sort(confidence), THRESHOLDS, side="right")
