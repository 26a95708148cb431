"""Augmentation of training pictures: mosaic, random perspective, colour jitter, flips.

The published recipe of YOLOv7 (arXiv 2207.02696) without mixup, paste-in and mosaics of nine.
Every function is pure: it takes a picture, settings and a numpy generator, and gives a new picture.
Boxes are corners in continuous pixel coordinates, where pixel i spans i to i + 1; OpenCV's warps
count from pixel centres, so their matrices are shifted by half a pixel here (the published ones are
not, which moves labels against pixels by up to half a pixel).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from y7edge.errors import ConfigError
from y7edge.preprocess import PAD, letterbox_geometry

# Boxes are dropped after a warp at or below this side in pixels and share of their area, and from
# this ratio of sides on.
_LEAST_SIDE = 2.0
_LEAST_AREA = 0.10
_LARGEST_RATIO = 20.0


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How strongly pictures are changed; the defaults are the published ones for yolov7-tiny.

    Raises:
        ConfigError: A probability outside 0..1, a strength that is negative or not finite, or a
            scale at which pictures vanish.
    """

    mosaic: float = 1.0  # probability of joining four pictures
    hsv_h: float = 0.015  # largest relative change of hue,
    hsv_s: float = 0.7  # of saturation
    hsv_v: float = 0.4  # and of brightness
    degrees: float = 0.0  # largest turn either way
    translate: float = 0.1  # largest shift, as a share of the picture
    scale: float = 0.5  # factors are drawn from 1 - scale to 1.1 + scale
    shear: float = 0.0  # largest shear angle either way, in degrees
    perspective: float = 0.0  # largest perspective coefficient (per pixel), 0 to 0.001
    flipud: float = 0.0  # probability of mirroring top to bottom
    fliplr: float = 0.5  # probability of mirroring left to right

    def __post_init__(self) -> None:
        for name in ("mosaic", "flipud", "fliplr"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"{name}: expected a probability from 0 to 1, found {value}")
        for name in ("hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "shear", "perspective"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name}: expected a finite number from 0, found {value}")
        if not 0 <= self.scale < 1:
            raise ConfigError(f"scale: expected 0 or more and less than 1, found {self.scale}")


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A picture on its way to the network.

    Attributes:
        image: uint8 (h, w, 3), BGR.
        boxes: float64 (n, 4), x1, y1, x2, y2 in pixels.
        class_id: int64 (n,).
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float64]
    class_id: NDArray[np.int64]


def augment(tiles: Sequence[Picture], size: int, settings: Augmentation, rng: Generator) -> Picture:
    """The whole recipe: one or four pictures in, one of ``size`` x ``size`` out."""
    canvas = mosaic(tiles, size, rng) if len(tiles) == 4 else letterbox(tiles[0], size)
    picture = warp(canvas, size, settings, rng)
    image = jitter_colour(picture.image, settings, rng)
    return flip(Picture(image, picture.boxes, picture.class_id), settings, rng)


def letterbox(picture: Picture, size: int) -> Picture:
    """Resize to fit a square of ``size``, as the detector does, and pad with grey."""
    geometry = letterbox_geometry(picture.image.shape[:2], size)
    image = resize(picture.image, geometry.resized_hw)
    if geometry.resized_hw != (size, size):
        image = np.asarray(
            cv2.copyMakeBorder(
                image,
                geometry.top,
                geometry.bottom,
                geometry.left,
                geometry.right,
                cv2.BORDER_CONSTANT,
                value=(PAD, PAD, PAD),
            ),
            np.uint8,
        )
    factors = np.divide(geometry.resized_hw[::-1], picture.image.shape[1::-1])
    offset = (geometry.left, geometry.top) * 2
    return Picture(image, picture.boxes * np.tile(factors, 2) + offset, picture.class_id)


def resize(image: NDArray[np.uint8], height_width: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize bilinearly to (height, width); the image itself if it has that size."""
    if image.shape[:2] == height_width:
        return image
    return np.asarray(
        cv2.resize(image, height_width[::-1], interpolation=cv2.INTER_LINEAR), np.uint8
    )


def mosaic(tiles: Sequence[Picture], size: int, rng: Generator) -> Picture:
    """Join four pictures, whose longer side is ``size``, on a canvas twice as large.

    They meet with one corner each at a random point around the middle and are cut by the canvas.
    """
    side = 2 * size
    canvas = np.full((side, side, 3), PAD, np.uint8)
    meet_x, meet_y = (int(value) for value in rng.uniform(size / 2, 3 * size / 2, 2))
    boxes = []
    for index, tile in enumerate(tiles):
        height, width = tile.image.shape[:2]
        left = meet_x if index % 2 else meet_x - width
        top = meet_y if index >= 2 else meet_y - height
        x1, y1 = max(left, 0), max(top, 0)
        x2, y2 = min(left + width, side), min(top + height, side)
        canvas[y1:y2, x1:x2] = tile.image[y1 - top : y2 - top, x1 - left : x2 - left]
        boxes.append(tile.boxes + np.array((left, top, left, top)))
    clipped = np.clip(np.concatenate(boxes), 0, side)
    class_id = np.concatenate([tile.class_id for tile in tiles])
    inside = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    return Picture(canvas, clipped[inside], class_id[inside])


def warp(picture: Picture, size: int, settings: Augmentation, rng: Generator) -> Picture:
    """Turn, scale, shear, tilt and shift a canvas into a picture of ``size`` x ``size``.

    Boxes become the upright hulls of their warped corners, clipped to the picture; what is left too
    small, too thin or too much cut off is dropped.
    """
    matrix, scale = _matrix(picture.image.shape[:2], size, settings, rng)
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    of_centres = np.linalg.inv(half) @ matrix @ half
    grey = (PAD, PAD, PAD)
    if settings.perspective:
        image = cv2.warpPerspective(picture.image, of_centres, (size, size), borderValue=grey)
    else:
        image = cv2.warpAffine(picture.image, of_centres[:2], (size, size), borderValue=grey)

    corners = picture.boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2)
    moved = np.column_stack((corners, np.ones(len(corners)))) @ matrix.T
    points = (moved[:, :2] / moved[:, 2:]).reshape(-1, 4, 2)
    boxes = np.clip(np.hstack((points.min(axis=1), points.max(axis=1))), 0, size)
    keep = _worth_keeping(picture.boxes * scale, boxes)
    return Picture(np.asarray(image, np.uint8), boxes[keep], picture.class_id[keep])


def _matrix(
    height_width: tuple[int, ...], size: int, settings: Augmentation, rng: Generator
) -> tuple[NDArray[np.float64], float]:
    """The 3x3 matrix T S R P C, applied from the right, and the scale factor in R."""
    height, width = height_width
    centre, tilt, turn, shear, shift = (np.eye(3) for _ in range(5))
    centre[:2, 2] = -width / 2, -height / 2
    tilt[2, :2] = rng.uniform(-settings.perspective, settings.perspective, 2)
    angle = math.radians(rng.uniform(-settings.degrees, settings.degrees))
    scale = rng.uniform(1 - settings.scale, 1.1 + settings.scale) if settings.scale else 1.0
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    turn[:2, :2] = [[cos, sin], [-sin, cos]]
    shear[0, 1], shear[1, 0] = np.tan(np.radians(rng.uniform(-settings.shear, settings.shear, 2)))
    shift[:2, 2] = size * rng.uniform(0.5 - settings.translate, 0.5 + settings.translate, 2)
    return shift @ shear @ turn @ tilt @ centre, scale


def _worth_keeping(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which boxes still show an object; ``before`` is scaled as the picture was."""
    old, new = before[:, 2:] - before[:, :2], after[:, 2:] - after[:, :2]
    ratio = new.max(axis=1, initial=0) / np.maximum(new.min(axis=1, initial=np.inf), 1e-9)
    share = new.prod(axis=1) / np.maximum(old.prod(axis=1), 1e-9)
    large = (new > _LEAST_SIDE).all(axis=1)
    return np.asarray(large & (ratio < _LARGEST_RATIO) & (share > _LEAST_AREA))


def jitter_colour(
    image: NDArray[np.uint8], settings: Augmentation, rng: Generator
) -> NDArray[np.uint8]:
    """Scale hue, saturation and brightness by random factors around 1."""
    strength = np.array((settings.hsv_h, settings.hsv_s, settings.hsv_v))
    factors = 1 + rng.uniform(-1, 1, 3) * strength
    if not strength.any():
        return image
    table = np.outer(np.arange(256), factors)
    table[:, 0] %= 180  # OpenCV's hue of 8-bit pictures goes round at 180
    steps = np.clip(table, 0, 255).astype(np.uint8).reshape(1, 256, 3)
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), steps)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR), np.uint8)


def flip(picture: Picture, settings: Augmentation, rng: Generator) -> Picture:
    """Mirror the picture and its boxes, each way with its probability."""
    image, boxes = picture.image, picture.boxes
    height, width = image.shape[:2]
    upside, sideways = rng.random(2) < (settings.flipud, settings.fliplr)
    if upside:
        image = image[::-1]
        boxes = boxes[:, [0, 3, 2, 1]] * (1, -1, 1, -1) + (0, height, 0, height)
    if sideways:
        image = image[:, ::-1]
        boxes = boxes[:, [2, 1, 0, 3]] * (-1, 1, -1, 1) + (width, 0, width, 0)
    return Picture(image, boxes, picture.class_id)
