"""Reading pictures from files: always (H, W, 3) uint8 in BGR order, or a one-line error.

A picture is read upright: the rotation that a camera noted in EXIF is applied. Labels refer to the
upright picture; those drawn on it as the sensor saw it are wrong, and no reader can tell.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from y7edge.errors import DataError


def read_image(path: Path | str) -> NDArray[np.uint8]:
    """Decode a picture into a BGR array (H, W, 3) uint8.

    Grey pictures get three equal channels, 16-bit ones are scaled to 8 bits, transparency is
    dropped, and the rotation that a camera noted (EXIF) is applied.

    Raises:
        DataError: The file cannot be read, is empty, or is no picture that OpenCV decodes.
    """
    try:
        # Not cv2.imread: it cannot open names beyond ASCII on Windows, and prints its own warnings.
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot read the picture: {error.strerror or error}") from error
    if not content.size:
        raise DataError(f"{path}: expected a picture, found an empty file")
    try:
        image = cv2.imdecode(content, cv2.IMREAD_COLOR)
    except cv2.error as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(f"{path}: the picture cannot be decoded: {reason}") from error
    if image is None:
        raise DataError(
            f"{path}: expected a picture that OpenCV decodes (JPEG, PNG, BMP, TIFF, WebP), "
            f"found {content.size} bytes of something else or a damaged file"
        )
    return cast("NDArray[np.uint8]", image)
