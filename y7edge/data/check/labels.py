"""Checks of labels: lines, numbers, boxes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from y7edge.boxes import intersections
from y7edge.data.check.geometry import Grade, grade, may_be_percent, outline_disagrees
from y7edge.data.check.registry import Checks, Hit, Severity, at
from y7edge.data.check.splits import nearly_same
from y7edge.data.formats.records import RESPELLED, Corners, Label, Picture, Scan

CHECKS = Checks()

_DROPPED = "the label is left out"
_NEAR = 0.95
_FULL = 0.98
STRIDE = 8  # of the finest level

CHECKS.from_scanner(
    "annotation", "error", "annotations that cannot be read", "the picture is left out"
)
CHECKS.from_scanner("ids", "error", "ids that stand more than once", "written without ids")


def _graded(scan: Scan, fault: str) -> Iterator[tuple[Picture, Label, Grade]]:
    for picture, label in scan.labels():
        found = grade(label, picture)
        if found.fault == fault:
            yield picture, label, found


@CHECKS.add("columns", "error", "labels with the wrong count of numbers", _DROPPED)
def _columns(scan: Scan) -> Iterator[Hit]:
    for picture, label, _ in _graded(scan, "columns"):
        count = len(label.values or ())
        if label.form != "box":
            words = f"expected a box of 4 numbers, found {count}: '{label.text}'"
        else:
            words = (
                "expected 'class cx cy w h' or 'class x1 y1 x2 y2 x3 y3 ...', found "
                f"{count + 1} columns: '{label.text[:60]}'"
            )
            if count == 5:
                words += "; a sixth column is mostly a confidence: these are predictions"
        yield at(picture, label, words)


@CHECKS.add("number", "error", "labels with something that is no number", _DROPPED)
def _number(scan: Scan) -> Iterator[Hit]:
    for picture, label, _ in _graded(scan, "number"):
        hint = "; numbers need a point and spaces between them" if "," in label.text else ""
        yield at(picture, label, f"expected numbers, found '{label.text[:60]}'{hint}")


@CHECKS.add("not_finite", "error", "labels that are NaN or infinite", _DROPPED)
def _not_finite(scan: Scan) -> Iterator[Hit]:
    for picture, label, _ in _graded(scan, "not_finite"):
        yield at(picture, label, f"expected finite numbers, found '{label.text[:60]}'; remove it")


@CHECKS.add("pixels", "error", "labels in pixels, not in shares of the picture",
       "divided by the picture's size where that fits, else left out")  # fmt: skip
def _pixels(scan: Scan) -> Iterator[Hit]:
    unit = "percent or pixels" if may_be_percent(scan) else "pixels"
    for picture, labels, box in _by_file(scan, "pixels"):
        largest = max((abs(v) for label in labels for v in label.values or ()), default=0.0)
        size = picture.facts.size
        known = f" ({size[0]}x{size[1]})" if size else ""
        words = (
            f"{_count(labels)} up to {largest:g}, where shares from 0 to 1 are expected: {unit}? "
            f"Divide x and width by the picture's width, y and height by its height{known}"
        )
        yield at(picture, labels[0], words, box)


@CHECKS.add("twice", "error", "labels divided by the picture's size twice, or wrongly in shares",
       "multiplied by the picture's size")  # fmt: skip
def _twice(scan: Scan) -> Iterator[Hit]:
    for picture, labels, box in _by_file(scan, "twice"):
        words = (
            f"{_count(labels)} within the first pixel of the picture, as '{labels[0].text[:60]}': "
            "divided by its size once too often; multiply by width and height"
        )
        yield at(picture, labels[0], words, box)


def _by_file(scan: Scan, fault: str) -> Iterator[tuple[Picture, list[Label], Corners | None]]:
    """Faults that whole files have, once for each."""
    found: dict[int, list[tuple[Picture, Label, Grade]]] = defaultdict(list)
    for picture, label, graded in _graded(scan, fault):
        found[id(picture)].append((picture, label, graded))
    for group in found.values():
        yield group[0][0], [label for _, label, _ in group], group[0][2].box


def _count(labels: list[Label]) -> str:
    return "1 label" if len(labels) == 1 else f"{len(labels)} labels"


@CHECKS.add("negative", "error", "boxes with negative sizes or exchanged corners", "put in order")
def _negative(scan: Scan) -> Iterator[Hit]:
    for picture, label, found in _graded(scan, "negative"):
        words = f"width or height is negative (corners exchanged?): '{label.text[:60]}'; put right"
        yield at(picture, label, words, found.box)


@CHECKS.add("no_area", "error", "boxes without area", _DROPPED)
def _no_area(scan: Scan) -> Iterator[Hit]:
    for picture, label, found in _graded(scan, "no_area"):
        yield at(picture, label, f"the box has no area: '{label.text[:60]}'; remove it", found.box)


@CHECKS.add("outside", "error", "boxes wholly outside the picture", _DROPPED)
def _outside(scan: Scan) -> Iterator[Hit]:
    for picture, label, found in _graded(scan, "outside"):
        words = f"the box lies outside the picture: '{label.text[:60]}'; remove or correct it"
        yield at(picture, label, words, found.box)


@CHECKS.add("range", "error", "labels beyond 0 to 1", "clipped to the picture")
def _range(scan: Scan) -> Iterator[Hit]:
    for picture, label, found in _graded(scan, "range"):
        words = f"expected shares from 0 to 1, found '{label.text[:60]}'; correct or clip it"
        yield at(picture, label, words, found.box)


@CHECKS.add("sticks_out", "warning", "boxes sticking out of the picture", "clipped to the picture")
def _sticks_out(scan: Scan) -> Iterator[Hit]:
    for picture, label, found in _graded(scan, "sticks_out"):
        if found.box is None:
            continue
        beyond = max(-min(found.box), max(found.box) - 1)
        words = f"sticks out of the picture by {beyond:.1%} of its side: '{label.text[:60]}'"
        yield at(picture, label, f"{words}; clip it", found.box)


@CHECKS.add("outline", "warning", "outlines that disagree with their box", "the box is used")
def _outline(scan: Scan) -> Iterator[Hit]:
    for picture, label in scan.labels():
        found = grade(label, picture)
        if found.fault in ("", "sticks_out") and outline_disagrees(label):
            words = "its segmentation lies elsewhere than its box, which is used; correct one"
            yield at(picture, label, words, found.box)


@CHECKS.add("corners", "error", "boxes written in another form, as corners x1 y1 x2 y2",
       "converted where a whole set is so, else the pictures are left out")  # fmt: skip
def _corners(scan: Scan) -> Iterator[Hit]:
    for reading in scan.readings:
        words = (
            f"{reading.beyond} of {reading.boxes} boxes leave the picture, and "
            f"{'all' if reading.certain or reading.picture else 'nearly all'} would make sense as "
            f"{reading.form}: written in another form? Convert them"
        )
        words += "; they are taken for that here" if reading.certain else ""
        picture = reading.picture.path if reading.picture else None
        severity: Severity = "error" if reading.most else "warning"
        yield Hit(words, reading.place, picture=picture, severity=severity)


@CHECKS.add("separators", "error", "numbers with commas or semicolons",
       "written with points and spaces")  # fmt: skip
def _separators(scan: Scan) -> Iterator[Hit]:
    for picture in scan.pictures.values():
        labels = [label for label in picture.labels if label.mended == RESPELLED]
        if labels:
            words = f"{_count(labels)} with commas or semicolons, as '{labels[0].text[:60]}'"
            yield at(picture, labels[0], f"{words}; numbers need points and spaces between them")


@CHECKS.add("duplicate", "warning", "labels that stand twice", "kept once")
def _duplicate(scan: Scan) -> Iterator[Hit]:
    for picture in scan.pictures.values():
        seen: dict[object, Label] = {}
        for label in picture.labels:
            if label.values is None or not all(map(math.isfinite, label.values)):
                continue
            other = seen.setdefault((label.kind, label.values), label)
            if other is not label:
                words = f"repeats {other.place}: '{label.text[:60]}'; remove one"
                yield at(picture, label, words, grade(label, picture).box)


@CHECKS.add("overlap", "info", "boxes nearly the same as another")
def _overlap(scan: Scan) -> Iterator[Hit]:
    for picture in scan.pictures.values():
        # What stands twice is a duplicate, and said so.
        unique = {(x.kind, x.values): x for x in reversed(picture.labels) if not x.crowd}
        sound = [(x, grade(x, picture)) for x in reversed(unique.values())]
        kept = [(x, g.box) for x, g in sound if g.box and g.fault in ("", "sticks_out", "range")]
        if len(kept) < 2:
            continue
        for first, second, overlap in _covering(np.array([box for _, box in kept])):
            (one, _), (other, box) = kept[first], kept[second]
            same = one.kind == other.kind
            words = f"covers {one.place} with IoU {overlap:.3f}, "
            severity: Severity = "info"
            if same:
                words += "same class: one object labelled twice?"
            else:
                names = [_name(scan, label) for label in (one, other)]
                words += f"as {names[1]} and {names[0]}: one object labelled as both?"
                severity = "warning" if overlap > 0.999 else "info"
            yield at(picture, other, words, box)._replace(severity=severity)


def _name(scan: Scan, label: Label) -> str:
    return label.raw_class if label.class_id is None else scan.name_of(label.class_id)


def _covering(boxes: NDArray[np.float64]) -> Iterator[tuple[int, int, float]]:
    """Each box (n, 4) with the first one before it that it nearly covers, and their IoU.

    Only those are compared whose left and upper edges are so near that it can be.
    """
    order = np.argsort(boxes[:, 0], kind="stable")
    lefts = boxes[order, 0]
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    slack = (1 / _NEAR - 1) * (boxes[:, 2:] - boxes[:, :2]) + 1e-12
    starts = np.searchsorted(lefts, boxes[:, 0] - slack[:, 0], "left")
    ends = np.searchsorted(lefts, boxes[:, 0] + slack[:, 0], "right")
    for index in np.nonzero(ends - starts > 1)[0]:
        near = order[starts[index] : ends[index]]
        near = near[near < index]
        near = near[np.abs(boxes[near, 1] - boxes[index, 1]) <= slack[index, 1]]
        if not len(near):
            continue
        shared = intersections(boxes[near], boxes[index, None])[:, 0]
        ious = shared / np.maximum(area[near] + area[index] - shared, 1e-12)
        if (ious > _NEAR).any():
            first = int(near[ious > _NEAR].min())
            yield first, int(index), float(ious[near == first][0])


@CHECKS.add("sliver", "warning", "boxes thinner than one pixel of their picture")
def _sliver(scan: Scan) -> Iterator[Hit]:
    for picture, label in scan.labels():
        found, size = grade(label, picture), picture.facts.size
        if found.fault not in ("", "sticks_out", "range") or not found.box or not size:
            continue
        wide, high = _sides(found.box, size)
        if min(wide, high) < 1 - 1e-3:
            words = f"is {wide:.1f} x {high:.1f} pixels: a slip of the mouse?"
            yield at(picture, label, words, found.box)


@CHECKS.add("whole_picture", "info", "boxes that cover the whole picture")
def _whole_picture(scan: Scan) -> Iterator[Hit]:
    for picture, label in scan.labels():
        found = grade(label, picture)
        if found.box and found.fault in ("", "sticks_out", "range"):
            x1, y1, x2, y2 = (min(max(value, 0.0), 1.0) for value in found.box)
            if min(x2 - x1, y2 - y1) >= _FULL:
                words = f"covers the whole picture: '{label.text[:60]}'; an object, or a stopgap?"
                yield at(picture, label, words, found.box)


@CHECKS.add("mixed_lines", "info", "label files with boxes and polygons",
       "written line by line as they are")  # fmt: skip
def _mixed_lines(scan: Scan) -> Iterator[Hit]:
    for picture in scan.pictures.values():
        forms = {label.form for label in picture.labels}
        if {"box", "polygon"} <= forms:
            words = "holds lines of boxes and of polygons; some readers take all for polygons"
            yield at(picture, picture.labels[0], words)._replace(line=0)


@CHECKS.add("same_labels", "warning", "different pictures with the same labels")
def _same_labels(scan: Scan) -> Iterator[Hit]:
    seen: dict[object, Picture] = {}
    for picture in scan.pictures.values():
        rows = sorted((x.raw_class, x.values) for x in picture.labels if x.values)
        if len(rows) < 2 or picture.label_file is None:
            continue
        other = seen.setdefault(tuple(rows), picture)
        same_file = other.label_file == picture.label_file and scan.layout != "coco"
        if other is picture or same_file or other.facts.digest == picture.facts.digest:
            continue
        if nearly_same(other, picture):
            continue  # frames of one scene, which may well have the same labels
        words = (
            f"has the same {len(rows)} labels as {other.path.name}, but another picture: "
            "copied by mistake?"
        )
        yield Hit(words, picture.label_file, picture=picture.path, other=other.path)


def _sides(box: Corners, size: tuple[float, float]) -> tuple[float, float]:
    return (box[2] - box[0]) * size[0], (box[3] - box[1]) * size[1]


@CHECKS.add("small", "info", f"boxes smaller than a stride ({STRIDE} pixels) of the network")
def _small(scan: Scan) -> Iterator[Hit]:
    for picture in scan.pictures.values():
        size = picture.facts.size
        if size is None:
            continue
        gain = scan.imgsz / max(size)
        small: list[tuple[float, Label, Corners]] = []
        for label in picture.labels:
            found = grade(label, picture)
            if found.box and found.fault in ("", "sticks_out", "range"):
                side = min(_sides(found.box, size)) * gain
                if side < STRIDE:
                    small.append((side, label, found.box))
        if small:
            side, label, box = min(small, key=lambda entry: entry[0])
            words = (
                f"{len(small)} of {len(picture.labels)} boxes have a side below {STRIDE} pixels at "
                f"an input of {scan.imgsz} (least {side:.1f}): hard to learn; a larger --imgsz?"
            )
            yield at(picture, label, words, box)
