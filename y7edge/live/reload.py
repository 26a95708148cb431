"""Load the model again while the program runs, in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from y7edge.errors import Y7EdgeError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of the newest request.

    Attributes:
        state: "none": there was no request; "running", "done" or "failed".
        message: why it failed; None: it did not.
        at: when the state began, as of ``time.monotonic()``.
        count: number of reloads until now, with this one.
    """

    state: str = "none"
    message: str | None = None
    at: float = 0.0
    count: int = 0


class Reloader:
    """Call a function for each request; an exception is logged, and remembered as the outcome.

    Args:
        before: called before each time.
        after: called after each time.
    """

    def __init__(
        self,
        before: Callable[[], object] = lambda: None,
        after: Callable[[], object] = lambda: None,
    ) -> None:
        self.outcome = Outcome()
        self._before, self._after = before, after
        # Its `put` may be called by a signal handler at any time; that of other queues may not.
        self._requests: SimpleQueue[bool] = SimpleQueue()

    def request(self, *_: Any) -> None:
        """Ask for a reload: at once, after ``start``, or after the one that runs."""
        self._requests.put(True)

    def start(self, reload: Callable[[], object]) -> None:
        """Serve requests until the process ends, with those that came before."""
        threading.Thread(
            target=self._serve, args=(reload,), name="y7edge reload", daemon=True
        ).start()

    def stop(self) -> None:
        """Serve no more requests; return immediately."""
        self._requests.put(False)

    def _serve(self, reload: Callable[[], object]) -> None:
        while self._requests.get():
            while not self._requests.empty():  # one reload is enough for all of them
                if not self._requests.get():
                    return
            count = self.outcome.count + 1
            self.outcome = Outcome("running", None, time.monotonic(), count)
            self._before()
            self.outcome = self._reload(reload, count)
            self._after()

    def _reload(self, reload: Callable[[], object], count: int) -> Outcome:
        try:
            reload()
        except Exception as error:  # the old model stays, whatever is wrong with the new one
            why = str(error) if isinstance(error, Y7EdgeError) else repr(error)
            _log.error("the model was not replaced, and the old one stays in use: %s", why)
            return Outcome("failed", why, time.monotonic(), count)
        return Outcome("done", None, time.monotonic(), count)
