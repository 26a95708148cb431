"""Plan batches as a pure function of seed and epoch.

A plan yields a `Key` for each image of a batch. The loaded item depends only on its key and the
seed, so workers do not need the state of the run, and a run resumed within an epoch gets the same
batches.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from y7edge.data.headers import picture_size
from y7edge.data.sample import Sample
from y7edge.errors import ConfigError

_DECIMALS = 6  # rounding before `ceil`: (416 / 640) * 640 must give 416, not 416 + stride


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Key of a training item; the item depends only on its key and on the seed of the set."""

    epoch: int
    index: int  # into the samples
    shape: tuple[int, int] | None = None  # (height, width) of the input; None: square
    repeat: int = 0  # how often the image was drawn before in this epoch


@dataclass(frozen=True, slots=True, eq=False)
class RectPlan:
    """Rectangular inputs for batches of images with similar aspect ratios, to reduce padding."""

    aspect: NDArray[np.float64]  # (N,), height / width of each image
    size: int  # longer side of the network's input
    stride: int  # sides of the input are multiples of it

    def shape(self, indices: NDArray[np.int64]) -> tuple[int, int]:
        """Return the smallest input (height, width) in pixels for a batch of these images.

        As published, the input is square if the batch has both landscape and portrait images.
        """
        low, high = self.aspect[indices].min(), self.aspect[indices].max()
        height, width = (high, 1.0) if high < 1 else (1.0, 1 / low) if low > 1 else (1.0, 1.0)
        return self._side(height), self._side(width)

    def _side(self, ratio: float) -> int:
        return math.ceil(round(ratio * self.size / self.stride, _DECIMALS)) * self.stride


def rect_plan(samples: Sequence[Sample], size: int, stride: int) -> RectPlan:
    """Create a plan of rectangular inputs; read the image header if a sample has no size.

    Raises:
        DataError: An image's header cannot be read.
        RuntimeMissing: Pillow is not installed.
    """
    sizes = [sample.size or picture_size(sample.path) for sample in samples]
    return RectPlan(np.array([height / width for width, height in sizes]), size, stride)


class BatchPlan(Sampler[list[Key]]):
    """Sampler of the batches of an epoch as lists of keys, for one rank of a run.

    A batch has ``batch`` images over all ranks. Each rank computes the same batches, and takes
    every ``world``-th image of each batch. A last batch with fewer images than ranks is dropped.
    With ``rect``, images are sorted by aspect ratio, and ``shuffle`` also shuffles the batches.

    Raises:
        ConfigError: ``batch`` is not a multiple of ``world``, or there are fewer images than ranks.
    """

    def __init__(
        self,
        length: int,
        batch: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        rect: RectPlan | None = None,
    ) -> None:
        if batch < 1 or batch % world:
            raise ConfigError(
                f"batch: expected a multiple of {world} (the number of processes), found {batch}"
            )
        if length < world:
            raise ConfigError(
                f"{length} images are too few for {world} processes: use fewer devices"
            )
        self.length, self.batch, self.seed, self.shuffle = length, batch, seed, shuffle
        self.rank, self.world, self.rect = rank, world, rect
        self.epoch, self.start = 0, 0
        self.weights: NDArray[np.float64] | None = None

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Set the epoch of the next pass, and the batch (from 0) at which the pass starts."""
        self.epoch, self.start = epoch, start

    def set_weights(self, weights: NDArray[np.float64] | None) -> None:
        """Draw images with replacement, in proportion to ``weights`` (N,); None: each image once.

        All ranks must set the same weights.

        Raises:
            ConfigError: The shape is wrong, or weights are not finite, negative, or all zero.
        """
        if weights is None:
            self.weights = None
            return
        weights = np.asarray(weights, np.float64)
        if weights.shape != (self.length,):
            raise ConfigError(
                f"weights: expected shape ({self.length},), one per image, found {weights.shape}"
            )
        if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
            raise ConfigError("weights: expected finite numbers from 0, not all of them 0")
        self.weights = weights / weights.sum()

    def __len__(self) -> int:
        """Return the number of batches in a complete epoch, even if a pass starts later."""
        whole, rest = divmod(self.length, self.batch)
        return whole + (rest >= self.world)

    def __iter__(self) -> Iterator[list[Key]]:
        # The list is complete now, so a later call of `set_epoch` affects the next pass only.
        return iter(self._keys(self.epoch)[self.start :])

    def _keys(self, epoch: int) -> list[list[Key]]:
        rng = np.random.default_rng((self.seed, epoch))
        order = np.arange(self.length)
        if self.weights is not None:
            order = rng.choice(self.length, size=self.length, p=self.weights)
        elif self.shuffle:
            rng.shuffle(order)
        groups = self._groups(order, rng)
        repeats = np.split(_repeats(np.concatenate(groups)), np.cumsum([len(g) for g in groups]))
        mine = slice(self.rank, None, self.world)
        batches = []
        for group, repeat in zip(groups, repeats, strict=False):  # repeats end with an empty array
            shape = self.rect.shape(group) if self.rect is not None else None
            pairs = zip(group[mine].tolist(), repeat[mine].tolist(), strict=True)
            batches.append([Key(epoch, index, shape, again) for index, again in pairs])
        return batches

    def _groups(
        self, order: NDArray[np.int64], rng: np.random.Generator
    ) -> list[NDArray[np.int64]]:
        """Return the indices of each batch, over all ranks."""
        if self.rect is not None:
            order = order[np.argsort(self.rect.aspect[order], kind="stable")]
        groups = np.split(order, np.arange(self.batch, self.length, self.batch))
        if len(groups[-1]) < self.world:
            groups.pop()
        if self.rect is not None and self.shuffle:
            groups = [groups[number] for number in rng.permutation(len(groups))]
        return groups


def _repeats(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return, for each position in ``order``, how often its value occurs before it."""
    ranks = np.empty(len(order), np.int64)
    by_value = np.argsort(order, kind="stable")
    ordered = order[by_value]
    new = np.r_[True, ordered[1:] != ordered[:-1]]
    first = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    ranks[by_value] = np.arange(len(order)) - first
    return ranks


def image_weights(
    samples: Sequence[Sample], nc: int, class_map: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return weights (N,) that draw images of rare and badly detected classes more often.

    As published, the weight of a class is 1 / (number of its objects), normalized, times
    (1 - mAP of the class)^2. The weight of an image is the sum over its objects. It is 0 for images
    without objects. If there are no objects at all, all weights are 1. ``class_map`` (nc,) is the
    mAP of each class, NaN if unknown; None before the first evaluation.
    """
    counts = np.stack([np.bincount(sample.class_id, minlength=nc) for sample in samples])
    rarity = 1 / np.maximum(counts.sum(axis=0), 1)
    rarity /= rarity.sum()
    missed = 1 - np.nan_to_num(np.zeros(nc) if class_map is None else class_map)
    weights = counts @ (rarity * missed**2)
    return weights if weights.any() else np.ones(len(samples))


class _Reused(threading.local):
    def __init__(self) -> None:
        self.generator = np.random.Generator(np.random.Philox(key=0))


_reused = _Reused()


def generator(seed: int, key: Key) -> np.random.Generator:
    """Return the random generator of an item; the next call in the same thread resets it.

    One generator per thread is reused, since creating one takes as long as some augmentations. It
    is a Philox generator (Salmon et al., SC 2011), keyed by the seed and by epoch and index.
    """
    batch = _reused.generator
    batch.bit_generator.state = {
        "bit_generator": "Philox",
        "state": {
            "counter": (0, 0, 0, key.repeat),
            "key": (seed % 2**64, (key.epoch * 2**32 + key.index) % 2**64),
        },
        "buffer": (0, 0, 0, 0),
        "buffer_pos": 4,
        "has_uint32": 0,
        "uinteger": 0,
    }
    return batch
