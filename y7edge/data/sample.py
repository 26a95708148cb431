"""Labelled images as training and evaluation use them, and the records that the cache stores."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Suffixes of the formats that both OpenCV and Pillow decode to 8 or 16 bits.
IMAGE_SUFFIXES = frozenset(
    {".bmp", ".dib", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png"}
    | {".pnm", ".ppm", ".ras", ".sr", ".tif", ".tiff", ".webp"}
)

# Size, modification time and change time of a file; None if it does not exist.
Stamp = tuple[int, int, int] | None


def is_image(path: Path) -> bool:
    """Return whether a file has the suffix of an image and is not hidden."""
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
        polygons: Empty, or one entry per box: None, or an outline as float32 (k, 2) x, y.
        size: Width and height of the upright image in pixels; None if unknown.
        crowd: float32 (m, 5): class, centre x, centre y, width, height of crowd regions. They are
            not used for training; evaluation ignores detections in them.
        image_id: COCO only: the image id as written in the file.
        levels: Lowest and highest value of 16-bit images, scaled to 0 and 255; None for 0 to 65535.
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
    """Content of a data set, read from its files or from the label cache."""

    names: tuple[str, ...]
    splits: Mapping[str, tuple[Sample, ...]]
    warnings: tuple[str, ...]  # one line for each kind of change made while reading
    # COCO only: category ids by split, in the order of ``names``. None stands for a supercategory
    # that the file of this split lacks.
    category_ids: Mapping[str, tuple[int | str | None, ...]]
    watched: Mapping[str, Stamp]  # files that were read, with their state before reading


def stamp(path: str) -> Stamp:
    """Return size, modification time and change time of a file; None if it does not exist."""
    try:
        found = os.stat(path)  # noqa: PTH116 - twice as fast as Path.stat
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def single_class(sample: Sample) -> Sample:
    """Return a copy with all class ids set to 0; equal boxes are kept once."""
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
