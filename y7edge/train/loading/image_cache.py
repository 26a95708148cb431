"""Cache decoded images in memory or on disk, since decoding takes most of the loading time.

All caches return the same images: BGR, upright, and resized so that their longer side equals that
of the network's input. JPEGs are not decoded at a reduced size. That would save a fifth of the time
on COCO at 320 pixels, but the images would differ from those that the detector resizes bilinearly
(by 1.8 grey levels on average, and much more in single pixels).
"""

from __future__ import annotations

import hashlib
import logging
import math
import mmap
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from y7edge.data.images import decode, reading
from y7edge.data.sample import Sample
from y7edge.detect.preprocess import letterbox_geometry
from y7edge.errors import ConfigError, OutputError
from y7edge.files import atomic_write, cache_folder, is_file, is_folder, open_regular, writing
from y7edge.train.augment.labelled import resize
from y7edge.train.loading.memory import format_bytes, spare_memory

_log = logging.getLogger(__name__)

CACHE_LIMIT = 1 << 30  # "auto" caches up to this number of bytes in memory

# Header of a cached file: magic and version, height, width, CRC-32 of the pixels that follow.
_HEAD = struct.Struct("<8sIII")
_MAGIC = b"y7edgeP1"

T = TypeVar("T")
R = TypeVar("R")
Image = NDArray[np.uint8]
Images = Sequence[Image]


def open_cache(kind: str, samples: Sequence[Sample], size: int) -> Images:
    """Return the decoded images of samples: read-only uint8 (h, w, 3), BGR, longer side ``size``.

    ``kind`` is one of:

    - ``none``: decode an image on each access.
    - ``ram``: keep all images in memory, which forked processes share.
    - ``disk``: keep all images in the cache folder, for later runs too. If the folder cannot be
      written, log a warning and use ``none``.
    - ``auto``: ``ram`` if the images take at most ``CACHE_LIMIT`` bytes, else ``none``.

    Raises:
        ConfigError: The kind is unknown, or memory is too small.
        DataError: An image cannot be read.
    """
    if kind == "auto":
        kind = "ram" if sum(_bytes(samples, size)) <= min(CACHE_LIMIT, spare_memory()) else "none"
    if kind == "none":
        return Uncached(samples, size)
    if kind == "ram":
        return RamCache(samples, size)
    if kind == "disk":
        try:
            return DiskCache(samples, size)
        except OutputError as error:
            _log.warning("%s: training without a cache", error)
            return Uncached(samples, size)
    raise ConfigError(f"cache: expected auto, ram, disk or none, found {kind!r}")


class Uncached(Images):
    """Images that are read and decoded on each access."""

    def __init__(self, samples: Sequence[Sample], size: int) -> None:
        self._samples, self._size = samples, size

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Image:  # type: ignore[override]
        return _decoded(self._samples[index], self._size)


class RamCache(Images):
    """All images in one block of memory, which forked processes share."""

    def __init__(self, samples: Sequence[Sample], size: int) -> None:
        room = _bytes(samples, size)
        self._starts = np.cumsum([0, *room])
        needed = int(self._starts[-1])
        if needed > spare_memory():
            raise ConfigError(
                f"cache ram: the decoded images take {format_bytes(needed)}, but "
                f"only {format_bytes(spare_memory())} are available: use cache disk or none, or a "
                "smaller imgsz"
            )
        self._block = np.empty(needed, np.uint8)
        self._shapes = np.zeros((len(samples), 2), np.int32)
        # Images larger than their reserved space: a file has changed, or its header is wrong.
        self._others: dict[int, Image] = {}

        def fill(index: int) -> None:
            image = _decoded(samples[index], size)
            if image.size > room[index]:
                image.flags.writeable = False
                self._others[index] = image
                return
            start = self._starts[index]
            self._block[start : start + image.size] = image.reshape(-1)
            self._shapes[index] = image.shape[:2]

        in_threads(fill, range(len(samples)))
        self._block.flags.writeable = False

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, index: int) -> Image:  # type: ignore[override]
        if index in self._others:
            return self._others[index]
        start = int(self._starts[index])
        height, width = self._shapes[index].tolist()
        return self._block[start : start + height * width * 3].reshape(height, width, 3)


class DiskCache(Images):
    """Images in the cache folder, one file each, named by a hash of the original file's content.

    Several processes may fill the folder at the same time. Missing or damaged files are rewritten.

    Raises:
        DataError: An image cannot be read.
        OutputError: The folder cannot be written, or lacks space.
    """

    def __init__(self, samples: Sequence[Sample], size: int) -> None:
        self._samples, self._size = samples, size
        self._writable = True  # until writing a file fails
        with writing("the cache of decoded images", "Y7EDGE_CACHE"):
            self._folder = cache_folder("images")
        self._names = in_threads(lambda sample: _name(sample, size), samples)
        # Whether this process has verified the checksum of each file.
        self._checked = bytearray(len(samples))

        def store(index: int) -> None:
            if not is_file(self._path(index)):  # unless an equal image was stored
                self._store(index, _decoded(samples[index], size))

        missing = [i for i in range(len(samples)) if not is_file(self._path(i))]
        self._require_disk(sum(_bytes([samples[i] for i in missing], size)))
        in_threads(store, missing)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Image:  # type: ignore[override]
        image = self._read(index)
        if image is not None:
            return image
        image = _decoded(self._samples[index], self._size)
        if self._writable:
            try:
                self._store(index, image)
            except OutputError as error:  # warn only, since the image itself could be read
                self._writable = False
                _log.warning("%s", error)
        return image

    def _path(self, index: int) -> Path:
        name = self._names[index]
        return self._folder / name[:2] / name

    def _read(self, index: int) -> Image | None:
        """Return a cached image; None if it is missing or damaged."""
        try:
            with open_regular(self._path(index)) as stream:
                block = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # missing, or empty
            return None
        if len(block) < _HEAD.size:
            return None
        magic, height, width, checksum = _HEAD.unpack_from(block)
        if magic != _MAGIC or len(block) != _HEAD.size + height * width * 3:
            return None
        pixels = np.frombuffer(block, np.uint8, offset=_HEAD.size)
        if not self._checked[index]:
            if zlib.crc32(pixels.data) != checksum:
                return None
            self._checked[index] = 1
        return pixels.reshape(height, width, 3)

    def _store(self, index: int, image: Image) -> None:
        path = self._path(index)
        with (
            writing("the cache of decoded images", path),
            atomic_write(path, durable=False) as temporary,
            temporary.open("wb") as stream,
        ):
            stream.write(_HEAD.pack(_MAGIC, *image.shape[:2], zlib.crc32(image.data)))
            stream.write(image.data)

    def _require_disk(self, needed: int) -> None:
        places = (self._folder, *self._folder.absolute().parents)
        free = shutil.disk_usage(next(place for place in places if is_folder(place))).free
        if needed > free:
            raise OutputError(
                f"cache disk: {self._folder} needs {format_bytes(needed)}, but only "
                f"{format_bytes(free)} are free; set Y7EDGE_CACHE to another folder"
            )


def _bytes(samples: Sequence[Sample], size: int) -> list[int]:
    """Return the size of each decoded image in bytes; samples of unknown size count as square."""
    sides: dict[tuple[int, int] | None, tuple[int, int]] = {None: (size, size)}
    for sample in samples:
        if sample.size is not None and sample.size not in sides:
            sides[sample.size] = letterbox_geometry(sample.size[::-1], size).resized_hw
    return [3 * math.prod(sides[sample.size]) for sample in samples]


def _decoded(sample: Sample, size: int) -> Image:
    with reading(sample.path) as (content, _):
        image = decode(content, sample.path, sample.levels)
        return resize(image, letterbox_geometry(image.shape[:2], size).resized_hw)


def _name(sample: Sample, size: int) -> str:
    """Return the name of a cached file: a hash of the image file's content and of settings."""
    # Decoded pixels may differ by a grey level between versions of OpenCV.
    state = hashlib.blake2b(f"{size} {cv2.__version__}\n".encode(), digest_size=20)
    if sample.levels:
        state.update(f"{sample.levels}\n".encode())
    with reading(sample.path) as (content, _):
        state.update(content)
    return state.hexdigest()


def in_threads(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Call ``work`` on all items in threads, and return the results; OpenCV releases the GIL."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C
