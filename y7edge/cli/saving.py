"""Write images with drawn boxes into a folder, and the frames of a video into one .mp4 file."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.errors import OutputError
from y7edge.files import atomic_write, writing
from y7edge.frames import Frame
from y7edge.live.video_file import Write, video_writer

_DEFAULT_RATE = 25.0  # frames per second, if the source has no rate
_LOSSLESS = ".png"  # used if the source's format cannot store the image
_SUFFIXES = {s: s for s in (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")}
_SUFFIXES |= {".jfif": ".jpg", ".jpe": ".jpg", ".mpo": ".jpg"}


class ImageWriter(AbstractContextManager["ImageWriter"]):
    """Write images into a folder, each atomically.

    The .mp4 file of a video appears after its last frame is added.

    Raises:
        OutputError: a file cannot be written. It is raised by the constructor, by ``add``, or at
            the end of the ``with`` statement.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: set[str] = set()
        self._video: tuple[Path, Write, ExitStack] | None = None
        with writing("the images", folder):
            folder.mkdir(parents=True, exist_ok=True)

    def __exit__(self, *error: Any) -> None:
        with writing("the images", self._folder):
            self._finish_video(*error)

    def add(self, frame: Frame, drawn: NDArray[np.uint8]) -> None:
        """Write the drawn image (H, W, 3) uint8 BGR of a frame; one without a timestamp is a file.

        Raises:
            OutputError: the image cannot be written, it would replace its source, or the previous
                video is incomplete.
        """
        source = Path(frame.source or "")
        if source.name in ("", ".."):  # of a recording
            source = Path("frames")
        with writing("the images", self._folder):
            if frame.timestamp_ns is None or (self._video and self._video[0] != source):
                self._finish_video()
            if frame.timestamp_ns is None:
                self._write(source, drawn)
                return
            if self._video is None:
                path = self._free_name(source.with_suffix(".mp4"))
                size = (drawn.shape[1], drawn.shape[0])
                stack = ExitStack()
                write = stack.enter_context(video_writer(path, frame.rate or _DEFAULT_RATE, size))
                self._video = source, write, stack
            self._video[1](drawn)

    def _write(self, source: Path, drawn: NDArray[np.uint8]) -> None:
        """Write an image in its source's format, or as PNG if that format cannot store it."""
        original = source.suffix.lower()
        # WebP, for example, is limited to 16,383 pixels per side.
        for suffix in (_SUFFIXES.get(original, _LOSSLESS), _LOSSLESS):
            if (content := _encode(drawn, suffix)) is not None:
                break
        else:
            raise OutputError(f"{source}: OpenCV cannot encode an image of {drawn.shape}")
        path = self._free_name(source if suffix == original else source.with_suffix(suffix))
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)

    def _finish_video(self, *error: Any) -> None:
        """Finish the current video; if ``error`` has an exception, no file is written."""
        if self._video is not None:
            stack, self._video = self._video[2], None
            stack.__exit__(*(error or (None, None, None)))

    def _free_name(self, source: Path) -> Path:
        """Return a path that was not used before: sources may have equal names."""
        name, count = source.name, 1
        while name in self._taken:
            count += 1
            name = f"{source.stem}-{count}{source.suffix}"
        self._taken.add(name)
        path = self._folder / name
        if path.exists() and source.exists() and path.samefile(source):
            raise OutputError(f"{path} would be overwritten: save into another folder")
        return path


def _encode(image: NDArray[np.uint8], suffix: str) -> bytes | None:
    import cv2

    try:
        is_encoded, content = cv2.imencode(suffix, image)
    except cv2.error:
        return None
    return content.tobytes() if is_encoded else None
