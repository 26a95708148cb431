"""Images and labels for training, in batches, repeatable from a seed.

    shown = TrainingSet(samples, 640, recipe.augmentation, seed=0, cache="ram")
    plan = BatchPlan(len(shown), 16, seed=0)
    pictures = loader(shown, plan, workers=2)
    for epoch in range(1, 301):
        plan.set_epoch(epoch)
        for images, targets in batches(pictures):
            ...

An item depends on the set's seed and on its key (`y7edge.train.loading.sampling`) alone.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from y7edge.boxes import corners
from y7edge.data.sample import Sample
from y7edge.errors import DataError
from y7edge.train.augment.labelled import Picture, Pictures, bgr_view, rectangle, targets
from y7edge.train.augment.pipeline import augmented
from y7edge.train.augment.settings import Augmentation
from y7edge.train.loading.image_cache import Images, open_cache
from y7edge.train.loading.memory import (
    BatchMemory,
    Item,
    Made,
    Task,
    keep_freed_memory,
)
from y7edge.train.loading.sampling import BatchPlan, Key, generator
from y7edge.train.loading.workers import PREFETCH, start_method, start_worker

# Batches that may be in use beside those that workers make ahead: one just received, the one
# before it, and one more for a caller that looks back.
_SPARE = 3


class TrainingSet(Dataset[Item]):
    """Samples as augmented network inputs.

    Items are a uint8 tensor (3, H, W), RGB, and a float32 tensor (n, 5): class, and centre x, y,
    width, height as shares of the input. H and W are the set's size, or the shape of the key.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        size: int,
        augmentation: Augmentation | None = None,
        *,
        seed: int = 0,
        cache: str = "auto",
        close_at: int | None = None,
    ) -> None:
        """Prepare the set, and read all images if they are cached.

        Args:
            samples: Images and labels.
            size: Longer side S of the network's input.
            augmentation: How images are changed; None only letterboxes them.
            seed: Of the augmentation.
            cache: ``ram``, ``disk``, ``none``, or ``auto`` (`y7edge.train.loading.image_cache`).
            close_at: First epoch, from 1, with ``augmentation.closed()``; None: there is none.

        Raises:
            ConfigError: A cache that does not fit into memory or onto the disk.
            DataError: No samples, or an image cannot be read.
        """
        if not samples:
            raise DataError("expected pictures to train on, found none")
        self.samples = tuple(samples)
        self.size, self.seed, self.close_at = size, seed, close_at
        self.augmentation = augmentation
        self.pictures = LabelledPictures(self.samples, open_cache(cache, self.samples, size))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int] | Key) -> Item:
        """The item of a key; (epoch, index) is enough, and a bare index means epoch 0."""
        if not isinstance(key, Key):
            key = Key(*key) if isinstance(key, tuple) else Key(0, key)
        planes = np.empty((3, *(key.shape or (self.size, self.size))), np.uint8)
        labels = self.write(key, planes)
        return torch.from_numpy(planes), torch.from_numpy(labels)

    def write(self, key: Key, planes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Write the picture of a key into uint8 (3, H, W); what is returned are its labels."""
        settings = self._settings(key.epoch)
        if settings is None:
            picture = rectangle(self.pictures[key.index], planes.shape[1:])
            np.copyto(bgr_view(planes), picture.image)
        else:
            rng = generator(self.seed, key)
            picture = augmented(
                self.pictures, key.index, self.size, settings, rng, shape=key.shape, planes=planes
            )
        return targets(picture)

    def unchanged(self) -> TrainingSet:
        """The same pictures, only letterboxed; what is decoded and cached is shared."""
        plain = copy.copy(self)
        plain.augmentation = None
        return plain

    def _settings(self, epoch: int) -> Augmentation | None:
        closed = self.close_at is not None and epoch >= self.close_at
        if self.augmentation is None or not closed:
            return self.augmentation
        return self.augmentation.closed()


class LabelledPictures(Pictures):
    """Decoded images, longer side S, with their labels in pixels.

    All labels lie in two arrays: each image takes a slice and a product.
    """

    def __init__(self, samples: Sequence[Sample], images: Images) -> None:
        self._images = images
        self._ends = np.cumsum([0, *(len(sample.class_id) for sample in samples)]).tolist()
        boxes = np.concatenate([sample.boxes for sample in samples]).astype(np.float64)
        self._corners = corners(boxes[:, :2], boxes[:, 2:])
        self._class_id = np.concatenate([s.class_id for s in samples]).astype(np.int64)
        self._polygons = [sample.polygons for sample in samples]
        self._sizes: dict[tuple[int, int], NDArray[np.float64]] = {}  # most sets have a few

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Picture:  # type: ignore[override]
        image = self._images[index]
        height, width = image.shape[:2]
        rows = slice(self._ends[index], self._ends[index + 1])
        polygons = tuple(
            None if line is None else line.astype(np.float64) * (width, height)
            for line in self._polygons[index]
        )
        size = self._sizes.get((width, height))
        if size is None:
            size = self._sizes[width, height] = np.array((width, height) * 2, np.float64)
        return Picture(image, self._corners[rows] * size, self._class_id[rows], polygons)


def collate(items: Sequence[Item]) -> Item:
    """Stack items to images (B, 3, H, W) uint8 and targets (n, 6) float32.

    A target is the index of its image in the batch, class, and centre x, y, width, height as shares
    of the input.
    """
    numbered = _numbered([labels.numpy() for _, labels in items])
    return torch.stack([image for image, _ in items]), torch.from_numpy(numbered)


def _numbered(labels: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    numbers = np.repeat(np.arange(len(labels)), [len(each) for each in labels])
    return np.column_stack((numbers, np.concatenate(labels))).astype(np.float32)


class _Work(Dataset["Item | Made"]):
    """Whole batches, written where they are wanted: what a loader's workers run."""

    def __init__(self, shown: TrainingSet, memory: BatchMemory | None) -> None:
        self._shown, self._memory = shown, memory

    def __getitem__(self, task: Task) -> Item | Made:
        size = self._shown.size
        shape = (len(task.keys), 3, *(task.keys[0].shape or (size, size)))
        slot = task.slot
        if self._memory is not None and slot is not None:
            images = self._memory.space(slot, shape)
        else:  # from a worker, torch sends it to the training process
            images = np.empty(shape, np.uint8)
        labels = map(self._shown.write, task.keys, images)
        numbered = _numbered(list(labels))
        if self._memory is None or slot is None:
            return torch.from_numpy(images), torch.from_numpy(numbered)
        return Made(id(self._memory), slot, shape, numbered)


class _Tasks(Sampler[Task]):
    """A plan's batches, with the memory that each is written to."""

    def __init__(self, plan: BatchPlan, memory: BatchMemory | None) -> None:
        self._plan, self._memory = plan, memory

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[Task]:
        batches = iter(self._plan)
        if self._memory is None:
            return (Task(keys, None) for keys in batches)
        return self._memory.tasks(batches)


class Loader(DataLoader[Item]):
    """Torch's loader, whose workers hand batches over in a `BatchMemory` if they can."""

    def __iter__(self) -> Any:
        """A pass over the batches of the plan."""
        return (made.item() if isinstance(made, Made) else made for made in super().__iter__())

    def check_worker_number_rationality(self) -> None:
        """Print no warning: the number of workers was asked for, or follows from the cores."""


def loader(
    dataset: TrainingSet, plan: BatchPlan, *, workers: int = 0, pin: bool = False
) -> DataLoader[Item]:
    """The batches of a plan; call ``plan.set_epoch`` before each pass.

    Args:
        dataset: What to load.
        plan: Which images make up which batch.
        workers: Processes that load; 0 loads in the calling one. Forked ones share cached images.
        pin: Put batches into page-locked memory, for asynchronous copies to a GPU.

    Raises:
        ConfigError: The prefetched batches would not fit into memory.
    """
    keep_freed_memory()  # workers that are forked inherit it
    method = start_method(workers)
    memory = None
    if method == "fork":
        stride = plan.rect.stride if plan.rect else 1
        side = -(-dataset.size // stride) * stride
        memory = BatchMemory(PREFETCH * workers + _SPARE, plan.batch // plan.world * 3 * side**2)
    return Loader(
        _Work(dataset, memory),  # type: ignore[arg-type]
        batch_size=None,  # tasks are whole batches
        sampler=_Tasks(plan, memory),
        collate_fn=_as_is,
        num_workers=workers,
        worker_init_fn=partial(start_worker, os.getpid()),
        multiprocessing_context=method,
        # Workers keep what they have: files of a cache that they checked, and their start-up time.
        persistent_workers=workers > 0,
        prefetch_factor=PREFETCH if workers else None,
        pin_memory=pin,
    )


def _as_is(batch: Any) -> Any:
    return batch
