"""Read the size of an image from its header, and limit the size of images that are decoded.

Cameras record the orientation of an image in EXIF. `read_image` applies it, and labels refer to the
upright image. Four of the eight orientations (5 to 8) swap width and height; the published YOLOv7
code handles only 6 and 8.

A small file can declare a size that takes gigabytes to decode. Before decoding, the declared size
is compared with `most_pixels`, for every format that OpenCV decodes.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from y7edge.errors import ConfigError, DataError
from y7edge.files import open_regular, reason

_ORIENTATION = 0x0112
_ON_ITS_SIDE = frozenset({5, 6, 7, 8})
_MOST_PIXELS = 1 << 27  # 134 megapixels, 400 MB of bytes
_BEGINNING = 1 << 16  # bytes searched for a text header
_LARGEST_BOXES = 1 << 26  # bytes searched for a size (JPEG 2000, AVIF)
_MOST_PARTS = 100_000  # segments or chunks read; an image of 200 MB has 25,000
_FRAME_HEADERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}
# Bytes of one value of a TIFF tag, by its type.
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 322, 323
_DAMAGED = "its header is damaged or cut off"
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_PNM = re.compile(rb"P[1-6Ff]" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})\s")


class Frame(NamedTuple):
    """Size of an image in pixels, upright and as stored, and its EXIF orientation."""

    size: tuple[int, int]  # width, height of the upright image
    stored: tuple[int, int]  # width, height before the orientation is applied
    orientation: int = 1
    pixels: int = 0  # pixels that decoding allocates; a TIFF tile may be larger than the image
    several: bool = False  # whether the file contains more than one image

    @property
    def turned(self) -> bool:
        """Whether the EXIF orientation swaps width and height."""
        return self.orientation in _ON_ITS_SIDE


class _Found(NamedTuple):
    """Values read from a header; ``exif`` is an EXIF block, or the orientation as an int."""

    width: int
    height: int
    exif: bytes | int = b""
    pixels: int = 0
    several: bool = False


def read_frame(path: Path | str) -> Frame:
    """Read the size and orientation of an image from its header, without decoding it.

    Raises:
        DataError: The file cannot be read, or its header is invalid.
    """
    try:
        with open_regular(path) as stream:
            return frame_of(stream)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot read the image: {reason(error)}") from error


def picture_size(path: Path | str) -> tuple[int, int]:
    """Return width and height of the upright image in pixels, from `read_frame`."""
    return read_frame(path).size


def most_pixels() -> int:
    """Return the largest number of pixels that a process may decode at the same time.

    The limit applies to each image, and to the sum of all images that are being decoded.

    Raises:
        ConfigError: ``Y7EDGE_MAX_PIXELS`` is not a positive whole number.
    """
    text = os.environ.get("Y7EDGE_MAX_PIXELS", "")
    if not text:
        return _MOST_PIXELS
    if not re.fullmatch(r"0*[1-9][0-9]{0,11}", text):
        words = f"expected a positive number of pixels, found {text[:40]!r}"
        raise ConfigError(f"Y7EDGE_MAX_PIXELS: {words}")
    return int(text)


def too_large(width: int, height: int, pixels: int = 0) -> str:
    """Return a message if an image or video frame is too large to decode, else an empty string.

    ``pixels`` is the number of pixels that decoding allocates, if more than width times height.
    """
    most = most_pixels()
    if max(width * height, pixels) <= most:
        return ""
    words = f"has {width}x{height} pixels"
    words += f" and needs {pixels:,} to decode" if pixels > width * height else ""
    return f"{words}; at most {most:,} are decoded: set Y7EDGE_MAX_PIXELS for more"


def frame_of(stream: BinaryIO) -> Frame:
    """Read the size and orientation of an image from a stream.

    Raises:
        ValueError: The stream does not begin with the header of a format that OpenCV decodes.
    """
    stream.seek(0)
    head = stream.read(32)
    parse = next((parse for magic, parse in _FORMATS if magic.match(head)), None)
    if parse is None:
        raise ValueError("its header is not that of an image")
    try:
        found = parse(stream, head)
    except (struct.error, ValueError, IndexError, OverflowError) as error:
        raise ValueError(_DAMAGED) from error
    width, height = stored = found.width, found.height
    if width < 1 or height < 1:
        raise ValueError(f"expected an image, found a size of {width} x {height} pixels")
    noted = found.exif if isinstance(found.exif, int) else _noted(found.exif)
    known = noted if noted is not None and 1 <= noted <= 8 else 1
    upright = (height, width) if known in _ON_ITS_SIDE else stored
    return Frame(upright, stored, known, max(width * height, found.pixels), found.several)


def _jpeg(stream: BinaryIO, _: bytes) -> _Found:
    """Read size and EXIF from the segments before the first scan."""
    size, exif = (0, 0), b""
    stream.seek(2)
    for _part in range(_MOST_PARTS):
        first, code = stream.read(2)
        if first != 0xFF or code in (0x00, 0xFF):  # garbage or fill bytes, which decoders skip too
            stream.seek(-1, os.SEEK_CUR)
            continue
        if code in _WITHOUT_LENGTH:
            continue
        (length,) = struct.unpack(">H", stream.read(2))
        if code == 0xDA and size[0]:
            return _Found(*size, exif)
        if code in (0xD9, 0xDA):
            break
        content = stream.read(length - 2) if code == 0xE1 or code in _FRAME_HEADERS else b""
        if code in _FRAME_HEADERS and not size[0]:
            size = struct.unpack(">xHH", content[:5])[::-1]
        elif code == 0xE1 and not exif and content.startswith(b"Exif\0\0"):
            exif = content
        stream.seek(max(length - 2, 0) - len(content), os.SEEK_CUR)
    raise ValueError(_DAMAGED)


def _png(stream: BinaryIO, head: bytes) -> _Found:
    """Read the size from the first chunk, and EXIF from a chunk anywhere in the file."""
    width, height = struct.unpack(">II", head[16:24])
    exif, several = b"", False
    stream.seek(8)
    for _part in range(_MOST_PARTS):
        chunk = stream.read(8)
        if len(chunk) < 8:
            break
        length, kind = struct.unpack(">I4s", chunk)
        if kind == b"eXIf" and not exif:
            exif = stream.read(min(length, _BEGINNING))
            length -= len(exif)
        several |= kind == b"acTL"
        stream.seek(length + 4, os.SEEK_CUR)
    return _Found(width, height, exif, several=several)


def _webp(stream: BinaryIO, head: bytes) -> _Found:
    kind = head[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", head[26:30])
        return _Found(width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        (bits,) = struct.unpack("<I", head[21:25])
        return _Found((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    flags, exif = head[20], b""
    width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
    stream.seek(12)
    for _part in range(_MOST_PARTS if flags & 8 else 0):
        chunk = stream.read(8)
        if len(chunk) < 8:
            break
        name, length = struct.unpack("<4sI", chunk)
        if name == b"EXIF":
            exif = stream.read(min(length, _BEGINNING))
            break
        stream.seek(length + length % 2, os.SEEK_CUR)
    return _Found(width, height, exif, several=bool(flags & 2))


def _tiff(stream: BinaryIO, head: bytes) -> _Found:
    """Read the tags of the first image; refuse tags that declare more data than there is."""
    order = "<" if head[:2] == b"II" else ">"
    big = struct.unpack(f"{order}H", head[2:4])[0] == 43
    (start,) = struct.unpack(f"{order}Q", head[8:16]) if big else (
        struct.unpack(f"{order}I", head[4:8]))  # fmt: skip
    stream.seek(start)
    (count,) = struct.unpack(f"{order}{'Q' if big else 'H'}", stream.read(8 if big else 2))
    row = struct.Struct(f"{order}HHQ8s" if big else f"{order}HHI4s")
    if count > 0xFFFF:
        raise ValueError(_DAMAGED)
    tags: dict[int, int] = {}
    room = 0
    for tag, kind, number, value in row.iter_unpack(stream.read(row.size * count)):
        room += _BYTES.get(kind, 1) * number
        form = {3: "H", 4: "I", 16: "Q"}.get(kind)
        if form and number == 1:
            (found,) = struct.unpack_from(f"{order}{form}", value)
            tags[tag] = (
                tags.get(tag, found) if tag == _ORIENTATION else max(tags.get(tag, 0), found)
            )
    following = stream.read(8 if big else 4)
    stream.seek(0, os.SEEK_END)
    if room > stream.tell() + _BEGINNING:
        raise ValueError(_DAMAGED)
    width, height = tags.get(_WIDTH, 0), tags.get(_HEIGHT, 0)
    tile = tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_HEIGHT, 0)
    return _Found(width, height, tags.get(_ORIENTATION, 1), tile, any(following))


def _bmp(_: BinaryIO, head: bytes) -> _Found:
    if struct.unpack("<I", head[14:18])[0] == 12:
        return _Found(*struct.unpack("<HH", head[18:22]))
    width, height = struct.unpack("<ii", head[18:26])
    return _Found(width, abs(height))  # negative height: rows from top to bottom


def _searched(pattern: re.Pattern[bytes]) -> Callable[[BinaryIO, bytes], _Found]:
    """Return a parser that finds all sizes in a file, and returns the largest.

    Smaller sizes belong to thumbnails or tiles. The group of ``pattern`` matches integers of 4
    bytes: the right and bottom edge, and in some formats the left and top edge (else zero).
    """

    def parse(stream: BinaryIO, _: bytes) -> _Found:
        stream.seek(0)
        matches = pattern.findall(stream.read(_LARGEST_BOXES))
        areas = [struct.unpack(">IIII", match.ljust(16, b"\0")) for match in matches]
        return _Found(*max(((x - left, y - top) for x, y, left, top in areas), key=math.prod))

    return parse


_CODESTREAM = re.compile(rb"\xff\x4f\xff\x51.{4}(.{16})", re.DOTALL)  # JPEG 2000
_EXTENT = re.compile(rb"ispe.{4}(.{8})", re.DOTALL)  # AVIF


def _written(*patterns: bytes) -> Callable[[BinaryIO, bytes], _Found]:
    """Return a parser of text headers.

    The two patterns match the width and the height. If a pattern matches several numbers, the
    largest is used.
    """

    def parse(stream: BinaryIO, _: bytes) -> _Found:
        stream.seek(0)
        text = stream.read(_BEGINNING)
        width, height = (max(map(int, re.findall(p, text)), default=0) for p in patterns)
        return _Found(width, height)

    return parse


def _pnm(stream: BinaryIO, _: bytes) -> _Found:
    stream.seek(0)
    found = _PNM.match(stream.read(_BEGINNING))
    if found is None:
        raise ValueError(_DAMAGED)
    return _Found(int(found[1]), int(found[2]))


# Pattern of the first bytes of a file, and parser of its header.
_FORMATS: tuple[tuple[re.Pattern[bytes], Callable[[BinaryIO, bytes], _Found]], ...] = (
    (re.compile(rb"\xff\xd8"), _jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n....IHDR", re.DOTALL), _png),
    (re.compile(rb"RIFF....WEBPVP8[ LX]", re.DOTALL), _webp),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), _tiff),
    (re.compile(rb"BM"), _bmp),
    (re.compile(rb"GIF8[79]a"), lambda _, head: _Found(*struct.unpack("<HH", head[6:10]))),
    (re.compile(rb"P[1-6Ff]\s"), _pnm),
    (re.compile(rb"P7\s"), _written(rb"WIDTH\s+(\d{1,9})", rb"HEIGHT\s+(\d{1,9})")),
    (re.compile(rb"#\?R"), _written(rb"\+X +(\d{1,9})", rb"-Y +(\d{1,9})")),
    (re.compile(rb"\x59\xa6\x6a\x95"), lambda _, head: _Found(*struct.unpack(">II", head[4:12]))),
    (re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP"), _searched(_CODESTREAM)),
    (re.compile(rb"....ftyp", re.DOTALL), _searched(_EXTENT)),
)


def _noted(exif: bytes) -> int | None:
    """Return the orientation in an EXIF block; None if it has none or is damaged."""
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
