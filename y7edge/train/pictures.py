"""``predictions.jpg``: what a trained model sees beside what people labelled."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from y7edge.data.dataset import Sample
from y7edge.data.images import read_image
from y7edge.detections import Detections
from y7edge.drawing import draw
from y7edge.errors import DataError
from y7edge.files import atomic_write
from y7edge.nn.build import Model
from y7edge.preprocess import PAD
from y7edge.train.validate import Validation

_PICTURES = 6
_HEIGHT = 320  # of each picture in the sheet, pixels ...
_WIDEST = 960  # ... if it is no wider then: a strip would fill the memory, and JPEG ends at 65500
_HEADING = 28


def write_predictions(validation: Validation, model: Model, path: Path) -> None:
    """Write a sheet: one row per picture, labels on the left, predictions on the right.

    The pictures are spread evenly over the validation split. Predictions are those that a user
    would see, at the default confidence and IoU.

    Raises:
        DataError: a picture cannot be read, or the sheet cannot be written.
    """
    detect = validation.detector(model)
    count = min(_PICTURES, len(validation.samples))
    chosen = np.linspace(0, len(validation.samples) - 1, count).round().astype(int)
    rows = []
    for index in chosen:
        sample = validation.samples[index]
        image = read_image(sample.path)
        pair = (draw(image, labels(sample, image, validation.names)), draw(image, detect(image)))
        rows.append(np.hstack([_fit(picture) for picture in pair]))
    sheet = _stack(rows)
    with atomic_write(path) as temporary:
        if not cv2.imwrite(str(temporary), sheet):
            raise DataError(f"{path}: OpenCV cannot write the picture")


def labels(sample: Sample, image: NDArray[np.uint8], names: tuple[str, ...]) -> Detections:
    """The labels of a picture as detections of confidence 1."""
    height, width = image.shape[:2]
    centre, half = sample.boxes[:, :2], sample.boxes[:, 2:] / 2
    corners = np.hstack((centre - half, centre + half)) * (width, height, width, height)
    return Detections(
        xyxy=corners.astype(np.float32),
        confidence=np.ones(len(corners), np.float32),
        class_id=sample.class_id,
        image_size=(width, height),
        names=names,
    )


def _fit(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    factor = min(_HEIGHT / height, _WIDEST / width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _stack(rows: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Rows of different sizes below each other, under a heading."""
    width = max(row.shape[1] for row in rows)
    heading = np.full((_HEADING, width, 3), PAD // 3, np.uint8)
    first_half = rows[0].shape[1] // 2
    for text, left in (("labels", 0), ("predictions", first_half)):
        cv2.putText(
            heading, text, (left + 8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 1
        )
    padded = [
        np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=PAD)
        for row in rows
    ]
    return np.vstack([heading, *padded])
