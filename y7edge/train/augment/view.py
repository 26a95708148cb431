"""Random views of a canvas: turned, scaled, sheared, tilted and shifted pictures and labels.

As published for YOLOv7, with one filter for what is left of objects. Coordinates are continuous
(pixel i spans i to i + 1); OpenCV's warps count from pixel centres, so their matrices are shifted
by half a pixel here (the published ones are not, which moves labels against pixels by up to half a
pixel).

Views that only scale and shift, as those of all published recipes, are not warped: the visible
tiles are resized one by one, at a third of the cost. The edges of a tile are rounded to whole
pixels, which moves it by up to half a pixel; its labels move with it.

Images are made as three planes for the network; the BGR array (h, w, 3) is a view of them.
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
from y7edge.train.augment.labelled import Picture, Polygon, bgr_view, clip_polygon, hull, moved
from y7edge.train.augment.mosaic import Area, Layout, Tile, paint
from y7edge.train.augment.scratch import scratch
from y7edge.train.augment.settings import Augmentation

Matrix = NDArray[np.float64]

# Columns of a box that are the x and y of its corners.
_CORNERS = np.array([(0, 1), (2, 1), (2, 3), (0, 3)])

# Objects are dropped at or below this side in pixels, from this ratio of sides on, and at or below
# a share of their area: a polygon's box is tight, so that little of it is still something to see.
_LEAST_SIDE = 2.0
_LARGEST_RATIO = 20.0
_LEAST_AREA = 0.10
_LEAST_AREA_OUTLINED = 0.01

# Perspective is shortened where points would be magnified more than this, or lie behind the viewer.
_LEAST_DEPTH = 0.1


class Mirror(NamedTuple):
    """Which ways a picture is mirrored."""

    upside: bool = False
    sideways: bool = False

    @classmethod
    def draw(cls, settings: Augmentation, rng: Generator) -> Mirror:
        """Each way with its probability."""
        upside, sideways = rng.random(2).tolist()
        return cls(upside < settings.flipud, sideways < settings.fliplr)

    @property
    def code(self) -> int | None:
        """``cv2.flip``'s code for it; None: not at all."""
        if self.upside:
            return -1 if self.sideways else 0
        return 1 if self.sideways else None

    def labels(self, picture: Picture) -> Picture:
        """The labels of a picture, mirrored; its image as it is."""
        if not any(self):
            return picture
        height, width = picture.image.shape[:2]
        signs = (-1 if self.sideways else 1, -1 if self.upside else 1)
        return moved(picture, picture.image, signs, (width * self.sideways, height * self.upside))

    def apply(self, picture: Picture) -> Picture:
        """A whole picture, mirrored."""
        made = self.labels(picture)
        if self.code is None:
            return made
        return replace(made, image=np.asarray(cv2.flip(picture.image, self.code), np.uint8))


_AS_IT_IS = Mirror()


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What part of a canvas an image shows, and how."""

    matrix: Matrix  # (3, 3), from points (x, y, 1) of the canvas to those of the image
    height: int  # of the image
    width: int
    scale: float  # the drawn factor, by which objects grow

    @property
    def upright(self) -> bool:
        """Whether it only scales and shifts."""
        (_, shear_x, _), (shear_y, _, _), (tilt_x, tilt_y, _) = self.matrix.tolist()
        return not any((shear_x, shear_y, tilt_x, tilt_y))

    def seen(self) -> Area:
        """The canvas area that the picture shows something of."""
        if self.upright:
            (across, _, x), (_, down, y), _ = self.matrix.tolist()
            return Area(-x / across, -y / down, (self.width - x) / across, (self.height - y) / down)
        corners = np.array(
            [(0, 0), (self.width, 0), (0, self.height), (self.width, self.height)], float
        )
        x, y = project(corners, np.asarray(np.linalg.inv(self.matrix), np.float64)).T.tolist()
        return Area(min(x), min(y), max(x), max(y))


def draw_view(
    canvas: tuple[int, int], picture: tuple[int, int], settings: Augmentation, rng: Generator
) -> View:
    """Draw a view of a canvas (height, width) for a picture (height, width).

    Its matrix is the product T S R P C of shift, shear, turn with scale, tilt, and the move of the
    canvas's middle to the origin, which comes first.
    """
    drawn = (2 * rng.random(8) - 1).tolist()
    tilts, angle, zoom, shears, moves = drawn[:2], drawn[2], drawn[3], drawn[4:6], drawn[6:]
    # From 1 - scale to 1.1 + scale.
    scale = 1.05 + zoom * (settings.scale + 0.05) if settings.scale else 1.0
    x, y = (
        side * (0.5 + move * settings.translate)
        for side, move in zip(picture[::-1], moves, strict=True)
    )
    if not (settings.perspective or settings.degrees or settings.shear):
        rows = (scale, 0, x - scale * canvas[1] / 2), (0, scale, y - scale * canvas[0] / 2)
        return View(np.array((*rows, (0, 0, 1))), *picture, scale)
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
    return View(shift @ shear @ turn @ tilt @ centre, *picture, scale)


def show(
    layout: Layout,
    view: View,
    jitter: Jitter,
    mirror: Mirror = _AS_IT_IS,
    planes: NDArray[np.uint8] | None = None,
) -> Picture:
    """The picture of a layout through a view, in jittered colours, with its labels.

    Boxes become the upright hulls of their warped corners, or of their outlines where there are
    any, clipped to the picture; what is left too small, too thin or too much cut off is dropped.

    Args:
        layout: What to show.
        view: How.
        jitter: In which colours.
        mirror: What is done last.
        planes: uint8 (3, height, width) of the view: where the picture is made, RGB; None makes new
            ones.
    """
    if planes is None:
        planes = np.empty((3, view.height, view.width), np.uint8)
    put = _assembled if view.upright else _warped
    return mirror.labels(put(layout, view, jitter, mirror, planes))


def _warped(
    layout: Layout, view: View, jitter: Jitter, mirror: Mirror, planes: NDArray[np.uint8]
) -> Picture:
    canvas = paint(layout)
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    of_centres = np.linalg.inv(half) @ view.matrix @ half
    size, grey = (view.width, view.height), (PAD, PAD, PAD)
    if view.matrix[2, :2].any():
        warped = cv2.warpPerspective(canvas.image, of_centres, size, borderValue=grey)
    else:
        warped = cv2.warpAffine(canvas.image, of_centres[:2], size, borderValue=grey)
    jitter.apply(np.asarray(warped, np.uint8), planes, mirror.code)
    corners = project(canvas.boxes[:, _CORNERS], view.matrix)
    after = np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1)
    after = np.minimum(np.maximum(after, 0), (view.width, view.height) * 2)
    outlines = [_outline(line, view.matrix, view) for line in canvas.polygons]
    return _worth_keeping(
        Picture(bgr_view(planes), after, canvas.class_id, tuple(outlines)),
        canvas.boxes * view.scale,
    )


def _assembled(
    layout: Layout, view: View, jitter: Jitter, mirror: Mirror, planes: NDArray[np.uint8]
) -> Picture:
    (across, _, x), (_, down, y), _ = view.matrix.tolist()
    labels = _TileLabels(view)
    canvas = scratch("assembled", view.height, view.width, 3)
    canvas[...] = PAD
    with _quick_resize():
        for tile in layout.tiles:
            x1, y1, x2, y2 = tile.part
            columns = _span(x1, x2, across, tile.left * across + x, view.width)
            rows = _span(y1, y2, down, tile.top * down + y, view.height)
            if columns and rows:
                source = tile.picture.image[rows.start : rows.stop, columns.start : columns.stop]
                target = canvas[rows.to : rows.till, columns.to : columns.till]
                cv2.resize(source, target.shape[1::-1], dst=target, interpolation=cv2.INTER_LINEAR)
                labels.add(tile, columns, rows)
    jitter.apply(canvas, planes, mirror.code)
    return labels.on(bgr_view(planes))


@contextmanager
def _quick_resize() -> Iterator[None]:
    """Let this thread's OpenCV take Intel's resize where it has it: up to one grey level off."""
    before = cv2.ipp.useIPP_NotExact()
    cv2.ipp.setUseIPP_NotExact(True)
    try:
        yield
    finally:
        cv2.ipp.setUseIPP_NotExact(before)


class _Span(NamedTuple):
    """Along one axis, pixels ``start`` to ``stop`` of a tile go to ``to`` to ``till`` of a view."""

    start: int
    stop: int
    to: int
    till: int

    def line(self) -> tuple[float, float]:
        """Factor and shift that do the same to points."""
        factor = (self.till - self.to) / (self.stop - self.start)
        return factor, self.to - self.start * factor


def _span(start: int, stop: int, factor: float, shift: float, limit: int) -> _Span | None:
    """Where pixels of a tile go under ``factor`` and ``shift``, as far as that is in 0..limit."""
    low, high = round(start * factor + shift), round(stop * factor + shift)
    to, till = max(low, 0), min(high, limit)
    if to >= till:
        return None
    back = (stop - start) / (high - low)
    start, stop = start + round((to - low) * back), stop - round((high - till) * back)
    if start >= stop:  # less than half a source pixel shows: that one, then
        start, stop = min(start, stop), min(start, stop) + 1
    return _Span(start, stop, to, till)


class _TileLabels:
    """The labels of tiles, moved as their pixels are: all at once, when all tiles are there."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._boxes: list[NDArray[np.float64]] = []
        self._class_id: list[NDArray[np.int64]] = []
        self._moves: list[tuple[float, ...]] = []
        self._outlines: list[Polygon | None] = []
        self._outlined = False

    def add(self, tile: Tile, columns: _Span, rows: _Span) -> None:
        """Those of one tile; its pixels are no longer needed then."""
        picture = tile.picture
        if not len(picture.boxes):
            return
        self._boxes.append(picture.boxes)
        self._class_id.append(picture.class_id)
        (across, x), (down, y) = columns.line(), rows.line()
        low, high = tile.part[:2], tile.part[2:]
        to, till = (columns.to, rows.to), (columns.till, rows.till)
        move = (across, down) * 2 + (x, y) * 2
        self._moves.append((*low, *low, *high, *high, *move, *to, *to, *till, *till))
        self._outlined = self._outlined or bool(picture.polygons)
        for line in picture.outlines:
            if line is not None:
                line = clip_polygon(line, low, high) * (across, down) + (x, y)
                line = clip_polygon(line, (0.0, 0.0), (self._view.width, self._view.height))
            self._outlines.append(line)

    def on(self, image: NDArray[np.uint8]) -> Picture:
        """The image with the labels that are still worth keeping."""
        if not self._boxes:
            return Picture(image, np.empty((0, 4)), np.empty(0, np.int64))
        counts = [len(boxes) for boxes in self._boxes]
        moves = np.repeat(np.array(self._moves).reshape(-1, 6, 4), counts, axis=0)
        low, high, factor, shift, to, till = (moves[:, index] for index in range(6))
        before = np.minimum(np.maximum(np.concatenate(self._boxes), low), high)
        after = np.minimum(np.maximum(before * factor + shift, to), till)
        outlines = tuple(self._outlines) if self._outlined else ()
        picture = Picture(image, after, np.concatenate(self._class_id), outlines)
        return _worth_keeping(picture, before * self._view.scale)


def _outline(line: Polygon | None, matrix: Matrix, view: View) -> Polygon | None:
    if line is None:
        return None
    return clip_polygon(project(line, matrix), (0.0, 0.0), (view.width, view.height))


def project(points: NDArray[np.float64], matrix: Matrix) -> NDArray[np.float64]:
    """Points (..., 2) moved by a matrix (3, 3)."""
    homogeneous = points @ matrix.T[:2] + matrix.T[2]
    return np.asarray(homogeneous[..., :2] / homogeneous[..., 2:])


def _worth_keeping(picture: Picture, before: NDArray[np.float64]) -> Picture:
    """Labels that still show an object; ``before``: their boxes uncut, scaled as the picture."""
    boxes, least_area = picture.boxes, _LEAST_AREA * np.ones(len(before))
    for index, line in enumerate(picture.polygons):
        if line is not None:
            boxes[index], least_area[index] = hull(line), _LEAST_AREA_OUTLINED
    old, new = before[:, 2:] - before[:, :2], boxes[:, 2:] - boxes[:, :2]
    width, height = new[:, 0], new[:, 1]
    short, long = np.minimum(width, height), np.maximum(width, height)
    keep = (short > _LEAST_SIDE) & (long < _LARGEST_RATIO * short)
    keep &= width * height > least_area * old[:, 0] * old[:, 1]
    kept = tuple(line for line, good in zip(picture.polygons, keep, strict=False) if good)
    return Picture(picture.image, boxes[keep], picture.class_id[keep], kept)
