"""Reading images from files: always (H, W, 3) uint8 in BGR order, or a one-line error.

An image is read upright: the rotation that a camera noted in EXIF is applied. 16-bit images are
scaled by the range of their format. Where they use a small part of it, little is left; then one
rule for a whole data set, ``levels: [lowest, highest]`` in its ``data.yaml``, says how its 8-bit
images were made (`to_bytes`), and how the frames of a camera must be made for the same model.

Images of more than 134 megapixels, or as many as the environment variable ``Y7EDGE_MAX_PIXELS``
says, are refused before they are decoded; so much is also what all threads of a process decode at
a time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from y7edge.data.headers import Frame, frame_of, most_pixels, too_large
from y7edge.errors import DataError
from y7edge.files import open_regular, reason

_LARGE = 64 << 20  # bytes of a file


def read_image(path: Path | str, levels: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Decode an image into a BGR array (H, W, 3) uint8.

    Grey images get three equal channels, 16-bit ones are scaled to 8 bits, from ``levels`` where
    they are given; transparency is dropped, and the rotation that a camera noted (EXIF) is applied.

    Raises:
        DataError: The file cannot be read, is empty, or is not an image that OpenCV decodes.
    """
    with reading(path) as (content, _):
        return decode(content, path, levels)


def read_deep(path: Path | str) -> NDArray[np.uint16] | NDArray[np.uint8]:
    """The same without scaling: (H, W, 3) uint16 for a 16-bit image.

    Raises:
        DataError: As `read_image` does.
    """
    with reading(path) as (content, _):
        return decode_deep(content, path)


def to_bytes(image: NDArray[np.uint16], levels: tuple[int, int]) -> NDArray[np.uint8]:
    """Scale an image of any shape to 8 bits, from the lowest to the highest of ``levels``."""
    low, high = levels
    scaled = (image.astype(np.float32) - low) * (255 / max(high - low, 1))
    return np.asarray(np.clip(np.rint(scaled), 0, 255), np.uint8)


@contextmanager
def reading(path: Path | str) -> Iterator[tuple[bytes, Frame]]:
    """Yield content and header of an image's file, while there is room for decoding it.

    It waits until what all threads decode at a time stays within `headers.most_pixels`. So it
    should be used around all that is done with an image of full size.

    Raises:
        DataError: The file cannot be read, is not an image, or one of too many pixels.
        ConfigError: As `headers.most_pixels` does.
    """
    most = most_pixels()
    with ExitStack() as stack:
        try:
            with open_regular(path) as stream:
                size = os.fstat(stream.fileno()).st_size
                if not size:
                    raise DataError(f"{path}: expected an image, found an empty file")
                if size > 8 * most:
                    raise DataError(f"{path}: has {size:,} bytes, more than {most:,} pixels take")
                frame = _frame(stream, path)
                if words := too_large(*frame.stored, frame.pixels):
                    raise DataError(f"{path}: {words}")
                # A file that is large itself is read alone.
                stack.enter_context(_ROOM.taken(most if size > _LARGE else frame.pixels, most))
                stream.seek(0)
                content = stream.read(8 * most)
        except (OSError, MemoryError) as error:
            raise DataError(f"{path}: cannot read the image: {reason(error)}") from error
        except DataError:
            raise
        except ValueError as error:  # a name that cannot be
            raise DataError(f"{path}: cannot read the image: {error}") from error
        yield content, frame


def _frame(stream: BinaryIO, path: Path | str) -> Frame:
    try:
        return frame_of(stream)
    except ValueError as error:
        raise DataError(
            f"{path}: expected an image that OpenCV decodes (JPEG, PNG, BMP, TIFF, WebP), found "
            f"{os.fstat(stream.fileno()).st_size} bytes of something else or a damaged file"
        ) from error


def decode(
    content: bytes, path: Path | str, levels: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Decode what `reading` yields, as `read_image` does.

    Raises:
        DataError: OpenCV does not decode it.
    """
    if levels is not None and (deep := decode_deep(content, path)).dtype == np.uint16:
        return to_bytes(cast("NDArray[np.uint16]", deep), levels)
    return cast("NDArray[np.uint8]", _decoded(content, path, cv2.IMREAD_COLOR))


def decode_deep(content: bytes, path: Path | str) -> NDArray[np.uint16] | NDArray[np.uint8]:
    """Decode what `reading` yields, as `read_deep` does.

    Raises:
        DataError: OpenCV does not decode it.
    """
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    return cast("NDArray[np.uint16]", _decoded(content, path, flags))


def _decoded(content: bytes, path: Path | str, flags: int) -> NDArray[Any]:
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(f"{path}: the image cannot be decoded: {reason}") from error
    if image is None:
        raise DataError(f"{path}: expected an image that OpenCV decodes, found a damaged file")
    return np.asarray(image)


class _Room:
    """How many pixels may be decoded at a time, shared by the threads of a process."""

    def __init__(self) -> None:
        self._changed, self._used = threading.Condition(), 0

    @contextmanager
    def taken(self, pixels: int, most: int) -> Iterator[None]:
        """Wait until ``pixels`` of ``most`` are free, and hold them for the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + pixels <= most)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()


_ROOM = _Room()
if hasattr(os, "register_at_fork"):  # threads that hold some of it are not in the child
    os.register_at_fork(after_in_child=_ROOM.__init__)  # type: ignore[misc]
