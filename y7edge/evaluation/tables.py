"""Tables of labels and detections, and their overlaps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from y7edge.boxes import intersections

Table = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """Labels and detections of the same images; boxes are in pixels."""

    truth: Table  # (m, 7): image, class, left, top, width, height, crowd
    found: Table  # (n, 7): image, left, top, width, height, confidence, class
    images: int  # count of images; they are numbered from 0


@dataclass(frozen=True, slots=True, eq=False)
class Overlap:
    """The boxes of one image and their IoU."""

    truth: NDArray[np.intp]  # (t,) rows of ``Tables.truth``
    found: NDArray[np.intp]  # (f,) rows of ``Tables.found``, best first
    iou: NDArray[np.float64]  # (f, t); for a crowd, the fraction of the detection inside it


def overlaps(tables: Tables) -> Iterator[Overlap]:
    """Yield the overlaps of each image that has labels or detections."""
    truth, found = tables.truth, tables.found
    order = np.lexsort((-found[:, 5], found[:, 0]))
    labelled = np.argsort(truth[:, 0], kind="stable")
    numbers = np.arange(tables.images + 1)
    cuts_found = np.searchsorted(found[order, 0], numbers)
    cuts_truth = np.searchsorted(truth[labelled, 0], numbers)
    for image in range(tables.images):
        rows = order[cuts_found[image] : cuts_found[image + 1]]
        columns = labelled[cuts_truth[image] : cuts_truth[image + 1]]
        if len(rows) or len(columns):
            crowd = truth[columns, 6] > 0
            yield Overlap(columns, rows, _iou(found[rows, 1:5], truth[columns, 2:6], crowd))


def _iou(found: Table, truth: Table, crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return ``Overlap.iou`` for boxes given as left, top, width, height."""
    shared = intersections(_corners(found), _corners(truth))
    own, other = found[:, 2:].prod(axis=1)[:, None], truth[:, 2:].prod(axis=1)[None]
    union = np.where(crowd[None], own, own + other - shared)
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def _corners(rows: Table) -> Table:
    return np.hstack((rows[:, :2], rows[:, :2] + rows[:, 2:]))
