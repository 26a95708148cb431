"""What an image file really holds: decoded once, by Pillow and by OpenCV.

OpenCV fills what a truncated JPEG lacks with grey and says nothing; Pillow tells. Pillow says
nothing of damage inside a JPEG; a walk along its markers shows some of it.
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

from y7edge.data.check.libjpeg import complaints
from y7edge.data.formats.records import Facts
from y7edge.data.headers import Frame, too_large
from y7edge.data.images import decode, decode_deep, read_image, reading
from y7edge.errors import DataError, needing
from y7edge.files import open_regular, reason

Progress = Callable[[int, int], None]

THUMB = 32
_CHUNK = 32
# Longest runs of one byte in the scans of 420 photographs: below 16.
_RUN = re.compile(rb"(.)\1{63,}", re.DOTALL)
# Within the scan of a JPEG, 0xFF is followed by 0 (stuffing), a restart marker or more 0xFF.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_LARGEST_HEAD = 1 << 20
# Of Pillow's, what OpenCV reads too: others may run programs (EPS).
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
    """Read, decode and measure one image; never raises for what it holds."""
    try:
        with reading(path) as (content, frame):
            return _measured(path, content, frame)
    except DataError as error:
        return _unread(path, str(error).removeprefix(f"{path}: "))


def _unread(path: Path, words: str) -> Facts:
    """Why a file is not decoded at all, in more words where its beginning says more."""
    try:
        with open_regular(path) as stream:
            content = stream.read(_LARGEST_HEAD)
    except (OSError, ValueError, MemoryError) as error:
        return Facts(f"cannot be read: {reason(error)}", "unreadable")
    if not content.strip(b"\0"):
        return Facts("is empty" if not content else "holds nothing but zeros", "empty")
    if words.startswith("has "):
        return Facts(words, "corrupt")
    return _fault(content, words)


def _measured(path: Path, content: bytes, frame: Frame) -> Facts:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
            if words := too_large(*opened.size):  # another size than the header has
                return Facts(words, "corrupt")
            opened.verify()
        with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
            kind, mode = opened.format or "", opened.mode
            # Counting the images of a TIFF or GIF takes long where there are very many.
            several = frame.several or (kind != "TIFF" and getattr(opened, "is_animated", False))
            opened.load()
    # Pillow's decoders raise whatever a damaged file provokes in them.
    except Exception as error:
        return _fault(content, " ".join(str(error).split()) or type(error).__name__)
    if kind in ("JPEG", "MPO") and content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda"):
        return Facts("is cut off: it has no end-of-image marker", "truncated")
    if kind == "JPEG" and (words := _illegal_marker(content)):
        return Facts(words, "corrupt")
    try:
        deep = decode_deep(content, path) if mode.startswith("I") else None
        levels = (int(deep.min()), int(deep.max())) if deep is not None else None
        levels = None if deep is None or deep.dtype != np.uint16 else levels
        deep = None  # an image is large
        image = decode(content, path)
    except DataError as error:
        words = f"is a {kind} ({mode}) that OpenCV, and so the training, cannot decode: {error}"
        return Facts(words, "corrupt")
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    digest = hashlib.blake2b(image.data)
    digest.update(repr(image.shape).encode())
    return Facts(
        doubt=_doubt(image, content, kind),
        format=kind,
        mode=mode,
        several=several,
        levels=levels,
        digest=digest.hexdigest()[:32],
        thumb=np.asarray(cv2.resize(grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA), np.uint8),
        flat=all(bool((row == image[0, 0]).all()) for row in image),
    )


def _fault(content: bytes, words: str) -> Facts:
    if "truncated" in words.lower() or "not enough" in words.lower():
        return Facts(f"is cut off: {words}", "truncated")
    if "cannot identify image" in words or words.startswith("expected an image"):
        head = content.lstrip()[:32]
        meaning = next((words for start, words in _BEGINNINGS if head.startswith(start)), "")
        words = f"is not an image{f', but {meaning}' if meaning else f': begins {head!r}'}"
        return Facts(words, "corrupt")
    return Facts(f"is damaged: {words}", "corrupt")


def _illegal_marker(content: bytes) -> str:
    """A marker that cannot stand where it does in a JPEG's scans."""
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
    """Where the frame header of a JPEG begins: what stands before it may hold a small image."""
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
    """Signs of damage that decoders pass over in silence."""
    if kind != "JPEG":
        return ""
    # What is missing of a JPEG decodes as exactly this grey, from some row to the last.
    rows = 0
    for row in image[::-1]:
        if row.min() < 127 or row.max() > 129:
            break
        rows += 1
    rows = 0 if rows == len(image) else rows
    if rows >= max(8, 0.02 * len(image)):
        return (
            f"its last {rows} of {len(image)} rows are plain grey, as where compressed data end "
            "early"
        )
    # What follows the end of the image is padding, of no harm.
    run = _RUN.search(content, max(content.rfind(b"\xff\xda"), 0), content.rfind(b"\xff\xd9"))
    if run is not None and float(image.std()) > 8:
        count, position = len(run[0]), run.start()
        return f"{count} equal bytes at byte {position}, in the middle of compressed data"
    return ""


@contextmanager
def any_size() -> Iterator[None]:
    """Let Pillow open what `too_large` allows, without a warning."""
    from PIL import Image

    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def inspect_all(paths: Iterable[Path], progress: Progress | None = None) -> dict[Path, Facts]:
    """Inspect many images in threads (decoders work outside the interpreter's lock).

    Raises:
        RuntimeMissing: Pillow is not installed.
    """
    with needing("Pillow", "eval", "this"):
        import PIL.Image  # noqa: F401
    wanted = list(paths)
    found: dict[Path, Facts] = {}
    with warnings.catch_warnings(), any_size(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # Pillow warns of what becomes a finding
        for start in range(0, len(wanted), _CHUNK):
            chunk = wanted[start : start + _CHUNK]
            with complaints() as said:
                found.update(zip(chunk, pool.map(inspect, chunk), strict=True))
            # Who complained is found by asking them one by one; it is seldom needed.
            for path in chunk if said else ():
                found[path] = _with_complaint(path, found[path])
            if progress is not None:
                progress(len(found), len(wanted))
    return found


def _padded(path: Path, said: str) -> bool:
    """Whether the bytes too many before the end are few or padding, as some cameras write it.

    Otherwise the decoder had lost its way before, and what it made of the rest is garbage.
    """
    found = _EXTRANEOUS.search(said)
    if found is None:
        return False
    with reading(path) as (content, _):
        count, end = int(found[1]), content.rfind(b"\xff\xd9")
    return count <= 64 or len(set(content[max(end - count, 0) : end])) == 1


def _with_complaint(path: Path, facts: Facts) -> Facts:
    if facts.fault or facts.format not in ("JPEG", "MPO"):
        return facts
    with complaints() as said:
        read_image(path)
    if not said:
        return facts
    if all("extraneous" in line for line in said) and _padded(path, said[-1]):
        return replace(facts, doubt=facts.doubt or said[0])
    return Facts(f"is damaged: {said[0]}", "corrupt")
