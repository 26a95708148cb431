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
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from y7edge.preprocess import PAD
from y7edge.train.augment_settings import Augmentation
from y7edge.train.colour import Jitter
from y7edge.train.labelled import Picture, Polygon, clip_polygon, hull
from y7edge.train.mosaic import Area, Layout, Tile, joined, paint

Matrix = NDArray[np.float64]

# Objects are dropped at or below this side in pixels, from this ratio of sides on, and at or below
# a share of their area: a polygon's box is tight, so that little of it is still something to see.
_LEAST_SIDE = 2.0
_LARGEST_RATIO = 20.0
_LEAST_AREA = 0.10
_LEAST_AREA_OUTLINED = 0.01

# Perspective is shortened where points would be magnified more than this, or lie behind the viewer.
_LEAST_DEPTH = 0.1


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
        """Whether it only scales and shifts."""
        m = self.matrix
        return bool(m[0, 1] == m[1, 0] == m[2, 0] == m[2, 1] == 0)

    def seen(self) -> Area:
        """The canvas area that the picture shows something of."""
        corners = np.array([[0, self.width, 0, self.width], [0, 0, self.height, self.height]])
        x, y = project(corners.T, np.linalg.inv(self.matrix)).T
        return Area(x.min(), y.min(), x.max(), y.max())


def draw_view(
    canvas: tuple[int, int], picture: tuple[int, int], settings: Augmentation, rng: Generator
) -> View:
    """Draw a view of a canvas (height, width) for a picture (height, width).

    Its matrix is the product T S R P C of shift, shear, turn with scale, tilt, and the move of the
    canvas's middle to the origin, which comes first.
    """
    centre, tilt, turn, shear, shift = (np.eye(3) for _ in range(5))
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
    return View(shift @ shear @ turn @ tilt @ centre, *picture, scale)


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
    jitter.apply(image)
    whole = Tile(canvas, 0, 0, (0, 0, layout.width, layout.height))
    return _labelled(image, [(whole, view.matrix)], view)


def _assembled(layout: Layout, view: View, jitter: Jitter) -> Picture:
    image = np.empty((view.height, view.width, 3), np.uint8)
    image[:] = jitter.grey()
    placed = []
    for tile in layout.tiles:
        x1, y1, x2, y2 = tile.part
        columns = _span(x1, x2, tile.left, view.matrix[0], view.width)
        rows = _span(y1, y2, tile.top, view.matrix[1, 1:], view.height)
        if columns and rows:
            source = tile.picture.image[rows.start : rows.stop, columns.start : columns.stop]
            _fill(image[rows.to : rows.till, columns.to : columns.till], source, jitter)
            placed.append((tile, np.array([columns.row(0), rows.row(1), (0.0, 0.0, 1.0)])))
    return _labelled(image, placed, view)


class _Span(NamedTuple):
    """Along one axis, pixels ``start`` to ``stop`` of a tile go to ``to`` to ``till`` of a view."""

    start: int
    stop: int
    to: int
    till: int

    def row(self, axis: int) -> tuple[float, float, float]:
        """The row of a matrix that does the same to points."""
        factor = (self.till - self.to) / (self.stop - self.start)
        shift = self.to - self.start * factor
        return (factor, 0.0, shift) if axis == 0 else (0.0, factor, shift)


def _span(start: int, stop: int, offset: int, line: Matrix, limit: int) -> _Span | None:
    """Where pixels of a tile at ``offset`` go, as far as that is from 0 to ``limit``."""
    factor, shift = float(line[0]), float(line[-1])
    low, high = round((start + offset) * factor + shift), round((stop + offset) * factor + shift)
    to, till = max(low, 0), min(high, limit)
    if to >= till:
        return None
    back = (stop - start) / (high - low)
    start, stop = start + round((to - low) * back), stop - round((high - till) * back)
    if start >= stop:  # less than half a source pixel shows: that one, then
        start = min(start, stop)
        stop = start + 1
    return _Span(start, stop, to, till)


def _fill(target: NDArray[np.uint8], source: NDArray[np.uint8], jitter: Jitter) -> None:
    """Resize and jitter ``source`` into ``target``, the jitter where there are fewer pixels."""
    size = target.shape[1::-1]
    if source.size < target.size:
        coloured = np.empty_like(source)
        jitter.apply(source, out=coloured)
        cv2.resize(coloured, size, dst=target, interpolation=cv2.INTER_LINEAR)
    else:
        cv2.resize(source, size, dst=target, interpolation=cv2.INTER_LINEAR)
        jitter.apply(target)


def _labelled(image: NDArray[np.uint8], placed: list[tuple[Tile, Matrix]], view: View) -> Picture:
    """The image with the labels of its tiles, each moved by its matrix."""
    sources = joined(image, [tile.picture for tile, _ in placed])
    counts = [len(tile.picture.boxes) for tile, _ in placed]
    parts = np.array([tile.part for tile, _ in placed], float).reshape(-1, 4).repeat(counts, axis=0)
    matrices = np.array([matrix for _, matrix in placed]).reshape(-1, 3, 3)
    before = np.clip(sources.boxes, parts[:, [0, 1, 0, 1]], parts[:, [2, 3, 2, 3]])
    corners = project(
        before[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2), matrices.repeat(counts, axis=0)
    )
    after = np.hstack((corners.min(axis=1), corners.max(axis=1)))
    polygons: list[Polygon | None] = []
    if sources.polygons:
        tile_of = np.arange(len(placed)).repeat(counts)
        for index, line in enumerate(sources.polygons):
            part = parts[index]
            outline = _outline(line, part, matrices[tile_of[index]], view)
            polygons.append(outline)
            if outline is not None:
                after[index] = hull(outline)
    after = np.clip(after, 0, (view.width, view.height) * 2)
    outlined = np.array([line is not None for line in polygons] or [False] * len(after), bool)
    keep = np.flatnonzero(_worth_keeping(before * view.scale, after, outlined))
    kept = tuple(polygons[index] for index in keep) if polygons else ()
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
    before: NDArray[np.float64], after: NDArray[np.float64], outlined: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which boxes still show an object; ``before`` is scaled as the picture was."""
    old, new = before[:, 2:] - before[:, :2], after[:, 2:] - after[:, :2]
    ratio = new.max(axis=1, initial=0) / np.maximum(new.min(axis=1, initial=np.inf), 1e-9)
    share = new.prod(axis=1) / np.maximum(old.prod(axis=1), 1e-9)
    large = (new > _LEAST_SIDE).all(axis=1)
    least = np.where(outlined, _LEAST_AREA_OUTLINED, _LEAST_AREA)
    return np.asarray(large & (ratio < _LARGEST_RATIO) & (share > least))
