"""Run calls in one background thread, from a queue of bounded length."""

from __future__ import annotations

import asyncio
import numbers
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, get_args

from y7edge.errors import ConfigError, DetectorClosed, DeviceError, FrameDropped

MAX_QUEUE = 1024  # waiting calls
Drop = Literal["block", "oldest", "newest"]
"""If the queue is full: wait for a place, drop the oldest waiting frame, or drop the new frame."""

_REASONS = {
    "newest": "the queue was full",
    "oldest": "a newer frame took its place in the queue",
}

T = TypeVar("T")


def check_timeout(timeout: float, name: str = "timeout") -> float:
    """Return ``timeout``, in seconds; raise ConfigError if it is not a positive number."""
    real = isinstance(timeout, numbers.Real) and not isinstance(timeout, bool)
    if not (real and 0 < timeout < threading.TIMEOUT_MAX):
        raise ConfigError(f"{name} is {timeout!r}, expected a number of seconds above 0")
    return float(timeout)


def closed_error() -> DetectorClosed:
    """Return the error for a call after ``close``, or for a frame that waited at ``close``."""
    return DetectorClosed("the detector was closed: open a new one")


def result_by(end: float, future: Future[T], timeout: float) -> T:
    """Return the result of a call in the queue; cancel it if there is none.

    Args:
        end: how long to wait, as of ``time.monotonic()``.
        future: of the call.
        timeout: the seconds that the caller gave, for the message.

    Raises:
        DetectorClosed: ``close`` cancelled the call.
        DeviceError: there was no result in time.
    """
    try:
        return future.result(max(0.0, end - time.monotonic()))
    except FutureTimeout as error:
        future.cancel()
        raise DeviceError(
            f"there was no result within {timeout} s: the engine is still running; the next call "
            "waits for it"
        ) from error
    except CancelledError as error:
        raise closed_error() from error


async def wait_for(future: Future[T]) -> T:
    """Return the result of a call in the queue, from asyncio; if the task is cancelled, cancel it.

    Raises:
        DetectorClosed: ``close`` cancelled the call.
    """
    wrapped = asyncio.wrap_future(future)
    try:
        # Unlike `await wrapped`, this raises CancelledError only if the task was cancelled.
        await asyncio.wait([wrapped])
    finally:
        wrapped.cancel()  # has no effect if it is done
    if wrapped.cancelled():
        raise closed_error()
    return wrapped.result()


@dataclass(frozen=True)
class _Job(Generic[T]):
    call: Callable[[], T]
    future: Future[T]


class FrameQueue(Generic[T]):
    """A queue of calls and the thread that runs them one after the other.

    The thread ends after ``close``, or when the queue is garbage-collected.

    Args:
        size: largest number of waiting calls; the running call is not counted.
    """

    def __init__(self, size: int) -> None:
        self._jobs: _Jobs[T] = _Jobs(size)
        weakref.finalize(self, self._jobs.stop)
        # The thread refers to the jobs but not to the queue, so that the queue can be collected.
        thread = threading.Thread(
            target=_serve, args=(self._jobs,), name="y7edge submit", daemon=True
        )
        self._jobs.thread = thread
        thread.start()

    def put(
        self,
        call: Callable[[], T],
        drop: Drop,
        timeout: float | None = None,
        future: Future[T] | None = None,
    ) -> Future[T]:
        """Add a call; return its future. With "block", wait up to ``timeout`` seconds for a place.

        ``future``: used for the result; cancelling it ends the wait for a place too.

        Raises:
            ConfigError: ``drop`` is unknown.
            DetectorClosed: the queue was closed.
            DeviceError: there was no place within ``timeout``, or the caller is a callback of a
                future, which runs in the queue's thread and cannot wait for a place.
        """
        if drop not in get_args(Drop):
            raise ConfigError(f"drop is {drop!r}, expected one of {', '.join(get_args(Drop))}")
        job = _Job(call, future or Future())
        self._jobs.add(job, drop, timeout)
        return job.future

    def close(self) -> None:
        """Cancel the waiting calls; the thread ends after the running call. Return immediately."""
        self._jobs.stop()


class _Jobs(Generic[T]):
    """The waiting jobs, shared by the queue and its thread."""

    thread: threading.Thread | None = None  # runs the jobs, and the callbacks of their futures

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting: deque[_Job[T]] = deque()
        self._changed = threading.Condition()
        self._stopped = False

    def add(self, job: _Job[T], drop: Drop, timeout: float | None) -> None:
        """Add a job, and apply ``drop`` if there is no place."""
        # Callbacks of the dropped future are called without the lock, because they may wait.
        if dropped := self._place(job, drop, timeout):
            _drop(dropped, _REASONS[drop])

    def _place(self, job: _Job[T], drop: Drop, timeout: float | None) -> _Job[T] | None:
        """Add a job; return the job that is dropped, if there is one."""
        end = None if timeout is None else time.monotonic() + timeout
        dropped: _Job[T] | None = None
        job.future.add_done_callback(self._wake)  # a cancelled job frees its place
        with self._changed:
            while not (self._stopped or job.future.cancelled()) and self._is_full():
                if drop == "newest":
                    return job
                if drop == "oldest":
                    dropped = self._waiting.popleft()
                elif threading.current_thread() is self.thread:
                    raise DeviceError(
                        "the queue is full, and a callback of a future cannot wait for a place, "
                        "because callbacks run in the thread that empties the queue: use "
                        "drop='oldest' or 'newest', or submit from another thread"
                    )
                elif not self._changed.wait(None if end is None else end - time.monotonic()):
                    raise DeviceError(
                        f"the queue had no place within {timeout} s: the engine is slower than "
                        "the frames, or does not return; use drop='oldest' to skip frames"
                    )
            if self._stopped:
                raise closed_error()
            self._waiting.append(job)
            self._changed.notify_all()
        return dropped

    def _wake(self, _: Future[T]) -> None:
        with self._changed:
            self._changed.notify_all()

    def _is_full(self) -> bool:
        if len(self._waiting) >= self._size:
            self._waiting = deque(job for job in self._waiting if not job.future.cancelled())
        return len(self._waiting) >= self._size

    def take(self) -> _Job[T] | None:
        """Wait for the oldest job; return None after ``stop``."""
        with self._changed:
            while not self._waiting and not self._stopped:
                self._changed.wait()
            job = self._waiting.popleft() if self._waiting else None
            self._changed.notify_all()
            return job

    def stop(self) -> None:
        """Cancel the waiting jobs, and refuse new ones."""
        with self._changed:
            self._stopped = True
            waiting, self._waiting = self._waiting, deque()
            self._changed.notify_all()
        for job in waiting:
            job.future.cancel()


def _drop(job: _Job[Any], reason: str) -> None:
    if job.future.set_running_or_notify_cancel():
        job.future.set_exception(FrameDropped(f"the frame was dropped: {reason}"))


def _serve(jobs: _Jobs[Any]) -> None:
    """Run jobs until the queue is closed."""
    while (job := jobs.take()) is not None:
        if job.future.set_running_or_notify_cancel():
            try:
                result = job.call()
            except BaseException as error:  # raised again by Future.result
                job.future.set_exception(error)
            else:
                job.future.set_result(result)
                del result
        del job  # or its frame would be kept until the next job
