"""Loading processes: how they start, how they end, and what is said when one fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import cv2
from torch.utils.data import DataLoader

from y7edge.errors import DataError

Batch = TypeVar("Batch")


class WorkerStart:
    """What a worker does first."""

    def __call__(self, worker: int) -> None:
        """Leave the threads to the other workers: one process per core is parallel enough."""
        cv2.setNumThreads(0)


def forking(workers: int) -> Any:
    """The way of starting workers, for `DataLoader`."""
    return None


def check_shared_memory(workers: int, batch_bytes: int) -> None:
    """See that the batches under way fit into the memory that processes share."""


def one_pass(pictures: DataLoader[Batch]) -> Iterator[Batch]:
    """One pass over a loader, with what goes wrong in a worker process as one line.

    Raises:
        DataError: A picture cannot be read.
    """
    try:
        yield from pictures
    except DataError as error:
        # Torch puts the worker's traceback into the message; its last line is what was raised.
        line = str(error).strip().splitlines()[-1]
        raise DataError(line.removeprefix("y7edge.errors.DataError: ")) from error
