"""Random views of a canvas: rotate, scale, shear, tilt and shift images and their labels.

The transforms are those of the published YOLOv7 training. Coordinates are continuous: pixel i
covers the range from i to i + 1. In OpenCV's warps, pixel centres have integer
coordinates, so matrices are shifted by half a pixel before a warp. The published code omits this
shift.

A view that only scales and shifts, as in all published recipes, needs no warp: its visible tiles
are resized one by one, in a third of the time. This rounds the edges of a tile to whole pixels; its
labels are transformed in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from y7edge.detect.preprocess import PAD
from y7edge.train.augment.colour import Jitter
from y7edge.train.augment.labelled import (
    LabelledImage,
    Polygon,
    bgr_view,
    clip_polygon,
    hull,
    moved,
    scratch,
)
from y7edge.train.augment.mosaic import Area, Layout, Tile, paint
from y7edge.train.augment.settings import Augmentation

Matrix = NDArray[np.float64]

_CORNERS = np.array([(0, 1), (2, 1), (2, 3), (0, 3)])  # columns of x and y of a box's corners

# Limits for the visible part of an object; other objects are dropped.
_LEAST_SIDE = 2.0  # shorter side, pixels
_LARGEST_RATIO = 20.0  # longer side over shorter side
_LEAST_AREA = 0.10  # fraction of the box that is visible
_LEAST_AREA_OUTLINED = 0.01  # the same for objects with a polygon, whose visible box is exact

_LEAST_DEPTH = 0.1  # smallest depth of a canvas corner in perspective; the centre has depth 1


class Mirror(NamedTuple):
    """The directions in which an image is mirrored."""

    vertical: bool = False
    horizontal: bool = False

    @classmethod
    def draw(cls, settings: Augmentation, rng: Generator) -> Mirror:
        """Choose each direction at random, with its probability in the settings."""
        vertical, horizontal = rng.random(2).tolist()
        return cls(vertical < settings.flipud, horizontal < settings.fliplr)

    @property
    def code(self) -> int | None:
        """The flip code of ``cv2.flip``; None if not mirrored."""
        if self.vertical:
            return -1 if self.horizontal else 0
        return 1 if self.horizontal else None

    def labels(self, labelled: LabelledImage) -> LabelledImage:
        """Mirror the labels of an image whose pixels are mirrored already."""
        if not any(self):
            return labelled
        height, width = labelled.image.shape[:2]
        signs = (-1 if self.horizontal else 1, -1 if self.vertical else 1)
        return moved(
            labelled, labelled.image, signs, (width * self.horizontal, height * self.vertical)
        )

    def apply(self, labelled: LabelledImage) -> LabelledImage:
        """Mirror an image and its labels."""
        result = self.labels(labelled)
        if self.code is None:
            return result
        return replace(result, image=np.asarray(cv2.flip(labelled.image, self.code), np.uint8))


_NO_MIRROR = Mirror()


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """The transform from a canvas to an image of ``height`` x ``width`` pixels."""

    matrix: Matrix  # (3, 3), transforms points (x, y, 1) of the canvas to the image
    height: int
    width: int
    scale: float  # factor of the size of objects

    @property
    def upright(self) -> bool:
        """Whether the view only scales and shifts."""
        (_, shear_x, _), (shear_y, _, _), (tilt_x, tilt_y, _) = self.matrix.tolist()
        return not any((shear_x, shear_y, tilt_x, tilt_y))

    def visible(self) -> Area:
        """Return the bounding box of the visible part of the canvas, in canvas pixels."""
        if self.upright:
            (across, _, x), (_, down, y), _ = self.matrix.tolist()
            return Area(-x / across, -y / down, (self.width - x) / across, (self.height - y) / down)
        corners = np.array(
            [(0, 0), (self.width, 0), (0, self.height), (self.width, self.height)], float
        )
        x, y = project(corners, np.asarray(np.linalg.inv(self.matrix), np.float64)).T.tolist()
        return Area(min(x), min(y), max(x), max(y))


def draw_view(
    canvas: tuple[int, int], output: tuple[int, int], settings: Augmentation, rng: Generator
) -> View:
    """Draw a random view of ``canvas`` for an image of size ``output``; both are (height, width).

    The matrix of the view first shifts the centre of the canvas to the origin. Then it tilts,
    rotates and scales, shears, and shifts into the image, in this order.
    """
    drawn = (2 * rng.random(8) - 1).tolist()
    tilts, angle, zoom, shears, moves = drawn[:2], drawn[2], drawn[3], drawn[4:6], drawn[6:]
    scale = 1.05 + zoom * (settings.scale + 0.05) if settings.scale else 1.0
    x, y = (
        side * (0.5 + move * settings.translate)
        for side, move in zip(output[::-1], moves, strict=True)
    )
    if not (settings.perspective or settings.degrees or settings.shear):
        rows = (scale, 0, x - scale * canvas[1] / 2), (0, scale, y - scale * canvas[0] / 2)
        return View(np.array((*rows, (0, 0, 1))), *output, scale)
    centre, tilt, turn, shear, shift = (np.eye(3) for _ in range(5))
    centre[:2, 2] = -canvas[1] / 2, -canvas[0] / 2
    tilt[2, :2] = np.array(tilts) * settings.perspective
    nearest = np.abs(tilt[2, :2]) @ np.abs(centre[:2, 2])
    if nearest > 1 - _LEAST_DEPTH:
        tilt[2, :2] *= (1 - _LEAST_DEPTH) / nearest
    radians = math.radians(angle * settings.degrees)
    cos, sin = scale * math.cos(radians), scale * math.sin(radians)
    turn[:2, :2] = [[cos, sin], [-sin, cos]]
    shear[0, 1], shear[1, 0] = np.tan(np.radians(np.array(shears) * settings.shear))
    shift[:2, 2] = x, y
    return View(shift @ shear @ turn @ tilt @ centre, *output, scale)


def render(
    layout: Layout,
    view: View,
    jitter: Jitter | None,
    mirror: Mirror = _NO_MIRROR,
    planes: NDArray[np.uint8] | None = None,
) -> LabelledImage:
    """Return the view of a layout, with its labels.

    The pixels are written to ``planes``, uint8 RGB (3, height, width), or to a new array. Without
    ``jitter``, the pixels are neither changed nor mirrored, but the labels are mirrored. A box
    becomes the bounding box of the object's transformed polygon, or of the box's transformed
    corners if there is no polygon. Boxes are clipped to the image. Objects of which too little is
    visible are dropped. The mirror is applied last.
    """
    if planes is None:
        planes = np.empty((3, view.height, view.width), np.uint8)
    put = _resize_tiles if view.upright else _warp
    return mirror.labels(put(layout, view, jitter, mirror, planes))


def _finish(
    image: NDArray[np.uint8], jitter: Jitter | None, mirror: Mirror, planes: NDArray[np.uint8]
) -> None:
    """Write a BGR image (h, w, 3) to RGB ``planes``, with colour jitter and mirrored."""
    if jitter is None:
        cv2.split(image, (planes[2], planes[1], planes[0]))
    else:
        jitter.apply(image, planes, mirror.code)


def _warp(
    layout: Layout, view: View, jitter: Jitter | None, mirror: Mirror, planes: NDArray[np.uint8]
) -> LabelledImage:
    canvas = paint(layout)
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    of_centres = np.linalg.inv(half) @ view.matrix @ half
    size, grey = (view.width, view.height), (PAD, PAD, PAD)
    if view.matrix[2, :2].any():
        warped = cv2.warpPerspective(canvas.image, of_centres, size, borderValue=grey)
    else:
        warped = cv2.warpAffine(canvas.image, of_centres[:2], size, borderValue=grey)
    _finish(np.asarray(warped, np.uint8), jitter, mirror, planes)
    corners = project(canvas.boxes[:, _CORNERS], view.matrix)
    after = np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1)
    after = np.minimum(np.maximum(after, 0), (view.width, view.height) * 2)
    outlines = [
        None if line is None else clip_polygon(project(line, view.matrix), (0.0, 0.0), size)
        for line in canvas.polygons
    ]
    return _without_remnants(
        LabelledImage(bgr_view(planes), after, canvas.class_id, tuple(outlines)),
        canvas.boxes * view.scale,
    )


def _resize_tiles(
    layout: Layout, view: View, jitter: Jitter | None, mirror: Mirror, planes: NDArray[np.uint8]
) -> LabelledImage:
    (across, _, x), (_, down, y), _ = view.matrix.tolist()
    labels = _TileLabels(view)
    canvas = scratch("assembled", view.height, view.width, 3)
    canvas[...] = PAD
    with _fast_resize():
        for tile in layout.tiles:
            x1, y1, x2, y2 = tile.part
            columns = _span(x1, x2, across, tile.left * across + x, view.width)
            rows = _span(y1, y2, down, tile.top * down + y, view.height)
            if columns and rows:
                source = tile.labelled.image[rows.start : rows.stop, columns.start : columns.stop]
                target = canvas[rows.to : rows.till, columns.to : columns.till]
                cv2.resize(source, target.shape[1::-1], dst=target, interpolation=cv2.INTER_LINEAR)
                labels.add(tile, columns, rows)
    _finish(canvas, jitter, mirror, planes)
    return labels.on(bgr_view(planes))


@contextmanager
def _fast_resize() -> Iterator[None]:
    """Let OpenCV use Intel's faster resize in this thread; results may be one grey level off."""
    before = cv2.ipp.useIPP_NotExact()
    cv2.ipp.setUseIPP_NotExact(True)
    try:
        yield
    finally:
        cv2.ipp.setUseIPP_NotExact(before)


class _Span(NamedTuple):
    """One axis of a resize: pixels ``start:stop`` of a tile become pixels ``to:till`` of a view."""

    start: int
    stop: int
    to: int
    till: int

    def line(self) -> tuple[float, float]:
        """Return factor and shift that map coordinates of the tile to the view."""
        factor = (self.till - self.to) / (self.stop - self.start)
        return factor, self.to - self.start * factor


def _span(start: int, stop: int, factor: float, shift: float, limit: int) -> _Span | None:
    """Map pixels ``start:stop`` of a tile to a view of ``limit`` pixels; None if out of view."""
    low, high = round(start * factor + shift), round(stop * factor + shift)
    to, till = max(low, 0), min(high, limit)
    if to >= till:
        return None
    back = (stop - start) / (high - low)
    start, stop = start + round((to - low) * back), stop - round((high - till) * back)
    if start >= stop:  # less than half a source pixel is visible: use that pixel
        start, stop = min(start, stop), min(start, stop) + 1
    return _Span(start, stop, to, till)


class _TileLabels:
    """The labels of several tiles, which are transformed all at once."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._boxes: list[NDArray[np.float64]] = []
        self._class_id: list[NDArray[np.int64]] = []
        self._moves: list[tuple[float, ...]] = []
        self._outlines: list[Polygon | None] = []
        self._outlined = False

    def add(self, tile: Tile, columns: _Span, rows: _Span) -> None:
        """Add the labels of one tile."""
        labelled = tile.labelled
        if not len(labelled.boxes):
            return
        self._boxes.append(labelled.boxes)
        self._class_id.append(labelled.class_id)
        (across, x), (down, y) = columns.line(), rows.line()
        low, high = tile.part[:2], tile.part[2:]
        to, till = (columns.to, rows.to), (columns.till, rows.till)
        move = (across, down) * 2 + (x, y) * 2
        self._moves.append((*low, *low, *high, *high, *move, *to, *to, *till, *till))
        self._outlined = self._outlined or bool(labelled.polygons)
        for line in labelled.outlines:
            if line is not None:
                line = clip_polygon(line, low, high) * (across, down) + (x, y)
                line = clip_polygon(line, (0.0, 0.0), (self._view.width, self._view.height))
            self._outlines.append(line)

    def on(self, image: NDArray[np.uint8]) -> LabelledImage:
        """Combine ``image`` with the transformed labels of all tiles."""
        if not self._boxes:
            return LabelledImage(image, np.empty((0, 4)), np.empty(0, np.int64))
        counts = [len(boxes) for boxes in self._boxes]
        moves = np.repeat(np.array(self._moves).reshape(-1, 6, 4), counts, axis=0)
        low, high, factor, shift, to, till = (moves[:, index] for index in range(6))
        before = np.minimum(np.maximum(np.concatenate(self._boxes), low), high)
        after = np.minimum(np.maximum(before * factor + shift, to), till)
        outlines = tuple(self._outlines) if self._outlined else ()
        labelled = LabelledImage(image, after, np.concatenate(self._class_id), outlines)
        return _without_remnants(labelled, before * self._view.scale)


def project(points: NDArray[np.float64], matrix: Matrix) -> NDArray[np.float64]:
    """Transform points (..., 2) by a matrix (3, 3)."""
    homogeneous = points @ matrix.T[:2] + matrix.T[2]
    return np.asarray(homogeneous[..., :2] / homogeneous[..., 2:])


def _without_remnants(labelled: LabelledImage, before: NDArray[np.float64]) -> LabelledImage:
    """Drop objects of which too little is visible.

    ``before`` (n, 4) are the boxes of all objects before clipping, at the scale of the image.
    """
    boxes, least_area = labelled.boxes, _LEAST_AREA * np.ones(len(before))
    for index, line in enumerate(labelled.polygons):
        if line is not None:
            boxes[index], least_area[index] = hull(line), _LEAST_AREA_OUTLINED
    old, new = before[:, 2:] - before[:, :2], boxes[:, 2:] - boxes[:, :2]
    width, height = new[:, 0], new[:, 1]
    short, long = np.minimum(width, height), np.maximum(width, height)
    keep = (short > _LEAST_SIDE) & (long < _LARGEST_RATIO * short)
    keep &= width * height > least_area * old[:, 0] * old[:, 1]
    kept = tuple(line for line, good in zip(labelled.polygons, keep, strict=False) if good)
    return LabelledImage(labelled.image, boxes[keep], labelled.class_id[keep], kept)
