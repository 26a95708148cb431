"""Record the frames of a source in a folder, for ``replay://FOLDER``.

The format is described in ``y7edge.sources.replay``.
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

from y7edge.errors import ConfigError, OutputError
from y7edge.files import locked, require_replaceable, writing
from y7edge.frames import Frame
from y7edge.live.background import Background
from y7edge.sources.replay import INDEX
from y7edge.text import printable

_WAITING = 8  # images in memory
_SYNC_SECONDS = 1.0
_MOST_UNSYNCED = 64  # open files
_CLOSE_SECONDS = 30.0
_BLOCK = 1 << 16  # bytes
_NUMBERED = re.compile(r"(\d{8,12})\.(?:jpg|png)")


class FrameRecorder(AbstractContextManager["FrameRecorder"]):
    """Write frames as images, and their capture times, in a thread of its own; ``add`` never waits.

    A line of ``frames.jsonl`` is written after its image is on the disk, once a second. If the
    process is killed or the power fails, the recording has all frames up to then. If the folder is
    a recording already, it is continued.

    Images are BGR; NV12 and RGB are converted, and ``format`` in the record is that of the camera.

    Args:
        folder: of the recording; created if missing.
        quality: of JPEG files, 1 to 100; None: PNG files, which are exact, larger, and slower.

    Attributes:
        folder: of the recording.
        earlier: number of images that the folder had before.

    Raises:
        ConfigError: ``quality`` is out of range.
        OutputError: the folder cannot be written to, is in use by another recorder, or has other
            files and no recording.
    """

    def __init__(self, folder: Path | str, quality: int | None = 95) -> None:
        if quality is not None and not 1 <= quality <= 100:
            raise ConfigError(f"quality is {quality}, expected 1 to 100, or None for PNG")
        self.folder, self._quality = Path(folder), quality
        self._unsynced: list[tuple[FileIO, dict[str, Any]]] = []
        self._synced = time.monotonic()
        self._dropped = self._frames = 0
        with ExitStack() as stack, writing("a recording", self.folder):
            self.earlier = self._number = self._prepare()
            self._index: FileIO = stack.enter_context(
                (self.folder / INDEX).open("a+b", buffering=0)
            )
            try:
                stack.enter_context(locked(self.folder / INDEX, wait=False))
            except BlockingIOError as error:
                words = "another process or thread is recording into it"
                raise OutputError(f"{self.folder}: {words}") from error
            self._repair()
            self._stack = stack.pop_all()
        self._background = Background(
            f"recording to {self.folder}", self._write, self._finish, _WAITING
        )

    def _prepare(self) -> int:
        """Create the folder, and return the number of the next image."""
        require_replaceable(self.folder, file=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in self.folder.iterdir()]
        if names and INDEX not in names:
            raise OutputError(
                f"{self.folder}: expected an empty folder, or a recording with {INDEX}; found "
                f"{len(names)} entries, such as {names[0][:80]}"
            )
        require_replaceable(self.folder / INDEX)
        taken = (int(found[1]) for name in names if (found := _NUMBERED.fullmatch(name)))
        return max(taken, default=-1) + 1

    def _repair(self) -> None:
        """Remove an incomplete last line, which a power failure has left."""
        end = self._index.seek(0, os.SEEK_END)
        while end:
            start = max(end - _BLOCK, 0)
            self._index.seek(start)
            if (newline := self._index.read(end - start).rfind(b"\n")) >= 0:
                end = start + newline + 1
                break
            end = start
        self._index.truncate(end)

    def add(self, frame: Frame) -> bool:
        """Queue a copy of a frame; return False if it is dropped, because the disk is too slow."""
        if self._background.waiting >= _WAITING or self._background.problem is not None:
            queued = False
        else:
            copy = replace(frame, image=frame.image.copy(), stride=None)
            queued = self._background.put(copy)
        self._dropped += not queued
        return queued

    @property
    def frames(self) -> int:
        """Frames that are on the disk."""
        return self._frames

    @property
    def dropped(self) -> int:
        """Frames that were not recorded."""
        return self._dropped

    @property
    def problem(self) -> str | None:
        """Why recording has stopped, in one line; None if it has not."""
        return self._background.problem

    def close(self) -> None:
        """Write the frames that wait; can be called twice.

        Raises:
            OutputError: a frame could not be written; it is raised once.
        """
        self._background.close(_CLOSE_SECONDS)

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, frame: Frame) -> None:
        import cv2

        from y7edge.detect.preprocess import to_bgr

        suffix, options = ".png", [cv2.IMWRITE_PNG_COMPRESSION, 1]
        if self._quality is not None:
            suffix, options = ".jpg", [cv2.IMWRITE_JPEG_QUALITY, self._quality]
        done, content = cv2.imencode(suffix, to_bgr(frame), options)
        if not done:
            raise OutputError(f"OpenCV cannot encode an image of {frame.size} as {suffix}")
        name = f"{self._number:08d}{suffix}"
        self._number += 1
        with ExitStack() as stack:
            image = stack.enter_context((self.folder / name).open("xb", buffering=0))
            stack.callback((self.folder / name).unlink, missing_ok=True)
            _write_all(image, content.tobytes())
            stack.pop_all()
        self._unsynced.append((image, _record(name, frame)))
        late = time.monotonic() - self._synced >= _SYNC_SECONDS
        if late or len(self._unsynced) >= _MOST_UNSYNCED:
            self._sync()

    def _sync(self) -> None:
        """Write the lines of images after the images."""
        images, self._unsynced = self._unsynced, []
        with ExitStack() as stack:
            for image, _ in images:
                stack.enter_context(image)
            for image, _ in images:
                os.fsync(image.fileno())
        lines = [json.dumps(record).encode() + b"\n" for _, record in images]
        end = self._index.seek(0, os.SEEK_END)
        try:
            _write_all(self._index, b"".join(lines))
        except OSError:  # a full disk
            self._index.truncate(end)
            raise
        os.fsync(self._index.fileno())
        self._frames += len(lines)
        self._synced = time.monotonic()

    def _finish(self) -> None:
        with self._stack:
            self._sync()


def _write_all(file: FileIO, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def _record(name: str, frame: Frame) -> dict[str, Any]:
    """Return the record of a frame; one without a timestamp gets the time of its arrival here."""
    is_timed = frame.timestamp_ns is not None
    return {
        "file": name,
        "timestamp_ns": frame.timestamp_ns if is_timed else time.monotonic_ns(),
        "clock": frame.clock if is_timed else "arrival",
        "sequence": frame.sequence,
        "format": frame.format,
        "source": printable(frame.source or "unknown")[:1024],
        "rate": frame.rate,
    }
