"""Box arithmetic in numpy: conversions, intersections, and non-maximum suppression (NMS).

NMS is greedy, exact and deterministic. Boxes are visited in descending order of score; boxes with
equal scores keep their order. Each kept box removes the later boxes of the same class whose IoU
with the kept box is above the threshold. Class ids are compared directly. (The published code
shifts boxes by class id x 4096 pixels instead, which fails for larger images.)

Three methods make NMS fast in numpy:

* Only pairs of boxes that can overlap are compared. Boxes are sorted by class and left side. Two
  boxes with an IoU above t must overlap in x. So the boxes that can overlap a box and begin to the
  right of it directly follow this box in the order.
* A few rounds over all pairs (better box, worse box) replace the loop over boxes. In each round, a
  box that is the better one in all of its remaining pairs is kept, and the worse boxes of these
  pairs are removed. A round decides at least the best remaining box, and usually nearly all boxes.
* Boxes are processed in blocks by score, until ``max_det`` boxes are kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_CANDIDATES = 30_000  # only the boxes with the best scores are used
_PER_CLASS = 256  # typical number of boxes of one class in a block
_BLOCK = 1024  # maximum number of boxes in a block
_SLACK = 1e-3  # pairs are selected by IoU > threshold - this, to allow for rounding errors


def corners(centre: NDArray[Any], size: NDArray[Any]) -> NDArray[Any]:
    """Convert centres (N, 2) and sizes (N, 2) to corner boxes (N, 4) x1, y1, x2, y2."""
    half = size / 2
    boxes = np.empty((len(half), 4), half.dtype)
    np.subtract(centre, half, out=boxes[:, :2])
    np.add(centre, half, out=boxes[:, 2:])
    return boxes


def centred(boxes: NDArray[Any]) -> NDArray[Any]:
    """Convert corner boxes (N, 4) to boxes (N, 4) centre x, centre y, width, height."""
    low, high = boxes[:, :2], boxes[:, 2:]
    return np.hstack(((low + high) / 2, high - low))


def intersections(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """Return the intersection areas (n, m) of corner boxes (n, 4) and (m, 4)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.asarray(np.maximum(high - low, 0).prod(axis=2))


def nms(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    classes: NDArray[np.int32],
    iou: float,
    max_det: int,
    *,
    agnostic: bool = False,
) -> NDArray[np.intp]:
    """Apply non-maximum suppression; return the indices of the kept boxes, best score first.

    Args:
        boxes: (N, 4) corners x1, y1, x2, y2.
        scores: (N,).
        classes: (N,) class of each box.
        iou: a box is removed if its IoU with a better kept box of the same class is greater.
        max_det: maximum number of boxes to keep.
        agnostic: compare boxes of different classes too.
    """
    order = best_first(scores, MAX_CANDIDATES)
    # To select rows, ``take`` is several times faster than indexing.
    candidates = _Candidates(boxes.take(order, axis=0), classes[order] * (not agnostic), iou)
    kept = np.empty(0, np.intp)
    step = candidates.block_size()
    for start in range(0, len(order), step):
        block = np.arange(start, min(start + step, len(order)))
        if len(kept):
            block = np.setdiff1d(block, candidates.suppressed_by(kept, block), assume_unique=True)
        kept = np.concatenate([kept, candidates.greedy(block)])
        if len(kept) >= max_det:
            break
    return order[kept[:max_det]]


def best_first(scores: NDArray[np.float32], limit: int) -> NDArray[np.intp]:
    """Return the indices of the ``limit`` highest scores, descending; ties keep their order."""
    if len(scores) <= limit:
        falling = -scores
        # Numpy's stable sort is several times slower than its default, and ties are rare.
        order = np.argsort(falling)
        ranked = falling[order]
        if (ranked[1:] == ranked[:-1]).any():
            return np.argsort(falling, kind="stable")
        return order
    # Partition first: unlike sorting, it takes linear time.
    worst = np.partition(scores, len(scores) - limit)[len(scores) - limit]
    enough = np.flatnonzero(scores >= worst)
    return enough[np.argsort(-scores[enough], kind="stable")[:limit]]


class _Candidates:
    """Boxes sorted by descending score: of two boxes, the one with the smaller index is better."""

    def __init__(
        self, boxes: NDArray[np.float32], classes: NDArray[np.int32], threshold: float
    ) -> None:
        self.left, self.top, self.right, self.bottom = np.ascontiguousarray(boxes.T)
        self.area = (self.right - self.left) * (self.bottom - self.top)
        self.classes = classes
        self.threshold = np.float32(threshold)
        # Of two boxes with an IoU above t, the right one begins before left + (1 - t) x width of
        # the left one. This is the reach of a box. The key combines class and left side in float64.
        left = self.left.astype(np.float64)
        reach = np.maximum(left + (self.right - left) * (1 - max(threshold - _SLACK, 0)), left)
        extent = reach.max(initial=0) - left.min(initial=0) + 1
        self.key = left + classes * extent
        self.reach = reach + classes * extent

    def block_size(self) -> int:
        """Return the number of boxes per block: about ``_PER_CLASS`` are of the largest class."""
        most = int(np.bincount(self.classes).max(initial=1))
        return min(_PER_CLASS * len(self.classes) // most, _BLOCK) or 1

    def greedy(self, block: NDArray[np.intp]) -> NDArray[np.intp]:
        """Apply greedy NMS to the indices ``block``; return the kept ones in ascending order."""
        order = block[np.argsort(self.key[block])]
        stops = np.searchsorted(self.key[order], self.reach[order], side="right")
        first, second = _runs(np.arange(1, len(order) + 1), stops)
        one, other = self._suppressing(order[first], order[second])
        better, worse = np.minimum(one, other), np.maximum(one, other)
        lost = np.zeros(len(self.key), np.bool_)
        while len(better):
            is_worse = np.zeros(len(self.key), np.bool_)
            is_worse[worse] = True
            wins = ~is_worse[better]
            lost[worse[wins]] = True
            if wins.all():
                break
            undecided = ~(wins | lost[better] | lost[worse])
            better, worse = better[undecided], worse[undecided]
        return block[~lost[block]]

    def suppressed_by(self, kept: NDArray[np.intp], block: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return the indices in ``block`` of boxes that a box in ``kept`` suppresses.

        An index occurs once for each box that suppresses it.
        """
        kept = kept[np.argsort(self.key[kept])]
        block = block[np.argsort(self.key[block])]
        # First the pairs where the kept box has the smaller or equal key, then all other pairs.
        i, j = _runs(
            np.searchsorted(self.key[block], self.key[kept], side="left"),
            np.searchsorted(self.key[block], self.reach[kept], side="right"),
        )
        m, k = _runs(
            np.searchsorted(self.key[kept], self.key[block], side="right"),
            np.searchsorted(self.key[kept], self.reach[block], side="right"),
        )
        one, other = np.concatenate([i, k]), np.concatenate([j, m])
        return self._suppressing(kept[one], block[other])[1]

    def _suppressing(
        self, one: NDArray[np.intp], other: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the pairs (one[i], other[i]) of equal class with an IoU above the threshold."""
        top, bottom = self.top, self.bottom
        height = np.minimum(bottom[one], bottom[other]) - np.maximum(top[one], top[other])
        # If most pairs do not overlap in y, drop them before their other values are looked up.
        near = (height > 0).nonzero()[0]
        if 2 * len(near) < len(height):
            one, other, height = one[near], other[near], height[near]
        left, right = self.left, self.right
        width = np.minimum(right[one], right[other]) - np.maximum(left[one], left[other])
        inter = np.maximum(width, 0) * np.maximum(height, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            iou = inter / (self.area[one] + self.area[other] - inter)
        hit = (iou > self.threshold) & (self.classes[one] == self.classes[other])
        return one[hit], other[hit]


def _runs(
    starts: NDArray[np.intp], stops: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return all pairs (i, j) with ``starts[i] <= j < stops[i]``."""
    counts = np.maximum(stops - starts, 0)
    which = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(counts) - counts
    return which, np.arange(len(which)) + np.repeat(starts - before, counts)
