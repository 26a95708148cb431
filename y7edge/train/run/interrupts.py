"""Handle Ctrl-C and SIGTERM between two batches."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Context manager that delays Ctrl-C and SIGTERM until the next call of ``check``.

    A run calls ``check`` between two batches, where its state can be saved. A second signal raises
    ``KeyboardInterrupt`` immediately. On exit, the previous signal handlers are restored.
    """

    def __init__(self) -> None:
        self._pending = False
        self._immediate = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        # Python sets and runs signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal is pending."""
        if self._pending:
            raise KeyboardInterrupt

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Raise KeyboardInterrupt as soon as a signal arrives, while this context is active."""
        self.check()
        self._immediate = True
        try:
            yield
        finally:
            self._immediate = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._pending or self._immediate:
            self._pending = True
            raise KeyboardInterrupt
        self._pending = True
