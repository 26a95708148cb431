"""Loading processes: how they start, how they end, and the error when one fails.

Workers die with the process that started them, however that ends, and leave nothing in /dev/shm.
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

# Batches that each worker makes ahead.
PREFETCH = 2

_SHARED_MEMORY = Path("/dev/shm")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def start_worker(parent: int, worker: int) -> None:
    """Tie a worker to the process ``parent``, and leave signals and threads to others.

    Runs in the worker, first of all (``worker_init_fn``).
    """
    die_with(parent)
    # Ctrl-C reaches every process of a terminal; the parent decides what becomes of the run.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One process per core is parallel enough; OpenCV's threads would only compete.
    cv2.setNumThreads(0)


def die_with(parent: int) -> None:
    """Have the system kill this process when its parent ends, even by kill -9; only on Linux.

    The parent is the thread that started the process: a thread that ends takes it along.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have ended before that was in force.
    if os.getppid() != parent:
        os._exit(1)


def start_method(workers: int) -> str | None:
    """How to start workers, for `DataLoader`: forked on Linux, to share cached images."""
    return "fork" if workers and sys.platform == "linux" else None


def batches(pictures: DataLoader[Batch]) -> Iterator[Batch]:
    """One pass over a loader; errors of a worker process are one line.

    A worker that dies is noticed when its batch is waited for, between two steps, and not, as in
    torch, by a signal in the middle of one.

    Raises:
        DataError: An image cannot be read.
        TrainingError: A worker died.
    """
    try:
        yield from _undisturbed(pictures)
    except DataError as error:
        # Torch puts the worker's traceback into the message; its last line is what was raised.
        line = str(error).strip().splitlines()[-1]
        raise DataError(line.removeprefix("y7edge.errors.DataError: ")) from error
    # A worker that dies with its batch half sent is one of the latter two, in many forms.
    except (RuntimeError, OSError, EOFError) as error:
        reason = _reason(error, pictures)
        if reason is None:
            raise
        raise TrainingError(reason) from error


def _undisturbed(pictures: DataLoader[Batch]) -> Iterator[Batch]:
    """The loader's iterator, without torch's signal handler, which would raise anywhere."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return iter(pictures)
    before = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(pictures)
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)


def _reason(error: Exception, pictures: DataLoader[Any]) -> str | None:
    """Why a pass ended, if that was a matter of processes or of the memory they share."""
    enough = (
        f"give {_SHARED_MEMORY} more room (docker run --shm-size 2g, or --ipc host), or take fewer "
        "workers (--workers 0 needs none)"
    )
    if "allocate shared memory" in str(error):
        return f"no shared memory left for a batch: {enough}"
    workers = getattr(getattr(pictures, "_iterator", None), "_workers", ())
    if not isinstance(error, RuntimeError):
        # The system may take a moment to tell of a death whose effects are seen already.
        for worker in workers:
            worker.join(timeout=1 / len(workers))
    for worker in (one for one in workers if one.exitcode):
        who = f"a loading worker (process {worker.pid})"
        if worker.exitcode == -signal.SIGKILL:
            return (
                f"{who} was killed, most likely by the system because memory ran out: take fewer "
                "workers (--workers N), or cache none or disk instead of ram"
            )
        if worker.exitcode == -signal.SIGBUS:
            return f"{who} ended on a bus error, most likely for want of shared memory: {enough}"
        return f"{who} ended with exit code {worker.exitcode}: try --workers 0, which says more"
    return None
