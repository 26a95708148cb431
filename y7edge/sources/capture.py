"""Cameras and live streams, captured by a child process that may hang or crash.

A thread watches the child: it opens the device again after a fault, and ends children that hang
(``y7edge.sources.supervisor``). The child shares memory with this process, out of which
``Camera.read`` copies the newest frame (``y7edge.sources.ring``).
"""

from __future__ import annotations

import atexit
import os
import time
import weakref
from collections.abc import Mapping
from typing import Any, NoReturn

from y7edge.errors import ConfigError, SourceError
from y7edge.frames import Frame
from y7edge.sources.base import Source, Status
from y7edge.sources.supervisor import Supervisor

CLOSE_S = 0.9  # how long close waits for the child
_FAILED_S = 0.2  # the same, if the device could not be opened
_running: weakref.WeakSet[Supervisor] = weakref.WeakSet()


class Camera(Source):
    """A camera or live stream, captured by a child process.

    ``read`` returns the newest frame; frames that are not read in time are dropped. If the device
    fails or stalls, it is opened again, after 0.5 s, then after twice as long each time, at most
    10 s. It stalls if there is no frame for a second or three frame intervals, whichever is longer.

    ``Frame.sequence`` and the counts go on after a fault. ``Status.frames`` counts the frames that
    were read or dropped; the newest frame counts as soon as it is either.

    Args:
        name: the URI without user name and password.
        kind: module of the grabber, ``y7edge.sources.KIND``.
        options: of the grabber; JSON values.
        rate: frames per second that the user asked for; None if unknown.
        open_timeout: seconds for opening the device, and again for its first frame.
        retries: how often to open it again after a fault; counted anew when frames came for 10 s.
            The default lasts for about a minute.

    Raises:
        SourceError: the device cannot be opened.
        RuntimeMissing: a package that captures from this device is not installed.
        ConfigError: an argument is out of range.
    """

    live = True

    def __init__(
        self,
        name: str,
        kind: str,
        options: Mapping[str, Any],
        *,
        rate: float | None = None,
        open_timeout: float = 10.0,
        retries: int = 10,
    ) -> None:
        if os.name != "posix":
            raise SourceError(f"{name}: cameras and live streams need Linux or macOS")
        if not 0 < open_timeout <= 3600 or not 0 <= retries <= 1_000_000:
            raise ConfigError(
                f"open_timeout is {open_timeout!r} and retries is {retries!r}, expected up to "
                "3600 seconds, and a number from 0"
            )
        self.name = name
        self._process = os.getpid()
        try:
            self._supervisor = Supervisor(
                name, kind, options, rate=rate, open_timeout=open_timeout, retries=retries
            )
        except OSError as failure:  # too many open files
            raise SourceError(f"{name}: {failure}") from failure
        # The thread does not refer to the camera, so that a camera that is not closed is collected.
        weakref.finalize(self, _stop, self._supervisor, self._process).atexit = False
        self._supervisor.thread.start()
        _running.add(self._supervisor)
        try:
            error = self._supervisor.feed.wait_until_open()
        except BaseException:  # KeyboardInterrupt
            self._supervisor.stop()
            raise
        if error is not None:
            self._supervisor.stop()
            self._supervisor.thread.join(_FAILED_S)
            raise error
        self.live = self._supervisor.feed.live

    def read(self, timeout: float | None = None) -> Frame | None:
        """Return the newest frame; see ``Source.read``.

        The image is a copy that belongs to the caller, and its rows are not padded.

        Raises:
            SourceTimeout: there was no frame in time; reading again may succeed.
            SourceError: the source failed, and opening it again failed too.
        """
        self._require_process()
        return self._supervisor.feed.read(timeout)

    @property
    def status(self) -> Status:
        """What the camera is doing."""
        self._require_process()
        return self._supervisor.feed.status()

    def close(self) -> None:
        """Stop the child and return within a second; can be called twice.

        A child that hangs gets SIGTERM after 5 s and SIGKILL after 10 s, in the background.
        """
        if self._process == os.getpid():
            self._supervisor.stop()
            self._supervisor.thread.join(CLOSE_S)
            self._supervisor.feed.leave()

    def __reduce__(self) -> NoReturn:
        raise SourceError(
            f"{self.name} cannot be pickled or copied: open it there, with open_source"
        )

    def _require_process(self) -> None:
        if self._process != os.getpid():
            raise SourceError(
                f"{self.name} was opened in another process, and cannot be used after a fork: open "
                "it in this process"
            )


def _stop(supervisor: Supervisor, process: int) -> None:
    if process == os.getpid():
        supervisor.stop()
        if not supervisor.thread.is_alive():
            supervisor.feed.leave()


@atexit.register
def _stop_all() -> None:
    """Ask all children to stop, and wait for them together. They also end without their parent."""
    supervisors = [s for s in _running if s.process == os.getpid()]
    for supervisor in supervisors:
        supervisor.stop()
    end = time.monotonic() + CLOSE_S
    for supervisor in supervisors:
        supervisor.thread.join(max(0.0, end - time.monotonic()))
