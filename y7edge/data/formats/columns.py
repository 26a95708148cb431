"""Distinguish polygons from boxes with keypoints or extra columns in YOLO labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from y7edge.data.formats.records import Label, Points, Scan

_FEW = 3  # lines; the columns of fewer lines are not interpreted
_MANY = 8  # lines; fewer lines of one length are examined together with lines of other lengths
_MARGIN = 1e-3  # tolerance for rounded coordinates, as a fraction of the image


def classify_columns(scan: Scan) -> None:
    """Decide whether labels with more than four numbers are polygons or boxes.

    A single line may be either, so the labels of the whole data set are compared. For labels that
    are probably boxes with extra columns, ``fault`` is set to the reason, so that they are refused.
    With ``kpt_shape: [K, D]``, labels of 4 + K * D numbers are boxes whose keypoints are dropped;
    labels of other lengths above four are refused.
    """
    groups: dict[int, list[Label]] = defaultdict(list)
    for _, label in scan.labels():
        if label.values is not None and len(label.values) > 4:
            groups[len(label.values)].append(label)
    if scan.keypoints is not None:
        points, numbers = scan.keypoints
        for label in groups.pop(4 + points * numbers, ()):
            label.values, label.form = (label.values or ())[:4], "box"
            words = f"only the box is used, not its {points} keypoints"
            scan.problem("keypoints", words, label.file, label.line)
        for labels in groups.values():
            for label in labels:
                label.form, label.fault = "box", f"kpt_shape [{points}, {numbers}]"
        return
    rows = {
        count: np.array([*{label.values for label in labels}], np.float64)
        for count, labels in groups.items()
        if count % 2 == 0
    }
    whole = _further_points([*rows.values()]) if rows else ""
    for count, own in rows.items():
        held = _further_points([own]) if len(own) >= _MANY else whole
        reason = _further_columns(own, alone=len(groups) == 1) or held
        for label in groups[count] if reason else ():
            label.form, label.fault = "box", reason


def _begins_with_box(rows: Points) -> float:
    """Return the fraction of lines whose first four numbers are a box inside the image."""
    centre, half = rows[:, :2], rows[:, 2:4] / 2
    inside = (centre >= half - _MARGIN) & (centre <= 1 - half + _MARGIN) & (half > 0)
    return float(inside.all(axis=1).mean())


def _further_columns(rows: Points, *, alone: bool) -> str:
    """Return why lines of equal length may be boxes with extra columns; empty if probably polygons.

    ``alone``: all lines of the data set with more than four numbers have this length.
    """
    if not np.isfinite(rows).all():
        return ""
    head, tail = rows[:, :4], rows[:, 4:]
    boxes = ((head >= -_MARGIN) & (head <= 1 + _MARGIN)).all(axis=1) & (head[:, 2:] > 0).all(axis=1)
    if (boxes & ((tail > 1.5) | (tail < -0.5)).any(axis=1)).mean() >= 0.3:
        return "numbers outside 0 to 1 follow the first four"
    # Boxes with extra columns all have the same number of columns; polygons do not.
    if not alone or len(rows) < _FEW or not boxes.all():
        return ""
    # Polygons have no coordinate that is a whole number in every line.
    if ((tail == np.floor(tail)).all(axis=0) & (tail == 1).any(axis=0)).any():
        return "a column after the first four contains only whole numbers"
    # The first four numbers of a triangle are a box in half of all cases.
    if tail.shape[1] == 2 and _begins_with_box(rows) >= 0.95:
        return "in all lines the first four numbers are a box, and two more follow"
    return ""


def _further_points(groups: Sequence[Points]) -> str:
    """Return why lines may be boxes followed by keypoints; empty if this is unlikely.

    Each group is an array (n, columns) with the lines of one length.
    """
    if not all(np.isfinite(rows).all() and _begins_with_box(rows) >= 0.9 for rows in groups):
        return ""
    held, far, crossed = [], [], []
    for rows in groups:
        head, points = rows[:, :4], rows.reshape(len(rows), -1, 2)
        known = (points != 0).any(axis=2)  # invisible keypoints are written as zeros
        reach = np.abs(points - head[:, None, :2]) <= head[:, None, 2:] / 2 + _MARGIN
        held.append((reach | ~known[:, :, None])[:, 2:].all(axis=(1, 2)))
        # In a polygon, numbers 3 and 4 are a point near other points; in a box, width and height.
        others = np.where(known[:, :, None], points, points[:, :1])
        others[:, 1] = others[:, 0]
        low, high = others.min(axis=1), others.max(axis=1)
        away = np.maximum(low - head[:, 2:], head[:, 2:] - high).max(axis=1)
        far.append(away > (high - low).max(axis=1))
        crossed.append(_crossing(points))
    if np.concatenate(held).mean() >= 0.9 and np.concatenate(far).mean() >= 0.3:
        return "the first four numbers are a box that contains all points after them"
    if sum(map(len, groups)) >= _FEW and np.concatenate(crossed).mean() >= 0.3:
        return "the first four numbers are a box; as polygons, many lines would cross themselves"
    return ""


def _crossing(points: Points) -> NDArray[np.bool_]:
    """Return which polygons (n, k, 2) cross themselves; only their first eight sides are tested."""
    path = np.concatenate((points, points[:, :1]), axis=1)[:, :9]
    found = np.zeros(len(path), np.bool_)
    for i in range(path.shape[1] - 3):
        for j in range(i + 2, path.shape[1] - 1):
            a, b, c, d = (path[:, k] for k in (i, i + 1, j, j + 1))
            found |= (_side(a, b, c) * _side(a, b, d) < 0) & (_side(c, d, a) * _side(c, d, b) < 0)
    return found


def _side(a: Points, b: Points, c: Points) -> Points:
    """Return the side of the line from ``a`` to ``b`` on which ``c`` lies, by row: -1, 0 or 1."""
    u, v = b - a, c - a
    return np.sign(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0])
