"""Tables of boxes, the common form of labels and detections here, and what overlaps what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from y7edge.boxes import intersections

Table = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """What people labelled and what a detector found in the same pictures.

    Attributes:
        truth: (m, 7) float64: image, class, left, top, width, height, crowd. Images are numbered
            from 0, boxes are in pixels of the picture. Crowd is 1 for a region with more objects
            than were labelled, else 0.
        found: (n, 7) float64: image, left, top, width, height, confidence, class.
        images: count of pictures.
    """

    truth: Table
    found: Table
    images: int


@dataclass(frozen=True, slots=True, eq=False)
class Overlap:
    """The boxes of one picture that were labelled and found, and their IoU.

    Attributes:
        truth: (t,) rows of ``Tables.truth``.
        found: (f,) rows of ``Tables.found``, best first.
        iou: (f, t) float64; for a crowd region the share of the found box that lies in it, as COCO
            has it.
    """

    truth: NDArray[np.intp]
    found: NDArray[np.intp]
    iou: NDArray[np.float64]


def overlaps(tables: Tables) -> Iterator[Overlap]:
    """The overlaps within each picture, picture by picture."""
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
    """IoU (f, t) of boxes left, top, width, height; relative to the found box for crowds."""
    shared = intersections(_corners(found), _corners(truth))
    own, other = found[:, 2:].prod(axis=1)[:, None], truth[:, 2:].prod(axis=1)[None]
    union = np.where(crowd[None], own, own + other - shared)
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def _corners(rows: Table) -> Table:
    return np.hstack((rows[:, :2], rows[:, :2] + rows[:, 2:]))
