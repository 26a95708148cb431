"""Images with their labels, and functions that change both.

Coordinates are continuous pixels: pixel i covers the range from i to i + 1.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Polygon = NDArray[np.float64]

_buffers = threading.local()


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImage:
    """An image with its labels."""

    image: NDArray[np.uint8]  # (h, w, 3) BGR
    boxes: NDArray[np.float64]  # (n, 4) x1, y1, x2, y2 in pixels
    class_id: NDArray[np.int64]  # (n,)
    polygons: tuple[Polygon | None, ...] = ()  # per box: (k, 2) x, y, or None; (): no polygons

    @property
    def outlines(self) -> tuple[Polygon | None, ...]:
        """``polygons`` with one entry per box."""
        return self.polygons or (None,) * len(self.boxes)


ImageSet = Sequence[LabelledImage]
"""Training images, decoded when indexed; their longer side is that of the network's input."""


def resize(image: NDArray[np.uint8], height_width: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize bilinearly to (height, width); return the image itself if it has that size."""
    if image.shape[:2] == height_width:
        return image
    return np.asarray(
        cv2.resize(image, height_width[::-1], interpolation=cv2.INTER_LINEAR), np.uint8
    )


def moved(
    labelled: LabelledImage,
    image: NDArray[np.uint8],
    factor: Sequence[float] = (1.0, 1.0),
    offset: Sequence[float] = (0.0, 0.0),
) -> LabelledImage:
    """Return ``image`` with the labels of ``labelled``, whose coordinates are scaled and shifted.

    Coordinates are multiplied by ``factor`` (x, y), then ``offset`` (x, y) is added. A negative
    factor mirrors the labels.
    """
    by, to = np.asarray(factor), np.asarray(offset)
    low, high = labelled.boxes[:, :2] * by + to, labelled.boxes[:, 2:] * by + to
    # A negative factor swaps low and high.
    boxes = np.hstack((np.minimum(low, high), np.maximum(low, high)))
    polygons = tuple(None if line is None else line * by + to for line in labelled.polygons)
    return LabelledImage(image, boxes, labelled.class_id, polygons)


def bgr_view(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """View RGB planes (3, h, w) as a BGR image (h, w, 3)."""
    return planes[::-1].transpose(1, 2, 0)


def rgb_planes(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """View a BGR image (h, w, 3) as RGB planes (3, h, w)."""
    return image.transpose(2, 0, 1)[::-1]


def targets(labelled: LabelledImage) -> NDArray[np.float32]:
    """Return the labels as (n, 5): class, and normalized centre x, y, width, height."""
    height, width = labelled.image.shape[:2]
    low, high = labelled.boxes[:, :2], labelled.boxes[:, 2:]
    result = np.empty((len(low), 5), np.float32)
    result[:, 0] = labelled.class_id
    result[:, 1:3] = (low + high) / (2 * width, 2 * height)
    result[:, 3:] = (high - low) / (width, height)
    return result


def clip_polygon(polygon: Polygon, low: Sequence[float], high: Sequence[float]) -> Polygon:
    """Clip a polygon to a rectangle (Sutherland and Hodgman); the result may have 0 points.

    If the rectangle splits the polygon, its parts stay connected along the rectangle's border. The
    bounding box and the filled area are still correct.
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
    """Return the bounding box x1, y1, x2, y2 of a polygon; zeros if it has no points."""
    if not len(polygon):
        return np.zeros(4)
    return np.concatenate((polygon.min(axis=0), polygon.max(axis=0)))


def scratch(name: str, *shape: int) -> NDArray[np.uint8]:
    """Return an uninitialized uint8 array in a buffer of this thread.

    The array is valid until the same thread calls this function with the same ``name`` again.
    Buffers are reused because allocation takes as long as an augmentation step.
    """
    size = math.prod(shape)
    buffer: NDArray[np.uint8] | None = getattr(_buffers, name, None)
    if buffer is None or buffer.size < size:
        buffer = np.empty(size, np.uint8)
        setattr(_buffers, name, buffer)
    return buffer[:size].reshape(shape)
