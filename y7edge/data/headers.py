"""Sizes of images from their headers, without decoding them.

Cameras store an image as the sensor lies and note in EXIF how it was held; `read_image` applies
the orientation, and labels refer to the upright image. Four of the eight orientations (5 to 8) swap
width and height. The published reader knows 6 and 8 only.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from y7edge.errors import DataError, needing
from y7edge.files import require_regular

if TYPE_CHECKING:
    from PIL import Image

_ORIENTATION = 0x0112
_ON_ITS_SIDE = frozenset({5, 6, 7, 8})


class Frame(NamedTuple):
    """Width and height of an image in pixels, upright and as stored, and its EXIF orientation."""

    size: tuple[int, int]
    stored: tuple[int, int]
    orientation: int = 1

    @property
    def turned(self) -> bool:
        """Whether width and height change places when the EXIF orientation is followed."""
        return self.orientation in _ON_ITS_SIDE


def read_frame(path: Path | str) -> Frame:
    """Size and orientation by the header; damage behind it is not noticed.

    Raises:
        DataError: The file cannot be read, or its header is not that of an image.
        RuntimeMissing: Pillow is not installed.
    """
    with needing("Pillow", "eval", f"{path}: reading its size"):
        from PIL import Image
    try:
        require_regular(path)  # opening a pipe waits for ever
        with Image.open(path) as opened:
            width, height = stored = _stored_size(opened)
            orientation = _orientation(opened, path)
    except OSError as error:
        reason = error.strerror or "its header is not that of an image, or is damaged"
        raise DataError(f"{path}: cannot read the image: {reason}") from error
    except DataError:
        raise
    # On damaged bytes Pillow's parsers raise nearly anything, SyntaxError included.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot read the image's header: {reason}") from error
    if width < 1 or height < 1:
        raise DataError(f"{path}: expected an image, found a size of {width} x {height} pixels")
    known = orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1
    return Frame((height, width) if known in _ON_ITS_SIDE else stored, stored, known)


def picture_size(path: Path | str) -> tuple[int, int]:
    """Width and height in pixels of the upright image, as `read_image` gives it.

    Raises:
        DataError, RuntimeMissing: As `read_frame` does.
    """
    return read_frame(path).size


@contextmanager
def any_size() -> Iterator[None]:
    """Let Pillow open images of any size, without a warning: it takes large ones for attacks."""
    try:
        from PIL import Image
    except ImportError:
        yield
        return
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _stored_size(opened: Image.Image) -> tuple[int, int]:
    if opened.format == "TIFF":
        # Some versions of Pillow have turned the size of a TIFF already; its tags are as stored.
        tags = opened.tag_v2  # type: ignore[attr-defined]
        return int(tags[256]), int(tags[257])
    return opened.size


def _orientation(opened: Image.Image, path: Path | str) -> object:
    if opened.format == "TIFF":
        return opened.tag_v2.get(_ORIENTATION)  # type: ignore[attr-defined]
    # Not `opened.getexif()`: it decodes a whole PNG to find a note behind the pixels, and believes
    # XMP, which OpenCV does not.
    content = opened.info.get("exif")
    if opened.format == "PNG" and not content:
        content = _exif_of_png(path)
    return _noted(content or b"")


def _noted(exif: bytes) -> int | None:
    """The orientation in an EXIF note, a TIFF header with a directory of tags; None if damaged."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"MM": ">", b"II": "<"}.get(tiff[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == _ORIENTATION:
                return int(value)
    except struct.error:
        return None
    return None


def _exif_of_png(path: Path | str) -> bytes:
    """The EXIF chunk of a PNG wherever it stands, or nothing; skips from chunk to chunk."""
    with Path(path).open("rb", buffering=0) as stream:
        stream.seek(8)
        while len(head := stream.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                return stream.read(length)
            stream.seek(length + 4, os.SEEK_CUR)
    return b""
