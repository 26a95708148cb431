"""Detect data sets whose boxes are in a wrong format, such as corners instead of centre and size.

The four numbers of a single box may be valid in several formats. For a whole data set, the right
format is the one in which all boxes are inside their images.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from y7edge.data.formats.geometry import stated_size
from y7edge.data.formats.records import Entry, Label, Scan

_WORDS = {
    "centre": "centre x, centre y, width, height",
    "corners": "corners x1 y1 x2 y2",
    "top_left": "left, top, width, height",
}
_WANTED = {"yolo": "centre", "voc": "corners", "coco": "top_left"}
# For each right format, the formats that programs write instead. VOC boxes that seem to be centre
# and size may also be corners in the wrong order, so this case is never certain.
_OTHERS = {"centre": ("top_left",), "top_left": ("centre",), "corners": ("top_left", "centre")}
_LOOSE = 0.01  # fraction of the image by which boxes in the right format may stick out
# Boxes that stick out by more than this are in a wrong format: in a data set, in a single file.
_FAR, _FAR_IN_FILE = 0.1, 0.04
_FEW, _ENOUGH, _MANY = 4, 8, 20  # numbers of boxes that the rules below require

Rows = NDArray[np.float64]
Pair = tuple[Entry, Label]


def convert_forms(scan: Scan) -> None:
    """Find boxes that are not in the format that the layout (YOLO, COCO, VOC) requires.

    The boxes of a folder of label files (COCO: of one file) are examined together. If their
    format is certain, training refuses the labels, and ``data check --fix`` writes converted boxes.
    Otherwise the problem is only reported.
    """
    groups: dict[Path, list[Pair]] = defaultdict(list)
    for entry, label in scan.labels():
        if entry.frame is not None and entry.frame.turned:
            continue  # its labels may refer to the image as stored
        if label.class_id is not None and _row(entry, label) is not None:
            key = label.file if scan.layout == "coco" else label.file.parent
            groups[key].append((entry, label))
    wanted = _WANTED[scan.layout]
    found = {place: _form(_rows(pairs), wanted) for place, pairs in groups.items()}
    sure = {form for form, certain in found.values() if certain}
    for place, pairs in groups.items():
        form, certain = found[place]
        if not form and len(sure) == 1 and _follows(_rows(pairs), wanted, min(sure)):
            form, certain = min(sure), True
        if form:
            _note(scan, place, pairs, form, certain=certain)
            for _, label in pairs if certain else ():
                label.values = _converted(label.values or (), form, wanted)
                label.repaired = f"read as {_WORDS[form]}"
        elif wanted == "centre":
            _note_files(scan, pairs)


def _note(
    scan: Scan, place: Path, pairs: Sequence[Pair], form: str, *, certain: bool, file: bool = False
) -> None:
    """Record a problem: the boxes of a file or folder are probably in the format ``form``."""
    beyond = int((~_fits(_rows(pairs), _WANTED[scan.layout], _LOOSE)).sum())
    words = f"{beyond} of {len(pairs)} boxes stick out of their image; read as {_WORDS[form]}, "
    words += f"{'all' if certain or file else 'nearly all'} would fit: convert them"
    scan.problem(
        "corners",
        words,
        place,
        image=pairs[0][0].path if file else None,
        effect="refused" if certain else "advice",
        severity="warning" if file else "error",
        doubtful=not certain,
    )


def _follows(rows: Rows, wanted: str, form: str) -> bool:
    """Return whether a small group fits ``form``, as other groups do, and not ``wanted``."""
    beyond = 1 - _fits(rows, wanted, _LOOSE).mean()
    return len(rows) < _MANY and beyond > 0 and bool(_fits(rows, form, _LOOSE).all())


def _rows(pairs: Sequence[Pair]) -> Rows:
    return np.array([_row(*pair) for pair in pairs])


def _row(entry: Entry, label: Label) -> tuple[float, ...] | None:
    """Return the four numbers of a label, normalized; None if invalid, or if no scale is known."""
    values = label.values
    if label.form == "polygon" or values is None or len(values) != 4:
        return None
    if not all(map(math.isfinite, values)):
        return None
    size: tuple[float, float] | None = entry.size
    stated = stated_size(entry)
    if stated and (not size or abs(stated[0] * size[1] / (stated[1] * size[0]) - 1) < 0.01):
        size = stated
    if label.form == "box" and max(map(abs, values)) <= 4:
        return values
    if size is None or max(map(abs, values)) <= 1:
        return None
    return tuple(value / side for value, side in zip(values, (*size, *size), strict=True))


def _fits(rows: Rows, form: str, slack: float) -> NDArray[np.bool_]:
    """Return which boxes (n, 4) are inside their image if read in the format ``form``."""
    first, second = rows[:, :2], rows[:, 2:]
    low, high = first, first + second
    if form == "corners":
        high = second
    elif form == "centre":
        low, high = first - second / 2, first + second / 2
    inside = (low >= -slack) & (high <= 1 + slack) & (high > low)
    return np.asarray(inside.all(axis=1))


def _form(rows: Rows, wanted: str) -> tuple[str, bool]:
    """Return the format of the boxes (empty if probably ``wanted``), and whether it is certain."""
    count = len(rows)
    far = 1 - _fits(rows, wanted, _FAR).mean()
    fitting = _fits(rows, "corners", _LOOSE).mean()
    least = 0.1 if count >= _MANY else 0.3
    if wanted != "corners" and count >= _FEW and far >= least and fitting >= 0.9:
        return "corners", bool(fitting == 1 and count >= _ENOUGH)
    beyond = 1 - _fits(rows, wanted, _LOOSE).mean()
    if wanted == "corners" and beyond < 0.5:
        return "", False  # some boxes have exchanged corners, which may fit any format
    for other in _OTHERS[wanted]:
        fitting = _fits(rows, other, _LOOSE).mean()
        if count >= _MANY and beyond >= 0.1 and fitting >= 0.97:
            sure = fitting == 1 and beyond >= 0.15 and (wanted, other) != ("corners", "centre")
            return other, bool(sure)
    return "", False


def _converted(values: tuple[float, ...], form: str, wanted: str) -> tuple[float, ...]:
    """Convert the numbers of a box from the format ``form`` to the format ``wanted``."""
    a, b, c, d = values
    if form == "corners":
        c, d = c - a, d - b
    elif form == "centre":
        a, b = a - c / 2, b - d / 2
    if wanted == "corners":
        return (a, b, a + c, b + d)
    return (a + c / 2, b + d / 2, c, d) if wanted == "centre" else (a, b, c, d)


def _note_files(scan: Scan, pairs: Sequence[Pair]) -> None:
    """Record a problem for each file whose boxes are probably corners.

    It is a warning, or an error if this applies to at least half of the files.
    """
    files: dict[Path, list[Pair]] = defaultdict(list)
    for pair in pairs:
        files[pair[1].file].append(pair)
    several = [group for group in files.values() if len(group) >= 2]
    found = []
    for group in several:
        rows = _rows(group)
        far = 1 - _fits(rows, "centre", _FAR_IN_FILE).mean()
        if far >= 0.5 and _fits(rows, "corners", _LOOSE).all():
            found.append(group)
    most = 2 * len(found) >= len(several) and len(found) >= _FEW
    for group in found:
        _note(scan, group[0][1].file, group, "corners", certain=False, file=not most)
