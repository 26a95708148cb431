"""Set up the worker processes of a loader, and report their errors.

Workers end when the process that started them ends. They leave no files in /dev/shm.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import cv2
from torch.utils.data import DataLoader

from y7edge.errors import DataError, TrainingError

Batch = TypeVar("Batch")

PREFETCH = 2  # batches per worker
_SHARED_MEMORY = Path("/dev/shm")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def start_worker(parent: int, worker: int) -> None:
    """Set up a worker (``worker_init_fn``): ignore Ctrl-C, use one thread, end with ``parent``."""
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    cv2.setNumThreads(0)  # workers already use all cores


def die_with(parent: int) -> None:
    """Make the kernel kill this process when its parent ends, even after kill -9 (Linux only).

    The kernel does so when the *thread* that started this process ends.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the call
        os._exit(1)


def batches(images: DataLoader[Batch]) -> Iterator[Batch]:
    """Iterate once over a loader; raise errors of its workers with a message of one line.

    If a worker dies, this raises when the next batch is fetched. Torch by default raises in a
    signal handler instead, possibly within a training step.

    Raises:
        DataError: An image cannot be read.
        TrainingError: A worker died.
    """
    try:
        yield from _iterate(images)
    except DataError as error:
        # Torch's message is the traceback of the worker, whose last line is the original error.
        line = str(error.args[0]).strip().splitlines()[-1]
        raise DataError(line.removeprefix("y7edge.errors.DataError: ")) from error
    # OSError or EOFError: the worker died while sending a batch.
    except (RuntimeError, OSError, EOFError) as error:
        reason = _worker_failure(error, images)
        if reason is None:
            raise
        raise TrainingError(reason) from error


def _iterate(images: DataLoader[Batch]) -> Iterator[Batch]:
    """Create the iterator of a loader, and remove the SIGCHLD handler that torch installs."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return iter(images)
    before = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(images)
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)


def _worker_failure(error: Exception, images: DataLoader[Any]) -> str | None:
    """Explain an error that a worker or full shared memory caused; return None for other errors."""
    enough = (
        f"enlarge {_SHARED_MEMORY} (docker run --shm-size 2g, or --ipc host), or use fewer "
        "workers (--workers 0 needs no shared memory)"
    )
    if "allocate shared memory" in str(error):
        return f"no shared memory left for a batch: {enough}"
    workers = getattr(getattr(images, "_iterator", None), "_workers", ())
    if not isinstance(error, RuntimeError):
        # The exit code may arrive after the broken pipe.
        for worker in workers:
            worker.join(timeout=1 / len(workers))
    for worker in (one for one in workers if one.exitcode):
        who = f"a loading worker (process {worker.pid})"
        if worker.exitcode == -signal.SIGKILL:
            return (
                f"{who} was killed, most likely because memory ran out: use fewer workers "
                "(--workers N), or --cache none or disk instead of ram"
            )
        if worker.exitcode == -signal.SIGBUS:
            return f"{who} had a bus error, most likely out of shared memory: {enough}"
        return f"{who} ended with exit code {worker.exitcode}: --workers 0 shows the error"
    return None
