"""What every source can do: return frames, say what it is doing, close."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from y7edge.frames import Clock, Format, Frame

State = Literal["opening", "running", "stalled", "reconnecting", "ended", "failed", "closed"]


@dataclass(frozen=True)
class Status:
    """What a source is doing.

    Attributes:
        state: "stalled": no frame came for longer than the watchdog allows.
        backend: the library that captures: "gstreamer", "opencv", or "y7edge".
        detail: the GStreamer pipeline, or the file, without user name and password.
        frames: frames that the source made until now, whether they were read or dropped.
        dropped: frames that were dropped, because a newer one was there.
        reconnects: how often the source was opened again after a fault.
        problem: the last fault in one line; None if there was none.
        rate: frames per second that the source states; None if unknown.
    """

    state: State
    backend: str
    detail: str
    frames: int = 0
    dropped: int = 0
    reconnects: int = 0
    problem: str | None = None
    rate: float | None = None


class Source(ABC):
    """A camera, stream, video, folder or pattern, opened by ``open_source``.

    Can be used as a context manager, and is an iterator of frames. One thread may read; ``close``
    and ``status`` may be called from any thread.

    Attributes:
        name: the URI without user name and password.
        live: True if frames come by themselves, and frames that are not read in time are dropped;
            False if every frame is returned.
    """

    name: str
    live: bool

    @abstractmethod
    def read(self, timeout: float | None = None) -> Frame | None:
        """Return the next frame; of a live source, the newest that was not returned yet.

        Args:
            timeout: seconds to wait; None: until there is a frame, or the source ends or fails.

        Returns:
            The frame; None at the end of the source, and after ``close``. Only files end: a camera
            that ends has failed.

        Raises:
            SourceTimeout: there was no frame in time; reading again may succeed.
            SourceSkipped: one of several files, or one frame of a recording, cannot be read; the
                next call continues with the next one.
            SourceError: the source failed, and opening it again failed too.
        """

    @property
    @abstractmethod
    def status(self) -> Status:
        """What the source is doing."""

    @abstractmethod
    def close(self) -> None:
        """Stop and return within a second; can be called twice."""

    def __iter__(self) -> Iterator[Frame]:
        while (frame := self.read()) is not None:
            yield frame

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, eq=False)
class Captured:
    """What a grabber returns: the planes of an image, and its time.

    Attributes:
        planes: rows of bytes (rows, stride): one plane of BGR or RGB; NV12: luma and chroma. Only
            valid until the next call of the grabber.
        size: (width, height) in pixels.
        format: layout of the pixels.
        timestamp_ns: capture time, of ``clock``.
        clock: what the timestamp is.
        skipped: frames that were dropped between the previous one and this one.
        rate: frames per second that the source states; None if unknown.
    """

    planes: tuple[NDArray[Any], ...]
    size: tuple[int, int]
    format: Format
    timestamp_ns: int
    clock: Clock
    skipped: int = 0
    rate: float | None = None


class Grabber(Protocol):
    """A library that captures images, in the child process of a camera.

    The module ``y7edge.sources.NAME`` of a grabber has a function ``grabber(options: Mapping[str,
    Any]) -> Grabber``, which opens the device and raises SourceError if that fails. ``options`` are
    JSON values.
    """

    @property
    def backend(self) -> str:
        """The library: "gstreamer", "opencv" or "y7edge"."""

    @property
    def detail(self) -> str:
        """The pipeline or device, without user name and password."""

    @property
    def live(self) -> bool:
        """Whether frames come by themselves; if not, none is dropped and the end is an end."""

    def grab(self, timeout: float) -> Captured | None:
        """Return the next frame; None at the end of the stream.

        Raises:
            SourceTimeout: there was no frame within ``timeout`` seconds.
            SourceError: the device failed.
        """

    def close(self) -> None:
        """Stop: send EOS, wait for it, and free the device."""


class RateLimit:
    """Chooses frames, so that there are at most ``rate`` per second on average.

    Times may be irregular, as those of a network stream: a frame passes if it comes up to half an
    interval too early, and the next one has to be later.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._interval_ns = 1e9 / rate
        self._due_ns = -math.inf

    def passes(self, time_ns: int) -> bool:
        """Return whether the frame of this time is one of them."""
        early = self._due_ns - time_ns
        if self._interval_ns / 2 < early < 2 * self._interval_ns:  # not if the time was set back
            return False
        latest = self._due_ns if abs(early) <= self._interval_ns / 2 else time_ns
        self._due_ns = latest + self._interval_ns
        return True
