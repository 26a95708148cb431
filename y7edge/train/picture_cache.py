"""Decoded pictures, kept in memory or on disk: decoding is most of the work of an item.

Pictures are kept as an item needs them: upright, BGR, longer side resized to the input's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from y7edge.data.images import read_image
from y7edge.data.sample import Sample
from y7edge.errors import ConfigError
from y7edge.preprocess import letterbox_geometry
from y7edge.train.augment import resize

# "auto" keeps all pictures in memory below this many bytes.
CACHE_LIMIT = 1 << 30

Images = Sequence[NDArray[np.uint8]]
Filling = Callable[[int, int], None]


def open_cache(
    kind: str, samples: Sequence[Sample], size: int, progress: Filling | None = None
) -> Images:
    """Pictures of these samples by index, uint8 (h, w, 3) BGR, longer side ``size``."""
    if kind == "auto":
        kind = "ram" if len(samples) * size * size * 3 <= CACHE_LIMIT else "none"
    if kind == "ram":
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(lambda sample: _decode(sample, size), samples))
    if kind == "none":
        return Uncached(samples, size)
    raise ConfigError(f"cache {kind!r} is not in this version")


class Uncached(Sequence[NDArray[np.uint8]]):
    """Every picture is read and decoded whenever it is asked for."""

    def __init__(self, samples: Sequence[Sample], size: int) -> None:
        self._samples, self._size = samples, size

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:  # type: ignore[override]
        return _decode(self._samples[index], self._size)


def _decode(sample: Sample, size: int) -> NDArray[np.uint8]:
    image = read_image(sample.path)
    return resize(image, letterbox_geometry(image.shape[:2], size).resized_hw)
