"""What is wrong with one label: its class, its numbers, its place in the picture."""

from __future__ import annotations

import math
from typing import NamedTuple

from y7edge.data.formats.coco import SAME_EXTENT, overlap
from y7edge.data.formats.records import Corners, Label, Picture, Scan
from y7edge.data.sample import NO_AREA, ROUNDING

_LEAST = 10  # of a picture so small, any box lies within the first pixels
# No rounding or sloppy box reaches this many picture sizes: such numbers are pixels.
_SURELY_PIXELS = 4.0
# In larger pictures labels up to 100 may be percent: those in pixels would mostly reach further.
_BEYOND_PERCENT = 128


class Grade(NamedTuple):
    """The first thing wrong with a label's numbers (empty: nothing), and where its box lies.

    ``box`` are corners in shares of the picture, mended where that is certain (pixels divided,
    a second division undone, corners put in order); None where there is nothing to draw.
    """

    fault: str
    box: Corners | None


def grade(label: Label, picture: Picture) -> Grade:
    """Judge the numbers of a label; its class is another matter."""
    values = label.values
    if label.class_id is None and label.form in ("box", "polygon"):
        return Grade("class", None)  # columns in another order: its numbers mean nothing
    if values is None:
        return Grade("number", None)
    if not all(map(math.isfinite, values)):
        return Grade("not_finite", None)
    if len(values) != 4 and label.form != "polygon":
        return Grade("columns", None)
    if label.form in ("box", "polygon"):
        return _shares(label, values, picture.facts.size)
    size = picture.size
    return Grade("", None) if size is None else _pixels(label, values, size)


def may_be_percent(scan: Scan) -> bool:
    """Whether the labels in pixels of a whole set might as well be percent."""
    sides, largest = [0], 0.0
    for picture, label in scan.labels():
        if grade(label, picture).fault == "pixels":
            largest = max(largest, *map(abs, label.values or ()))
            sides += picture.facts.size or ()
    return largest <= 100 and max(sides) > _BEYOND_PERCENT


def outline_disagrees(label: Label) -> bool:
    """Whether an outline that came with a box is that of something else, as training judges it."""
    if not label.hull or label.form != "sides" or not label.values or len(label.values) != 4:
        return False
    x, y, wide, high = label.values
    # A point that is no number makes the hull, and this, no number.
    return not overlap(label.hull, (x, y, x + wide, y + high)) >= SAME_EXTENT


def _shares(label: Label, values: tuple[float, ...], size: tuple[float, float] | None) -> Grade:
    largest = max(map(abs, values))
    if largest > _SURELY_PIXELS:
        return Grade("pixels", _divided(label, values, size))
    box = _corners(label, values)
    if label.form == "box" and min(values[2:]) < 0:
        return Grade("negative", _ordered(box))
    if _without_area(box):
        return Grade("no_area", box)
    if size is not None and min(size) >= _LEAST and box[2] <= 2 / size[0] and box[3] <= 2 / size[1]:
        wide, high = size
        mended = (box[0] * wide, box[1] * high, box[2] * wide, box[3] * high)
        # Whatever lies within the first pixel was divided by the picture's size once too often.
        if label.form == "box" and values[0] <= 1 / wide and values[1] <= 1 / high:
            return Grade("twice", mended)
    if _outside(box):
        return Grade("outside", box)
    if largest > 1 + ROUNDING or min(values) < -ROUNDING:
        return Grade("range", box)
    return Grade("sticks_out" if _sticks_out(box) else "", box)


def _pixels(label: Label, values: tuple[float, ...], size: tuple[float, float]) -> Grade:
    wide, high = size
    x1, y1, x2, y2 = values
    if label.form == "sides":
        x2, y2 = x1 + x2, y1 + y2
    box = (x1 / wide, y1 / high, x2 / wide, y2 / high)
    if x2 < x1 or y2 < y1:
        return Grade("negative", _ordered(box))
    if _without_area(box):
        return Grade("no_area", box)
    if min(size) >= _LEAST and x1 >= 0 and y1 >= 0 and x2 <= 1 + 1e-6 and y2 <= 1 + 1e-6:
        return Grade("twice", (x1, y1, x2, y2))
    if _outside(box):
        return Grade("outside", box)
    return Grade("sticks_out" if _sticks_out(box) else "", box)


def _corners(label: Label, values: tuple[float, ...]) -> Corners:
    if label.form == "polygon":
        xs, ys = values[0::2], values[1::2]
        return min(xs), min(ys), max(xs), max(ys)
    cx, cy, w, h = values
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def _divided(
    label: Label, values: tuple[float, ...], size: tuple[float, float] | None
) -> Corners | None:
    """Corners of a label in pixels, if they fit into the picture; else its numbers are lost."""
    if size is None:
        return None
    x1, y1, x2, y2 = _corners(label, values)
    box = (x1 / size[0], y1 / size[1], x2 / size[0], y2 / size[1])
    fits = min(box[:2]) > -0.02 and max(box[2:]) < 1.02 and not _without_area(box)
    return box if fits else None


def _ordered(box: Corners) -> Corners:
    return min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])


def _without_area(box: Corners) -> bool:
    return not (box[2] - box[0] > NO_AREA and box[3] - box[1] > NO_AREA)


def _outside(box: Corners) -> bool:
    return box[2] <= NO_AREA or box[3] <= NO_AREA or box[0] >= 1 - NO_AREA or box[1] >= 1 - NO_AREA


def _sticks_out(box: Corners) -> bool:
    return min(box) < -ROUNDING or max(box) > 1 + ROUNDING
