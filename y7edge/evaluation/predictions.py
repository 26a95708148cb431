"""Draw images with their labels and detections side by side, ``predictions/*.jpg``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from y7edge.boxes import corners
from y7edge.data.images import read_image
from y7edge.data.sample import Sample
from y7edge.detect.detections import Detections
from y7edge.detect.drawing import draw
from y7edge.detect.preprocess import PAD
from y7edge.errors import OutputError
from y7edge.files import atomic_write

Image = NDArray[np.uint8]

COUNT = 12  # number of images, spread evenly over the split

# Images are resized if their longer side is beyond these limits, so that text is readable.
_MIN, _MAX = 480, 960
_HEADING, _GAP = 26, 6


def write_predictions(
    detect: Callable[[Image], Detections],
    samples: Sequence[Sample],
    names: Sequence[str],
    folder: Path,
) -> list[Path]:
    """Write ``COUNT`` images ``000.jpg``, ``001.jpg``, ..., and return their paths.

    Labels are on the left; on the right are the detections by ``detect``, with default thresholds.

    Raises:
        DataError: an image cannot be read.
        OutputError: an image cannot be written.
    """
    chosen = np.linspace(0, len(samples) - 1, min(COUNT, len(samples))).round().astype(int)
    paths = []
    for number, index in enumerate(chosen):
        sample = samples[index]
        image = read_image(sample.path, sample.levels)
        paths.append(folder / f"{number:03d}.jpg")
        write_image(beside(image, labels(sample, image, names), detect(image)), paths[-1])
    return paths


def beside(image: Image, truth: Detections, found: Detections) -> Image:
    """Draw an image twice: with its labels on the left, with its detections on the right."""
    drawn = []
    for boxes, confidence, word in ((truth, False, "labelled"), (found, True, "found")):
        enlarged, moved = _at_readable_size(image, boxes)
        drawn.append(_headed(draw(enlarged, moved, confidence=confidence), f"{word}: {len(boxes)}"))
    gap = np.full((drawn[0].shape[0], _GAP, 3), 255, np.uint8)
    return np.hstack((drawn[0], gap, drawn[1]))


def labels(sample: Sample, image: Image, names: Sequence[str]) -> Detections:
    """Return the labels of an image as detections with confidence 1."""
    height, width = image.shape[:2]
    xyxy = corners(sample.boxes[:, :2], sample.boxes[:, 2:]) * (width, height, width, height)
    ones = np.ones(len(xyxy), np.float32)
    return Detections(xyxy, ones, sample.class_id, (width, height), tuple(names))


def write_image(image: Image, path: Path) -> None:
    """Write an image as JPEG, atomically; raise OutputError if OpenCV cannot encode it."""
    # cv2.imwrite is not used: it crashes for file names that are not UTF-8.
    is_encoded, content = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 88))
    if not is_encoded:
        raise OutputError(f"{path}: OpenCV cannot encode the image")
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.tobytes())


def _at_readable_size(image: Image, boxes: Detections) -> tuple[Image, Detections]:
    height, width = image.shape[:2]
    longer = max(height, width)
    factor = min(max(_MIN, longer), _MAX) / longer
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    scaled = np.asarray(cv2.resize(image, size, interpolation=way), np.uint8)
    ratio = np.array(size * 2, np.float32) / np.array((width, height) * 2, np.float32)
    xyxy = (boxes.xyxy * ratio).astype(np.float32)
    return scaled, Detections(xyxy, boxes.confidence, boxes.class_id, size, boxes.names)


def _headed(image: Image, words: str) -> Image:
    heading = np.full((_HEADING, image.shape[1], 3), PAD // 3, np.uint8)
    cv2.putText(
        heading, words, (8, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA
    )
    return np.vstack((heading, image))
