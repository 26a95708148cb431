"""Play files and recordings in real time, as if a camera made their frames."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from dataclasses import replace

from y7edge.errors import SourceSkipped, SourceTimeout
from y7edge.frames import Frame
from y7edge.sources.base import Source, State, Status

_DEFAULT_RATE = 25.0  # frames per second, if neither times nor a rate are known
_LONGEST = 60.0  # seconds between two frames, because a recording may be continued days later
_SKIPPED = 64  # errors that wait for the reader


class Paced(Source):
    """A source that ends, played in real time; a frame that is not read in time is dropped.

    The first frame comes with the first call of ``read``. The timestamp of a file's frame is the
    time at which it comes, with the clock "arrival"; frames of recordings keep the recorded time.

    Attributes:
        source: what is played; it is closed with this source.

    Args:
        source: for the attribute.
        rate: frames per second; None: according to the timestamps of the frames.
        speed: factor by which the intervals between timestamps are divided.
    """

    live = True

    def __init__(self, source: Source, *, rate: float | None = None, speed: float = 1.0) -> None:
        self.name, self.source = source.name, source
        self._player = _Player(source, rate, speed)
        self._thread = threading.Thread(
            target=self._player.run, name=f"y7edge {source.name}", daemon=True
        )
        # The thread refers to the player but not to this object, so that it can be collected.
        weakref.finalize(self, self._player.stop).atexit = False

    def read(self, timeout: float | None = None) -> Frame | None:
        """Return the newest frame that was not returned yet; see ``Source.read``.

        Raises:
            SourceTimeout: there was no frame in time.
            SourceSkipped: a frame cannot be read; the next call continues with the next frame.
            SourceError: the source failed.
        """
        if self._thread.ident is None and not self._player.stopped:
            self._thread.start()
        return self._player.take(timeout)

    @property
    def status(self) -> Status:
        """What the source is doing."""
        return self._player.status()

    def close(self) -> None:
        """Stop the thread, and close the source."""
        self._player.stop()


class _Player:
    """What the thread of a paced source and its readers share."""

    def __init__(self, source: Source, rate: float | None, speed: float) -> None:
        self._source, self._rate, self._speed = source, rate, speed
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._skipped: deque[SourceSkipped] = deque(maxlen=_SKIPPED)
        self._error: Exception | None = None
        self._frames = self._dropped = 0
        self._ended = self.stopped = False

    def run(self) -> None:
        """Read all frames, and hand out each when it is due."""
        due, previous = time.monotonic(), None
        while not self.stopped:
            try:
                frame = self._source.read()
            except SourceSkipped as error:
                with self._changed:
                    self._skipped.append(error)
                    self._changed.notify_all()
                continue
            except Exception as error:  # raised in the reader's thread, which would wait forever
                self._error = error
                break
            if frame is None:
                break
            due += self._interval(previous, frame)
            previous = frame
            with self._changed:
                self._changed.wait_for(lambda: self.stopped, max(due - time.monotonic(), 0))
            if not self.stopped:
                self._put(frame)
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _interval(self, previous: Frame | None, frame: Frame) -> float:
        """Return the seconds from one frame to the next; 0 for the first."""
        if previous is None:
            return 0.0
        if self._rate:
            return 1 / self._rate
        before, after = previous.timestamp_ns, frame.timestamp_ns
        is_later = before is not None and after is not None and after >= before
        if is_later and previous.source == frame.source:
            return min(((after or 0) - (before or 0)) / 1e9, _LONGEST) / self._speed
        # Another file, or a recording that continues after a restart of the machine.
        return 1 / (frame.rate or _DEFAULT_RATE) / self._speed

    def _put(self, frame: Frame) -> None:
        with self._changed:
            self._frames += 1
            self._dropped += self._frame is not None
            if frame.clock != "recorded":
                frame = replace(frame, timestamp_ns=time.monotonic_ns(), clock="arrival")
            rate = self._rate or frame.rate
            self._frame = replace(frame, dropped=self._dropped, rate=rate)
            self._changed.notify_all()

    def take(self, timeout: float | None) -> Frame | None:
        """Return the newest frame, as ``Paced.read``."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._skipped or self._frame or self._ended or self.stopped, timeout
            )
            if self.stopped:
                return None
            if self._skipped:
                raise self._skipped.popleft()
            frame, self._frame = self._frame, None
            if frame is None and self._error is not None:
                raise self._error
            if frame is None and not self._ended:
                raise SourceTimeout(f"{self._source.name}: there was no frame within {timeout} s")
            return frame

    def status(self) -> Status:
        """Return the status of the source with the numbers of this player."""
        status = self._source.status
        state: State = "closed" if self.stopped else "running"
        if self._ended and not self.stopped and self._frame is None:
            state = "ended" if status.state == "running" else status.state
        with self._changed:
            return replace(
                status,
                state=state,
                frames=self._frames,
                dropped=self._dropped,
                rate=self._rate or status.rate,
            )

    def stop(self) -> None:
        """End the thread, and close the source."""
        with self._changed:
            self.stopped = True
            self._frame = None
            self._changed.notify_all()
        self._source.close()
