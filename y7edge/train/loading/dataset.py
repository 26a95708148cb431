"""Load images and labels for training, in batches that are reproducible from a seed.

    train_set = TrainingSet(samples, 640, recipe.augmentation, seed=0, cache="ram")
    plan = BatchPlan(len(train_set), 16, seed=0)
    train_loader = loader(train_set, plan, workers=2)
    for epoch in range(1, 301):
        plan.set_epoch(epoch)
        for images, targets in batches(train_loader):
            ...

An item depends only on its key (`y7edge.train.loading.sampling`) and on the seed of the set.
"""

from __future__ import annotations

import copy
import os
import sys
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
from y7edge.train.augment.labelled import ImageSet, LabelledImage, bgr_view, targets
from y7edge.train.augment.mosaic import paint, single
from y7edge.train.augment.pipeline import Appearance, augmented, augmented_in_part
from y7edge.train.augment.settings import Augmentation
from y7edge.train.loading.image_cache import Images, open_cache
from y7edge.train.loading.memory import (
    BatchMemory,
    Item,
    Task,
    WrittenBatch,
    as_tensors,
    keep_freed_memory,
)
from y7edge.train.loading.sampling import BatchPlan, Key, generator
from y7edge.train.loading.workers import PREFETCH, start_worker

_SPARE = 3  # slots besides those of prefetched batches: for the current and the two previous ones


class TrainingSet(Dataset[Item]):
    """Dataset of augmented network inputs.

    An item is an image, uint8 (3, H, W) RGB, and its labels, float32 (n, 5): class, and normalized
    centre x, y, width, height. (H, W) is the ``shape`` of the item's key; if that is
    None, (size, size).
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
        """Create the set, and fill its ``cache`` (see `image_cache.open_cache`).

        ``size`` is the longer side of the network's input in pixels. Without ``augmentation``,
        images are only letterboxed. From epoch ``close_at`` on (counted from 1),
        ``augmentation.closed()`` is used, which has no mosaic and no mixing.

        Raises:
            ConfigError: The cached images do not fit into memory.
            DataError: There are no samples, or an image cannot be read.
        """
        if not samples:
            raise DataError("expected training images, found none")
        self.samples = tuple(samples)
        self.size, self.seed, self.close_at = size, seed, close_at
        self.augmentation = augmentation
        self.images = SampleImages(self.samples, open_cache(cache, self.samples, size))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int] | Key) -> Item:
        """Return the item of a `Key`, of a pair (epoch, index), or of an index in epoch 0."""
        if not isinstance(key, Key):
            key = Key(*key) if isinstance(key, tuple) else Key(0, key)
        planes = np.empty((3, *(key.shape or (self.size, self.size))), np.uint8)
        labels = self.write(key, planes)
        return torch.from_numpy(planes), torch.from_numpy(labels)

    def write(self, key: Key, planes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Write the image of a key into ``planes``, uint8 (3, H, W) RGB, and return its labels."""
        settings = self._settings(key)
        if settings is None:
            height, width = planes.shape[1:]
            labelled = paint(single(self.images[key.index], height, width))
            np.copyto(bgr_view(planes), labelled.image)
        else:
            rng = generator(self.seed, key)
            labelled = augmented(
                self.images, key.index, self.size, settings, rng, shape=key.shape, planes=planes
            )
        return targets(labelled)

    def write_in_part(
        self, key: Key, planes: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], Appearance]:
        """Write the image of a key like `write`, but without its colour jitter and mirror.

        Returns the labels, which are mirrored, and the appearance for `apply_appearance`.
        """
        settings = self._settings(key)
        if settings is None:
            return self.write(key, planes), Appearance()
        rng = generator(self.seed, key)
        labelled, appearance = augmented_in_part(
            self.images, key.index, self.size, settings, rng, shape=key.shape, planes=planes
        )
        return targets(labelled), appearance

    def _settings(self, key: Key) -> Augmentation | None:
        settings = self.augmentation
        return settings.closed() if settings is not None and self.closed(key.epoch) else settings

    def without_augmentation(self) -> TrainingSet:
        """Return a set that only letterboxes its images; it shares the cache of this set."""
        plain = copy.copy(self)
        plain.augmentation = None
        return plain

    def closed(self, epoch: int) -> bool:
        """Return whether mosaic and mixing are off in an epoch (from 1)."""
        return self.close_at is not None and epoch >= self.close_at


class SampleImages(ImageSet):
    """Sequence of decoded images with their labels in pixels.

    The labels of all images are in two arrays, which is faster than an array per image.
    """

    def __init__(self, samples: Sequence[Sample], images: Images) -> None:
        self._images = images
        self._ends = np.cumsum([0, *(len(sample.class_id) for sample in samples)]).tolist()
        boxes = np.concatenate([sample.boxes for sample in samples]).astype(np.float64)
        self._corners = corners(boxes[:, :2], boxes[:, 2:])
        self._class_id = np.concatenate([s.class_id for s in samples]).astype(np.int64)
        self._polygons = [sample.polygons for sample in samples]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> LabelledImage:  # type: ignore[override]
        image = self._images[index]
        height, width = image.shape[:2]
        rows = slice(self._ends[index], self._ends[index + 1])
        polygons = tuple(
            None if line is None else line.astype(np.float64) * (width, height)
            for line in self._polygons[index]
        )
        boxes = self._corners[rows] * (width, height, width, height)
        return LabelledImage(image, boxes, self._class_id[rows], polygons)


def collate(items: Sequence[Item]) -> Item:
    """Stack items to a batch: images uint8 (B, 3, H, W) and targets float32 (n, 6).

    A target has the image's index in the batch, class, and normalized centre x, y, width, height.
    """
    numbered = _numbered([labels.numpy() for _, labels in items])
    return torch.stack([image for image, _ in items]), torch.from_numpy(numbered)


def _numbered(labels: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Join the labels (n, 5) of all images of a batch to targets (n, 6), as for `collate`."""
    numbers = np.repeat(np.arange(len(labels)), [len(each) for each in labels])
    return np.column_stack((numbers, np.concatenate(labels))).astype(np.float32)


class _Work(Dataset["Item | WrittenBatch"]):
    """Dataset whose items are whole batches; the workers of a loader create them."""

    def __init__(
        self, train_set: TrainingSet, memory: BatchMemory | None, in_part: bool = False
    ) -> None:
        self._dataset, self._memory, self._in_part = train_set, memory, in_part

    def __getitem__(self, task: Task) -> Item | WrittenBatch:
        size = self._dataset.size
        shape = (len(task.keys), 3, *(task.keys[0].shape or (size, size)))
        if self._memory is not None and task.slot is not None:
            images = self._memory.space(task.slot, shape)
        else:  # torch will transfer the batch to the training process
            images = np.empty(shape, np.uint8)
        appearance = None
        if self._in_part:
            written = list(map(self._dataset.write_in_part, task.keys, images))
            labels = [each for each, _ in written]
            appearance = np.array([each.numbers() for _, each in written])
        else:
            labels = list(map(self._dataset.write, task.keys, images))
        numbered = _numbered(labels)
        if self._memory is None or task.slot is None:
            return as_tensors(images, numbered, appearance)
        return WrittenBatch(id(self._memory), task.slot, shape, numbered, appearance)


class _Tasks(Sampler[Task]):
    """Sampler of the batches of a plan, each with a slot in the batch memory if one is free."""

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
    """`DataLoader` of batches, which its workers write to a `BatchMemory` if possible."""

    def __iter__(self) -> Any:
        """Iterate over the batches of the plan."""
        return (
            batch.item() if isinstance(batch, WrittenBatch) else batch
            for batch in super().__iter__()
        )

    def check_worker_number_rationality(self) -> None:
        """Skip torch's warning about the number of workers."""


def loader(
    dataset: TrainingSet,
    plan: BatchPlan,
    *,
    workers: int = 0,
    pin: bool = False,
    in_part: bool = False,
) -> DataLoader[Item]:
    """Create a loader of the batches of a plan; call ``plan.set_epoch`` before each pass.

    If ``workers`` is 0, the calling process loads the images. With ``pin``, batches are in
    page-locked memory, for asynchronous copies to a GPU. With ``in_part``, colour jitter and mirror
    are left to the device: a batch is (images, targets, appearance), for
    `y7edge.train.augment.on_device.apply_appearance`.

    Raises:
        ConfigError: The prefetched batches do not fit into memory.
    """
    keep_freed_memory()  # also in forked workers
    # Forked workers share the memory of cached images.
    method = "fork" if workers and sys.platform == "linux" else None
    memory = None
    if method == "fork":
        stride = plan.rect.stride if plan.rect else 1
        side = -(-dataset.size // stride) * stride
        memory = BatchMemory(PREFETCH * workers + _SPARE, plan.batch // plan.world * 3 * side**2)
    return Loader(
        _Work(dataset, memory, in_part),  # type: ignore[arg-type]
        batch_size=None,  # tasks are whole batches
        sampler=_Tasks(plan, memory),
        num_workers=workers,
        worker_init_fn=partial(start_worker, os.getpid()),
        multiprocessing_context=method,
        persistent_workers=workers > 0,  # workers start and verify cached files only once
        prefetch_factor=PREFETCH if workers else None,
        pin_memory=pin,
    )
