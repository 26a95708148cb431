"""Measure available memory, and share memory for batches between processes."""

from __future__ import annotations

import math
import mmap
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from y7edge.errors import ConfigError
from y7edge.train.loading.sampling import Key

_SPARE_FRACTION = 0.8  # of the available memory; the network and the system need the rest
_LARGE_BLOCK = 31 << 20  # just below the largest dynamic threshold of glibc

Item = tuple[Tensor, Tensor]


class Task(NamedTuple):
    """A batch for a worker to load."""

    keys: list[Key]
    slot: int | None  # of the batch memory; None: the worker allocates memory


@dataclass(slots=True)
class WrittenBatch:
    """A batch from a worker: the images' slot in the batch memory, and the targets."""

    memory: int  # id of the batch memory
    slot: int
    shape: tuple[int, ...]  # (B, 3, H, W)
    targets: NDArray[np.float32]  # (n, 6)

    def item(self) -> Item:
        """Return the batch as tensors, in the training process."""
        return _MEMORIES[self.memory].received(self)

    def pin_memory(self) -> Item:
        """Return the batch in page-locked memory; called by the loader's pinning thread."""
        images, targets = self.item()
        return images.pin_memory(), targets.pin_memory()


class BatchMemory:
    """A block of memory that workers write batches to and the training process reads.

    It is mapped before the workers fork, and divided into slots that are reused. Torch instead
    creates a file in /dev/shm for each batch, which the system must clear; in containers /dev/shm
    often has only 64 MB. ``examples/research/loader_speed.py --workers 2`` on two cores (512
    synthetic scenes of 640 px, batch 16, recipe tiny, cache ram) loads 640 images/s, with torch's
    files 440.

    A slot is free again once no tensor uses it. Without free slots, torch transfers the batch.
    """

    def __init__(self, slots: int, size: int) -> None:
        """Map memory for ``slots`` batches of ``size`` bytes.

        Raises:
            ConfigError: Not enough memory.
        """
        needed = slots * size
        if needed > spare_memory():
            raise ConfigError(
                f"prefetched batches take {format_bytes(needed)}, {format_bytes(spare_memory())} "
                "are available: use fewer workers or a smaller batch"
            )
        self._block = np.frombuffer(mmap.mmap(-1, needed), np.uint8).reshape(slots, size)
        self._free = list(range(slots))
        self._pending: set[int] = set()
        _MEMORIES[id(self)] = self

    def tasks(self, batches: Iterable[list[Key]]) -> Iterator[Task]:
        """Assign a slot to each batch while there are free ones.

        This frees the slots of batches of the previous pass that were never received.
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
        # The tensor references this array; once it is collected, nothing uses the slot.
        weakref.finalize(images, self._free.append, batch.slot).atexit = False
        return torch.from_numpy(images), torch.from_numpy(batch.targets)


def keep_freed_memory() -> None:
    """Make glibc keep freed blocks of the size of images in this process.

    By default it returns them to the system, which clears them on the next allocation. This takes
    as long as decoding a small image. Once a large block was freed, smaller ones are kept
    (mallopt(3), M_MMAP_THRESHOLD: dynamic, up to 32 MiB). No effect with other C libraries.
    """
    np.empty(_LARGE_BLOCK, np.uint8)


# Ids are the same in forked processes.
_MEMORIES: weakref.WeakValueDictionary[int, BatchMemory] = weakref.WeakValueDictionary()


def spare_memory() -> float:
    """Return the memory budget of caches and batches in bytes; inf if unknown."""
    available = available_memory()
    return float("inf") if available is None else _SPARE_FRACTION * available


def available_memory() -> int | None:
    """Return the bytes available to this process, also in a container; None if unknown."""
    free = _meminfo(Path("/proc/meminfo"))
    limited = _cgroup(Path("/sys/fs/cgroup"))
    known = [value for value in (free, limited) if value is not None]
    return min(known) if known else None


def _meminfo(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(values[0]) * 1024 if values else None


def _cgroup(folder: Path) -> int | None:
    """Return the bytes free in a container (cgroup v2), including droppable cached files."""
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
