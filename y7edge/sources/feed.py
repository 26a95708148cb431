"""What the readers of a camera and the thread that watches its child share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from y7edge.errors import ConfigError, DataError, SourceError, SourceTimeout, Y7EdgeError
from y7edge.frames import Frame
from y7edge.sources.base import State, Status
from y7edge.sources.ring import Copied, Reader


class Feed:
    """The newest frame of a camera, the counts of frames, and the state. Thread-safe.

    Frames are counted over all children: those of a child that ended are never counted again.

    Args:
        name: of the source.
        rate: frames per second that the user asked for; None if unknown.
        on_change: called after each frame that was returned, and after ``fault`` was set.

    Attributes:
        live: whether the newest frame is returned, or each one.
        fault: what is wrong with the frames of the current child.
    """

    def __init__(self, name: str, rate: float | None, on_change: Callable[[], None]) -> None:
        self.live = True
        self.fault: SourceError | None = None
        self._name = name
        self._on_change = on_change
        self._changed = threading.Condition()
        self._copying = threading.Lock()  # held while the ring is in use; after it, _changed
        self._ring: Reader | None = None
        self._status = Status("opening", "", "", rate=rate)
        self._error: Y7EdgeError | None = None
        self._base = 0  # frames of earlier children
        self._made = 0  # frames of all children
        self._last = 0  # of them, those until the last one that was returned
        self._fresh = False  # there may be a frame that was not returned
        self._delivered = 0
        self._delivered_of_child = 0

    # --- readers ---------------------------------------------------------------------------------

    def read(self, timeout: float | None) -> Frame | None:
        """Return the next frame; see ``Source.read``."""
        if timeout is not None and not 0 <= timeout <= threading.TIMEOUT_MAX:
            raise ConfigError(f"timeout is {timeout!r}, expected a number of seconds from 0")
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._changed:
                left = None if end is None else max(0.0, end - time.monotonic())
                in_time = self._changed.wait_for(self._can_return, left)
                if self._status.state == "closed":
                    return None
                if not in_time:
                    raise SourceTimeout(self._timeout_text(timeout or 0.0))
                if not self._fresh:
                    if self._error is None:
                        return None
                    # A copy: each raise of an exception makes its traceback longer.
                    raise type(self._error)(str(self._error))
            if frame := self._deliver():
                self._on_change()
                return frame

    def _can_return(self) -> bool:
        return self._fresh or self._status.state in ("ended", "failed", "closed")

    def _timeout_text(self, timeout: float) -> str:
        status = self._status
        problem = f": {status.problem}" if status.problem and status.state != "running" else ""
        return f"{self._name}: no frame within {timeout:g} s; the source is {status.state}{problem}"

    def _deliver(self) -> Frame | None:
        """Copy the next image out of the ring; None if there is none."""
        with self._copying:
            made, copied = self._made, None
            if self._ring is not None:
                try:
                    copied = self._ring.copy(self._last - self._base, oldest=not self.live)
                except DataError as error:
                    self.fault = SourceError(f"the capture process wrote an invalid frame: {error}")
                    self._on_change()
            with self._changed:
                frame = self._count(copied) if copied else None
                # Not if there is nothing to copy: the newest frame was in memory that was replaced.
                self._fresh = self._made > (self._last if frame else made)
                return frame

    def _count(self, copied: Copied) -> Frame:
        number = self._base + copied.number
        self._made = max(self._made, number)
        self._last = number
        self._delivered += 1
        self._delivered_of_child += 1
        return Frame(
            copied.image,
            copied.format,
            timestamp_ns=copied.timestamp_ns,
            clock=copied.clock,
            sequence=number - 1,
            dropped=number - self._delivered,
            source=self._name,
            rate=copied.rate or self._status.rate,
        )

    def status(self) -> Status:
        """Return the state and the counts; the newest frame counts when it is read or dropped."""
        with self._changed:
            dropped = self._made - self._delivered - self._fresh
            return replace(self._status, frames=self._delivered + dropped, dropped=dropped)

    def wait_until_open(self) -> Y7EdgeError | None:
        """Wait until the state is not "opening" any more; return the error if it is "failed"."""
        with self._changed:
            self._changed.wait_for(lambda: self._status.state != "opening" or self._status.backend)
            return self._error

    # --- the thread that watches the child -------------------------------------------------------

    @property
    def delivered(self) -> int:
        """Number of frames of the current child that were returned."""
        return self._delivered_of_child

    @property
    def has_new(self) -> bool:
        """Whether there is a frame that was not returned."""
        return self._fresh

    def set(
        self,
        state: State | None = None,
        *,
        problem: str | None = None,
        backend: str | None = None,
        detail: str | None = None,
        reconnects: int | None = None,
        rate: float | None = None,
    ) -> None:
        """Change what is not None; "failed", "ended" and "closed" stay, but for "closed"."""
        with self._changed:
            before = self._status
            if (
                state is None
                or before.state == "closed"
                or (before.state in ("ended", "failed") and state != "closed")
            ):
                state = before.state
            self._status = replace(
                before,
                state=state,
                problem=before.problem if problem is None else problem,
                backend=before.backend if backend is None else backend,
                detail=before.detail if detail is None else detail,
                reconnects=before.reconnects if reconnects is None else reconnects,
                rate=before.rate if rate is None else rate,
            )
            self._changed.notify_all()

    def fail(self, error: Y7EdgeError) -> None:
        """Let readers raise ``error``, after the source's name."""
        text = str(error)
        with self._changed:
            self._error = type(error)(
                text if text.startswith(self._name) else f"{self._name}: {text}"
            )
        self.set("failed", problem=text)

    def use(self, ring: Reader) -> None:
        """Return frames of other memory from now on."""
        with self._copying:
            previous, self._ring = self._ring, ring
            if previous is not None:
                previous.close()

    def add(self, made: int, *, new: bool = True) -> None:
        """Count the frames that the current child made until now; ``new``: the last can be read."""
        with self._changed:
            if self._base + made <= self._made:
                return
            self._made = self._base + made
            if new and self._ring is not None:
                self._fresh = True
                self._changed.notify_all()

    def leave(self) -> None:
        """Expect no more frames of this child; one that was not returned is dropped."""
        with self._copying, self._changed:
            if self._ring is not None:
                self._made = max(self._made, self._base + self._ring.newest())
                self._ring.close()
                self._ring = None
            self._base = self._last = self._made
            self._fresh = False
            self._delivered_of_child = 0
            self.fault = None
