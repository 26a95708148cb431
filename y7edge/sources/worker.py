"""The child process of a camera: captures frames, and puts them into shared memory.

It is started by ``y7edge.sources.child``, which also has the other end of the control socket.
Messages are JSON objects, one a line. From the parent: the kind of grabber and its options, then
``{"taken": 1}`` for each frame of a source that is not live, and ``{"stop": true}``. To the parent:
``opened``, ``memory`` (with the descriptor of a ring), ``rate``, ``frame``, ``incomplete``,
``end``, ``failed``.

The process never waits for its parent, except with sources that are not live. It stops when it is
asked to, and when the parent dies. It cannot outlive either for long: the kernel kills it by
SIGALRM.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import select
import signal
import socket
import sys
import threading
import traceback
from typing import Any

from y7edge.errors import DataError, SourceTimeout, Y7EdgeError
from y7edge.sources.base import Captured, Grabber
from y7edge.sources.ring import SLOTS, Writer, rows_of

_GRAB_S = 0.2  # how long a call of a grabber waits for a frame
_BEAT_S = 1.0  # how often the parent is looked for
_HUNG_S = 60  # an interpreter that does not run for this long will not run again
_STOP_S = 12  # the parent kills the process after 10 s; this is for a parent that died


def main(descriptor: int, parent: int) -> None:
    """Run the process; ``descriptor``: of the control socket, ``parent``: process id."""
    # A parent may have blocked or ignored signals; the child would inherit that.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _terminate)
    signal.alarm(_HUNG_S)
    _limit_memory()
    for output in (1, 2):  # what libraries print is lost if the parent does not read it
        os.set_blocking(output, False)
    status = 1
    try:
        Worker(socket.socket(fileno=descriptor), parent).run()
        status = 0
    except SystemExit:
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):  # the pipe is full
            sys.stderr.flush()
        os._exit(status)  # without the destructors of native libraries, which may hang


def _limit_memory() -> None:
    """Allow half of the machine's memory, so that a stream without end does not take all of it.

    multipartdemux, for one, keeps what it receives until there is a boundary. Memory of images that
    are shared with other processes or devices is not counted (RLIMIT_DATA of getrlimit(2)).
    """
    import resource  # not on Windows

    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    known = [limit for limit in (soft, hard, half) if limit != resource.RLIM_INFINITY]
    with contextlib.suppress(OSError, ValueError):  # the system does not have this limit
        resource.setrlimit(resource.RLIMIT_DATA, (min(known), hard))


def _wait(control: socket.socket, event: int, seconds: float) -> bool:
    """Wait until the socket can be read or written; unlike select(2), with any descriptor."""
    poll = select.poll()
    poll.register(control, event)
    return bool(poll.poll(1000 * seconds))


def _terminate(*_: object) -> None:
    raise SystemExit


class Worker:
    """Captures frames of one source until it ends, fails, or is stopped."""

    def __init__(self, control: socket.socket, parent: int) -> None:
        self._control = control
        self._parent = parent
        self._received = b""
        self._unsent = b""
        self._stopped = False
        self._taken = 0
        self._changed = threading.Condition()
        self._ring: Writer | None = None
        self._made = 0  # frames of the device
        self._written = 0  # of them, those in the ring
        self._rate = 0.0

    def run(self) -> None:
        """Read the options, open the grabber, and capture."""
        control = self._control
        control.setblocking(True)
        while b"\n" not in self._received:
            if not (part := control.recv(65536)):
                return
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        start = json.loads(line)
        control.setblocking(False)
        threading.Thread(target=self._listen, name="y7edge control", daemon=True).start()
        try:
            module = importlib.import_module(f"y7edge.sources.{start['kind']}")
            grabber: Grabber = module.grabber(start["options"])
        except Exception as error:
            self._fail(error)
            return
        try:
            self._send({"opened": [grabber.backend, grabber.detail, grabber.live]}, important=True)
            self._capture(grabber)
        except (BrokenPipeError, ConnectionResetError):
            self._stopped = True
        except Exception as error:
            self._fail(error)
        finally:
            grabber.close()

    def _capture(self, grabber: Grabber) -> None:
        while not self._stopped:
            try:
                captured = grabber.grab(_GRAB_S)
            except SourceTimeout:
                continue
            if captured is None:
                self._send({"end": True}, important=True)
                return
            self._made += max(0, int(captured.skipped)) + 1
            if not grabber.live:
                self._wait_for_reader(SLOTS - 1)
            rate = float(captured.rate or 0.0)
            if rate != self._rate and 0 < rate < math.inf:
                self._rate = rate
                self._send({"rate": rate}, important=True)
            try:
                self._write(captured, live=grabber.live)
            except DataError as error:
                self._send({"incomplete": [self._made, str(error)]})
            else:
                self._written += 1
                self._send({"frame": self._made}, important=not grabber.live)

    def _write(self, captured: Captured, *, live: bool) -> None:
        rows, row = rows_of(captured.format, captured.size)
        if self._ring is None or rows * row > self._ring.capacity:
            if self._ring is not None:
                if not live:
                    self._wait_for_reader(0)
                self._ring.close()
            self._ring = Writer(rows * row)
            self._send({"memory": rows * row}, important=True, descriptor=self._ring.descriptor)
        self._ring.write(captured, self._made)

    def _wait_for_reader(self, most: int) -> None:
        """Wait until at most ``most`` frames are unread, or the process is asked to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._written - self._taken <= most)
        if self._stopped:
            raise SystemExit

    def _fail(self, error: Exception) -> None:
        kind = type(error).__name__
        text = str(error) if isinstance(error, Y7EdgeError) else f"{kind}: {error}"
        self._send({"failed": [kind, text[:2000]]}, important=True)

    def _send(
        self, message: dict[str, Any], *, important: bool = False, descriptor: int | None = None
    ) -> None:
        """Send a message; one that is not important is dropped if the parent does not read."""
        line = json.dumps(message).encode() + b"\n"
        while self._unsent:
            self._unsent = self._unsent[self._push(self._unsent) :]
            if self._unsent and not important:
                return
            self._wait_to_send(bool(self._unsent))
        sent = 0
        while descriptor is not None and not sent:
            with contextlib.suppress(BlockingIOError):
                sent = socket.send_fds(self._control, [line], [descriptor])
            self._wait_to_send(not sent)
        line = line[sent:]
        while line:
            count = self._push(line)
            line = line[count:]
            if line and not important:
                self._unsent = line if count else b""
                return
            self._wait_to_send(bool(line))

    def _push(self, data: bytes) -> int:
        try:
            return self._control.send(data)
        except BlockingIOError:
            return 0

    def _wait_to_send(self, full: bool) -> None:
        if full:
            _wait(self._control, select.POLLOUT, _GRAB_S)
            if self._stopped:
                raise SystemExit

    def _listen(self) -> None:
        """Receive the messages of the parent, and stop when it asks for that or dies."""
        while not self._stopped:
            signal.alarm(_HUNG_S)
            if _wait(self._control, select.POLLIN, _BEAT_S) and not self._receive():
                break
            # A forked copy of the parent keeps the socket open. PR_SET_PDEATHSIG would tell that a
            # thread of the parent ended.
            if os.getppid() != self._parent:
                break
        signal.alarm(_STOP_S)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _receive(self) -> bool:
        """Handle what the parent sent; return False if the process has to stop."""
        try:
            part = self._control.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        *lines, self._received = (self._received + part).split(b"\n")
        messages = [json.loads(line) for line in lines]
        with self._changed:
            self._taken += sum(int(message.get("taken", 0)) for message in messages)
            self._changed.notify_all()
        return bool(part) and not any(message.get("stop") for message in messages)
