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
    """Turns signals into a ``KeyboardInterrupt`` where the state of a run is whole.

    A context manager; restores the former handlers. A second signal raises at once.
    """

    def __init__(self) -> None:
        self._asked = False
        self._free = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        # Only the main thread gets signals.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal is pending."""
        if self._asked:
            raise KeyboardInterrupt

    @contextmanager
    def free(self) -> Iterator[None]:
        """Raise at once inside of this block, which can be interrupted anywhere."""
        self.check()
        self._free = True
        try:
            yield
        finally:
            self._free = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked or self._free:
            self._asked = True
            raise KeyboardInterrupt
        self._asked = True
