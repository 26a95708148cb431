"""What ``y7edge live`` has for long runs: the health, reloading on a signal, and systemd."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from y7edge.cli.logs import REMARKS
from y7edge.errors import needing

if TYPE_CHECKING:
    from y7edge.detect.streaming import Stream
    from y7edge.live.access import Guard, Listener
    from y7edge.live.notify import Notifier
    from y7edge.live.operation import Operation
    from y7edge.live.reload import Reloader

_log = logging.getLogger(REMARKS)


@dataclass(frozen=True)
class Service:
    """The address of the health, opened before the model, and what serves systemd and signals."""

    door: tuple[Listener, Guard] | None
    silence: float
    reloader: Reloader
    notifier: Notifier

    @classmethod
    @contextmanager
    def open(cls, health: str | None, token: str | None, silence: float) -> Iterator[Service]:
        """Listen on the address ``health``, and for SIGUSR1.

        Raises:
            ConfigError, DeviceError: the address cannot be used.
            RuntimeMissing: aiohttp, which answers, is not installed.
        """
        from y7edge.live.notify import Notifier
        from y7edge.live.reload import Reloader

        with ExitStack() as stack:
            door = None if health is None else stack.enter_context(_listening(health, token))
            notifier = stack.enter_context(closing(Notifier()))
            reloader = Reloader(notifier.reloading, notifier.reloaded)
            stack.callback(reloader.stop)
            stack.enter_context(_on_signal(reloader.request))
            stack.callback(notifier.stopping)
            yield cls(door, silence, reloader, notifier)

    def serve(
        self,
        stack: ExitStack,
        stream: Stream,
        reload: Callable[[], object],
        more: Callable[[], Mapping[str, Any]],
    ) -> Operation:
        """Start to answer and to reload; the server stops with the stack."""
        from y7edge.live.operation import Operation

        operation = Operation(stream, self.silence, self.reloader, self.notifier, more)
        if self.door is not None:
            from y7edge.live.health_server import HealthServer

            server = stack.enter_context(HealthServer(*self.door, operation.report))
            _log.info("health: %s", server.url)
        self.reloader.start(reload)
        return operation


@contextmanager
def _listening(health: str, token: str | None) -> Iterator[tuple[Listener, Guard]]:
    from y7edge.live.access import Address, Guard

    with needing("aiohttp", "web", "--health"):
        import y7edge.live.health_server  # noqa: F401

    address = Address.parse(health, "--health")
    guard = Guard(address, token, required=False)
    with address.listen() as listener:
        yield listener, guard


@contextmanager
def _on_signal(request: Callable[..., None]) -> Iterator[None]:
    """Call ``request`` for SIGUSR1, which would end the program otherwise."""
    number = getattr(signal, "SIGUSR1", None)  # Windows has none
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, request)
    try:
        yield
    finally:
        signal.signal(number, before)
