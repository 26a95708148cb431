"""What every reader of data sets gives: labelled pictures with tidied boxes, and what was mended.

Readers differ in where boxes come from; what makes a box usable is the same for all: it is here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from y7edge.boxes import centred

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".jpeg", ".jpg", ".mpo", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

# Size, time of the last write, time of the last change of a file, or None where there was none.
Stamp = tuple[int, int, int] | None

# Printed labels are rounded: a box is called sticking out, or without area, only beyond this share
# of the picture.
ROUNDING = 1e-3
NO_AREA = 1e-6


def is_image(path: Path) -> bool:
    """Whether a file is a picture by its name."""
    # macOS leaves "._name.jpg" beside pictures on foreign disks.
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One picture with its labels; a picture without objects has empty arrays.

    Attributes:
        path: The picture's file.
        boxes: float32 (n, 4): centre x, centre y, width, height as shares of the picture's size,
            inside the picture and with area.
        class_id: int32 (n,): index into the data set's names.
        polygons: Empty, or one entry per box: its outline, float32 (k, 2) x, y as shares of the
            picture's size, inside the picture; None where there was only a box.
        size: Width and height of the upright picture in pixels, where the reader knows it.
        crowd: float32 (m, 5) class, centre x, centre y, width, height: regions with more objects
            than anyone labelled. Nothing to learn from; an evaluation ignores what is found there.
    """

    path: Path
    boxes: NDArray[np.float32]
    class_id: NDArray[np.int32]
    polygons: tuple[NDArray[np.float32] | None, ...] = ()
    size: tuple[int, int] | None = None
    crowd: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 5), np.float32))


class Reading(NamedTuple):
    """What a reader gives.

    Attributes:
        names: Class names.
        splits: Pictures by split.
        warnings: What was mended, one line each.
        watched: The files that it was read from, each with the `stamp` it had then.
    """

    names: tuple[str, ...]
    splits: Mapping[str, tuple[Sample, ...]]
    warnings: tuple[str, ...]
    watched: Mapping[str, Stamp]


class Plan(NamedTuple):
    """What a reader would read, found without opening labels or pictures.

    Attributes:
        identity: What tells this plan from another of the same source: names, files, splits.
        read: Does the reading.
    """

    identity: tuple[str, ...]
    read: Callable[[], Reading]


@dataclass(slots=True)
class Watch:
    """Notes the files that are read, and in what state."""

    stamps: dict[str, Stamp] = field(default_factory=dict)

    def note(self, path: Path) -> None:
        """Note a file that is about to be read; later, a change in between would go unseen."""
        name = str(path)
        if name not in self.stamps:
            self.stamps[name] = stamp(name)


def stamp(path: str) -> Stamp:
    """Size, time of the last write and of the last change of a file; None if there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 - Path.stat costs twice as much, on every file
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


@dataclass(slots=True)
class Tally:
    """Counts what a reader mended, with the first file of each kind, for one warning per kind."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, Path] = field(default_factory=dict)

    def add(self, what: str, count: int, where: Path) -> None:
        """Note ``count`` more of ``what``, met in the file ``where``."""
        if count:
            self.counts[what] = self.counts.get(what, 0) + count
            self.first.setdefault(what, where)

    def warnings(self) -> tuple[str, ...]:
        """One line for each kind, as ``boxes without area, dropped: 2 (first in a.txt)``."""
        return tuple(
            f"{what}: {count} (first in {self.first[what]})" for what, count in self.counts.items()
        )


def sample(
    path: Path,
    corners: NDArray[np.float64],
    class_id: NDArray[np.int64],
    where: Path,
    tally: Tally,
    *,
    polygons: Sequence[NDArray[np.float64] | None] = (),
    size: tuple[int, int] | None = None,
) -> Sample:
    """Make a sample from corners (n, 4) x1, y1, x2, y2 in shares of the picture's size.

    Boxes without area or wholly outside the picture are dropped, boxes that stick out are clipped,
    and repeated ones are kept once; ``tally`` counts each under the label file ``where``. Outlines
    go with their boxes; points outside the picture are moved to its edge, so that the hull of an
    outline stays the box that was made from it.
    """
    area = _with_area(corners)
    clipped = np.clip(corners, 0.0, 1.0)
    keep = area & _with_area(clipped)
    sticking_out = keep & (np.abs(clipped - corners) > ROUNDING).any(axis=1)
    tally.add("boxes without area, dropped", int((~area).sum()), where)
    tally.add("boxes outside the picture, dropped", int((area & ~keep).sum()), where)
    tally.add("boxes sticking out of the picture, clipped", int(sticking_out.sum()), where)

    usable = np.flatnonzero(keep)
    kept = usable[_first_of_each(np.column_stack((class_id, clipped))[usable])]
    tally.add("repeated boxes, kept once", len(usable) - len(kept), where)
    return Sample(
        path,
        centred(clipped[kept]).astype(np.float32),
        class_id[kept].astype(np.int32),
        _outlines([polygons[index] for index in kept]) if polygons else (),
        size,
    )


def crowd_rows(corners: NDArray[np.float64], class_id: NDArray[np.int64]) -> NDArray[np.float32]:
    """`Sample.crowd` from corners (m, 4) in shares of the picture's size, clipped to it."""
    clipped = np.clip(corners, 0.0, 1.0)
    rows = np.column_stack((class_id, centred(clipped)))
    return rows[_with_area(clipped)].astype(np.float32)


def _with_area(corners: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray(((corners[:, 2:] - corners[:, :2]) > NO_AREA).all(axis=1), np.bool_)


def _first_of_each(rows: NDArray[Any]) -> NDArray[np.int64]:
    """Indices of the rows (n, k) that repeat none before them, in order."""
    first: dict[tuple[float, ...], int] = {}
    for index, row in enumerate(rows.tolist()):
        first.setdefault(tuple(row), index)
    return np.fromiter(first.values(), np.int64, len(first))


def _outlines(
    polygons: Sequence[NDArray[np.float64] | None],
) -> tuple[NDArray[np.float32] | None, ...]:
    if all(polygon is None for polygon in polygons):
        return ()
    return tuple(
        None if polygon is None else np.clip(polygon, 0.0, 1.0).astype(np.float32)
        for polygon in polygons
    )


def single_class(sample: Sample) -> Sample:
    """The sample with class 0 throughout; boxes that differed by class only are kept once."""
    keep = _first_of_each(sample.boxes)
    crowd = sample.crowd.copy()
    crowd[:, 0] = 0
    return replace(
        sample,
        boxes=sample.boxes[keep],
        class_id=np.zeros(len(keep), np.int32),
        polygons=tuple(sample.polygons[index] for index in keep) if sample.polygons else (),
        crowd=crowd,
    )
