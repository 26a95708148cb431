"""What every reader of data sets gives: labelled pictures with tidied boxes, and what was mended.

Readers differ in where boxes come from; what makes a box usable is the same for all: it is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".jpeg", ".jpg", ".mpo", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

# Printed labels are rounded: a box is called sticking out, or without area, only beyond this share
# of the picture.
_ROUNDING = 1e-3
_NO_AREA = 1e-6


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
    """What a reader gives: class names, pictures by split, and warnings of one line each."""

    names: tuple[str, ...]
    splits: Mapping[str, tuple[Sample, ...]]
    warnings: tuple[str, ...]


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
) -> Sample:
    """Make a sample from corners (n, 4) x1, y1, x2, y2 in shares of the picture's size.

    Boxes without area or wholly outside the picture are dropped, boxes that stick out are clipped,
    and repeated ones are kept once; ``tally`` counts each under the label file ``where``.
    """
    area = ((corners[:, 2:] - corners[:, :2]) > _NO_AREA).all(axis=1)
    clipped = np.clip(corners, 0.0, 1.0)
    inside = ((clipped[:, 2:] - clipped[:, :2]) > _NO_AREA).all(axis=1)
    keep = area & inside
    sticking_out = keep & (np.abs(clipped - corners) > _ROUNDING).any(axis=1)
    tally.add("boxes without area, dropped", int((~area).sum()), where)
    tally.add("boxes outside the picture, dropped", int((area & ~inside).sum()), where)
    tally.add("boxes sticking out of the picture, clipped", int(sticking_out.sum()), where)

    kept, classes = clipped[keep], class_id[keep]
    rows = np.column_stack((classes, kept))
    unique = np.sort(np.unique(rows, axis=0, return_index=True)[1])
    tally.add("repeated boxes, kept once", len(rows) - len(unique), where)
    kept, classes = kept[unique], classes[unique]
    boxes = np.hstack(((kept[:, :2] + kept[:, 2:]) / 2, kept[:, 2:] - kept[:, :2]))
    return Sample(path, boxes.astype(np.float32), classes.astype(np.int32))


def single_class(sample: Sample) -> Sample:
    """The sample with class 0 throughout; boxes that differed by class only are kept once."""
    keep = np.sort(np.unique(sample.boxes, axis=0, return_index=True)[1])
    crowd = sample.crowd.copy()
    crowd[:, 0] = 0
    return replace(
        sample,
        boxes=sample.boxes[keep],
        class_id=np.zeros(len(keep), np.int32),
        polygons=tuple(sample.polygons[index] for index in keep) if sample.polygons else (),
        crowd=crowd,
    )
