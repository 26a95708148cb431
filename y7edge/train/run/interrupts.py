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
    """Delay Ctrl-C and SIGTERM until :meth:`check`, where the state of a run is consistent.

    A context manager that restores the previous handlers. A second signal raises
    ``KeyboardInterrupt`` immediately.
    """

    def __init__(self) -> None:
        self._pending = False
        self._immediate = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        # Only the main thread receives signals.
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
        """Let signals raise KeyboardInterrupt immediately inside this block."""
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
