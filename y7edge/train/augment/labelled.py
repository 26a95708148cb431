"""Pictures with their labels, on the way from a data set to the network.

Coordinates are continuous pixels: pixel i spans i to i + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from y7edge.detect.preprocess import PAD, letterbox_geometry

Polygon = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image with its labels."""

    image: NDArray[np.uint8]  # (h, w, 3), BGR
    boxes: NDArray[np.float64]  # (n, 4), x1, y1, x2, y2 in pixels
    class_id: NDArray[np.int64]  # (n,)
    # Each box's outline (k, 2), x, y in pixels, or None; empty where no box has one
    polygons: tuple[Polygon | None, ...] = ()

    @property
    def outlines(self) -> tuple[Polygon | None, ...]:
        """``polygons`` with one entry for each box."""
        return self.polygons or (None,) * len(self.boxes)


Pictures = Sequence[Picture]
"""Where augmentation takes its images from: decoded, the longer side the network's input size S."""


def resize(image: NDArray[np.uint8], height_width: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize bilinearly to (height, width); the image itself if it has that size."""
    if image.shape[:2] == height_width:
        return image
    return np.asarray(
        cv2.resize(image, height_width[::-1], interpolation=cv2.INTER_LINEAR), np.uint8
    )


def moved(
    picture: Picture,
    image: NDArray[np.uint8],
    factor: Sequence[float] = (1.0, 1.0),
    offset: Sequence[float] = (0.0, 0.0),
) -> Picture:
    """The labels of a picture on another image: times ``factor`` (x, y), plus ``offset`` (x, y)."""
    by, to = np.asarray(factor), np.asarray(offset)
    low, high = picture.boxes[:, :2] * by + to, picture.boxes[:, 2:] * by + to
    boxes = np.hstack((np.minimum(low, high), np.maximum(low, high)))  # negative factors mirror
    polygons = tuple(None if line is None else line * by + to for line in picture.polygons)
    return Picture(image, boxes, picture.class_id, polygons)


def rectangle(picture: Picture, height_width: tuple[int, int]) -> Picture:
    """Resize to fit (height, width), as the detector does, and pad with grey."""
    geometry = letterbox_geometry(picture.image.shape[:2], height_width)
    image = resize(picture.image, geometry.resized_hw)
    if geometry.resized_hw != geometry.output_hw:
        borders = (geometry.top, geometry.bottom, geometry.left, geometry.right)
        grey = (PAD, PAD, PAD)
        padded = cv2.copyMakeBorder(image, *borders, cv2.BORDER_CONSTANT, value=grey)
        image = np.asarray(padded, np.uint8)
    height, width = picture.image.shape[:2]
    factor = (geometry.resized_hw[1] / width, geometry.resized_hw[0] / height)
    return moved(picture, image, factor, (geometry.left, geometry.top))


def bgr_view(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB planes (3, h, w) as a BGR image (h, w, 3), without copying anything."""
    return planes[::-1].transpose(1, 2, 0)


def rgb_planes(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The other way: a BGR image (h, w, 3) as RGB planes (3, h, w)."""
    return image.transpose(2, 0, 1)[::-1]


def targets(picture: Picture) -> NDArray[np.float32]:
    """float32 (n, 5): class, and centre x, y, width, height as shares of the picture's size."""
    height, width = picture.image.shape[:2]
    low, high = picture.boxes[:, :2], picture.boxes[:, 2:]
    made = np.empty((len(low), 5), np.float32)
    made[:, 0] = picture.class_id
    made[:, 1:3] = (low + high) / (2 * width, 2 * height)
    made[:, 3:] = (high - low) / (width, height)
    return made


def clip_polygon(polygon: Polygon, low: Sequence[float], high: Sequence[float]) -> Polygon:
    """The part of a polygon inside a rectangle, with as few as 0 points (Sutherland and Hodgman).

    Parts that the rectangle separates stay joined along its border, which changes neither hull nor
    filled area.
    """
    for axis in (0, 1):
        for bound, sign in ((low[axis], -1.0), (high[axis], 1.0)):
            beyond = sign * (polygon[:, axis] - bound)  # positive outside
            if (beyond <= 0).all():
                continue
            after, beyond_after = np.roll(polygon, -1, axis=0), np.roll(beyond, -1)
            crosses = (beyond > 0) != (beyond_after > 0)
            step = np.divide(
                beyond, beyond - beyond_after, where=crosses, out=np.zeros_like(beyond)
            )
            meeting = polygon + step[:, None] * (after - polygon)
            meeting[:, axis] = bound
            corners = np.stack((polygon, meeting), axis=1)
            polygon = corners[np.stack((beyond <= 0, crosses), axis=1)]
    return polygon


def hull(polygon: Polygon) -> NDArray[np.float64]:
    """The upright box around a polygon, x1, y1, x2, y2; all 0 for one without points."""
    if not len(polygon):
        return np.zeros(4)
    return np.concatenate((polygon.min(axis=0), polygon.max(axis=0)))
