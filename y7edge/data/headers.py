"""Sizes of pictures from their headers, without decoding them.

Cameras store a picture as the sensor lies and note in EXIF how it was held; `read_image` applies
the note, and labels refer to the upright picture. Four of the eight orientations (5 to 8) swap
width and height. The published reader knows 6 and 8 only, and gives the others' labels a wrong
picture size.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from y7edge.errors import DataError, RuntimeMissing

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
    try:
        from PIL import Image
    except ImportError as error:
        raise RuntimeMissing(
            f'{path}: reading its size needs Pillow: pip install "y7edge[eval]"'
        ) from error
    try:
        with Image.open(path) as picture:
            width, height = _stored_size(picture)
            if _orientation(picture) in _ON_ITS_SIDE:
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


def _stored_size(picture: Image.Image) -> tuple[int, int]:
    if picture.format == "TIFF":
        # Some versions of Pillow have turned the size of a TIFF already; its tags are as stored.
        tags = picture.tag_v2  # type: ignore[attr-defined]
        return int(tags[256]), int(tags[257])
    return picture.size


def _orientation(picture: Image.Image) -> object:
    if picture.format == "TIFF":
        return picture.tag_v2.get(_ORIENTATION)  # type: ignore[attr-defined]
    # Not `picture.getexif()`: it decodes a whole PNG to look for a note after the pixels, and
    # believes XMP, where OpenCV does neither.
    content = picture.info.get("exif")
    if not content:
        return None
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(content)
        return exif.get(_ORIENTATION)
    # A damaged note is no note: the picture itself is fine, and OpenCV shows it as stored.
    except Exception:
        return None
