"""Tell systemd the state of the service: the datagrams of sd_notify(3).

They are sent only if systemd asks for them with the environment variable ``NOTIFY_SOCKET``.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

from y7edge.text import one_line

_LONGEST_STATUS = 200
_SEND_S = 1.0


class Notifier:
    """Send states to the service manager; do nothing if there is none.

    Args:
        environment: ``NOTIFY_SOCKET`` is the path of a socket, or ``@`` and the name of an abstract
            one; ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` ask for signs of life.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        is_address = address[:1] in ("/", "@") and len(address) > 1
        self._address = address.replace("@", "\0", 1) if address[:1] == "@" else address
        self._socket: socket.socket | None = None
        if is_address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.settimeout(_SEND_S)  # its queue may be full
        usec = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog: float | None = int(usec) / 1e6 if usec.isdecimal() and ours else None
        """Seconds within which systemd expects a sign of life; None: it expects none."""
        self._ready = False

    @property
    def is_used(self) -> bool:
        """Whether a service manager listens."""
        return self._socket is not None

    def ready(self) -> None:
        """Say once that the service has started: the first result is there."""
        if not self._ready:
            self._ready = self._send("READY=1")

    def alive(self) -> None:
        """Give a sign of life."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Set the text that ``systemctl status`` shows."""
        self._send(f"STATUS={one_line(text, _LONGEST_STATUS)}")

    def reloading(self) -> None:
        """Say that the model is being loaded again; before ``ready``, do nothing."""
        if not self._ready:
            return
        usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={usec}")

    def reloaded(self) -> None:
        """Say that this has ended, with or without success; before ``ready``, do nothing."""
        if self._ready:
            self._send("READY=1")

    def stopping(self) -> None:
        """Say that the program ends."""
        self._send("STOPPING=1")

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, state: str) -> bool:
        """Send a state; a manager that is gone or busy does not stop the detection."""
        manager = self._socket  # another thread may call `close`
        if manager is None:
            return True
        try:
            manager.sendto(state.encode(), self._address)
        except OSError:
            return False
        return True
