"""Write training batches: ``batches/*.jpg``, and the batch whose loss is not finite."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from y7edge.boxes import corners
from y7edge.detect.detections import Detections
from y7edge.detect.drawing import draw
from y7edge.evaluation.predictions import write_image
from y7edge.files import atomic_write
from y7edge.train.loading.dataset import TrainingSet, collate
from y7edge.train.loading.sampling import BatchPlan

_IMAGES = 16  # maximum number in a grid
_SIDE = 320  # longer side of each image in the grid, pixels
_GAP = 4  # pixels between images

BAD_BATCH = "nan_batch.safetensors"
HEADER = "y7edge-batch"


def write_batch(
    images: NDArray[np.uint8], targets: NDArray[np.float32], names: Sequence[str], path: Path
) -> None:
    """Draw the first images of a batch with their boxes in a grid, and write it as JPEG.

    ``images`` are (B, 3, H, W) RGB; ``targets`` (n, 6): image index in the batch, class,
    normalized cx, cy, w, h.

    Raises:
        OutputError: the file cannot be written.
    """
    tiles = [
        _tile(image, targets[targets[:, 0] == index, 1:], names)
        for index, image in enumerate(images[:_IMAGES])
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
    write_image(sheet, path)


def _tile(
    image: NDArray[np.uint8], labels: NDArray[np.float32], names: Sequence[str]
) -> NDArray[np.uint8]:
    """Scale an image (3, H, W) RGB and draw its labels (n, 5); return it as (h, w, 3) BGR."""
    bgr = np.ascontiguousarray(image.transpose(1, 2, 0)[:, :, ::-1])
    height, width = bgr.shape[:2]
    factor = _SIDE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    scaled = np.asarray(cv2.resize(bgr, size, interpolation=way), np.uint8)
    boxes = Detections(
        xyxy=(corners(labels[:, 1:3], labels[:, 3:]) * np.array(size * 2)).astype(np.float32),
        confidence=np.ones(len(labels), np.float32),
        class_id=labels[:, 0].astype(np.int32),
        image_wh=size,
        names=tuple(names),
    )
    return draw(scaled, boxes, confidence=False)


def write_bad_batch(
    folder: Path, train_set: TrainingSet, plan: BatchPlan, *, epoch: int, batch: int, reason: str
) -> None:
    """Load a training batch again, with the images of all ranks, and write it to ``folder``.

    The safetensors file has ``images`` uint8 (B, 3, H, W) RGB and ``targets`` float32 (n, 6). Its
    header has JSON with the images' paths, ``epoch`` (from 1), ``batch`` (from 0) and ``reason``.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.torch import save_file

    whole = BatchPlan(plan.length, plan.batch, seed=plan.seed, shuffle=plan.shuffle, rect=plan.rect)
    whole.weights = plan.weights
    whole.set_epoch(epoch, batch)
    keys = next(iter(whole))
    images, targets = collate([train_set[key] for key in keys])
    facts = {
        "reason": reason,
        "epoch": epoch,
        "batch": batch,
        "pictures": [str(train_set.samples[key.index].path) for key in keys],
    }
    with atomic_write(folder / BAD_BATCH) as temporary:
        save_file(
            {"images": images, "targets": targets}, temporary, metadata={HEADER: json.dumps(facts)}
        )
