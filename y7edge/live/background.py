"""A thread that writes files, so that detection does not wait for a disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

from y7edge.errors import OutputError, Y7EdgeError
from y7edge.files import reason

Item = TypeVar("Item")


class Background(Generic[Item]):
    """Call a function for each item in a thread of its own, in the order of ``put``.

    If the function raises an exception, the thread stops, further items are refused, and ``close``
    raises OutputError once.

    Args:
        name: of the work, for messages.
        work: called for each item.
        finish: called at the end, also after an exception.
        limit: maximum number of items that wait.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Item], None],
        finish: Callable[[], None],
        limit: int,
    ) -> None:
        self._name, self._work, self._finish, self._limit = name, work, finish, limit
        self._queue: SimpleQueue[Item | None] = SimpleQueue()
        self._problem: OutputError | None = None
        self._raised = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str | None:
        """Why the work has stopped, in one line; None if it has not."""
        return None if self._problem is None else str(self._problem)

    @property
    def waiting(self) -> int:
        """Number of items that wait."""
        return self._queue.qsize()

    def put(self, item: Item) -> bool:
        """Queue an item without blocking; return False if it is refused."""
        if self._closing or self._problem is not None or self.waiting >= self._limit:
            return False
        self._queue.put(item)
        return True

    def close(self, timeout: float) -> None:
        """Finish the items that wait; can be called twice.

        Args:
            timeout: seconds to wait for the thread.

        Raises:
            OutputError: the work has failed, or is not finished in time. It is raised once.
        """
        if not self._closing:
            self._closing = True
            self._queue.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive() and self._problem is None:
            self._problem = OutputError(
                f"{self._name}: not finished after {timeout:g} s: is the disk responding?"
            )
        if self._problem is not None and not self._raised:
            self._raised = True
            raise self._problem

    def _run(self) -> None:
        try:
            while (item := self._queue.get()) is not None:
                self._work(item)
                del item  # do not keep an image while waiting for the next
        except Exception as error:  # reported by ``problem`` and ``close``
            self._fail(error)
            while not self._queue.empty():  # free the memory of images
                self._queue.get()
        try:
            self._finish()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self._problem is not None:
            return
        if not isinstance(error, OutputError):
            words = str(error) if isinstance(error, Y7EdgeError) else reason(error)
            cause, error = error, OutputError(f"{self._name}: {words}")
            error.__cause__ = cause
        self._problem = error
