"""Decode every image once with Pillow and OpenCV, to find damaged files.

If a JPEG is truncated, Pillow raises an error, but OpenCV only returns grey rows. For damage inside
a JPEG, neither raises an error. Some of it is found by searching for illegal markers in the
compressed data, and by capturing the messages of libjpeg.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from y7edge.data.check.libjpeg import captured_messages
from y7edge.data.formats.records import Facts
from y7edge.data.headers import Frame, too_large
from y7edge.data.images import decode, decode_deep, read_image, reading
from y7edge.errors import DataError, needing
from y7edge.files import open_regular, reason

Progress = Callable[[int, int], None]

_THUMB = 32  # side of thumbnails in pixels
_CHUNK = 32  # images decoded before libjpeg's messages are read
# 64 equal bytes. The compressed data of 420 photographs had no more than 15 in succession.
_RUN = re.compile(rb"(.)\1{63,}", re.DOTALL)
# In compressed JPEG data, 0xFF is followed by 0 (stuffing), a restart marker or more 0xFF.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_LARGEST_HEAD = 1 << 20  # bytes
# Pillow's formats that OpenCV reads too. Others may run programs (EPS).
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "TIFF", "PPM", "GIF", "JPEG2000", "SUN")
_SEGMENTS = {0xC4, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)}
_BEGINNINGS = (
    (b"version https://git-lfs", "a pointer of Git LFS: run `git lfs pull`"),
    (b"<", "an HTML or XML page: a download that failed"),
    (b"{", "JSON"),
    (b"PK", "a ZIP archive"),
    (b"%PDF", "a PDF"),
)


def inspect(path: Path) -> Facts:
    """Decode one image and return its properties; damage is returned in `Facts`, not raised."""
    try:
        with reading(path) as (content, frame):
            return _measured(path, content, frame)
    except DataError as error:
        return _unread(path, str(error).removeprefix(f"{path}: "))


def _unread(path: Path, words: str) -> Facts:
    """Return why a file was not decoded: the message ``words``, or what its first bytes show."""
    try:
        with open_regular(path) as stream:
            content = stream.read(_LARGEST_HEAD)
    except (OSError, ValueError, MemoryError) as error:
        return Facts(f"cannot be read: {reason(error)}", "unreadable")
    if not content.strip(b"\0"):
        return Facts("is empty" if not content else "contains only zeros", "empty")
    if words.startswith("has "):  # too many pixels or bytes
        return Facts(words, "corrupt")
    return _fault(content, words)


def _measured(path: Path, content: bytes, frame: Frame) -> Facts:
    """Decode the bytes of an image with Pillow and OpenCV, and return its properties."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
            if words := too_large(*opened.size):  # may differ from that in ``frame``
                return Facts(words, "corrupt")
            opened.verify()
        with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
            kind, mode = opened.format or "", opened.mode
            # For a TIFF, `is_animated` would read the whole file to count its images.
            several = frame.several or (kind != "TIFF" and getattr(opened, "is_animated", False))
            opened.load()
    except Exception as error:  # Pillow's decoders may raise anything on a damaged file
        return _fault(content, " ".join(str(error).split()) or type(error).__name__)
    if kind in ("JPEG", "MPO") and content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda"):
        return Facts("is cut off: it has no end-of-image marker", "truncated")
    if kind == "JPEG" and (words := _illegal_marker(content)):
        return Facts(words, "corrupt")
    try:
        deep = decode_deep(content, path) if mode.startswith("I") else None
        levels = (int(deep.min()), int(deep.max())) if deep is not None else None
        levels = None if deep is None or deep.dtype != np.uint16 else levels
        deep = None  # frees its memory
        image = decode(content, path)
    except DataError as error:
        words = f"is a {kind} ({mode}) that OpenCV cannot decode: {error}"
        return Facts(words, "corrupt")
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    thumb = cv2.resize(grey, (_THUMB, _THUMB), interpolation=cv2.INTER_AREA)
    digest = hashlib.blake2b(image.data)
    digest.update(repr(image.shape).encode())
    return Facts(
        doubt=_doubt(image, content, kind),
        format=kind,
        mode=mode,
        several=several,
        levels=levels,
        digest=digest.hexdigest()[:32],
        thumb=np.asarray(thumb, np.uint8),
        flat=all(bool((row == image[0, 0]).all()) for row in image),
    )


def _fault(content: bytes, words: str) -> Facts:
    """Classify a damaged file by the message of a decoder, and by its first bytes."""
    if "truncated" in words.lower() or "not enough" in words.lower():
        return Facts(f"is cut off: {words}", "truncated")
    if "cannot identify image" in words or words.startswith("expected an image"):
        head = content.lstrip()[:32]
        meaning = next((words for start, words in _BEGINNINGS if head.startswith(start)), "")
        words = f"is not an image{f', but {meaning}' if meaning else f': begins {head!r}'}"
        return Facts(words, "corrupt")
    return Facts(f"is damaged: {words}", "corrupt")


def _illegal_marker(content: bytes) -> str:
    """Return a message about the first illegal marker in a JPEG's compressed data, if any."""
    start = content.find(b"\xff\xda", _frame(content))
    while 0 <= start < len(content) - 4:
        start += 2 + int.from_bytes(content[start + 2 : start + 4], "big")
        while (found := _MARKER.search(content, start)) is not None:
            code = content[found.start() + 1]
            start = found.start()
            if code == 0xD9:
                return ""
            if code not in _SEGMENTS:
                return f"is damaged: marker 0xFF{code:02X} at byte {start} of the compressed data"
            if code == 0xDA:
                break
            start += 2 + int.from_bytes(content[start + 2 : start + 4], "big")
        else:
            return ""
    return ""


def _frame(content: bytes) -> int:
    """Return the offset of the JPEG frame header, which is after the thumbnail; 0 if not found."""
    position = 2
    while position < len(content) - 4 and content[position] == 0xFF:
        code = content[position + 1]
        if code == 0xFF:
            position += 1
            continue
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            return position
        position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    return 0


def _doubt(image: NDArray[np.uint8], content: bytes, kind: str) -> str:
    """Return a message about signs of damage that decoders do not report."""
    if kind != "JPEG":
        return ""
    # If rows are missing at the end of a JPEG, decoders fill them with this grey.
    rows = 0
    for row in image[::-1]:
        if row.min() < 127 or row.max() > 129:
            break
        rows += 1
    rows = 0 if rows == len(image) else rows
    if rows >= max(8, 0.02 * len(image)):
        return (
            f"its last {rows} of {len(image)} rows are uniform grey, so the compressed data may "
            "end early"
        )
    # Bytes after the end of the image are harmless padding.
    run = _RUN.search(content, max(content.rfind(b"\xff\xda"), 0), content.rfind(b"\xff\xd9"))
    if run is not None and float(image.std()) > 8:
        count, position = len(run[0]), run.start()
        return f"{count} equal bytes at byte {position}, in the middle of compressed data"
    return ""


@contextmanager
def any_size() -> Iterator[None]:
    """Disable Pillow's size limit within the context; callers use `too_large` instead."""
    from PIL import Image

    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def inspect_all(paths: Iterable[Path], progress: Progress | None = None) -> dict[Path, Facts]:
    """Inspect many images in parallel threads, and return their properties by path.

    Raises:
        RuntimeMissing: Pillow is not installed.
    """
    with needing("Pillow", "eval", "this"):
        import PIL.Image  # noqa: F401
    wanted = list(paths)
    found: dict[Path, Facts] = {}
    with warnings.catch_warnings(), any_size(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # the checks report what Pillow warns about
        for start in range(0, len(wanted), _CHUNK):
            chunk = wanted[start : start + _CHUNK]
            with captured_messages() as messages:
                found.update(zip(chunk, pool.map(inspect, chunk), strict=True))
            # libjpeg's messages do not name the file, so decode these images again, one by one.
            for path in chunk if messages else ():
                found[path] = _with_complaint(path, found[path])
            if progress is not None:
                progress(len(found), len(wanted))
    return found


def _padded(path: Path, message: str) -> bool:
    """Return whether the extraneous bytes that libjpeg reports are padding (some cameras add it).

    If there are many bytes and they differ, the decoder lost its position: the image is damaged.
    """
    found = _EXTRANEOUS.search(message)
    if found is None:
        return False
    with reading(path) as (content, _):
        count, end = int(found[1]), content.rfind(b"\xff\xd9")
    return count <= 64 or len(set(content[max(end - count, 0) : end])) == 1


def _with_complaint(path: Path, facts: Facts) -> Facts:
    """Decode an image alone, and add libjpeg's messages about it to its properties."""
    if facts.fault or facts.format not in ("JPEG", "MPO"):
        return facts
    with captured_messages() as messages:
        read_image(path)
    if not messages:
        return facts
    if all("extraneous" in line for line in messages) and _padded(path, messages[-1]):
        return replace(facts, doubt=facts.doubt or messages[0])
    return Facts(f"is damaged: {messages[0]}", "corrupt")
