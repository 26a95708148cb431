"""Record a live source: .mp4 files with boxes drawn, and .jsonl files with all detections.

A recording is a series of segments, ``NAME-000001-20261126T120000Z.mp4`` and ``.jsonl``. The video
has a constant frame rate and keeps real time: each image is shown from its capture time on, and is
repeated until the next one. A line of the .jsonl file is ``Detections.to_dict`` with ``clock``,
``video_frame`` (which frame of the .mp4 file shows the image; None if it was dropped) and, if the
capture time is of CLOCK_MONOTONIC, ``utc_ns``, the same time in nanoseconds since 1970.

The index of an .mp4 file is at its end. So it appears when the segment ends, and a power failure
loses the video of the last segment. Lines are written one by one and synced to disk every second.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from y7edge.detect.detections import Detections
from y7edge.detect.drawing import draw
from y7edge.errors import ConfigError, DataError
from y7edge.files import writing
from y7edge.frames import Frame
from y7edge.live.background import Background
from y7edge.live.video_file import Write, video_writer

_IMAGES = 8  # that may wait for the encoder
_RECORDS = 1000  # that may wait; they are small
_RATE = 30.0  # frames per second, if the source does not state its rate
_RATES = (1.0, 120.0)
_GAP = 10.0  # seconds without a frame, after which a new segment starts
_SYNC = 1.0  # seconds
_SMALLEST = 1_000_000  # bytes of ``max_bytes``
_PARTS = 4  # a segment has at most this part of ``max_bytes``
_CLOSING = 30.0  # seconds
_NAME = 80  # bytes


@dataclass(frozen=True)
class RecordingStatus:
    """What a recorder has written until now.

    Attributes:
        frames: images in the videos; repeated ones are counted once.
        dropped: images that are missing in the videos, because the encoder was too slow, or there
            were more frames than the rate of the video.
        records: lines in the .jsonl files.
        lost: frames without a line, because the disk was too slow or recording has stopped.
        segments: number of segments that were started.
        problem: why recording has stopped, in one line; None if it has not.
    """

    frames: int
    dropped: int
    records: int
    lost: int
    segments: int
    problem: str | None


@dataclass(frozen=True, eq=False)
class _Item:
    frame: Frame  # its image is a copy, or empty if the image is drawn or dropped
    drawn: NDArray[np.uint8] | None
    detections: Detections
    has_image: bool
    utc_ns: int | None


class Recorder(AbstractContextManager["Recorder"]):
    """Record frames and detections in a thread of its own; ``add`` never waits. One thread may add.

    If the encoder is too slow, images are dropped, but not their detections. If the disk is full or
    fails, recording stops, ``status.problem`` says why, and ``close`` raises an OutputError; frames
    that are added after that are counted as lost.

    A new segment starts after ``segment`` seconds, if the size of the image changes, if the time
    goes back, and after 10 seconds without a frame.

    Args:
        folder: for the files; created if missing.
        name: of the source. Characters other than letters, digits, ``.``, ``_`` and ``-`` are
            replaced, and a part of the name's SHA-256 is appended then.
        rate: frames per second of the videos; None: those that the source states, else 30.
        segment: length of a segment in seconds of capture time.
        max_bytes: size of all recordings of this name in the folder. The oldest segments, also of
            earlier runs, are deleted. None: no limit.

    Raises:
        ConfigError: a value is out of range.
        OutputError: the folder cannot be written to.
    """

    def __init__(
        self,
        folder: Path | str,
        name: str,
        *,
        rate: float | None = None,
        segment: float = 60.0,
        max_bytes: int | None = None,
    ) -> None:
        if rate is not None and not _RATES[0] <= rate <= _RATES[1]:
            raise ConfigError(f"rate is {rate}, expected {_RATES[0]:g} to {_RATES[1]:g} frames/s")
        if not 1 <= segment <= 86_400:
            raise ConfigError(f"segment is {segment}, expected 1 to 86400 seconds")
        if max_bytes is not None and max_bytes < _SMALLEST:
            raise ConfigError(f"max_bytes is {max_bytes}, expected at least {_SMALLEST}")
        self._folder, self._name = Path(folder), safe_name(name)
        self._rate, self._length, self._max_bytes = rate, segment, max_bytes
        self._segment: _Segment | None = None
        # Counted by ``add``; frames without an image are not counted in ``_images``.
        self._images = self._dropped = self._lost = self._added = 0
        # Counted by the thread; ``_taken`` are images that it took from the queue.
        self._taken = self._frames = self._late = self._records = self._segments = 0
        self._untimed = 0  # number of the next frame without a timestamp
        with writing("recordings", self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._number = max((number for number, _ in self._files()), default=0)
        self._background = Background(
            f"recording to {self._folder}", self._work, self._finish, _RECORDS
        )

    def add(self, frame: Frame, drawn: NDArray[np.uint8] | None, detections: Detections) -> bool:
        """Queue a frame; return False if its image or its detections are dropped.

        Args:
            frame: its image is copied if ``drawn`` is None.
            drawn: the image with boxes, (H, W, 3) uint8 BGR, not to be changed afterwards; None:
                boxes are drawn by the recorder.
            detections: of this frame.

        Raises:
            DataError: the image does not fit the detections, or ``drawn`` is not BGR.
        """
        if drawn is not None and (drawn.dtype != np.uint8 or drawn.shape[2:] != (3,)):
            raise DataError(
                f"drawn is {drawn.dtype} {drawn.shape}, expected uint8 (height, width, 3) in BGR"
            )
        if drawn is None and frame.size != tuple(detections.image_wh):
            raise DataError(
                f"the frame has {frame.size} pixels, the image of its detections "
                f"{tuple(detections.image_wh)}: give the detections of this frame"
            )
        self._added += 1
        has_image = self._images - self._taken < _IMAGES and self._background.problem is None
        copied = has_image and drawn is None
        image = frame.image.copy() if copied else np.empty((0, 0, 3), np.uint8)
        item = _Item(
            replace(frame, image=image, stride=None),
            drawn if has_image else None,
            detections,
            has_image,
            utc_ns(frame),
        )
        self._images += has_image
        if not self._background.put(item):
            self._images -= has_image
            self._lost += 1
            return False
        self._dropped += not has_image
        return has_image

    @property
    def status(self) -> RecordingStatus:
        """What was written until now."""
        problem = self._background.problem  # after which nothing in the queue is written
        return RecordingStatus(
            self._frames,
            self._dropped + self._late,
            self._records,
            self._lost if problem is None else self._added - self._records,
            self._segments,
            problem,
        )

    def close(self) -> None:
        """Write what is queued, and finish the last segment; can be called twice.

        Raises:
            OutputError: recording has failed; raised once.
        """
        self._background.close(_CLOSING)

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- in the thread ----------------------------------------------------------------------------

    def _work(self, item: _Item) -> None:
        self._taken += item.has_image
        image = item.drawn
        if item.has_image and image is None:
            image = draw(item.frame, item.detections)
        rate = self._rate or min(max(item.frame.rate or _RATE, _RATES[0]), _RATES[1])
        seconds = self._seconds(item.frame, rate)
        with writing("the recording", self._folder):
            if self._segment is None or not self._segment.takes(seconds, image, self._length):
                self._start(seconds, rate)
            assert self._segment is not None
            shown = self._segment.show(image, seconds)
            self._segment.write(_record(item, shown))
            self._frames += shown is not None
            self._late += item.has_image and shown is None
            self._records += 1
            if self._max_bytes and self._segment.bytes > self._max_bytes // _PARTS:
                self._end()

    def _seconds(self, frame: Frame, rate: float) -> float:
        if frame.timestamp_ns is not None:
            return frame.timestamp_ns / 1e9
        number = max(frame.sequence, self._untimed)  # each image of a folder has the number 0
        self._untimed = number + 1
        return number / (frame.rate or rate)

    def _finish(self) -> None:
        with writing("the recording", self._folder):
            self._end()

    def _start(self, seconds: float, rate: float) -> None:
        self._end()
        if self._max_bytes:
            self._prune(self._max_bytes - self._max_bytes // _PARTS)
        while True:
            self._number += 1
            now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
            path = self._folder / f"{self._name}-{self._number:06d}-{now}.jsonl"
            try:
                self._segment = _Segment(path, seconds, rate)
            except FileExistsError:  # another process records under this name
                continue
            self._segments += 1
            return

    def _end(self) -> None:
        if self._segment is not None:
            segment, self._segment = self._segment, None
            segment.close()

    def _files(self) -> list[tuple[int, Path]]:
        """Return the files of all recordings of this name, and the numbers of their segments."""
        pattern = re.compile(re.escape(self._name) + r"-(\d{6,12})-\d{8}T\d{6}Z\.(mp4|jsonl)")
        found = ((pattern.fullmatch(path.name), path) for path in self._folder.iterdir())
        return sorted((int(match[1]), path) for match, path in found if match)

    def _prune(self, most: int) -> None:
        """Delete the oldest segments until all have at most ``most`` bytes."""
        sizes = {}
        for _, path in self._files():
            with suppress(FileNotFoundError):  # deleted by another process
                sizes[path] = path.lstat().st_size
        total = sum(sizes.values())
        for path, size in sizes.items():
            if total <= most:
                return
            path.unlink(missing_ok=True)
            total -= size


class _Segment:
    """An .mp4 file and a .jsonl file beside it; the .mp4 file is opened with the first image."""

    def __init__(self, path: Path, start: float, rate: float) -> None:
        self._path, self._start, self._rate = path, start, rate
        self._last = start  # time of the last frame
        self._shown: NDArray[np.uint8] | None = None  # the last image of the video
        self._count = 0  # frames of the video
        self._video_bytes = self._line_bytes = 0
        self._video = ExitStack()
        self._write_image: Write | None = None
        self._lines: BinaryIO = path.open("xb", buffering=0)
        self._synced = time.monotonic()

    @property
    def bytes(self) -> int:
        return self._video_bytes + self._line_bytes

    def takes(self, seconds: float, image: NDArray[np.uint8] | None, length: float) -> bool:
        """Return whether a frame of this time and size belongs to the segment."""
        if image is not None and self._shown is not None and image.shape != self._shown.shape:
            return False
        return self._last <= seconds < min(self._start + length, self._last + _GAP)

    def show(self, image: NDArray[np.uint8] | None, seconds: float) -> int | None:
        """Write an image at its time; return the number of the video's frame, or None."""
        self._last = seconds
        if image is None:
            return None
        if self._write_image is None:
            size = image.shape[1], image.shape[0]
            path = self._path.with_suffix(".mp4")
            self._write_image = self._video.enter_context(video_writer(path, self._rate, size))
        place = round((seconds - self._start) * self._rate)
        if place < self._count:  # the frame of this time is already written
            return None
        while self._shown is not None and self._count < place:
            self._write_image(self._shown)
            self._count += 1
        while self._count <= place:  # also if the first images of the segment were dropped
            self._video_bytes = self._write_image(image)
            self._count += 1
        self._shown = image
        return place

    def write(self, record: dict[str, Any]) -> None:
        """Append a line."""
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        self._line_bytes += len(line)
        view = memoryview(line)
        while view:
            view = view[self._lines.write(view) :]
        if time.monotonic() - self._synced > _SYNC:
            os.fsync(self._lines.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Finish both files."""
        with self._lines, self._video:
            os.fsync(self._lines.fileno())


def safe_name(name: str) -> str:
    """Return a name for files: letters, digits, ``.``, ``_`` and ``-``, not starting with a dot.

    If other characters were replaced, or the name was cut to 80 bytes, a part of the SHA-256 of the
    name is appended, so that different names remain different.
    """
    whole = name.encode("utf-8", "surrogatepass")
    safe = re.sub(r"[^\w.-]+", "-", name).strip(".-")
    safe = safe.encode()[:_NAME].decode(errors="ignore")
    if safe and safe == name:
        return safe
    return f"{safe or 'source'}-{hashlib.sha256(whole).hexdigest()[:6]}"


def utc_ns(frame: Frame) -> int | None:
    """Return the capture time in nanoseconds since 1970; None if its clock is another one."""
    age = frame.age_ns(time.monotonic_ns())
    return None if age is None else time.time_ns() - age


def _record(item: _Item, shown: int | None) -> dict[str, Any]:
    frame, record = item.frame, item.detections.to_dict()
    record["source"] = record["source"] or frame.source
    if frame.timestamp_ns is not None:
        record["timestamp_ns"] = frame.timestamp_ns
        record["clock"] = frame.clock
    record.setdefault("frame_id", frame.sequence)
    if item.utc_ns is not None:
        record["utc_ns"] = item.utc_ns
    record["video_frame"] = shown
    return record
