"""V4L2 devices: their names, and the formats and sizes that a camera has.

Constants and structures are those of the kernel's interface for programs
(https://docs.kernel.org/userspace-api/media/v4l/v4l2.html, include/uapi/linux/videodev2.h).
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from y7edge.errors import SourceError

_NUMBER = re.compile(r"(?:video)?([0-9]{1,3})")
_DEVICE = re.compile(r"/dev/[A-Za-z0-9_.:+@/-]{1,200}")  # also links that udev makes
_ENUM_FMT, _ENUM_FRAMESIZES = 0xC0405602, 0xC02C564A
_FORMAT = struct.Struct("=III32sI16x")  # v4l2_fmtdesc
_SIZE = struct.Struct("=III6I8x")  # v4l2_frmsizeenum
_CAPTURE = (1, 9)  # V4L2_BUF_TYPE_VIDEO_CAPTURE, and with several planes
_DISCRETE = 1  # V4L2_FRMSIZE_TYPE_DISCRETE
_MOST = 256  # of formats and of sizes; a driver that does not end is not asked further
_CODECS = {"MJPG": "mjpeg", "JPEG": "mjpeg", "H264": "h264", "HEVC": "h265"}
# Raw values of a sensor's colour filter, 8 to 16 bits: SRGGB10 is "RG10", packed "pRAA".
_BAYER = re.compile(
    r"(RG|BG|GB|GR|BA)(10|12|14|16|81)|BD10|BYR2|GRBG|RGGB|GBRG|p[BGRg](AA|CC|EE)|[ab][BGRg]A8"
)

Sizes = tuple[tuple[int, int], ...]
"""(width, height) of a format; empty: not known, or any size."""


def device(place: str) -> str:
    """Return the path of a V4L2 device: "/dev/video0" for "0", "video0" and "/dev/video0".

    Raises:
        SourceError: it is not the name of a device.
    """
    if number := _NUMBER.fullmatch(place):
        return f"/dev/video{int(number[1])}"
    if not _DEVICE.fullmatch(place) or ".." in place:
        raise SourceError(
            f"v4l2://{place[:80]}: expected a device such as /dev/video0, or one of /dev/v4l/by-id"
        )
    return place


def check_device(path: str) -> None:
    """Check that a V4L2 device exists and may be opened.

    Raises:
        SourceError: it does not exist, or this user may not read it.
    """
    if not Path(path).exists():
        found = ", ".join(sorted(str(name) for name in Path("/dev").glob("video[0-9]*")))
        raise SourceError(f"{path} does not exist, found {found or 'no camera in /dev'}")
    if not os.access(path, os.R_OK | os.W_OK):
        raise SourceError(
            f"{path} may not be read: sudo usermod -aG video $USER, then log in again"
        )


def is_bayer(code: str) -> bool:
    """Return whether the four characters of a V4L2 format mean the raw values of a sensor."""
    return _BAYER.fullmatch(code) is not None


def formats_of(path: str) -> dict[str, Sizes]:
    """Return the formats of a camera, by their four characters, and their sizes.

    Empty if the device does not tell. It is opened and closed again, but does not capture.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # busy: the library that captures reports it
        return {}
    try:
        codes = [code for kind in _CAPTURE for code in _enumerate_formats(handle, kind)]
        return {_text(code): tuple(_enumerate_sizes(handle, code)) for code in codes}
    finally:
        os.close(handle)


def usual_codec(path: str, formats: Mapping[str, Sizes], size: tuple[int, int]) -> str | None:
    """Return the codec for a camera: "mjpeg" if it has that, else "raw", "h264" or "h265".

    Args:
        path: of the device.
        formats: see ``formats_of``.
        size: (width, height) that the user asked for; 0: any.

    Returns:
        The codec; None if the device does not tell its formats.

    Raises:
        SourceError: the camera sends the raw values of a sensor only, or does not have the size.
    """
    if not formats:
        return None
    images = {code: sizes for code, sizes in formats.items() if not is_bayer(code)}
    if not images:
        raise SourceError(
            f"{path} sends the raw values of a sensor ({', '.join(formats)}), which are no image: "
            "open the camera of a Jetson as csi://0"
        )
    fitting = [code for code, sizes in images.items() if not sizes or _has(sizes, size)]
    if not fitting:
        asked = "x".join(str(side) if side else "any" for side in size)
        found = "; ".join(
            f"{code} {', '.join(f'{w}x{h}' for w, h in sizes)}" for code, sizes in images.items()
        )
        raise SourceError(f"{path} has no size {asked}, found {found}")
    codecs = [_CODECS.get(code, "raw") for code in fitting]
    return min(codecs, key=("mjpeg", "raw", "h264", "h265").index)


def _has(sizes: Sizes, size: tuple[int, int]) -> bool:
    return any(size[0] in (0, width) and size[1] in (0, height) for width, height in sizes)


def _text(code: int) -> str:
    """Return the four characters of a format; without the flag for big-endian formats."""
    return (code & 0x7FFFFFFF).to_bytes(4, "little").decode("latin-1").strip()


def _enumerate_formats(handle: int, kind: int) -> Iterator[int]:
    for index in range(_MOST):
        data = bytearray(_FORMAT.pack(index, kind, 0, b"", 0))
        try:
            fcntl.ioctl(handle, _ENUM_FMT, data)
        except OSError:  # the last one was the one before
            return
        yield _FORMAT.unpack(data)[4]


def _enumerate_sizes(handle: int, code: int) -> Iterator[tuple[int, int]]:
    for index in range(_MOST):
        data = bytearray(_SIZE.pack(index, code, 0, *([0] * 6)))
        try:
            fcntl.ioctl(handle, _ENUM_FRAMESIZES, data)
        except OSError:
            return
        _, _, kind, width, height, *_ = _SIZE.unpack(data)
        if kind != _DISCRETE:  # a range
            return
        yield width, height
