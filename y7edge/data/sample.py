"""Samples: images with their labels, as every reader of data sets returns them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# What OpenCV and Pillow both decode, to 8 or 16 bits.
IMAGE_SUFFIXES = frozenset(
    {".bmp", ".dib", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png"}
    | {".pnm", ".ppm", ".ras", ".sr", ".tif", ".tiff", ".webp"}
)

# Size, time of the last write, time of the last change of a file, or None where there was none.
Stamp = tuple[int, int, int] | None


def is_image(path: Path) -> bool:
    """Whether a file is an image by its name."""
    # macOS leaves "._name.jpg" beside images on foreign disks.
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One image with its labels; an image without objects has empty arrays.

    Attributes:
        path: The image's file.
        boxes: float32 (n, 4): centre x, centre y, width, height as fractions of the image's size,
            inside the image and with area.
        class_id: int32 (n,): index into the data set's names.
        polygons: Empty, or one entry per box: its outline, float32 (k, 2) x, y as fractions of the
            image's size, inside the image; None where there was only a box.
        size: Width and height of the upright image in pixels, where the reader knows it.
        crowd: float32 (m, 5) class, centre x, centre y, width, height: regions with more objects
            than were labelled. Not learned from; an evaluation ignores what is found there.
        image_id: The image's id in a COCO file, as written there.
        levels: From which the data set wants 16-bit images scaled to 8 bits, if it says so.
    """

    path: Path
    boxes: NDArray[np.float32]
    class_id: NDArray[np.int32]
    polygons: tuple[NDArray[np.float32] | None, ...] = ()
    size: tuple[int, int] | None = None
    crowd: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 5), np.float32))
    image_id: int | str | None = None
    levels: tuple[int, int] | None = None


class Reading(NamedTuple):
    """What a reader gives."""

    names: tuple[str, ...]
    splits: Mapping[str, tuple[Sample, ...]]
    warnings: tuple[str, ...]  # what was changed while reading, one line each
    # By split, the category ids of a COCO file in the order of the names; None for a grouping
    # category that only the file of another split has.
    category_ids: Mapping[str, tuple[int | str | None, ...]]
    watched: Mapping[str, Stamp]  # the files that it was read from, each as it was then


class Plan(NamedTuple):
    """What a reader would read, found without opening labels or images."""

    identity: tuple[str, ...]  # distinguishes it from others of the same source: names, files
    read: Callable[[], Reading]


@dataclass(slots=True)
class Watch:
    """The files that are read, and in what state."""

    stamps: dict[str, Stamp] = field(default_factory=dict)

    def note(self, path: Path) -> None:
        """Note a file that is about to be read, so that a later change is seen."""
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


def first_of_each(rows: NDArray[Any]) -> NDArray[np.int64]:
    """Indices of the rows (n, k) that repeat none before them, in order."""
    first: dict[tuple[float, ...], int] = {}
    for index, row in enumerate(rows.tolist()):
        first.setdefault(tuple(row), index)
    return np.fromiter(first.values(), np.int64, len(first))


def single_class(sample: Sample) -> Sample:
    """The sample with class 0 throughout; boxes that differed by class only are kept once."""
    keep = first_of_each(sample.boxes)
    crowd = sample.crowd.copy()
    crowd[:, 0] = 0
    return replace(
        sample,
        boxes=sample.boxes[keep],
        class_id=np.zeros(len(keep), np.int32),
        polygons=tuple(sample.polygons[index] for index in keep) if sample.polygons else (),
        crowd=crowd,
    )
