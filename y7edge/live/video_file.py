"""Write frames into an .mp4 file, atomically."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from y7edge.errors import OutputError
from y7edge.files import atomic_write
from y7edge.sources.files import utf8_path

Write = Callable[[NDArray[np.uint8]], int]


@contextmanager
def video_writer(path: Path, rate: float, size: tuple[int, int]) -> Iterator[Write]:
    """Yield a function that appends a frame, (H, W, 3) uint8 BGR, to an .mp4 file.

    The file appears at the end of the ``with`` statement; if that raises an exception, ``path`` is
    unchanged. OpenCV does not report write errors. Therefore the frames in the temporary file are
    counted before it is renamed. The function returns the bytes of the file until now.

    Args:
        path: the file.
        rate: frames per second.
        size: (width, height) of the video in pixels; frames of another size are scaled to it.

    Raises:
        OutputError: the video cannot be written, or lacks frames.
        OSError: as of ``atomic_write``.
    """
    import cv2

    utf8_path(path, OutputError)
    with atomic_write(path) as temporary:
        name = str(temporary.absolute())
        writer = cv2.VideoWriter(name, cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
        frames = 0

        def write(frame: NDArray[np.uint8]) -> int:
            nonlocal frames
            # OpenCV would drop frames of another size, for example if the resolution changes.
            fits = frame.shape[1::-1] == size
            writer.write(frame if fits else cv2.resize(frame, size))
            frames += 1
            return temporary.stat().st_size

        try:
            if not writer.isOpened():
                raise OutputError(f"{path}: this OpenCV cannot write .mp4 files of {size} pixels")
            yield write
        finally:
            writer.release()
        saved = cv2.VideoCapture(name)
        found = max(int(saved.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        saved.release()
        if found != frames:
            raise OutputError(
                f"{path}: the saved video has {found} frames, expected {frames}: check that the "
                "disk is not full; the destination is unchanged"
            )
