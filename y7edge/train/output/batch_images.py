"""``batches/*.jpg``: training batches after augmentation, with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from y7edge.detect.detections import Detections
from y7edge.detect.drawing import draw
from y7edge.evaluation.predictions import write_picture

_PICTURES = 16  # of a batch at most
_SIDE = 320  # longer side of each, pixels
_GAP = 4


def write_batch(
    images: NDArray[np.uint8], targets: NDArray[np.float32], names: Sequence[str], path: Path
) -> None:
    """Write the first images of a batch as a square of tiles.

    Args:
        images: (B, 3, H, W) RGB.
        targets: (n, 6): image, class, normalized centre x, centre y, width, height.
        names: class names.
        path: the JPEG file.

    Raises:
        DataError: it cannot be written.
    """
    tiles = [
        _tile(image, targets[targets[:, 0] == index, 1:], names)
        for index, image in enumerate(images[:_PICTURES])
    ]
    columns = int(np.ceil(np.sqrt(len(tiles))))
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    sheet = np.full(
        (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8
    )
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + _GAP), index % columns * (width + _GAP)
        sheet[top : top + height, left : left + width] = tile
    write_picture(sheet, path)


def _tile(
    image: NDArray[np.uint8], labels: NDArray[np.float32], names: Sequence[str]
) -> NDArray[np.uint8]:
    """One picture in BGR, scaled, with its boxes."""
    bgr = np.ascontiguousarray(image.transpose(1, 2, 0)[:, :, ::-1])
    height, width = bgr.shape[:2]
    factor = _SIDE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    scaled = np.asarray(cv2.resize(bgr, size, interpolation=way), np.uint8)
    half = labels[:, 3:] / 2
    corners = np.hstack((labels[:, 1:3] - half, labels[:, 1:3] + half))
    boxes = Detections(
        xyxy=(corners * np.array(size * 2)).astype(np.float32),
        confidence=np.ones(len(labels), np.float32),
        class_id=labels[:, 0].astype(np.int32),
        image_size=size,
        names=tuple(names),
    )
    return draw(scaled, boxes, confidence=False)
