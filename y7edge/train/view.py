"""Random views of a canvas: turned, scaled, sheared, tilted and shifted pictures and labels.

As published for YOLOv7, with one filter for what is left of objects. Coordinates are continuous
(pixel i spans i to i + 1); OpenCV's warps count from pixel centres, so their matrices are shifted
by half a pixel here (the published ones are not, which moves labels against pixels by up to half a
pixel).

Views that only scale and shift, as those of all published recipes, are not warped but put together
from tiles, each resized by itself: a resize costs a third of a warp, and nothing is done for what
does not show. A tile's edges, and the cuts through it at the view's edges, are rounded to whole
pixels, source and result, which moves it by up to half a pixel; its labels follow what was done.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from y7edge.preprocess import PAD
from y7edge.train.augment_settings import Augmentation
from y7edge.train.colour import Jitter
from y7edge.train.labelled import Picture, Polygon, clip_polygon, hull, moved
from y7edge.train.mosaic import Area, Layout, Tile, joined, paint
from y7edge.train.scratch import scratch

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


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What part of a canvas a picture shows, and how.

    Attributes:
        matrix: float64 (3, 3), from points (x, y, 1) of the canvas to those of the picture.
        height: Of the picture.
        width: Of the picture.
        scale: The drawn factor, by which objects grow.
    """

    matrix: Matrix
    height: int
    width: int
    scale: float

    @property
    def upright(self) -> bool:
        """Whether it only scales, mirrors and shifts."""
        (_, shear_x, _), (shear_y, _, _), (tilt_x, tilt_y, _) = self.matrix.tolist()
        return not any((shear_x, shear_y, tilt_x, tilt_y))

    def seen(self) -> Area:
        """The canvas area that the picture shows something of."""
        corners = np.array(
            [(0, 0), (self.width, 0), (0, self.height), (self.width, self.height)], float
        )
        x, y = project(corners, np.asarray(np.linalg.inv(self.matrix), np.float64)).T.tolist()
        return Area(min(x), min(y), max(x), max(y))


def draw_view(
    canvas: tuple[int, int],
    picture: tuple[int, int],
    settings: Augmentation,
    rng: Generator,
    mirror: Mirror,
) -> View:
    """Draw a view of a canvas (height, width) for a picture (height, width), perhaps mirrored.

    Its matrix is the product F T S R P C of mirroring, shift, shear, turn with scale, tilt, and the
    move of the canvas's middle to the origin, which comes first.
    """
    centre, tilt, turn, shear, shift, flip = (np.eye(3) for _ in range(6))
    centre[:2, 2] = -canvas[1] / 2, -canvas[0] / 2
    tilt[2, :2] = rng.uniform(-settings.perspective, settings.perspective, 2)
    nearest = np.abs(tilt[2, :2]) @ np.abs(centre[:2, 2])
    if nearest > 1 - _LEAST_DEPTH:
        tilt[2, :2] *= (1 - _LEAST_DEPTH) / nearest
    angle = math.radians(rng.uniform(-settings.degrees, settings.degrees))
    scale = rng.uniform(1 - settings.scale, 1.1 + settings.scale) if settings.scale else 1.0
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    turn[:2, :2] = [[cos, sin], [-sin, cos]]
    shear[0, 1], shear[1, 0] = np.tan(np.radians(rng.uniform(-settings.shear, settings.shear, 2)))
    moves = rng.uniform(0.5 - settings.translate, 0.5 + settings.translate, 2)
    shift[:2, 2] = moves * picture[::-1]
    for axis, flipped in enumerate((mirror.sideways, mirror.upside)):
        if flipped:
            flip[axis, axis], flip[axis, 2] = -1, picture[1 - axis]
    return View(flip @ shift @ shear @ turn @ tilt @ centre, *picture, scale)


def show(layout: Layout, view: View, jitter: Jitter) -> Picture:
    """The picture of a layout through a view, in jittered colours, with its labels.

    Boxes become the upright hulls of their warped corners, or of their outlines where there are
    any, clipped to the picture; what is left too small, too thin or too much cut off is dropped.
    """
    return _assembled(layout, view, jitter) if view.upright else _warped(layout, view, jitter)


def _warped(layout: Layout, view: View, jitter: Jitter) -> Picture:
    canvas = paint(layout)
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    of_centres = np.linalg.inv(half) @ view.matrix @ half
    size, grey = (view.width, view.height), (PAD, PAD, PAD)
    if view.matrix[2, :2].any():
        warped = cv2.warpPerspective(canvas.image, of_centres, size, borderValue=grey)
    else:
        warped = cv2.warpAffine(canvas.image, of_centres[:2], size, borderValue=grey)
    image = np.asarray(warped, np.uint8)
    jitter.apply(image, image)
    whole = Tile(canvas, 0, 0, (0, 0, layout.width, layout.height))
    return _labelled(image, [(whole, view.matrix)], view)


def _assembled(layout: Layout, view: View, jitter: Jitter) -> Picture:
    image = np.empty((view.height, view.width, 3), np.uint8)
    image.fill(jitter.grey())
    (across, _, x), (_, down, y), _ = view.matrix.tolist()
    placed = []
    for tile in layout.tiles:
        x1, y1, x2, y2 = tile.part
        columns = _span(x1, x2, across, tile.left * across + x, view.width)
        rows = _span(y1, y2, down, tile.top * down + y, view.height)
        if columns and rows:
            source = tile.picture.image[rows.start : rows.stop, columns.start : columns.stop]
            target = image[rows.to : rows.till, columns.to : columns.till]
            _fill(target, source, jitter, _flip_code(upside=down < 0, sideways=across < 0))
            (across_tile, x_tile), (down_tile, y_tile) = columns.line(across), rows.line(down)
            placed.append((tile, ((across_tile, 0, x_tile), (0, down_tile, y_tile), (0, 0, 1))))
    return _labelled(image, placed, view)


class _Span(NamedTuple):
    """Along one axis, pixels ``start`` to ``stop`` of a tile go to ``to`` to ``till`` of a view."""

    start: int
    stop: int
    to: int
    till: int

    def line(self, sign: float) -> tuple[float, float]:
        """Factor and shift that do the same to points; mirrored if ``sign`` is negative."""
        factor = (self.till - self.to) / (self.stop - self.start)
        if sign < 0:
            return -factor, self.till + self.start * factor
        return factor, self.to - self.start * factor


def _span(start: int, stop: int, factor: float, shift: float, limit: int) -> _Span | None:
    """Where pixels of a tile go under ``factor`` and ``shift``, as far as that is in 0..limit."""
    low, high = sorted((round(start * factor + shift), round(stop * factor + shift)))
    to, till = max(low, 0), min(high, limit)
    if to >= till:
        return None
    back = (stop - start) / (high - low)
    before, after = round((to - low) * back), round((high - till) * back)
    if factor < 0:
        before, after = after, before
    start, stop = start + before, stop - after
    if start >= stop:  # less than half a source pixel shows: that one, then
        start, stop = min(start, stop), min(start, stop) + 1
    return _Span(start, stop, to, till)


def _flip_code(*, upside: bool, sideways: bool) -> int | None:
    """``cv2.flip``'s code for mirroring."""
    if upside:
        return -1 if sideways else 0
    return 1 if sideways else None


def _fill(
    target: NDArray[np.uint8], source: NDArray[np.uint8], jitter: Jitter, mirror: int | None
) -> None:
    """Resize, jitter and mirror ``source`` into ``target``, with the fewest pixels to jitter."""
    if source.size < target.size:
        coloured = scratch("tile", *source.shape[:2])
        jitter.apply(source, coloured, mirror)
        cv2.resize(coloured, target.shape[1::-1], dst=target, interpolation=cv2.INTER_LINEAR)
    else:
        resized = scratch("tile", *target.shape[:2])
        cv2.resize(source, target.shape[1::-1], dst=resized, interpolation=cv2.INTER_LINEAR)
        jitter.apply(resized, target, mirror)


def _labelled(image: NDArray[np.uint8], placed: Sequence[tuple[Tile, Any]], view: View) -> Picture:
    """The image with the labels of its tiles, each moved by its matrix."""
    sources = joined(image, [tile.picture for tile, _ in placed])
    if not len(sources.boxes):
        return sources
    counts = [len(tile.picture.boxes) for tile, _ in placed]
    parts = np.repeat(np.array([tile.part for tile, _ in placed], float), counts, axis=0)
    matrices = np.repeat(np.array([matrix for _, matrix in placed], float), counts, axis=0)
    low, high = parts[:, [0, 1, 0, 1]], parts[:, [2, 3, 2, 3]]
    before = np.minimum(np.maximum(sources.boxes, low), high)
    corners = project(before[:, _CORNERS], matrices)
    after = np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1)
    polygons = tuple(
        _outline(line, part, matrix, view)
        for line, part, matrix in zip(sources.polygons, parts, matrices, strict=False)
    )
    for index, line in enumerate(polygons):
        if line is not None:
            after[index] = hull(line)
    after = np.minimum(np.maximum(after, 0), (view.width, view.height) * 2)
    least = [_LEAST_AREA if line is None else _LEAST_AREA_OUTLINED for line in polygons]
    keep = _worth_keeping(before * view.scale, after, np.array(least or _LEAST_AREA))
    kept = tuple(line for line, good in zip(polygons, keep, strict=False) if good)
    return Picture(image, after[keep], sources.class_id[keep], kept)


def _outline(line: Polygon | None, part: Matrix, matrix: Matrix, view: View) -> Polygon | None:
    if line is None:
        return None
    visible = clip_polygon(line, part[:2].tolist(), part[2:].tolist())
    return clip_polygon(project(visible, matrix), (0.0, 0.0), (view.width, view.height))


def project(points: NDArray[np.float64], matrix: Matrix) -> NDArray[np.float64]:
    """Points (..., k, 2) moved by matrices (..., 3, 3)."""
    turned = np.swapaxes(matrix, -1, -2)
    homogeneous = points @ turned[..., :2, :] + turned[..., 2:, :]
    return np.asarray(homogeneous[..., :2] / homogeneous[..., 2:])


def _worth_keeping(
    before: NDArray[np.float64], after: NDArray[np.float64], least_area: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which boxes still show an object; ``before`` is scaled as the picture was."""
    old, new = before[:, 2:] - before[:, :2], after[:, 2:] - after[:, :2]
    short, long = new.min(axis=1), new.max(axis=1)
    large = (short > _LEAST_SIDE) & (long < _LARGEST_RATIO * short)
    return np.asarray(large & (short * long > least_area * old[:, 0] * old[:, 1]))


def mirrored(picture: Picture, mirror: Mirror) -> Picture:
    """A whole picture and its labels, mirrored."""
    code = _flip_code(upside=mirror.upside, sideways=mirror.sideways)
    if code is None:
        return picture
    height, width = picture.image.shape[:2]
    signs = (-1 if mirror.sideways else 1, -1 if mirror.upside else 1)
    offset = (width * mirror.sideways, height * mirror.upside)
    return moved(picture, np.asarray(cv2.flip(picture.image, code), np.uint8), signs, offset)
