"""In which form the boxes of a whole set are written, where it is not the one they should have.

Four numbers say nothing about what they are. A set says it: read in the right form its boxes lie
within their pictures, read in a wrong one many stick out, all towards one side.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from y7edge.data.formats.records import Label, Picture, Reading, Scan

_WORDS = {
    "centre": "centre x, centre y, width, height",
    "corners": "corners x1 y1 x2 y2",
    "top_left": "left, top, width, height",
}
_WANTED = {"yolo": "centre", "voc": "corners", "coco": "top_left"}
# Where numbers have names, `xmax` for a width is what programs get wrong. Corners exchanged in all
# boxes may look like centres and sizes, so that is never certain.
_OTHERS = {"centre": ("top_left",), "top_left": ("centre",), "corners": ("top_left", "centre")}
_LOOSE = 0.01
# Labels that are merely drawn with a loose hand do not leave their picture this far, in numbers.
_FAR, _FAR_IN_FILE = 0.1, 0.04
_FEW, _ENOUGH, _MANY = 4, 8, 20
_MOST = 0.5

Rows = NDArray[np.float64]
Entry = tuple[Picture, Label]


def settle(scan: Scan) -> None:
    """Find what is written in another form; convert it where a whole set leaves no doubt.

    Converted labels get their numbers anew (their text stays); pictures whose labels may be either
    are marked as lost.
    """
    groups: dict[Path, list[Entry]] = defaultdict(list)
    for picture, label in scan.labels():
        if _row(picture, label) is not None and label.class_id is not None:
            key = label.file if scan.layout == "coco" else label.file.parent
            groups[key].append((picture, label))
    wanted = _WANTED[scan.layout]
    found = {place: _form(_rows(entries), wanted) for place, entries in groups.items()}
    sure = {form for form, certain in found.values() if certain}
    for place, entries in groups.items():
        form, certain = found[place]
        if not form and len(sure) == 1 and _follows(_rows(entries), wanted, min(sure)):
            form, certain = min(sure), True
        if form:
            _take(
                scan, place, entries, Reading(place, None, _WORDS[form], 0, len(entries), certain)
            )
            for _, label in entries if certain else ():
                label.values = _converted(label.values or (), form, wanted)
                label.mended = f"read as {_WORDS[form]}"
        elif wanted == "centre":
            _take_files(scan, entries)


def _follows(rows: Rows, wanted: str, form: str) -> bool:
    """Whether a split too small to tell by itself is as the others."""
    beyond = 1 - _fits(rows, wanted, _LOOSE).mean()
    return len(rows) < _MANY and beyond > 0 and bool(_fits(rows, form, _LOOSE).all())


def _rows(entries: Sequence[Entry]) -> Rows:
    return np.array([_row(*entry) for entry in entries])


def _row(picture: Picture, label: Label) -> tuple[float, ...] | None:
    """The four numbers of a label in shares of the picture; None if they mean no such thing."""
    values = label.values
    if label.form == "polygon" or values is None or len(values) != 4:
        return None
    if not all(map(math.isfinite, values)):
        return None
    size = picture.facts.size if label.form == "box" else picture.size
    if label.form == "box" and max(map(abs, values)) <= 4:
        return values
    if size is None or max(map(abs, values)) <= 1:
        return None
    return tuple(value / side for value, side in zip(values, (*size, *size), strict=True))


def _fits(rows: Rows, form: str, slack: float) -> NDArray[np.bool_]:
    """Which boxes lie within their picture, read in a form."""
    first, second = rows[:, :2], rows[:, 2:]
    low, high = first, first + second
    if form == "corners":
        high = second
    elif form == "centre":
        low, high = first - second / 2, first + second / 2
    inside = (low >= -slack) & (high <= 1 + slack) & (high > low)
    return np.asarray(inside.all(axis=1))


def _form(rows: Rows, wanted: str) -> tuple[str, bool]:
    """The form that a set is in, if not the one wanted (else empty), and whether it is certain."""
    count = len(rows)
    far = 1 - _fits(rows, wanted, _FAR).mean()
    fitting = _fits(rows, "corners", _LOOSE).mean()
    least = 0.1 if count >= _MANY else 0.3
    if wanted != "corners" and count >= _FEW and far >= least and fitting >= 0.9:
        return "corners", bool(fitting == 1 and count >= _ENOUGH)
    beyond = 1 - _fits(rows, wanted, _LOOSE).mean()
    if wanted == "corners" and beyond < _MOST:
        return "", False  # corners exchanged in a part of the boxes, which any form may fit
    for other in _OTHERS[wanted]:
        fitting = _fits(rows, other, _LOOSE).mean()
        if count >= _MANY and beyond >= 0.1 and fitting >= 0.97:
            sure = fitting == 1 and beyond >= 0.15 and (wanted, other) != ("corners", "centre")
            return other, bool(sure)
    return "", False


def _converted(values: tuple[float, ...], form: str, wanted: str) -> tuple[float, ...]:
    a, b, c, d = values
    if form == "corners":
        c, d = c - a, d - b
    elif form == "centre":
        a, b = a - c / 2, b - d / 2
    if wanted == "corners":
        return (a, b, a + c, b + d)
    return (a + c / 2, b + d / 2, c, d) if wanted == "centre" else (a, b, c, d)


def _take(scan: Scan, place: Path, entries: list[Entry], reading: Reading) -> None:
    wanted = _WANTED[scan.layout]
    rows = _rows(entries)
    beyond = int((~_fits(rows, wanted, _LOOSE)).sum())
    scan.readings.append(reading._replace(beyond=beyond))
    if not reading.certain:
        for picture, _ in entries:
            picture.lost = f"its labels may be {reading.form}"


def _take_files(scan: Scan, entries: list[Entry]) -> None:
    """Single files of corners among others; an error where they are the most."""
    files: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        files[id(entry[0])].append(entry)
    several = [group for group in files.values() if len(group) >= 2]
    found = []
    for group in several:
        rows = _rows(group)
        far = 1 - _fits(rows, "centre", _FAR_IN_FILE).mean()
        if far >= 0.5 and _fits(rows, "corners", _LOOSE).all():
            found.append(group)
    for group in found:
        picture = group[0][0]
        most = 2 * len(found) >= len(several) and len(found) >= _FEW
        reading = Reading(group[0][1].file, picture, _WORDS["corners"], 0, len(group), False, most)
        _take(scan, picture.path, group, reading)
