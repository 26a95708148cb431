"""Start and end loading processes, and report their errors.

Workers end with the process that started them, and leave no files in /dev/shm.
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
    """Set up a worker of the process ``parent``: no Ctrl-C, no threads (``worker_init_fn``)."""
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    cv2.setNumThreads(0)  # there is a process per core already


def die_with(parent: int) -> None:
    """Make the kernel kill this process when its parent ends, even by kill -9 (Linux only).

    It already ends with the *thread* that started it.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def batches(images: DataLoader[Batch]) -> Iterator[Batch]:
    """Iterate once over a loader; report a worker's error in one line.

    A dead worker is reported when its batch is awaited. By default torch raises the error in a
    signal handler, possibly within a training step.

    Raises:
        DataError: An image cannot be read.
        TrainingError: A worker died.
    """
    try:
        yield from _iterate(images)
    except DataError as error:
        # Torch's message is the worker's traceback; its last line is the error.
        line = str(error.args[0]).strip().splitlines()[-1]
        raise DataError(line.removeprefix("y7edge.errors.DataError: ")) from error
    # A worker that dies while it sends a batch causes one of the last two.
    except (RuntimeError, OSError, EOFError) as error:
        reason = _worker_failure(error, images)
        if reason is None:
            raise
        raise TrainingError(reason) from error


def _iterate(images: DataLoader[Batch]) -> Iterator[Batch]:
    """Create the loader's iterator without torch's handler of SIGCHLD."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return iter(images)
    before = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(images)
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)


def _worker_failure(error: Exception, images: DataLoader[Any]) -> str | None:
    """Explain an error that comes from a worker or from shared memory; None for others."""
    enough = (
        f"enlarge {_SHARED_MEMORY} (docker run --shm-size 2g, or --ipc host), or use fewer "
        "workers (--workers 0 needs none)"
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
