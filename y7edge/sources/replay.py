"""Replay a recording: a folder of images with ``frames.jsonl``, which has one line per frame.

A line is a JSON object: ``file`` (an image in the folder), ``timestamp_ns`` and ``clock`` (when the
frame was captured, and by which clock), ``sequence``, ``format`` (of the frame as it was captured;
the image is BGR), ``source``, and ``rate``, which may be null. Other keys are ignored.
``y7edge.live.frame_recorder`` writes recordings.
"""

from __future__ import annotations

import os
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, get_args

from y7edge.artifact.schema import parse
from y7edge.data.images import read_image
from y7edge.errors import DataError, SourceError, SourceSkipped
from y7edge.files import open_regular, reason
from y7edge.frames import Clock, Format, Frame
from y7edge.sources.address import Address
from y7edge.sources.base import Source, State, Status
from y7edge.sources.pacing import Paced
from y7edge.text import is_printable, printable

INDEX = "frames.jsonl"
_LONGEST_LINE = 4096  # bytes
_CLOSE_SECONDS = 0.5  # how long ``close`` waits for an image that is being read
_LARGEST = 1 << 62  # timestamps and sequence numbers


def open_replay(address: Address) -> Source:
    """Open a recording.

    Options:
        speed: replay in real time, or that many times faster: the source is live, and drops frames
            that are not read in time. A pause is at most 60 s long. Default: all frames, as fast as
            they are read.

    Raises:
        SourceError: the folder is not a recording.
        ConfigError: an option is invalid.
    """
    speed = address.numbers(speed=(0.01, 1000.0)).get("speed")
    replay = Replay(address.name, Path(address.place))
    return replay if speed is None else Paced(replay, speed=speed)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of ``frames.jsonl``."""

    file: str
    timestamp_ns: int
    clock: Clock
    sequence: int
    format: Format
    source: str
    rate: float | None = None


class Replay(Source):
    """The frames of a recording, in their order, with the clock "recorded".

    A frame that cannot be read does not end the source: ``read`` raises SourceSkipped, and the next
    call continues with the next frame. An incomplete last line, as after a power failure, is
    ignored with a warning.

    Args:
        name: name of the source.
        folder: the recording.

    Raises:
        SourceError: the folder has no ``frames.jsonl``.
    """

    live = False

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self._folder = name, folder
        self._lock = threading.Lock()  # held while a frame is read
        self._state: State = "running"
        self._line = self._frames = 0
        self._problem: str | None = None
        self._rate: float | None = None
        try:
            self._index: BinaryIO = open_regular(folder / INDEX)
        except OSError as error:
            raise SourceError(
                f"{name}: expected a folder with {INDEX}, as y7edge live --record writes it: "
                f"{reason(error)}"
            ) from error
        self._bytes = os.fstat(self._index.fileno()).st_size

    def read(self, timeout: float | None = None) -> Frame | None:
        """Return the next frame, or None after the last; see ``Source.read``.

        Raises:
            SourceSkipped: a line or an image is damaged; the next call continues with the next one.
            SourceError: the folder cannot be read, or is not a recording.
        """
        with self._lock:
            try:
                frame = self._next() if self._state == "running" else None
            except SourceError as error:
                self._problem = str(error)
                raise
            finally:
                if self._state == "closed":
                    self._index.close()
            if frame is None and self._state == "running":
                self._state = "ended"
            return frame

    def _next(self) -> Frame | None:
        try:
            line = self._index.readline(_LONGEST_LINE)
        except OSError as error:
            self._state = "failed"
            raise SourceError(f"{self.name}: cannot be read: {reason(error)}") from error
        if not line:
            return None
        self._line += 1
        place = f"{self.name}: line {self._line} of {INDEX}"
        if not line.endswith(b"\n"):
            # File systems may fill what was not written yet with zeros.
            if len(line) < _LONGEST_LINE or b"\0" in line:
                warnings.warn(f"{place} is incomplete, and is ignored", stacklevel=3)
                return None
            self._state = "failed"
            raise SourceError(f"{place} has more than {_LONGEST_LINE} bytes: not a recording")
        try:
            entry = entry_of(line)
            image = read_image(self._folder / entry.file)
        except ValueError as error:  # DataError is one
            raise SourceSkipped(f"{place}: {error}") from error
        self._frames += 1
        self._rate = entry.rate
        return Frame(
            image,
            timestamp_ns=entry.timestamp_ns,
            clock="recorded",
            sequence=entry.sequence,
            source=entry.source,
            rate=entry.rate,
        )

    @property
    def progress(self) -> float:
        """Fraction of the recording that was read: 0 to 1."""
        if self._state in ("ended", "closed"):
            return 1.0
        return min(self._index.tell() / self._bytes, 1.0) if self._bytes else 0.0

    @property
    def status(self) -> Status:
        """What the source is doing."""
        detail = printable(str(self._folder))
        return Status(
            self._state, "y7edge", detail, self._frames, problem=self._problem, rate=self._rate
        )

    def close(self) -> None:
        """Close the recording, or have it closed after the call of ``read`` that uses it."""
        self._state = "closed"
        if self._lock.acquire(timeout=_CLOSE_SECONDS):
            self._index.close()
            self._lock.release()


def entry_of(line: bytes) -> Entry:
    """Parse one line.

    Raises:
        DataError: it is not an entry, or its file is not a name in the folder.
    """
    try:
        record = parse(line)
    except ValueError as error:
        raise DataError(f"expected a JSON object: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"expected a JSON object, found {type(record).__name__}")
    name = _text(record, "file")
    if Path(name).name != name or name in (".", "..") or "\\" in name:
        raise DataError(f"file is {name!r}, expected the name of an image in the same folder")
    rate = record.get("rate")
    if rate is not None and (type(rate) not in (int, float) or not 0 < rate <= 1e6):
        raise DataError(f"rate is {rate!r}, expected frames per second or null")
    return Entry(
        name,
        _whole(record, "timestamp_ns"),
        _one_of(record, "clock", get_args(Clock)),
        _whole(record, "sequence"),
        _one_of(record, "format", get_args(Format)),
        _text(record, "source"),
        rate,
    )


def _text(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= 1024 or not is_printable(value):
        raise DataError(f"{key} is {str(value)[:64]!r}, expected printable text")
    return value


def _whole(record: dict[str, Any], key: str) -> int:
    value = record.get(key)
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise DataError(f"{key} is {str(value)[:64]!r}, expected a whole number")
    return value


def _one_of(record: dict[str, Any], key: str, known: tuple[Any, ...]) -> Any:
    value = record.get(key)
    if value not in known:
        raise DataError(f"{key} is {str(value)[:64]!r}, expected one of {', '.join(known)}")
    return value
