"""Lay out images on a canvas; a training image is a view of the canvas.

A mosaic is a canvas of 2S x 2S pixels with four or nine images, where S is the longer side of every
image, as published for YOLOv7 (arXiv 2207.02696). In most cases the canvas is never drawn:
`y7edge.train.augment.view` resizes each visible image directly into the training image. Images out
of view are not decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from y7edge.detect.preprocess import PAD, letterbox_geometry
from y7edge.train.augment.labelled import (
    ImageSet,
    LabelledImage,
    Polygon,
    clip_polygon,
    moved,
    resize,
)

_Placed = tuple[LabelledImage, int, int]  # image, and its x, y on the canvas


class Area(NamedTuple):
    """A rectangle on a canvas, in pixels."""

    x1: float
    y1: float
    x2: float
    y2: float

    def meets(self, other: Area) -> bool:
        """Return whether the areas overlap; a common edge is not enough."""
        width = min(self.x2, other.x2) - max(self.x1, other.x1)
        return width > 0 and min(self.y2, other.y2) > max(self.y1, other.y1)


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """An image on a canvas."""

    labelled: LabelledImage
    left: int  # x of the image on the canvas; may be negative
    top: int  # y of the image on the canvas; may be negative
    part: tuple[int, int, int, int]  # x1, y1, x2, y2 of the part on the canvas, in image pixels


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Tiles that don't overlap on a grey canvas of ``height`` x ``width``.

    ``tiles`` may be a generator, so that only one decoded image at a time is in memory. It can then
    be iterated only once.
    """

    tiles: Iterable[Tile]
    height: int
    width: int


def single(labelled: LabelledImage, height: int, width: int) -> Layout:
    """Letterbox one image: fit it into the canvas and centre it, as the detector does."""
    geometry = letterbox_geometry(labelled.image.shape[:2], (height, width))
    image = resize(labelled.image, geometry.resized_hw)
    if image is not labelled.image:
        factor = np.divide(image.shape[1::-1], labelled.image.shape[1::-1])
        labelled = moved(labelled, image, factor.tolist())
    return _laid([(labelled, geometry.left, geometry.top)], height, width)


def four(images: ImageSet, numbers: list[int], size: int, rng: Generator, visible: Area) -> Layout:
    """Join four images whose corners meet at a random point near the canvas's centre.

    ``numbers`` are the indices of the top left, top right, bottom left and bottom right image.
    ``size`` is the longer side of every image. Each image lies in a square of this size, and is not
    read if the square does not overlap ``visible``.
    """
    x, y = (int(value) for value in rng.uniform(size / 2, 3 * size / 2, 2))

    def tiles() -> Iterator[_Placed]:
        for index, number in enumerate(numbers):
            right, below = index % 2, index // 2
            corner = (x - size + right * size, y - size + below * size)
            if Area(*corner, corner[0] + size, corner[1] + size).meets(visible):
                labelled = images[number]
                height, width = labelled.image.shape[:2]
                yield labelled, x - (1 - right) * width, y - (1 - below) * height

    return _laid(tiles(), 2 * size, 2 * size)


def nine(images: ImageSet, numbers: list[int], size: int, rng: Generator, visible: Area) -> Layout:
    """Join nine images, and crop the canvas from them at a random place.

    ``numbers`` are the indices of the middle image, of the image above the middle, and of the other
    seven clockwise. ``size`` is the longer side of every image. An image is not read if it cannot
    overlap ``visible``.
    """
    cut_x, cut_y = (int(value) for value in rng.uniform(0, size, 2))

    @cache
    def tile(index: int) -> LabelledImage:
        return images[numbers[index]]

    def extent(index: int) -> tuple[int, int]:
        height, width = tile(index).image.shape[:2]
        return int(width), int(height)

    window = Area(visible.x1 + cut_x, visible.y1 + cut_y, visible.x2 + cut_x, visible.y2 + cut_y)

    def tiles() -> Iterator[_Placed]:
        for index in range(9):
            if _reach(index, size, *extent(0)).meets(window):
                left, top = _corner(index, size, extent)
                yield tile(index), left - cut_x, top - cut_y

    return _laid(tiles(), 2 * size, 2 * size)


def _reach(index: int, s: int, w: int, h: int) -> Area:
    """Return an area that contains tile ``index`` of nine, for any size of the tile.

    ``s`` is the longer side of all images, ``w`` and ``h`` are the size of the middle one.
    """
    return (
        Area(s, s, s + w, s + h),
        Area(s, 0, 2 * s, s),
        Area(s, 0, 3 * s, s),
        Area(s + w, s, 2 * s + w, 2 * s),
        Area(s + w, s, 2 * s + w, 3 * s),
        Area(w, s + h, s + w, 2 * s + h),
        Area(w - s, s + h, s + w, 2 * s + h),
        Area(0, h, s, s + h),
        Area(0, h - s, s, s + h),
    )[index]


def _corner(index: int, s: int, extent: Callable[[int], tuple[int, int]]) -> tuple[int, int]:
    """Return the top left corner x, y of tile ``index`` of nine.

    ``extent`` returns the width and height of a tile. It decodes the tile's image, so it is called
    only for tiles that determine the corner.
    """
    w, h = extent(index)
    middle_w, middle_h = extent(0)
    right, bottom = s + middle_w, s + middle_h
    match index:
        case 0:
            return s, s
        case 1:
            return s, s - h
        case 2:
            return s + extent(1)[0], s - h
        case 3:
            return right, s
        case 4:
            return right, s + extent(3)[1]
        case 5:
            return right - w, bottom
        case 6:
            return right - extent(5)[0] - w, bottom
        case 7:
            return s - w, bottom - h
        case _:
            return s - w, bottom - extent(7)[1] - h


def _laid(placed: Iterable[_Placed], height: int, width: int) -> Layout:
    """Create a layout of images, cropped to the canvas; images outside of it are dropped."""

    def tiles() -> Iterator[Tile]:
        for labelled, left, top in placed:
            rows, columns = labelled.image.shape[:2]
            x1, y1 = max(-left, 0), max(-top, 0)
            x2, y2 = min(columns, width - left), min(rows, height - top)
            if x1 < x2 and y1 < y2:
                yield Tile(labelled, left, top, (x1, y1, x2, y2))

    return Layout(tiles(), height, width)


def paint(layout: Layout) -> LabelledImage:
    """Draw all tiles on the canvas, with their labels clipped to it."""
    canvas = np.full((layout.height, layout.width, 3), PAD, np.uint8)
    parts = []
    for tile in layout.tiles:
        x1, y1, x2, y2 = tile.part
        rows = slice(tile.top + y1, tile.top + y2)
        canvas[rows, tile.left + x1 : tile.left + x2] = tile.labelled.image[y1:y2, x1:x2]
        parts.append(moved(_cropped(tile), canvas, offset=(tile.left, tile.top)))
    return joined(canvas, parts)


def _cropped(tile: Tile) -> LabelledImage:
    """Clip a tile's labels to ``tile.part``, in image pixels."""
    labelled, low, high = tile.labelled, tile.part[:2], tile.part[2:]
    boxes = np.clip(labelled.boxes, low * 2, high * 2)
    kept = np.asarray((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    polygons = tuple(
        None if line is None else clip_polygon(line, low, high)
        for line, keep in zip(labelled.polygons, kept.tolist(), strict=False)
        if keep
    )
    return LabelledImage(labelled.image, boxes[kept], labelled.class_id[kept], polygons)


def joined(image: NDArray[np.uint8], parts: Sequence[LabelledImage]) -> LabelledImage:
    """Combine ``image`` with the labels of all ``parts``."""
    boxes = np.concatenate([np.empty((0, 4)), *(part.boxes for part in parts)])
    class_id = np.concatenate([np.empty(0, np.int64), *(part.class_id for part in parts)])
    polygons: tuple[Polygon | None, ...] = ()
    if any(part.polygons for part in parts):
        polygons = tuple(line for part in parts for line in part.outlines)
    return LabelledImage(image, boxes, class_id, polygons)
