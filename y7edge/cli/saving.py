"""Write drawn images into a folder: images under their names, a video's frames as one .mp4."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.cli.pictures import Picture
from y7edge.errors import OutputError
from y7edge.files import atomic_write, writing

_FRAMES_PER_SECOND = 25.0


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

    def add(self, picture: Picture, drawn: NDArray[np.uint8]) -> None:
        """Write one drawn image (H, W, 3) uint8 BGR.

        Raises:
            OutputError: OpenCV cannot write such a file, or it would replace its source.
        """
        with writing("the images", self._folder):
            if picture.frame is None or (self._video and self._video[0] != picture.source):
                self._finish_video()
            if picture.frame is None:
                self._write(self._free_name(picture.source), drawn)
                return
            if self._video is None:
                self._video = self._start_video(picture.source, drawn)
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
