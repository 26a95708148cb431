"""Read image files as (H, W, 3) uint8 arrays in BGR order.

The EXIF orientation is applied. 16-bit images are scaled to 8 bits: by default, 0 to 65535 becomes
0 to 255. For cameras that use a small part of this range, set ``levels: [lowest, highest]`` in the
``data.yaml``. The images are then scaled by `to_bytes`, and camera frames for the same model must
be scaled in the same way.

Images of more than 134 megapixels (environment variable ``Y7EDGE_MAX_PIXELS``) are refused before
decoding. The same limit applies to the sum of the images that are being decoded in all threads of
a process.
"""

from __future__ import annotations

import io
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

_LARGE = 64 << 20  # bytes; larger files are read one at a time


def read_image(
    path: Path | str, levels: tuple[int, int] | None = None, *, content: bytes | None = None
) -> NDArray[np.uint8]:
    """Decode an image into a BGR array (H, W, 3) uint8.

    Grey images get three equal channels. 16-bit images are scaled to 8 bits, by ``levels`` if
    given. Transparency is dropped, and the EXIF orientation is applied.

    ``content``: The bytes of the file, for example from an object store; ``path`` is then a name
    for messages.

    Raises:
        DataError: The file cannot be read, or OpenCV cannot decode it.
    """
    with reading(path, content) as (found, _):
        return decode(found, path, levels)


def read_deep(path: Path | str) -> NDArray[np.uint16] | NDArray[np.uint8]:
    """Decode an image as `read_image` does, but return uint16 for a 16-bit image."""
    with reading(path) as (content, _):
        return decode_deep(content, path)


def to_bytes(image: NDArray[np.uint16], levels: tuple[int, int]) -> NDArray[np.uint8]:
    """Scale an image of any shape to 8 bits, mapping ``levels`` (lowest, highest) to 0 and 255."""
    low, high = levels
    scaled = (image.astype(np.float32) - low) * (255 / max(high - low, 1))
    return np.asarray(np.clip(np.rint(scaled), 0, 255), np.uint8)


@contextmanager
def reading(path: Path | str, content: bytes | None = None) -> Iterator[tuple[bytes, Frame]]:
    """Yield the bytes and header of an image file, and reserve memory for decoding it.

    ``content``: The bytes, if they were read before.

    First wait until all images that are being decoded, including this one, have at most
    `headers.most_pixels` pixels together. Keep the context open while the full-size image is used.

    Raises:
        DataError: The file cannot be read, is not an image, or has too many pixels.
        ConfigError: See `headers.most_pixels`.
    """
    most = most_pixels()
    with ExitStack() as stack:
        try:
            with open_regular(path) if content is None else io.BytesIO(content) as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(0)
                if not size:
                    raise DataError(f"{path}: expected an image, found an empty file")
                if size > 8 * most:
                    raise DataError(f"{path}: has {size:,} bytes, too many for {most:,} pixels")
                frame = _frame(stream, path, size)
                if words := too_large(*frame.stored, frame.pixels):
                    raise DataError(f"{path}: {words}")
                stack.enter_context(_BUDGET.reserved(most if size > _LARGE else frame.pixels, most))
                stream.seek(0)
                content = stream.read(8 * most)
        except DataError:
            raise
        except (OSError, ValueError, MemoryError) as error:  # ValueError: an invalid file name
            raise DataError(f"{path}: cannot read the image: {reason(error)}") from error
        yield content, frame


def _frame(stream: BinaryIO, path: Path | str, size: int) -> Frame:
    try:
        return frame_of(stream)
    except ValueError as error:
        raise DataError(
            f"{path}: expected an image that OpenCV decodes (JPEG, PNG, BMP, TIFF, WebP), found "
            f"{size} bytes of something else or a damaged file"
        ) from error


def decode_message(content: bytes, name: str) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Decode an image of a message, such as a JPEG frame of a camera, into BGR (H, W, 3).

    The limits are those of `read_image`, but the EXIF orientation is not applied: boxes must fit
    the pixels that the other receivers of the message see. A 16-bit image becomes uint16.

    Args:
        content: The bytes of an image file.
        name: Of the message, for errors.

    Raises:
        DataError: It is not an image that OpenCV can decode, or it has too many pixels.
    """
    most = most_pixels()
    if len(content) > 8 * most:
        raise DataError(f"{name}: has {len(content):,} bytes, too many for {most:,} pixels")
    frame = _frame(io.BytesIO(content), name, len(content))
    if words := too_large(*frame.stored, frame.pixels):
        raise DataError(f"{name}: {words}")
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    with _BUDGET.reserved(frame.pixels, most):
        image = _decoded(content, name, flags)
    if image.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{name}: expected an image of 8 or 16 bits, found {image.dtype}")
    return image


def decode(
    content: bytes, path: Path | str, levels: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Decode the bytes of an image file as `read_image` does."""
    if levels is not None and (deep := decode_deep(content, path)).dtype == np.uint16:
        return to_bytes(cast("NDArray[np.uint16]", deep), levels)
    return cast("NDArray[np.uint8]", _decoded(content, path, cv2.IMREAD_COLOR))


def decode_deep(content: bytes, path: Path | str) -> NDArray[np.uint16] | NDArray[np.uint8]:
    """Decode the bytes of an image file as `read_deep` does."""
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


class _Budget:
    """Limit of the pixels that the threads of a process decode at the same time."""

    def __init__(self) -> None:
        self._changed, self._used = threading.Condition(), 0

    @contextmanager
    def reserved(self, pixels: int, most: int) -> Iterator[None]:
        """Reserve ``pixels`` within the context.

        First wait until the sum of all reservations, including this one, is at most ``most``. A
        reservation of more than ``most`` pixels waits until there are no other reservations.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + pixels <= most)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()


_BUDGET = _Budget()
if hasattr(os, "register_at_fork"):  # a forked child has no other threads, so nothing is reserved
    os.register_at_fork(after_in_child=_BUDGET.__init__)  # type: ignore[misc]
