"""The thread that watches a capture process, and opens the device again after a fault."""

from __future__ import annotations

import logging
import math
import os
import random
import select
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from y7edge.errors import SourceError, Y7EdgeError
from y7edge.sources.base import State
from y7edge.sources.child import (
    Child,
    Ended,
    Failed,
    Incomplete,
    Made,
    Memory,
    Message,
    Opened,
    Rate,
)
from y7edge.sources.feed import Feed

SILENCE_S, INTERVALS = 1.0, 3  # the watchdog: the longer of a second and three frame intervals
_FIRST_DELAY_S, _LONGEST_DELAY_S, _JITTER = 0.5, 10.0, 0.25
_HEALTHY_S = 10.0  # after frames for this long, attempts count from 0 again
_WINDOW_S = 3.0  # in which the rate is measured
_TICK_S = 0.25
_STUCK_S = 15.0  # a process that was killed after 10 s has ended, unless a driver is stuck
# Devices that can be opened while a process that hangs still has them. All others wait for its end.
_SHARED = ("rtsp://", "rtsps://", "http://", "https://", "test://")
_log = logging.getLogger("y7edge.sources")

_past_lock = threading.Lock()
_hanging: dict[str, int] = {}  # source -> processes that were asked to stop and have not ended
_killed: dict[str, str] = {}  # source -> what its next opening has to report


class Supervisor:
    """Runs capture processes for a feed, one after the other.

    Args:
        name: of the source.
        kind: module of the grabber, ``y7edge.sources.KIND``.
        options: of the grabber.
        rate: frames per second that the user asked for; None if unknown.
        open_timeout: seconds for opening the device, and for its first frame.
        retries: how often to open it again.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        options: Mapping[str, Any],
        *,
        rate: float | None,
        open_timeout: float,
        retries: int,
    ) -> None:
        self._name, self._kind, self._options, self._rate = name, kind, options, rate
        self._open_timeout, self._retries = open_timeout, retries
        self.feed = Feed(name, rate, self._feed_changed)
        self.process = os.getpid()
        self._stopping = False
        self._ending: list[Child] = []  # asked to stop
        self._attempts = 0  # openings since the device was healthy
        self._reconnects = 0
        self._down_since: float | None = None
        self._wake_out, self._wake_in = os.pipe()
        self._wake_lock = threading.RLock()  # a garbage collection may call stop in any thread
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._wake_in, False)
        self.thread = threading.Thread(target=self._run, name="y7edge camera", daemon=True)

    def stop(self) -> None:
        """Close the feed and ask the thread to end; return immediately."""
        self._stopping = True
        self.feed.set("closed")
        self._wake()

    def _feed_changed(self) -> None:
        if not self.feed.live or self.feed.fault is not None:
            self._wake()

    def _wake(self) -> None:
        with self._wake_lock, suppress(BlockingIOError):
            if self._wake_in >= 0:
                os.write(self._wake_in, b"x")

    def _run(self) -> None:
        try:
            self._supervise()
        except Exception as error:  # a fault of this file must not leave readers waiting
            _log.exception("%s: the supervision failed", self._name)
            self.feed.fail(SourceError(f"the supervision failed: {error!r}"))
        finally:
            while self._ending:
                self._wait(_TICK_S)
            with self._wake_lock:
                os.close(self._wake_out)
                os.close(self._wake_in)
                self._wake_in = -1

    def _supervise(self) -> None:
        """Open the device until it ends, cannot be opened any more, or the camera is closed."""
        delay = 0.0
        while self._pause(delay):
            connection = _Connection(self._rate)
            error = self._connect(connection)
            if error is None:
                return
            if self._attempts >= self._retries or not self._worth_repeating(connection):
                self._fail(error)
                return
            delay = 0.0 if connection.stalled else self._delay()
            if connection.stalled:  # was reported
                self.feed.set("reconnecting")
            else:
                self._report("reconnecting", str(error), delay)
            self._attempts += 1

    def _worth_repeating(self, connection: _Connection) -> bool:
        """Return whether the device worked before; files, which are not live, cannot go on."""
        return self.feed.live and bool(connection.frames or self._attempts)

    def _connect(self, connection: _Connection) -> Y7EdgeError | None:
        """Run one process until a fault; None: the stream ended, or the camera was closed."""
        stuck = self._wait_for_last_process()
        if stuck or self._stopping:
            return stuck
        note = _take_note(self._name)
        if note:
            self.feed.set(problem=note)
        try:
            child = Child(self._name, self._kind, self._options)
        except Y7EdgeError as failure:
            return failure
        try:
            error = self._watch(connection, child)
        finally:
            # The frames of a file are still to be read; of a camera, they would be old.
            if self.feed.live or self._stopping:
                self.feed.leave()
            self._retire(child)
        if not isinstance(error, SourceError) or connection.frames:
            return error
        if note:
            return SourceError(f"{error}; {note}")
        # Not if the grabber has this advice.
        return (
            error if "nvargus-daemon" in str(error) else SourceError(f"{error}{_hint(self._name)}")
        )

    def _watch(self, connection: _Connection, child: Child) -> Y7EdgeError | None:
        """Handle the messages of a process until a fault; None: it ended, or has to be stopped."""
        while not self._stopping:
            silent = time.monotonic() - connection.last
            limit = connection.limit(self._open_timeout, live=self.feed.live)
            messages = self._wait(max(0.0, limit - silent), child)
            for message in messages:
                if isinstance(message, Ended):
                    return self._ended(child)
                if isinstance(message, Failed):
                    return message.error
                self._handle(connection, child, message)
            if self.feed.fault is not None:
                return self.feed.fault
            self._return_slots(connection, child)
            if not messages and time.monotonic() - connection.last > limit:
                error = self._silent(connection)
                if error is not None:
                    return error
        return None

    def _handle(self, connection: _Connection, child: Child, message: Message) -> None:
        now = time.monotonic()
        if isinstance(message, Opened):
            connection.opened = connection.last = now
            self.feed.live = message.live
            self.feed.set(backend=message.backend, detail=message.detail)
            level = logging.DEBUG if self._attempts else logging.INFO
            _log.log(level, "%s: opened by %s: %s", self._name, message.backend, message.detail)
        elif isinstance(message, Memory):
            self.feed.use(message.ring)
        elif isinstance(message, Rate):
            connection.stated = message.rate
            self.feed.set(rate=message.rate)
        elif isinstance(message, Incomplete):
            self.feed.add(message.count, new=False)
            if message.problem != connection.incomplete:
                connection.incomplete = message.problem
                _log.warning("%s: %s", self._name, message.problem)
                self.feed.set(problem=message.problem)
        elif isinstance(message, Made):
            self._running(connection)
            self.feed.add(message.count)
            connection.count(message.count, now)
            if now - connection.opened > _HEALTHY_S:
                self._attempts = 0
            if problem := connection.slowness(now):
                _log.warning("%s: %s", self._name, problem)
                self.feed.set(problem=problem)

    def _running(self, connection: _Connection) -> None:
        """Report the first frame of a process, and the first one after a stall."""
        if connection.frames and not connection.stalled:
            return
        if self._down_since is not None:
            down = time.monotonic() - self._down_since
            _log.info("%s: running again after %.1f s", self._name, down)
            self._down_since = None
        if not connection.frames and self._attempts:
            self._reconnects += 1
        if connection.stalled:
            connection.resume()
        self.feed.set("running", reconnects=self._reconnects)

    def _return_slots(self, connection: _Connection, child: Child) -> None:
        """Tell a process that waits for its reader how many frames were read."""
        if self.feed.live:
            return
        delivered = self.feed.delivered
        if delivered > connection.returned:
            child.taken(delivered - connection.returned)
            connection.returned = delivered
        if self.feed.has_new:  # the reader is slow, not the process
            connection.last = time.monotonic()

    def _silent(self, connection: _Connection) -> Y7EdgeError | None:
        """Handle that no frame came in time; return an error if the process must be replaced."""
        now = time.monotonic()
        cause = f": {connection.incomplete}" if connection.incomplete else ""
        if not connection.opened:
            return SourceError(
                f"the device did not open within {self._open_timeout:g} s: check that it is "
                "connected, or set a longer open_timeout"
            )
        if not connection.frames or not self.feed.live:
            opened = "" if connection.frames else " after the device was opened"
            return SourceError(f"no frame within {self._open_timeout:g} s{opened}{cause}")
        if not connection.stalled:
            # It may recover during the delay; if not, there is no other delay.
            delay = self._delay()
            connection.stalled = True
            connection.patience = now - connection.last + delay
            connection.problem = f"no frame for {now - connection.last:.1f} s{cause}"
            self._report("stalled", connection.problem, delay)
            self._down_since = connection.last
            return None
        return SourceError(connection.problem)

    def _ended(self, child: Child) -> Y7EdgeError | None:
        if self.feed.live:
            return SourceError("the stream ended")
        self.feed.set("ended")
        return None

    def _report(self, state: State, problem: str, delay: float) -> None:
        """Log the first fault of a series; the status has the last one."""
        level = logging.DEBUG if self._attempts else logging.WARNING
        following = f"; opening it again in {delay:.1f} s" if self._attempts < self._retries else ""
        _log.log(level, "%s: %s%s", self._name, problem, following)
        if self._down_since is None:
            self._down_since = time.monotonic()
        self.feed.set(state, problem=problem)

    def _fail(self, error: Y7EdgeError) -> None:
        if self._attempts:
            error = type(error)(f"{error}; gave up after opening it again {self._attempts} times")
        if self.feed.status().backend:  # or the caller of the constructor gets the error
            _log.error("%s: %s", self._name, error)
        self.feed.fail(error)

    def _delay(self) -> float:
        """Return the seconds before the next opening: twice as long each time, and random."""
        delay = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2.0 ** min(self._attempts, 10))
        return delay * random.uniform(1 - _JITTER, 1 + _JITTER)

    def _pause(self, seconds: float) -> bool:
        """Wait; return False if the camera was closed."""
        end = time.monotonic() + seconds
        while not self._stopping and (left := end - time.monotonic()) > 0:
            self._wait(left)
        return not self._stopping

    def _wait_for_last_process(self) -> SourceError | None:
        """Wait until no other process has the device; return an error if that takes too long."""
        begin, told = time.monotonic(), False
        while not self._stopping and not self._name.startswith(_SHARED) and _is_hanging(self._name):
            waited = time.monotonic() - begin
            if waited > _STUCK_S:
                return SourceError(
                    "the previous capture process does not end, although it was killed: its driver "
                    "is stuck; reconnect the device, or restart the system"
                )
            if waited > 1 and not told:
                told = True
                problem = "waiting for the previous capture process, which has not ended"
                _log.warning("%s: %s", self._name, problem)
                self.feed.set(problem=problem)
            self._wait(_TICK_S if waited > 1 else 0.01)
        return None

    def _retire(self, child: Child) -> None:
        """Ask a process to stop; ``_wait`` ends it if it does not."""
        with _past_lock:
            _hanging[self._name] = _hanging.get(self._name, 0) + 1
        child.stop()
        self._ending.append(child)
        self._end_processes()

    def _end_processes(self) -> None:
        for child in [child for child in self._ending if child.finish()]:
            self._ending.remove(child)
            with _past_lock:
                _hanging[self._name] -= 1
                if not _hanging[self._name]:
                    del _hanging[self._name]
                if child.killed_after is not None:
                    _killed[self._name] = (
                        "the previous capture process did not stop within "
                        f"{child.killed_after:g} s and was killed{_hint(self._name)}"
                    )
                    _log.warning("%s: %s", self._name, _killed[self._name])

    def _wait(self, seconds: float, child: Child | None = None) -> list[Message]:
        """Wait for messages of a process, or until a reader or ``stop`` wakes this thread."""
        poll = select.poll()
        poll.register(self._wake_out, select.POLLIN)
        if child is not None:
            child.register(poll)
        if self._ending:
            soon = any(child.ends_soon for child in self._ending)
            seconds = min(seconds, 0.01 if soon else _TICK_S)
        poll.poll(math.ceil(1000 * seconds))
        with suppress(BlockingIOError):
            while os.read(self._wake_out, 4096):
                pass
        self._end_processes()
        return [] if child is None else child.receive()


@dataclass
class _Connection:
    """What is known of one process; times are of ``time.monotonic``."""

    asked: float | None  # frames per second that the user asked for: perhaps more than there are
    stated: float | None = None  # frames per second
    opened: float = 0.0
    last: float = field(default_factory=time.monotonic)  # last progress
    frames: int = 0
    interval: float | None = None  # measured, between two frames
    stalled: bool = False
    patience: float = 0.0  # longest silence after a stall
    returned: int = 0  # slots
    window: tuple[float, int] = (0.0, 0)  # begin, and frames until then
    slow_windows: int = 0  # the last ones
    reported_slow: bool = False
    incomplete: str = ""
    problem: str = ""

    def resume(self) -> None:
        """Go on after a stall, whose duration says nothing about the rate of the device."""
        self.stalled, self.last, self.window, self.slow_windows = False, 0.0, (0.0, 0), 0

    def count(self, made: int, now: float) -> None:
        """Count the frames until now, and measure their interval."""
        if self.frames and made > self.frames and self.last:
            interval = (now - self.last) / (made - self.frames)
            self.interval = (
                interval if self.interval is None else 0.8 * self.interval + 0.2 * interval
            )
        self.frames, self.last = made, now

    def slowness(self, now: float) -> str | None:
        """Return a text, once, if the device makes less than half of the frames that it states."""
        begin, frames = self.window
        if begin and now - begin < _WINDOW_S:
            return None
        self.window = now, self.frames
        if not begin or not self.stated:
            return None
        rate = (self.frames - frames) / (now - begin)
        # Twice in a row, because it may just have been busy.
        self.slow_windows = self.slow_windows + 1 if rate < self.stated / 2 else 0
        if self.slow_windows != 2 or self.reported_slow:
            return None
        self.reported_slow = True
        return f"{rate:.3g} frames per second, but the source states {self.stated:g}"

    def limit(self, open_timeout: float, *, live: bool) -> float:
        """Return for how long there may be no progress, in seconds."""
        if self.stalled:
            return self.patience
        rate = self.stated or self.asked
        intervals = [i for i in (self.interval, rate and 1 / rate) if i]
        if not self.frames or not live or not intervals:
            return open_timeout
        return max(SILENCE_S, INTERVALS * max(intervals))


def _is_hanging(name: str) -> bool:
    with _past_lock:
        return name in _hanging


def _take_note(name: str) -> str | None:
    """Return what happened to the last process of a source, once."""
    with _past_lock:
        return _killed.pop(name, None)


def _hint(name: str) -> str:
    if not name.startswith("csi:"):
        return ""
    return "; a killed client leaves nvargus-daemon stuck: sudo systemctl restart nvargus-daemon"
