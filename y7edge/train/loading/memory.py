"""Measure available memory, and share memory for batches between processes."""

from __future__ import annotations

import math
import mmap
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from y7edge.errors import ConfigError
from y7edge.machine import free_memory
from y7edge.train.loading.sampling import Key

_SPARE_FRACTION = 0.8  # of the available memory; the network and the system need the rest
_LARGE_BLOCK = 31 << 20  # bytes, just below the maximum of glibc's dynamic threshold

Item = tuple[Tensor, ...]
"""Images and their labels; in batches for another device, also the appearance of each image."""


class Task(NamedTuple):
    """A batch for a worker to load."""

    keys: list[Key]
    slot: int | None  # of the batch memory; None: no slot is free, the worker allocates memory


@dataclass(slots=True)
class WrittenBatch:
    """A batch from a worker: the images' slot in the batch memory, and the targets."""

    memory: int  # id of the batch memory
    slot: int
    shape: tuple[int, ...]  # (B, 3, H, W)
    targets: NDArray[np.float32]  # (n, 6)
    appearance: NDArray[np.float64] | None = None  # (B, 5), for `on_device.apply_appearance`

    def item(self) -> Item:
        """Return the batch; call this in the training process."""
        return _MEMORIES[self.memory].received(self)

    def pin_memory(self) -> Item:
        """Return the batch in page-locked memory; called by torch's pin thread."""
        return tuple(tensor.pin_memory() for tensor in self.item())


class BatchMemory:
    """Shared memory that workers write batches to and the training process reads.

    It is mapped before the workers fork, and divided into slots, one per batch. A slot is reused
    when no tensor refers to it any more. If no slot is free, torch transfers the batch.

    Torch itself creates a file in /dev/shm for each batch. This is slower, since the system must
    clear the memory of each file. Also, /dev/shm is often limited to 64 MB in containers. On two
    cores, ``examples/research/loader_speed.py --workers 2`` (512 synthetic scenes of 640 px, batch
    16, recipe tiny, cache ram) loads 640 images/s with slots and 440 images/s with files.
    """

    def __init__(self, slots: int, size: int) -> None:
        """Map memory for ``slots`` batches of ``size`` bytes.

        Raises:
            ConfigError: Memory is too small.
        """
        needed = slots * size
        if needed > spare_memory():
            raise ConfigError(
                f"prefetched batches take {format_bytes(needed)}, but only "
                f"{format_bytes(spare_memory())} are available: use fewer workers or a smaller "
                "batch"
            )
        self._block = np.frombuffer(mmap.mmap(-1, needed), np.uint8).reshape(slots, size)
        self._free = list(range(slots))
        self._pending: set[int] = set()
        _MEMORIES[id(self)] = self

    def tasks(self, batches: Iterable[list[Key]]) -> Iterator[Task]:
        """Assign a slot to each batch, or None if no slot is free.

        First, free the slots of the previous pass whose batches were never received.
        """
        self._free.extend(self._pending)
        self._pending.clear()
        for keys in batches:
            slot = self._free.pop() if self._free else None
            if slot is not None:
                self._pending.add(slot)
            yield Task(keys, slot)

    def space(self, slot: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """View a slot as an array of this shape."""
        return self._block[slot, : math.prod(shape)].reshape(shape)

    def received(self, batch: WrittenBatch) -> Item:
        """Return the tensors of a batch that a worker wrote."""
        images = self.space(batch.slot, batch.shape)
        self._pending.discard(batch.slot)
        # The tensor keeps this array alive. Once the array is freed, nothing uses the slot.
        weakref.finalize(images, self._free.append, batch.slot).atexit = False
        return as_tensors(images, batch.targets, batch.appearance)


def as_tensors(*arrays: NDArray[Any] | None) -> Item:
    """Return tensors that share the memory of the arrays, without those that are None."""
    return tuple(torch.from_numpy(array) for array in arrays if array is not None)


def keep_freed_memory() -> None:
    """Make glibc reuse freed blocks of the size of images, instead of returning them to the system.

    The system clears each block that it hands out, which takes as long as decoding a small image.
    Freeing one large block raises the size up to which glibc keeps freed blocks (the dynamic
    M_MMAP_THRESHOLD of mallopt(3), at most 32 MiB). With other C libraries, this has no effect.
    """
    np.empty(_LARGE_BLOCK, np.uint8)


# Batch memories by their `id`, which is the same in forked processes.
_MEMORIES: weakref.WeakValueDictionary[int, BatchMemory] = weakref.WeakValueDictionary()


def spare_memory() -> float:
    """Return the memory that a cache or batches may take, in bytes; inf if unknown."""
    available = available_memory()
    return float("inf") if available is None else _SPARE_FRACTION * available


def available_memory() -> int | None:
    """Return the bytes that this process can still use, also in a container; None if unknown."""
    free = free_memory()
    limited = _cgroup(Path("/sys/fs/cgroup"))
    known = [value for value in (free, limited) if value is not None]
    return min(known) if known else None


def _cgroup(folder: Path) -> int | None:
    """Return the free bytes of a container (cgroup v2); inactive cached files count as free."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    files = [int(line.split()[1]) for line in lines if line.startswith("inactive_file ")]
    return None if limit == "max" else max(0, int(limit) - used + sum(files))


def format_bytes(count: float) -> str:
    """Format a number of bytes: ``2.1 GB`` or ``0.3 MB``."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
