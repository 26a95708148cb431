"""Layouts of images on a canvas, of which a training image shows a part.

Mosaics join four or nine images whose longer side is S on a canvas of 2S x 2S, as published for
YOLOv7 (arXiv 2207.02696). Mostly the canvas is never painted: each image goes straight to its place
in the result (`y7edge.train.augment.view`), and images out of sight are not even decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from y7edge.detect.preprocess import PAD, letterbox_geometry
from y7edge.train.augment.labelled import Picture, Pictures, Polygon, clip_polygon, moved, resize

# A picture, and the column and row of the canvas at which it begins.
_Placed = tuple[Picture, int, int]


class Area(NamedTuple):
    """An upright rectangle on a canvas, in pixels."""

    x1: float
    y1: float
    x2: float
    y2: float

    def meets(self, other: Area) -> bool:
        """Whether the two have area in common."""
        return max(self.x1, other.x1) < min(self.x2, other.x2) and max(self.y1, other.y1) < min(
            self.y2, other.y2
        )


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """An image on a canvas."""

    picture: Picture
    left: int  # column and row of the canvas at which it begins; may be negative
    top: int
    part: tuple[int, int, int, int]  # x1, y1, x2, y2 of what lies on the canvas, in its own pixels


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Tiles that don't overlap, on a canvas of ``height`` x ``width`` that is grey elsewhere.

    Tiles may be come by only once: a picture is decoded when its turn comes, and let go after it.
    """

    tiles: Iterable[Tile]
    height: int
    width: int


def single(picture: Picture, height: int, width: int) -> Layout:
    """One picture, fitted into the canvas and centred as the detector does."""
    geometry = letterbox_geometry(picture.image.shape[:2], (height, width))
    image = resize(picture.image, geometry.resized_hw)
    if image is not picture.image:
        factor = np.divide(image.shape[1::-1], picture.image.shape[1::-1])
        picture = moved(picture, image, factor.tolist())
    return _laid([(picture, geometry.left, geometry.top)], height, width)


def four(pictures: Pictures, numbers: list[int], size: int, rng: Generator, seen: Area) -> Layout:
    """Join four pictures with one corner each at a random point around the canvas's middle.

    Args:
        pictures: Where they come from.
        numbers: Which ones: top left, top right, bottom left, bottom right.
        size: S; the canvas is twice as large.
        rng: Gives the point.
        seen: Part of the canvas that matters.
    """
    x, y = (int(value) for value in rng.uniform(size / 2, 3 * size / 2, 2))

    def tiles() -> Iterator[_Placed]:
        for index, number in enumerate(numbers):
            right, below = index % 2, index // 2
            corner = (x - size + right * size, y - size + below * size)
            if Area(*corner, corner[0] + size, corner[1] + size).meets(seen):
                picture = pictures[number]
                height, width = picture.image.shape[:2]
                yield picture, x - (1 - right) * width, y - (1 - below) * height

    return _laid(tiles(), 2 * size, 2 * size)


def nine(pictures: Pictures, numbers: list[int], size: int, rng: Generator, seen: Area) -> Layout:
    """Join nine pictures around the first, and cut the canvas from them at a random place.

    Args:
        pictures: Where they come from.
        numbers: Which ones: the middle, then clockwise from above it; each touches the one before.
        size: S; the canvas is twice as large.
        rng: Gives the place.
        seen: Part of the canvas that matters.
    """
    cut_x, cut_y = (int(value) for value in rng.uniform(0, size, 2))
    known: dict[int, Picture] = {}

    def tile(index: int) -> Picture:
        if index not in known:
            known[index] = pictures[numbers[index]]
        return known[index]

    def extent(index: int) -> tuple[int, int]:
        height, width = tile(index).image.shape[:2]
        return int(width), int(height)

    shown = Area(seen.x1 + cut_x, seen.y1 + cut_y, seen.x2 + cut_x, seen.y2 + cut_y)

    def tiles() -> Iterator[_Placed]:
        for index in range(9):
            if _reach(index, size, *extent(0)).meets(shown):
                left, top = _corner(index, size, extent)
                yield tile(index), left - cut_x, top - cut_y

    return _laid(tiles(), 2 * size, 2 * size)


def _reach(index: int, s: int, w: int, h: int) -> Area:
    """Bounding area of tile ``index`` in a nine-tile mosaic, from the size of the middle one."""
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
    """Top left corner of a tile of nine; asks for the sizes of those only that it depends on."""
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
    """Tiles of pictures at columns and rows of the canvas, without those that lie off it."""

    def tiles() -> Iterator[Tile]:
        for picture, left, top in placed:
            rows, columns = picture.image.shape[:2]
            part = (
                max(-left, 0),
                max(-top, 0),
                min(columns, width - left),
                min(rows, height - top),
            )
            if part[0] < part[2] and part[1] < part[3]:
                yield Tile(picture, left, top, part)

    return Layout(tiles(), height, width)


def paint(layout: Layout) -> Picture:
    """The whole canvas as a picture, with labels cut off where it ends."""
    canvas = np.full((layout.height, layout.width, 3), PAD, np.uint8)
    parts = []
    for tile in layout.tiles:
        x1, y1, x2, y2 = tile.part
        rows = slice(tile.top + y1, tile.top + y2)
        canvas[rows, tile.left + x1 : tile.left + x2] = tile.picture.image[y1:y2, x1:x2]
        parts.append(moved(_cropped(tile), canvas, offset=(tile.left, tile.top)))
    return joined(canvas, parts)


def _cropped(tile: Tile) -> Picture:
    """A tile's picture with the labels of the part that the canvas holds, in its own pixels."""
    picture, low, high = tile.picture, tile.part[:2], tile.part[2:]
    boxes = np.clip(picture.boxes, low * 2, high * 2)
    kept = np.asarray((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    polygons = tuple(
        None if line is None else clip_polygon(line, low, high)
        for line, keep in zip(picture.polygons, kept.tolist(), strict=False)
        if keep
    )
    return Picture(picture.image, boxes[kept], picture.class_id[kept], polygons)


def joined(image: NDArray[np.uint8], parts: Sequence[Picture]) -> Picture:
    """The labels of several pictures, as they are, on one image."""
    boxes = np.concatenate([np.empty((0, 4)), *(part.boxes for part in parts)])
    class_id = np.concatenate([np.empty(0, np.int64), *(part.class_id for part in parts)])
    polygons: tuple[Polygon | None, ...] = ()
    if any(part.polygons for part in parts):
        polygons = tuple(line for part in parts for line in part.outlines)
    return Picture(image, boxes, class_id, polygons)
