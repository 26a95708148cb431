"""The parent's side of a capture process: start it, receive its messages, and end it."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import spawn
from pathlib import Path
from typing import Any

import y7edge
from y7edge.errors import ConfigError, RuntimeMissing, SourceError
from y7edge.sources.address import without_credentials
from y7edge.sources.ring import Reader
from y7edge.text import one_line

TERM_S, KILL_S = 5.0, 10.0  # after it was asked to stop
_MAX_LINE = 1 << 16
_MAX_READS = 16  # of what libraries print, at a time: messages must not wait
_CODE = (
    "import sys; sys.path[:] = [*sys.argv[3:], *filter(None, sys.path)];"
    "from y7edge.sources.worker import main;"
    "main(int(sys.argv[1]), int(sys.argv[2]))"
)
_ERRORS = {"RuntimeMissing": RuntimeMissing, "ConfigError": ConfigError}
_log = logging.getLogger("y7edge.sources")


@dataclass(frozen=True)
class Opened:
    """The device was opened."""

    backend: str
    detail: str
    live: bool


@dataclass(frozen=True)
class Memory:
    """The frames are in new memory from now on."""

    ring: Reader


@dataclass(frozen=True)
class Made:
    """There is a new frame; ``count``: frames of the device until now."""

    count: int


@dataclass(frozen=True)
class Rate:
    """The source states its rate, in frames per second."""

    rate: float


@dataclass(frozen=True)
class Incomplete:
    """A frame had too few bytes and was dropped; ``count``: as of ``Made``."""

    count: int
    problem: str


@dataclass(frozen=True)
class Ended:
    """The stream ended."""


@dataclass(frozen=True)
class Failed:
    """The process ended, or has to be ended; ``error`` says why, without the source's name."""

    error: SourceError | RuntimeMissing | ConfigError


Message = Opened | Memory | Made | Rate | Incomplete | Ended | Failed


class Child:
    """A capture process. Not thread-safe.

    Args:
        name: of the source, for the log.
        kind: module of the grabber, ``y7edge.sources.KIND``.
        options: of the grabber; JSON values.

    Raises:
        SourceError: the process cannot be started.
    """

    def __init__(self, name: str, kind: str, options: Mapping[str, Any]) -> None:
        self._name = name
        self._received = b""
        self._descriptors: deque[int] = deque()
        self._printed: deque[bytes] = deque(maxlen=12)
        self._partial = b""
        self._asked: float | None = None
        self._last_asked = 0.0
        self._signal: int | None = None
        try:
            start = json.dumps({"kind": kind, "options": dict(options)}).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise SourceError(f"options must be JSON values: {error}") from error
        try:
            self._socket, other = socket.socketpair()
        except OSError as error:
            raise SourceError(f"the capture process cannot be started: {error}") from error
        try:
            with other:
                self._process = _start(other)
            self._output = self._process.stdout
            assert self._output is not None
            os.set_blocking(self._output.fileno(), False)
            self._socket.sendall(start)
            self._socket.setblocking(False)
        except BrokenPipeError:
            self._socket.setblocking(False)  # it ended at once: what it printed says why
        except BaseException:
            self._socket.close()
            raise

    def register(self, poll: select.poll) -> None:
        """Let ``poll`` wait for messages."""
        poll.register(self._socket, select.POLLIN)
        if self._output is not None:
            poll.register(self._output, select.POLLIN)

    def receive(self) -> list[Message]:
        """Return what arrived; does not wait. After ``Failed`` there is nothing more to come."""
        self._read_output()
        over = False
        try:
            while True:
                part, descriptors, _, _ = socket.recv_fds(
                    self._socket, _MAX_LINE, 1, getattr(socket, "MSG_CMSG_CLOEXEC", 0)
                )
                self._descriptors.extend(descriptors)
                self._received += part
                over = not part
                if over or len(self._received) > _MAX_LINE:
                    break
        except BlockingIOError:
            pass
        except OSError:
            over = True
        *lines, self._received = self._received.split(b"\n")
        messages: list[Message] = []
        try:
            for line in (*lines, self._received):
                if len(line) > _MAX_LINE:
                    raise ValueError("a line is too long")
            for line in lines:
                messages.append(self._parse(json.loads(line)))
                if isinstance(messages[-1], Failed | Ended):
                    return messages
        except (ValueError, TypeError, AttributeError, RecursionError, OSError) as error:
            messages.append(Failed(self._error(f"sent an invalid message ({error})")))
        else:
            if over:
                messages.append(Failed(self._death()))
        return messages

    def _parse(self, message: dict[str, Any]) -> Message:
        """Check a message of the process, and return it."""
        ((key, value),) = message.items()
        if key == "frame":
            return Made(_count(value))
        if key == "opened":
            backend, detail, live = value
            if not isinstance(live, bool):
                raise ValueError(f"live is {live!r}"[:80])
            return Opened(_text(backend, 40), _text(detail), live)
        if key == "memory":
            if not self._descriptors:
                raise ValueError("memory without a descriptor")
            size = _count(value)
            return Memory(Reader(self._descriptors.popleft(), size))
        if key == "rate":
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"a rate is {value!r}"[:80])
            return Rate(float(value))
        if key == "incomplete":
            count, problem = value
            return Incomplete(_count(count), _text(problem))
        if key == "end" and value is True:
            return Ended()
        if key == "failed":
            kind, text = value
            return Failed(_ERRORS.get(str(kind), SourceError)(_text(text)))
        raise ValueError(f"unknown message {key!r}"[:80])

    def _error(self, what: str) -> SourceError:
        lines = [_text(line.decode(errors="replace"), 500) for line in self._printed]
        traceback = any(line.startswith("Traceback (most recent call last)") for line in lines)
        printed = " | ".join(lines[-1:] if traceback else lines[-3:])
        return SourceError(f"the capture process {what}" + (f": {printed}" if printed else ""))

    def _death(self) -> SourceError:
        """Return an error that says how the process ended."""
        try:
            status = self._process.wait(1)
        except subprocess.TimeoutExpired:
            return self._error("closed its connection")
        self._read_output()
        if status >= 0:
            return self._error(f"ended with status {status}")
        if status == -signal.SIGALRM:  # of the child itself
            return self._error("hung in a call that stops all of Python")
        with contextlib.suppress(ValueError):
            return self._error(f"was killed by {signal.Signals(-status).name}")
        return self._error(f"was killed by signal {-status}")

    def _read_output(self) -> None:
        """Keep the last lines that libraries printed, and log all of them."""
        if self._output is None:
            return
        for _ in range(_MAX_READS):
            part = self._output.read(65536)
            if part is None:  # nothing at the moment
                return
            if not part:
                self._output.close()
                self._output = None
                return
            *lines, self._partial = (self._partial + part).split(b"\n")
            self._partial = self._partial[-2000:]
            self._printed.extend(line[:2000] for line in lines if line.strip())
            if _log.isEnabledFor(logging.DEBUG):
                for line in lines:
                    _log.debug("%s: %s", self._name, _text(line.decode(errors="replace")))

    def taken(self, count: int) -> None:
        """Tell that frames of a source that is not live were read."""
        self._tell({"taken": count})

    def stop(self) -> None:
        """Ask the process to free the device and to end."""
        if self._asked is None:
            self._asked = self._last_asked = time.monotonic()
            self._tell({"stop": True})
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)

    def _tell(self, message: dict[str, Any]) -> None:
        # If the process is gone, or does not read, this is noticed elsewhere.
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def finish(self) -> bool:
        """Return whether the process has ended, at some time after ``stop``; kill it if it is late.

        Call this again and again, until it returns True.
        """
        if self._process.poll() is not None:
            self._close()
            return True
        late = 0.0 if self._asked is None else time.monotonic() - self._asked
        wanted = signal.SIGKILL if late >= KILL_S else signal.SIGTERM if late >= TERM_S else None
        if wanted is not None and wanted != self._signal:
            self._signal, self._last_asked = wanted, time.monotonic()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, wanted)
        return False

    @property
    def ends_soon(self) -> bool:
        """Whether the process was asked to stop, or was killed, less than a second ago."""
        return time.monotonic() - self._last_asked < 1

    @property
    def killed_after(self) -> float | None:
        """Seconds after which the process was killed; None if it ended before."""
        return KILL_S if self._signal == signal.SIGKILL else None

    def _close(self) -> None:
        self._socket.close()
        self._process.stdout = None
        if self._output is not None:
            self._output.close()
            self._output = None
        while self._descriptors:
            os.close(self._descriptors.popleft())


def _start(other: socket.socket) -> subprocess.Popen[bytes]:
    """Start the process, with ``other`` as its end of the control socket."""
    # Embedded interpreters and frozen programs name an interpreter with set_executable.
    python = spawn.get_executable()
    if not python or getattr(sys, "frozen", False):
        raise SourceError(
            "cameras need a Python interpreter for their capture process: name one with "
            "multiprocessing.set_executable"
        )
    descriptor = other.fileno()
    try:
        return subprocess.Popen(
            [
                *(python, "-c", _CODE, str(descriptor), str(os.getpid())),
                *_search_path(),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            pass_fds=[descriptor],
            # Ctrl-C in a terminal is sent to all processes of the session.
            start_new_session=True,
            env={"OPENBLAS_NUM_THREADS": "1", **os.environ},
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SourceError(
            f"the capture process cannot be started with {os.fsdecode(python)}: {error}"
        ) from error


def _search_path() -> list[str]:
    """Return where the process searches modules: like this one, and it finds the same y7edge."""
    root = str(Path(y7edge.__file__).resolve().parents[1])
    # Relative entries mean another folder after a chdir, or any file where the user happens to be.
    entries = [entry for entry in sys.path if Path(entry).is_absolute()]
    first = (i for i, entry in enumerate(entries) if (Path(entry) / "y7edge").is_dir())
    index = next(first, len(entries))
    return [*entries[:index], root, *entries[index:]]


def _count(value: object) -> int:
    if type(value) is not int or not 0 < value < 1 << 62:
        raise ValueError(f"a number is {value!r}"[:80])
    return value


def _text(value: object, longest: int = 1000) -> str:
    """Return text of the process as one line, without user names and passwords."""
    if not isinstance(value, str):
        raise ValueError(f"a text is {value!r}"[:80])
    return one_line(without_credentials(value), longest)
