"""Reading images from files: always (H, W, 3) uint8 in BGR order, or a one-line error.

An image is read upright: the rotation that a camera noted in EXIF is applied. 16-bit images are
scaled by the range of their format. Where they use a small part of it, little is left; then one
rule for a whole data set, ``levels: [lowest, highest]`` in its ``data.yaml``, says how its 8-bit
images were made (`to_bytes`), and how the frames of a camera must be made for the same model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from y7edge.errors import DataError
from y7edge.files import require_regular


def read_image(path: Path | str) -> NDArray[np.uint8]:
    """Decode an image into a BGR array (H, W, 3) uint8.

    Grey images get three equal channels, 16-bit ones are scaled to 8 bits, transparency is
    dropped, and the rotation that a camera noted (EXIF) is applied.

    Raises:
        DataError: The file cannot be read, is empty, or is not an image that OpenCV decodes.
    """
    return cast("NDArray[np.uint8]", _decode(path, cv2.IMREAD_COLOR))


def read_deep(path: Path | str) -> NDArray[np.uint16] | NDArray[np.uint8]:
    """The same without scaling: (H, W, 3) uint16 for a 16-bit image.

    Raises:
        DataError: As `read_image` does.
    """
    return cast("NDArray[np.uint16]", _decode(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH))


def to_bytes(image: NDArray[np.uint16], levels: tuple[int, int]) -> NDArray[np.uint8]:
    """Scale an image of any shape to 8 bits, from the lowest to the highest of ``levels``."""
    low, high = levels
    scaled = (image.astype(np.float32) - low) * (255 / max(high - low, 1))
    return np.asarray(np.clip(np.rint(scaled), 0, 255), np.uint8)


def _decode(path: Path | str, flags: int) -> NDArray[Any]:
    try:
        require_regular(path)  # reading a pipe waits for ever
        # Not cv2.imread: it cannot open names beyond ASCII on Windows, and prints its own warnings.
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot read the image: {error.strerror or error}") from error
    if not content.size:
        raise DataError(f"{path}: expected an image, found an empty file")
    try:
        image = cv2.imdecode(content, flags)
    except cv2.error as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(f"{path}: the image cannot be decoded: {reason}") from error
    if image is None:
        raise DataError(
            f"{path}: expected an image that OpenCV decodes (JPEG, PNG, BMP, TIFF, WebP), "
            f"found {content.size} bytes of something else or a damaged file"
        )
    return np.asarray(image)
