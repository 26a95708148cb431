"""Compute the confusion matrix.

Rows are true classes, columns are predicted classes. The last row and column are the background:
missed objects are counted in the last column, detections without an object in the last row.
Detections above a confidence are matched one to one with objects of any class at IoU above 0.45
(the published threshold), largest IoU first. If IoUs are equal, the larger confidence is first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.evaluation.tables import Tables, overlaps

IOU = 0.45
CONF = 0.25  # the published threshold
BACKGROUND = "background"


@dataclass(frozen=True, slots=True, eq=False)
class Confusion:
    """The confusion matrix, with the names of its classes."""

    matrix: NDArray[np.int64]  # (classes + 1, classes + 1) counts
    names: tuple[str, ...]  # without the background
    conf: float = CONF  # detections above it are counted

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of rows and columns."""
        return (*self.names, BACKGROUND)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "rows": "truth",
            "columns": "prediction",
            "labels": list(self.labels),
            "conf": self.conf,
            "iou": IOU,
            "matrix": self.matrix.tolist(),
        }


def confusion(tables: Tables, names: Sequence[str], conf: float = CONF) -> Confusion:
    """Match detections with objects, and count pairs, missed objects and false detections.

    ``conf``: detections above this confidence are counted.
    """
    background = len(names)
    matrix = np.zeros((background + 1, background + 1), np.int64)
    kept = Tables(tables.truth, tables.found[tables.found[:, 5] > conf], tables.images)
    for overlap in overlaps(kept):
        truth = kept.truth[overlap.truth, 1].astype(int)
        found = kept.found[overlap.found, 6].astype(int)
        crowd = kept.truth[overlap.truth, 6] > 0
        rows, columns = _pairs(overlap.iou * ~crowd)
        np.add.at(matrix, (truth[columns], found[rows]), 1)
        missed = np.setdiff1d(np.flatnonzero(~crowd), columns)
        np.add.at(matrix, (truth[missed], background), 1)
        in_crowd = (overlap.iou > IOU) & crowd & (found[:, None] == truth[None])
        alone = np.setdiff1d(np.flatnonzero(~in_crowd.any(axis=1)), rows)
        np.add.at(matrix, (background, found[alone]), 1)
    return Confusion(matrix, tuple(names), conf)


def _pairs(iou: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Match rows (detections, best first) with columns (objects); return the indices of both."""
    rows, columns = np.nonzero(iou > IOU)
    # A stable sort keeps equal IoUs in order of confidence.
    order = np.argsort(-iou[rows, columns], kind="stable")
    row_taken, column_taken = np.zeros(iou.shape[0], bool), np.zeros(iou.shape[1], bool)
    chosen = []
    for pair in order:
        row, column = rows[pair], columns[pair]
        if not (row_taken[row] or column_taken[column]):
            row_taken[row] = column_taken[column] = True
            chosen.append(pair)
    picked = np.array(chosen, np.intp)
    return rows[picked], columns[picked]
