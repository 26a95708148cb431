"""Checks of labels that are valid but look wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.boxes import intersections
from y7edge.data.check.registry import Checks, Hit, at
from y7edge.data.check.splits import nearly_same
from y7edge.data.formats.geometry import clip
from y7edge.data.formats.records import Corners, Entry, Scan, Severity

CHECKS = Checks()

_NEAR = 0.95  # IoU
_FULL = 0.98  # fraction of each side of the image
_MOST_PAIRS = 20_000_000  # pairs of boxes that are compared in one image
_STRIDE = 8  # of the finest level, in pixels


@CHECKS.add("overlap", "info", "boxes nearly equal to another box")
def _overlap(scan: Scan) -> Iterator[Hit]:
    for entry in scan.entries:
        # The parser reports exact duplicates.
        unique = {(x.kind, x.values): x for x in reversed(entry.labels) if not x.crowd}
        kept = [(x, x.box) for x in reversed(unique.values()) if x.sound and x.box]
        if len(kept) < 2:
            continue
        boxes = np.array([box for _, box in kept])
        if len(boxes) * _windows(boxes)[1].max() > _MOST_PAIRS:
            words = f"has {len(boxes)} boxes: too many close together to compare all of them"
            yield at(entry, kept[0][0], words)._replace(line=0)
        for first, second, overlap in _covering(boxes):
            (one, _), (other, box) = kept[first], kept[second]
            same = one.kind == other.kind
            words = f"overlaps {one.place} with IoU {overlap:.3f}, "
            severity: Severity = "info"
            if same:
                words += "same class: one object labelled twice?"
            else:
                names = [x.raw_class if x.class_id is None else scan.name_of(x.class_id)
                         for x in (other, one)]  # fmt: skip
                words += f"as {' and '.join(names)}: one object labelled as both?"
                severity = "warning" if overlap > 0.999 else "info"
            yield at(entry, other, words, box)._replace(severity=severity)


def _covering(boxes: NDArray[np.float64]) -> Iterator[tuple[int, int, float]]:
    """Yield near duplicates among boxes (n, 4): the index of a box, of a later box, and their IoU.

    Each later box is returned at most once, with its first near duplicate.
    """
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    order, counts, starts, slack = _windows(boxes)
    for index in np.nonzero(counts > 1)[0]:
        near = order[starts[index] : starts[index] + min(counts[index], _MOST_PAIRS // len(boxes))]
        near = near[near < index]
        near = near[np.abs(boxes[near, 1] - boxes[index, 1]) <= slack[index, 1]]
        if not len(near):
            continue
        shared = intersections(boxes[near], boxes[index, None])[:, 0]
        ious = shared / np.maximum(area[near] + area[index] - shared, 1e-12)
        if (ious > _NEAR).any():
            first = int(near[ious > _NEAR].min())
            yield first, int(index), float(ious[near == first][0])


def _windows(boxes: NDArray[np.float64]) -> tuple[NDArray[Any], ...]:
    """Return arrays ``order, counts, starts, tolerances`` to find near duplicates of each box.

    ``order`` sorts the boxes by their left edges. Compare box i only with ``counts[i]`` boxes in
    this order, from index ``starts[i]``: the left edges of all others are too far away for an IoU
    above `_NEAR`. ``tolerances`` (n, 2) are the largest distances of left and of upper edges.
    """
    order = np.argsort(boxes[:, 0], kind="stable")
    lefts = boxes[order, 0]
    slack = (1 / _NEAR - 1) * (boxes[:, 2:] - boxes[:, :2]) + 1e-12
    starts = np.searchsorted(lefts, boxes[:, 0] - slack[:, 0], "left")
    ends = np.searchsorted(lefts, boxes[:, 0] + slack[:, 0], "right")
    return order, ends - starts, starts, slack


@CHECKS.add("sliver", "warning", "boxes narrower than one pixel of their image")
def _sliver(scan: Scan) -> Iterator[Hit]:
    for entry, label in scan.labels():
        if not label.sound or not label.box or not entry.size:
            continue
        wide, high = _sides(label.box, entry.size)
        if min(wide, high) < 1 - 1e-3:
            words = f"is {wide:.1f} x {high:.1f} pixels: drawn by mistake?"
            yield at(entry, label, words, label.box)


@CHECKS.add("whole_image", "info", "boxes that cover the whole image")
def _whole_image(scan: Scan) -> Iterator[Hit]:
    for entry, label in scan.labels():
        if label.box and label.sound:
            x1, y1, x2, y2 = clip(label.box)
            if min(x2 - x1, y2 - y1) >= _FULL:
                words = f"covers the whole image: '{label.text[:60]}'; is it a placeholder?"
                yield at(entry, label, words, label.box)


@CHECKS.add("mixed_lines", "info", "label files with boxes and polygons",
       "each line remains a box or polygon")  # fmt: skip
def _mixed_lines(scan: Scan) -> Iterator[Hit]:
    for entry in scan.entries:
        forms = {label.form for label in entry.labels}
        if {"box", "polygon"} <= forms:
            words = "contains boxes and polygons; some tools read all lines as polygons"
            yield at(entry, entry.labels[0], words)._replace(line=0)


@CHECKS.add("same_labels", "warning", "different images with the same labels")
def _same_labels(scan: Scan) -> Iterator[Hit]:
    seen: dict[object, Entry] = {}
    for entry in scan.entries:
        rows = sorted((x.raw_class, x.values) for x in entry.labels if x.values)
        if len(rows) < 2 or entry.label_file is None:
            continue
        other = seen.setdefault(tuple(rows), entry)
        same_file = other.label_file == entry.label_file and scan.layout != "coco"
        if other is entry or same_file or other.facts.digest == entry.facts.digest:
            continue
        if nearly_same(other, entry):
            continue  # frames of one scene may have the same labels
        words = (
            f"has the same {len(rows)} labels as {other.path.name}, which is a different image: "
            "copied by mistake?"
        )
        yield Hit(words, entry.label_file, image=entry.path, other=other.path)


def _sides(box: Corners, size: tuple[float, float]) -> tuple[float, float]:
    """Return the width and height of a normalized box in pixels of an image of this size."""
    return (box[2] - box[0]) * size[0], (box[3] - box[1]) * size[1]


@CHECKS.add("small", "info", f"boxes smaller than the network's finest stride ({_STRIDE} pixels)")
def _small(scan: Scan) -> Iterator[Hit]:
    for entry in scan.entries:
        size = entry.size
        if size is None:
            continue
        gain = scan.imgsz / max(size)
        sides = [(min(_sides(x.box, size)) * gain, x) for x in entry.labels if x.box and x.sound]
        small = [(side, label) for side, label in sides if side < _STRIDE]
        if small:
            side, label = min(small, key=lambda found: found[0])
            words = (
                f"{len(small)} of {len(entry.labels)} boxes have a side below {_STRIDE} pixels at "
                f"imgsz {scan.imgsz} (smallest {side:.1f}) and are hard to learn; increase imgsz"
            )
            yield at(entry, label, words, label.box)
