"""What the readers of a camera and the thread that watches its child share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

from y7edge.errors import ConfigError, SourceTimeout, Y7EdgeError
from y7edge.frames import Frame
from y7edge.sources.base import State, Status
from y7edge.sources.ring import Copied, Reader


class Feed:
    """The newest frame of a camera, the counts of frames, and the state. Thread-safe.

    Frames are counted over all children: those of a child that ended are never counted again.

    Args:
        name: of the source.
        rate: frames per second that the user asked for; None if unknown.
        on_read: called after each frame that was returned, without a lock.
    """

    def __init__(self, name: str, rate: float | None, on_read: Callable[[], None]) -> None:
        self.live = True
        self._name = name
        self._on_read = on_read
        self._changed = threading.Condition()
        self._reading = threading.Lock()  # one reader at a time
        self._copying = threading.Lock()  # held while the ring is in use; after it, _changed
        self._ring: Reader | None = None
        self._status = Status("opening", "", "", rate=rate)
        self._error: Y7EdgeError | None = None
        self._base = 0  # frames of earlier children
        self._made = 0  # frames of all children
        self._last = 0  # of them, those until the last one that was returned
        self._delivered = 0
        self._delivered_of_child = 0

    # --- readers ---------------------------------------------------------------------------------

    def read(self, timeout: float | None) -> Frame | None:
        """Return the next frame; see ``Source.read``."""
        if timeout is not None and not 0 <= timeout <= threading.TIMEOUT_MAX:
            raise ConfigError(f"timeout is {timeout!r}, expected a number of seconds from 0")
        end = None if timeout is None else time.monotonic() + timeout
        with self._reading:
            while True:
                if not self._wait(end):
                    self._raise_timeout(timeout or 0.0)
                if frame := self._deliver():
                    self._on_read()
                    return frame
                with self._changed:
                    if self._status.state in ("ended", "closed"):
                        return None
                    if self._error:
                        raise self._error

    def _wait(self, end: float | None) -> bool:
        """Wait for a new frame or the end; return False if there is none in time."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._has_new() or self._status.state in ("ended", "failed", "closed"),
                None if end is None else max(0.0, end - time.monotonic()),
            )

    def _has_new(self) -> bool:
        return self._ring is not None and self._made > self._last

    def _raise_timeout(self, timeout: float) -> NoReturn:
        status = self._status
        problem = f": {status.problem}" if status.problem else ""
        raise SourceTimeout(
            f"{self._name}: no frame within {timeout:g} s; the source is {status.state}{problem}"
        )

    def _deliver(self) -> Frame | None:
        """Copy the next image out of the ring; None if there is none."""
        with self._copying:
            if self._ring is None:
                return None
            copied = self._ring.copy(max(0, self._last - self._base), oldest=not self.live)
            if copied is None:
                return None
            with self._changed:
                return self._count(copied)

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
            dropped = self._made - self._delivered - self._has_new()
            return replace(self._status, frames=self._delivered + dropped, dropped=dropped)

    def wait_until_open(self) -> Y7EdgeError | None:
        """Wait until the state is not "opening" any more; return the error if it is "failed"."""
        with self._changed:
            self._changed.wait_for(lambda: self._status.state != "opening" or self._status.backend)
            return self._error

    # --- the thread that watches the child -------------------------------------------------------

    @property
    def state(self) -> State:
        """The current state."""
        return self._status.state

    @property
    def delivered(self) -> int:
        """Number of frames of the current child that were returned."""
        return self._delivered_of_child

    @property
    def has_new(self) -> bool:
        """Whether there is a frame that was not returned."""
        with self._changed:
            return self._has_new()

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
        """Let readers raise ``error``."""
        with self._changed:
            self._error = error
        self.set("failed", problem=str(error))

    def use(self, ring: Reader) -> None:
        """Return frames of other memory from now on."""
        with self._copying:
            previous, self._ring = self._ring, ring
            if previous is not None:
                previous.close()

    def add(self, made: int) -> None:
        """Count the frames that the current child made until now, and wake a reader."""
        with self._changed:
            self._made = max(self._made, self._base + made)
            self._changed.notify_all()

    def leave(self, *, drop: bool) -> None:
        """Expect no more frames of this child; ``drop`` those that were not read."""
        if not drop:
            return
        with self._copying, self._changed:
            if self._ring is not None:
                self._made = max(self._made, self._base + self._ring.newest())
                self._ring.close()
                self._ring = None
            self._base = self._last = self._made
            self._delivered_of_child = 0
