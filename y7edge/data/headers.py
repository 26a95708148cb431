"""Sizes of pictures from their headers, without decoding them.

Cameras store a picture as the sensor lies and note in EXIF how it was held; `read_image` applies
the note, and labels refer to the upright picture. Four of the eight orientations (5 to 8) swap
width and height. The published reader knows 6 and 8 only, and gives the others' labels a wrong
picture size.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from y7edge.data.sample import Tally
from y7edge.errors import DataError, RuntimeMissing, needing

if TYPE_CHECKING:
    from PIL import Image

_ORIENTATION = 0x0112
_ON_ITS_SIDE = frozenset({5, 6, 7, 8})


def picture_size(path: Path | str) -> tuple[int, int]:
    """Width and height in pixels of the upright picture, as `read_image` gives it.

    Only the header is read: a picture that breaks off later is not noticed.

    Raises:
        DataError: The file cannot be read, or has no header of a picture.
        RuntimeMissing: Pillow is not installed.
    """
    with needing("Pillow", "eval", f"{path}: reading its size"):
        from PIL import Image
    try:
        with Image.open(path) as picture:
            width, height = _stored_size(picture)
            if _orientation(picture, path) in _ON_ITS_SIDE:
                width, height = height, width
    except OSError as error:
        reason = error.strerror or "its header is none of a picture, or is damaged"
        raise DataError(f"{path}: cannot read the picture: {reason}") from error
    # On damaged bytes Pillow's parsers raise nearly anything, SyntaxError included.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot read the picture's header: {reason}") from error
    if width < 1 or height < 1:
        raise DataError(f"{path}: expected a picture, found a size of {width} x {height} pixels")
    return width, height


def header_size(path: Path, tally: Tally) -> tuple[int, int] | None:
    """`picture_size` for a reader of many: None, counted, where it fails; None without Pillow."""
    try:
        return picture_size(path)
    except RuntimeMissing:
        return None
    except DataError:
        tally.add("pictures without a readable header, size unknown", 1, path)
        return None


def label_size(
    image: Path, stated: tuple[float, float] | None, where: Path, tally: Tally
) -> tuple[tuple[float, float], tuple[int, int] | None]:
    """The size that pixel labels refer to, and the picture's own as far as it is known.

    Where an annotation states another size than the picture has, it is believed only if both have
    the same proportions: then the picture was scaled, and labels keep to what they were made for.

    Args:
        image: The picture.
        stated: Width and height that the annotation states, if it does.
        where: The annotation's file, for warnings.
        tally: Counts disagreements.

    Raises:
        DataError: Neither the annotation nor the picture tells a size.
        RuntimeMissing: The annotation does not, and Pillow is not installed.
    """
    if stated is None:
        found = picture_size(image)
        return found, found
    header = header_size(image, tally)
    if header is None or header == stated:
        return stated, header
    # Scaling rounds both sides to whole pixels.
    width, height = stated
    slack = max(width, header[0]) + max(height, header[1])
    if abs(width * header[1] - height * header[0]) <= slack:
        tally.add("pictures scaled since they were labelled, labels scaled with them", 1, where)
        return stated, header
    tally.add(
        "pictures of another size than labelled, labels taken as pixels of the file", 1, where
    )
    return header, header


def _stored_size(picture: Image.Image) -> tuple[int, int]:
    if picture.format == "TIFF":
        # Some versions of Pillow have turned the size of a TIFF already; its tags are as stored.
        tags = picture.tag_v2  # type: ignore[attr-defined]
        return int(tags[256]), int(tags[257])
    return picture.size


def _orientation(picture: Image.Image, path: Path | str) -> object:
    if picture.format == "TIFF":
        return picture.tag_v2.get(_ORIENTATION)  # type: ignore[attr-defined]
    # Not `picture.getexif()`: it decodes a whole PNG to find a note behind the pixels, and believes
    # XMP, which OpenCV does not.
    content = picture.info.get("exif")
    if picture.format == "PNG" and not content:
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
