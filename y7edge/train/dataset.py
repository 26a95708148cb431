"""Pictures and labels for training, in batches, repeatable from a seed.

What item i of epoch e looks like depends on (seed, e, i) alone: not on the number of workers, nor
on what was drawn before. The sampler therefore hands out pairs of epoch and index, so that workers
which live through all epochs need not be told about them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from y7edge.data.dataset import Sample
from y7edge.data.images import read_image
from y7edge.errors import DataError
from y7edge.preprocess import letterbox_geometry
from y7edge.train.augment import Augmentation, Picture, augment, letterbox, resize

# Decoding is most of the work of an item: below this many bytes all pictures are kept decoded.
CACHE_LIMIT = 1 << 30

Item = tuple[Tensor, Tensor]


class TrainingSet(Dataset[Item]):
    """Samples as augmented network inputs.

    Items are a uint8 tensor (3, S, S), RGB, and a float32 tensor (n, 5): class, and centre x, y,
    width, height as shares of S.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        size: int,
        augmentation: Augmentation | None = None,
        *,
        seed: int = 0,
        cache: bool | None = None,
    ) -> None:
        """Prepare the set, and read all pictures if they are cached.

        Args:
            samples: What to show.
            size: Side S of the network's square input.
            augmentation: How pictures are changed; None only letterboxes them.
            seed: Other seeds give other crops, partners and colours.
            cache: Keep pictures decoded and resized in memory; None if they take at most
                ``CACHE_LIMIT`` bytes.

        Raises:
            DataError: No samples, or a picture cannot be read.
        """
        if not samples:
            raise DataError("expected pictures to train on, found none")
        self.samples = tuple(samples)
        self.size = size
        self.augmentation = augmentation
        self.seed = seed
        if cache is None:
            cache = len(samples) * size * size * 3 <= CACHE_LIMIT
        self._cached: list[NDArray[np.uint8]] | None = None
        if cache:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                self._cached = list(pool.map(self._decode, range(len(samples))))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        """The item of (epoch, index); a bare index means epoch 0."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        settings = self.augmentation
        if settings is None:
            return _tensors(letterbox(self._picture(index), self.size))
        rng = np.random.default_rng((self.seed, epoch, index))
        chosen = [index]
        if rng.random() < settings.mosaic:
            chosen += rng.integers(len(self.samples), size=3).tolist()
        tiles = [self._picture(number) for number in chosen]
        return _tensors(augment(tiles, self.size, settings, rng))

    def _picture(self, index: int) -> Picture:
        """A picture with its longer side S, and its labels in pixels."""
        image = self._cached[index] if self._cached is not None else self._decode(index)
        sample = self.samples[index]
        boxes = sample.boxes.astype(np.float64)
        corners = np.hstack((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2))
        corners *= np.tile(image.shape[1::-1], 2)
        return Picture(image, corners, sample.class_id.astype(np.int64))

    def _decode(self, index: int) -> NDArray[np.uint8]:
        image = read_image(self.samples[index].path)
        return resize(image, letterbox_geometry(image.shape[:2], self.size).resized_hw)


def _tensors(picture: Picture) -> Item:
    size = picture.image.shape[0]
    planes = np.ascontiguousarray(picture.image[:, :, ::-1].transpose(2, 0, 1))
    low, high = picture.boxes[:, :2] / size, picture.boxes[:, 2:] / size
    labels = np.column_stack((picture.class_id, (low + high) / 2, high - low))
    return torch.from_numpy(planes), torch.from_numpy(labels.astype(np.float32))


def collate(items: Sequence[Item]) -> Item:
    """Stack items to images (B, 3, S, S) uint8 and targets (n, 6) float32.

    A target is the index of its image in the batch, class, and centre x, y, width, height as shares
    of the input.
    """
    images = torch.stack([image for image, _ in items])
    rows = [
        torch.cat((torch.full((len(labels), 1), float(index)), labels), dim=1)
        for index, (_, labels) in enumerate(items)
    ]
    return images, torch.cat(rows)


class EpochSampler(Sampler[tuple[int, int]]):
    """Every index once, as (epoch, index), in an order that depends on seed and epoch alone."""

    def __init__(self, length: int, *, seed: int = 0, shuffle: bool = True) -> None:
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next pass is."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self.length)
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        return iter([(self.epoch, int(index)) for index in order])


def _start_worker(_: int) -> None:
    # One process per core is parallel enough; OpenCV's threads would only compete.
    cv2.setNumThreads(0)


def loader(
    dataset: TrainingSet, batch: int, *, workers: int = 0, shuffle: bool = True
) -> DataLoader[Item]:
    """Batches of a set, the last one smaller if they don't come out even.

    ``loader(...).sampler.set_epoch(epoch)`` before each pass; without it every pass is epoch 0.

    Args:
        dataset: What to load.
        batch: Pictures per batch.
        workers: Processes that load; 0 loads in the calling one. Cached pictures are shared with
            forked workers, and copied to each spawned one.
        shuffle: In another order each epoch.
    """
    return DataLoader(
        dataset,
        batch_size=batch,
        sampler=EpochSampler(len(dataset), seed=dataset.seed, shuffle=shuffle),
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_start_worker,
        persistent_workers=workers > 0,
    )


def batches(pictures: DataLoader[Item]) -> Iterator[Item]:
    """One pass over a loader, with the error of a worker process as its own one line.

    Raises:
        DataError: a picture cannot be read.
    """
    try:
        yield from pictures
    except DataError as error:
        # Torch puts the worker's traceback into the message; its last line is what was raised.
        line = str(error).strip().splitlines()[-1]
        raise DataError(line.removeprefix("y7edge.errors.DataError: ")) from error
