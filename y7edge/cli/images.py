"""Read images from files, folders, glob patterns and videos; write drawn ones into a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.data.images import read_image
from y7edge.data.sample import is_image
from y7edge.errors import DataError, OutputError, SourceError
from y7edge.files import atomic_write, writing

_VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}
_FRAMES_PER_SECOND = 25.0  # of written videos


@dataclass(frozen=True, eq=False)
class SourceImage:
    """One image (H, W, 3) uint8 BGR; ``frame`` counts from 0 within a video, None otherwise."""

    source: Path
    image: NDArray[np.uint8]
    frame: int | None = None


def open_source(source: str) -> Iterator[SourceImage]:
    """Yield all images of ``source``, in the order of their names; a video frame by frame.

    Raises:
        SourceError: nothing is there, nothing in it is an image, or one cannot be decoded.
    """
    for path in _files(source):
        if path.suffix.lower() in _VIDEOS:
            yield from _frames(path)
        else:
            try:
                image = read_image(path)
            except DataError as error:
                raise SourceError(str(error)) from error
            yield SourceImage(path, image)


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


def _frames(path: Path) -> Iterator[SourceImage]:
    import cv2

    video = cv2.VideoCapture(str(path))
    try:
        count = 0
        while (read := video.read())[0]:
            yield SourceImage(path, np.asarray(read[1], dtype=np.uint8), count)
            count += 1
    finally:
        video.release()
    if not count:
        raise SourceError(f"{path}: expected a video that OpenCV decodes, found no frame in it")


class Album(AbstractContextManager["Album"]):
    """A folder that images are written into; files appear whole, a video when it is finished.

    Raises:
        OutputError: the folder cannot be written into, also on exit and ``add``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: set[str] = set()
        self._video: tuple[Path, Any, ExitStack] | None = None
        with writing("the images", folder):
            folder.mkdir(parents=True, exist_ok=True)

    def __exit__(self, *error: Any) -> None:
        with writing("the images", self._folder):
            self._finish_video(*error)

    def add(self, image: SourceImage, drawn: NDArray[np.uint8]) -> None:
        """Write one drawn image (H, W, 3) uint8 BGR.

        Raises:
            OutputError: OpenCV cannot write such a file, or it would replace its source.
        """
        with writing("the images", self._folder):
            if image.frame is None or (self._video and self._video[0] != image.source):
                self._finish_video()
            if image.frame is None:
                self._write(self._free_name(image.source), drawn)
                return
            if self._video is None:
                self._video = self._start_video(image.source, drawn)
            self._video[1].write(drawn)

    def _write(self, path: Path, drawn: NDArray[np.uint8]) -> None:
        import cv2

        try:
            _, content = cv2.imencode(path.suffix, drawn)
        except cv2.error as error:
            raise OutputError(f"{path}: OpenCV cannot write this kind of image") from error
        with atomic_write(path) as temporary:
            temporary.write_bytes(content.tobytes())

    def _start_video(self, source: Path, first: NDArray[np.uint8]) -> tuple[Path, Any, ExitStack]:
        import cv2

        stack = ExitStack()
        temporary = stack.enter_context(atomic_write(self._free_name(source.with_suffix(".mp4"))))
        codec, size = cv2.VideoWriter.fourcc(*"mp4v"), (first.shape[1], first.shape[0])
        writer = cv2.VideoWriter(str(temporary), codec, _FRAMES_PER_SECOND, size)
        stack.callback(writer.release)
        if not writer.isOpened():
            raise OutputError(f"{source}: this OpenCV cannot write .mp4 files")
        return source, writer, stack

    def _finish_video(self, *error: Any) -> None:
        """Close the current video; after an error no file appears."""
        if self._video is not None:
            stack, self._video = self._video[2], None
            stack.__exit__(*(error or (None, None, None)))

    def _free_name(self, source: Path) -> Path:
        """Return an unused path; a glob may match equal names."""
        name, count = source.name, 1
        while name in self._taken:
            count += 1
            name = f"{source.stem}-{count}{source.suffix}"
        self._taken.add(name)
        path = self._folder / name
        if path.exists() and source.exists() and path.samefile(source):
            raise OutputError(f"{path} would be overwritten: save into another folder")
        return path
