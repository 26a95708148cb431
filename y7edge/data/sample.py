"""Records that all parsers return: samples (images with labels) and the files they read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Formats that both OpenCV and Pillow decode, to 8 or 16 bits.
IMAGE_SUFFIXES = frozenset(
    {".bmp", ".dib", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png"}
    | {".pnm", ".ppm", ".ras", ".sr", ".tif", ".tiff", ".webp"}
)

# Size, modification time and change time of a file; None if it does not exist.
Stamp = tuple[int, int, int] | None


def is_image(path: Path) -> bool:
    """Return whether a file name is that of an image."""
    # macOS writes hidden "._name.jpg" files beside images on foreign disks.
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One image with its labels; an image without objects has empty arrays.

    All coordinates are normalized by the size of the upright image and lie inside it.

    Attributes:
        path: The image file.
        boxes: float32 (n, 4): centre x, centre y, width, height; the area is positive.
        class_id: int32 (n,): index into the class names of the data set.
        polygons: Empty, or one entry per box: its outline, float32 (k, 2) x, y, or None.
        size: Width and height of the upright image in pixels; None if unknown.
        crowd: float32 (m, 5): class, centre x, centre y, width, height of crowd regions. They are
            not used for training; evaluation ignores detections in them.
        image_id: The image id in a COCO file, as written there.
        levels: Input range for scaling 16-bit images to 8 bits; None for the full range.
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
    """Result of a parser."""

    names: tuple[str, ...]
    splits: Mapping[str, tuple[Sample, ...]]
    warnings: tuple[str, ...]  # changes made while reading, one line for each kind
    # COCO only: the category ids of each split, in the order of the names; None for a grouping
    # category that the file of this split does not have.
    category_ids: Mapping[str, tuple[int | str | None, ...]]
    watched: Mapping[str, Stamp]  # the files that were read, and their state at that time


class Plan(NamedTuple):
    """A data set to read, found without opening labels or images."""

    identity: tuple[str, ...]  # names and files; differs if they do
    read: Callable[[], Reading]


@dataclass(slots=True)
class Watch:
    """Collects the files that are read and their state."""

    stamps: dict[str, Stamp] = field(default_factory=dict)

    def note(self, path: Path) -> None:
        """Record the state of a file before it is read, to detect later changes."""
        name = str(path)
        if name not in self.stamps:
            self.stamps[name] = stamp(name)


def stamp(path: str) -> Stamp:
    """Return size, modification time and change time of a file; None if it does not exist."""
    try:
        found = os.stat(path)  # noqa: PTH116 - Path.stat costs twice as much, on every file
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def single_class(sample: Sample) -> Sample:
    """Return the sample with all classes set to 0; equal boxes are kept once."""
    first: dict[tuple[float, ...], int] = {}
    for index, row in enumerate(sample.boxes.tolist()):
        first.setdefault(tuple(row), index)
    keep = list(first.values())
    crowd = sample.crowd.copy()
    crowd[:, 0] = 0
    return replace(
        sample,
        boxes=sample.boxes[keep],
        class_id=np.zeros(len(keep), np.int32),
        polygons=tuple(sample.polygons[index] for index in keep) if sample.polygons else (),
        crowd=crowd,
    )
