"""Read images from a file, a folder, a glob pattern or a video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from y7edge.data.sample import is_image
from y7edge.errors import DataError, SourceError

_VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}


@dataclass(frozen=True, eq=False)
class Picture:
    """One image (H, W, 3) uint8 BGR; ``frame`` counts from 0 within a video, None otherwise."""

    source: Path
    image: NDArray[np.uint8]
    frame: int | None = None


def open_source(source: str) -> Iterator[Picture]:
    """Yield all images of ``source``, in the order of their names; a video frame by frame.

    Raises:
        SourceError: nothing is there, nothing in it is an image, or one cannot be decoded.
    """
    for path in _files(source):
        if path.suffix.lower() in _VIDEOS:
            yield from _frames(path)
        else:
            yield Picture(path, _read(path))


def _files(source: str) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        found = sorted(f for f in path.iterdir() if is_image(f) or f.suffix.lower() in _VIDEOS)
        expected = "a folder of images or videos"
    elif path.exists():
        return [path]
    else:
        expected = "an image, a video, a folder or a pattern such as 'images/*.jpg'"
        root = Path(path.anchor)
        try:
            found = sorted(f for f in root.glob(str(path.relative_to(root))) if f.is_file())
        except ValueError as error:  # such as a ** that is not alone between slashes
            raise SourceError(f"{source}: expected {expected}: {error}") from error
    if not found:
        raise SourceError(f"{source}: expected {expected}, found nothing")
    return found


def _read(path: Path) -> NDArray[np.uint8]:
    from y7edge.data.images import read_image

    try:
        return read_image(path)
    except DataError as error:
        raise SourceError(str(error)) from error


def _frames(path: Path) -> Iterator[Picture]:
    import cv2

    video = cv2.VideoCapture(str(path))
    try:
        count = 0
        while (read := video.read())[0]:
            yield Picture(path, np.asarray(read[1], dtype=np.uint8), count)
            count += 1
    finally:
        video.release()
    if not count:
        raise SourceError(f"{path}: expected a video that OpenCV decodes, found no frame in it")
