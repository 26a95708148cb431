"""Cut an image into regions, for a region of interest or for small objects, and merge the boxes.

Tiling is the method of "Slicing Aided Hyper Inference" (arXiv 2202.06934): overlapping tiles and
the whole image are run, then NMS is applied to all of their boxes together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.bounds import MAX_SIDE
from y7edge.detect.postprocess import Boxes, Criteria, suppress
from y7edge.errors import ConfigError, DataError
from y7edge.frames import CudaFrame

MAX_TILES = 4096  # per image
Roi = Sequence[int]
"""A region of interest (left, top, right, bottom) in pixels of the image."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """Tiles of ``tile`` x ``tile`` pixels; neighbours share the fraction ``overlap`` of a side.

    ``tile``: None for no tiles.

    Raises:
        ConfigError: a value is out of range.
    """

    tile: int | None = None
    overlap: float = 0.2

    def __post_init__(self) -> None:
        if self.tile is not None and not 32 <= self.tile <= MAX_SIDE:
            raise ConfigError(f"tile is {self.tile}, expected 32 to {MAX_SIDE} pixels")
        if not 0 <= self.overlap <= 0.9:
            raise ConfigError(f"overlap is {self.overlap}, expected a number from 0 to 0.9")


class Region(NamedTuple):
    """A part of an image, and the position of its first pixel."""

    pixels: NDArray[np.uint8] | CudaFrame
    left: int
    top: int


def regions(image: NDArray[np.uint8] | CudaFrame, roi: Roi | None, tiling: Tiling) -> list[Region]:
    """Cut an image (H, W) or (H, W, C) into regions; views, not copies.

    The first region is the whole image or ``roi``. If it is larger than a tile, the tiles follow.

    Raises:
        DataError: ``roi`` is not four integers, or contains no pixel of the image; or there are too
            many tiles.
    """
    whole = Region(image, 0, 0)
    if roi is not None:
        left, top, right, bottom = _clipped(roi, image.shape)
        whole = Region(image[top:bottom, left:right], left, top)
    side = tiling.tile
    if side is None:
        return [whole]
    height, width = whole.pixels.shape[:2]
    rows, columns = (_starts(length, side, tiling.overlap) for length in (height, width))
    if len(rows) * len(columns) == 1:
        return [whole]
    if len(rows) * len(columns) > MAX_TILES:
        raise DataError(
            f"an image of {height}x{width} has {len(rows) * len(columns)} tiles of {side} "
            f"pixels, expected at most {MAX_TILES}: use larger tiles or less overlap"
        )
    tiles = [
        Region(whole.pixels[y : y + side, x : x + side], whole.left + x, whole.top + y)
        for y in rows
        for x in columns
    ]
    return [whole, *tiles]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Return the first pixel of each tile along ``length`` pixels, which end with the last tile."""
    last = length - side
    if last <= 0:
        return [0]
    step = max(1, round(side * (1 - overlap)))
    return [*range(0, last, step), last]


def _clipped(roi: Any, shape: tuple[int, ...]) -> list[int]:
    try:
        corners = np.asarray(roi)
    except ValueError:  # nested lists
        corners = np.empty(0)
    if corners.shape != (4,) or corners.dtype.kind not in "iu":
        raise DataError(
            f"roi is {roi!r}, expected four integers (left, top, right, bottom) in pixels"
        )
    height, width = shape[:2]
    left, top, right, bottom = (
        int(value) for value in corners.clip(0, (width, height, width, height))
    )
    if left >= right or top >= bottom:
        raise DataError(f"roi {roi!r} contains no pixel of an image of {height}x{width}")
    return [left, top, right, bottom]


def merged(found: Sequence[Boxes], parts: Sequence[Region], criteria: Criteria) -> Boxes:
    """Map the boxes of each region to the image; apply NMS to all if there are several regions."""
    moved = [
        boxes
        if part.left == part.top == 0
        else boxes._replace(xyxy=boxes.xyxy + np.array((part.left, part.top) * 2, np.float32))
        for boxes, part in zip(found, parts, strict=True)
    ]
    if len(moved) == 1:
        return moved[0]
    return suppress(Boxes(*map(np.concatenate, zip(*moved, strict=True))), criteria)
