"""How much memory is left, and the memory that batches travel in."""

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

# What may be taken of the memory that is free: the network, and the system, need some too.
_SHARE = 0.8

# Just below the largest that the C library's threshold rises to.
_LARGE_PIECE = 31 << 20

Item = tuple[Tensor, Tensor]


class Task(NamedTuple):
    """What a worker is asked for."""

    keys: list[Key]
    slot: int | None  # of the batch memory; None: the worker allocates memory


@dataclass(slots=True)
class Made:
    """What a worker sends: where the images are, and the targets themselves."""

    memory: int  # which batch memory
    slot: int  # where in it
    shape: tuple[int, ...]  # (B, 3, H, W)
    targets: NDArray[np.float32]  # (n, 6)

    def item(self) -> Item:
        """The batch as tensors, in the process that asked for it."""
        return _MEMORIES[self.memory].received(self)

    def pin_memory(self) -> Item:
        """The batch in page-locked memory; called by the loader's own thread for that."""
        images, targets = self.item()
        return images.pin_memory(), targets.pin_memory()


class BatchMemory:
    """A block of memory that workers write batches to and the training process reads.

    It is mapped before the workers are forked, and cut into slots that are reused. Torch makes a
    new file in /dev/shm for each batch, which the system must clear, and of which a container often
    has no more than 64 MB. Measured with
    ``examples/research/loader_speed.py --workers 2`` on two cores (512 synthetic scenes of 640 px,
    16 per batch, recipe tiny, cache ram): 640 images/s with this memory, 440 with torch's way.

    A slot is free again once no tensor uses it; when all slots are taken, torch's way is used.
    """

    def __init__(self, slots: int, size: int) -> None:
        """Map memory for ``slots`` batches of ``size`` bytes; it is taken when first written to.

        Raises:
            ConfigError: More than can be spared.
        """
        needed = slots * size
        if needed > spare_memory():
            raise ConfigError(
                f"batches on their way take {amount(needed)} of memory, of "
                f"{amount(spare_memory())} that can be spared: take fewer workers or a smaller "
                "batch"
            )
        self._block = np.frombuffer(mmap.mmap(-1, needed), np.uint8).reshape(slots, size)
        self._free = list(range(slots))
        self._under_way: set[int] = set()
        _MEMORIES[id(self)] = self

    def tasks(self, batches: Iterable[list[Key]]) -> Iterator[Task]:
        """Give each batch a slot, as far as there are any.

        Slots that the pass before filled, and whose batches were not received, are free again.
        """
        self._free.extend(self._under_way)
        self._under_way.clear()
        for keys in batches:
            slot = self._free.pop() if self._free else None
            if slot is not None:
                self._under_way.add(slot)
            yield Task(keys, slot)

    def space(self, slot: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """A slot as an array of that shape."""
        return self._block[slot, : math.prod(shape)].reshape(shape)

    def received(self, made: Made) -> Item:
        """The tensors of what a worker made."""
        images = self.space(made.slot, made.shape)
        self._under_way.discard(made.slot)
        # The tensor keeps this array, not only the block; when the array goes, all its users went.
        weakref.finalize(images, self._free.append, made.slot).atexit = False
        return torch.from_numpy(images), torch.from_numpy(made.targets)


def keep_freed_memory() -> None:
    """Let this process keep freed memory of the size of images.

    glibc returns each such piece to the system, which clears it when it is allocated again: as much
    work as decoding a small image. Once a large piece was freed, glibc keeps smaller ones
    (mallopt(3), M_MMAP_THRESHOLD: dynamic, up to 32 MiB). Elsewhere this does nothing.
    """
    np.empty(_LARGE_PIECE, np.uint8)


# Workers name a memory by its address, which is the same after a fork.
_MEMORIES: weakref.WeakValueDictionary[int, BatchMemory] = weakref.WeakValueDictionary()


def spare_memory() -> float:
    """Memory budget of caches and batches in bytes; inf if unknown."""
    available = available_memory()
    return float("inf") if available is None else _SHARE * available


def available_memory() -> int | None:
    """Bytes that a process may still take, also inside a container; None if unknown."""
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
    """What a container (cgroup v2) has left; files read before, which can be dropped, are free."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    files = [int(line.split()[1]) for line in lines if line.startswith("inactive_file ")]
    return None if limit == "max" else max(0, int(limit) - used + sum(files))


def amount(count: float) -> str:
    """A number of bytes for people: ``2.1 GB`` or ``0.3 MB``."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
