"""Cached images equal decoded ones; damage, concurrency, and limits of memory and disk."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import sys
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from y7edge import files
from y7edge.data.sample import Sample
from y7edge.errors import ConfigError, DataError, OutputError
from y7edge.train.loading import image_cache, memory
from y7edge.train.loading.image_cache import DiskCache, RamCache, Uncached, open_cache

SIZE = 64
Usage = namedtuple("Usage", "total used free")


def sample(path, size=None):
    return Sample(path, np.zeros((0, 4), np.float32), np.zeros(0, np.int32), size=size)


@pytest.fixture
def samples(tmp_path):
    """Five images of different sizes, with and without a size that was read before."""
    result = []
    for index, (height, width) in enumerate([(40, 80), (80, 40), (64, 64), (30, 41), (200, 100)]):
        path = tmp_path / f"{index}.png"
        rng = np.random.default_rng(index)
        cv2.imwrite(str(path), rng.integers(0, 255, (height, width, 3), np.uint8))
        result.append(sample(path, (width, height) if index % 2 else None))
    return result


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The cache folder of this test."""
    monkeypatch.setenv("Y7EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def no_reading(path):
    raise AssertionError(f"{path}: read again")


def entries(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", ["auto", "ram", "disk", "none"])
def test_cached_images_equal_decoded_ones(samples, kind):
    kept = open_cache(kind, samples, SIZE)
    assert len(kept) == 5
    assert [image.shape[:2] for image in kept] == [(32, 64), (64, 32), (64, 64), (47, 64), (64, 32)]
    for image, each in zip(kept, samples, strict=True):
        wanted = cv2.resize(cv2.imread(str(each.path)), image.shape[1::-1])
        assert np.array_equal(image, wanted)


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_cached_images_are_read_only_and_not_decoded_again(samples, kind, monkeypatch):
    kept = open_cache(kind, samples, SIZE)
    monkeypatch.setattr(image_cache, "decode", no_reading)
    for image in kept:
        with pytest.raises(ValueError, match="read-only"):
            image[0, 0] = 1


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_an_image_that_cannot_be_read_is_named(samples, kind):
    samples[3].path.unlink()
    with pytest.raises(DataError, match=r"3\.png: cannot read"):
        open_cache(kind, samples, SIZE)


def test_unknown_kinds_are_refused(samples):
    with pytest.raises(ConfigError, match="expected auto, ram, disk or none, found 'disc'"):
        open_cache("disc", samples, SIZE)


# --- memory --------------------------------------------------------------------------------------


def test_ram_cache_is_one_block(samples):
    kept = RamCache(samples, SIZE)
    bases = {id(image.base) for image in kept}
    assert len(bases) == 1
    # Images of unknown size take a square.
    room = [SIZE * SIZE * 3, 64 * 32 * 3, SIZE * SIZE * 3, 47 * 64 * 3, SIZE * SIZE * 3]
    assert kept[0].base.nbytes == sum(room)


def test_image_larger_than_expected_is_cached(samples):
    samples[1] = sample(samples[1].path, (80, 10))
    kept = RamCache(samples, SIZE)
    assert kept[1].shape == (64, 32, 3)
    assert np.array_equal(kept[1], Uncached(samples, SIZE)[1])
    assert not kept[1].flags.writeable


def copied_kb(address):
    """Private memory of this process in the mapping around an address."""
    around = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head:
            low, high = (int(end, 16) for end in head.split("-"))
            around = low <= address < high
        elif around and head == "Private_Dirty:":
            return int(line.split()[1])
    return None


@pytest.mark.skipif(sys.platform != "linux", reason="looks its memory up as Linux has it")
def test_forked_process_shares_the_block(samples):
    kept = RamCache(samples * 8, 640)
    address = kept[9].__array_interface__["data"][0]
    receive, send = os.pipe()
    if not os.fork():
        total = sum(int(image.sum()) for image in kept)
        os.write(send, f"{total} {copied_kb(address)}".encode())
        os._exit(0)
    os.wait()
    total, copied = map(int, os.read(receive, 100).split())
    assert total == sum(int(image.sum()) for image in kept)
    # The kernel may join the block's mapping with a neighbour's, of which megabytes are copied.
    assert copied < kept[0].base.nbytes / 1024 / 2


def test_too_little_memory_is_an_error_before_reading(samples, monkeypatch):
    large = [sample(each.path, (640, 480)) for each in samples] * 10_000
    monkeypatch.setattr(memory, "available_memory", lambda: 10_000_000_000)
    monkeypatch.setattr(image_cache, "decode", no_reading)
    with pytest.raises(ConfigError, match=r"take 46\.1 GB, but only 8\.0 GB"):
        open_cache("ram", large, 640)


@pytest.mark.parametrize(
    ("limit", "free", "kind"),
    [(10**9, 10**9, RamCache), (50_000, 10**9, Uncached), (10**9, 60_000, Uncached)],
)
def test_auto_uses_memory_if_images_fit(samples, monkeypatch, limit, free, kind):
    # Five images: 52,032 bytes.
    monkeypatch.setattr(image_cache, "CACHE_LIMIT", limit)
    monkeypatch.setattr(memory, "available_memory", lambda: free)
    assert isinstance(open_cache("auto", samples, SIZE), kind)


# --- disk ----------------------------------------------------------------------------------------


def test_disk_cache_is_reused(samples, monkeypatch):
    before = [image.copy() for image in DiskCache(samples, SIZE)]
    monkeypatch.setattr(image_cache, "decode", no_reading)
    after = DiskCache(samples, SIZE)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_disk_cache_is_keyed_by_content(samples, folder, monkeypatch):
    first, second = samples[0].path, samples[1].path
    DiskCache(samples, SIZE)
    times = first.stat()
    moved = first.with_name("moved.png")
    first.rename(moved)
    shutil.copy(second, first)
    os.utime(first, ns=(times.st_atime_ns, times.st_mtime_ns))
    monkeypatch.setattr(image_cache, "decode", no_reading)
    kept = DiskCache([sample(first), sample(moved)], SIZE)
    assert kept[0].shape == (64, 32, 3)
    assert kept[1].shape == (32, 64, 3)
    assert len(entries(folder)) == 5


def test_changed_bytes_of_equal_size_and_time_are_detected(tmp_path):
    path = tmp_path / "a.bmp"
    for grey in (10, 200):
        cv2.imwrite(str(path), np.full((64, 64, 3), grey, np.uint8))
        os.utime(path, ns=(1, 1))
        assert (DiskCache([sample(path)], SIZE)[0] == grey).all()


def test_sizes_have_separate_entries(samples, folder):
    DiskCache(samples, SIZE)
    assert DiskCache(samples, 32)[0].shape == (16, 32, 3)
    assert len(entries(folder)) == 10


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def other_format(path):
    path.write_bytes(b"Y" + path.read_bytes()[1:])


@pytest.mark.parametrize("damage", [cut, flip_a_bit, empty, other_format, Path.unlink])
def test_damaged_or_missing_entry_is_rewritten(samples, folder, damage, monkeypatch):
    kept = DiskCache(samples[:1], SIZE)
    (path,) = entries(folder)
    whole = path.read_bytes()
    damage(path)
    assert np.array_equal(kept[0], Uncached(samples, SIZE)[0])
    assert path.read_bytes() == whole
    assert entries(folder) == [path]
    damage(path)
    assert np.array_equal(DiskCache(samples[:1], SIZE)[0], Uncached(samples, SIZE)[0])


@contextmanager
def full(_path, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    yield


def test_full_disk_is_an_error_while_filling_and_a_warning_later(samples, monkeypatch, folder):
    kept = DiskCache(samples[:1], SIZE)
    (path,) = entries(folder)
    monkeypatch.setattr(image_cache, "atomic_write", full)
    with pytest.raises(OutputError, match="cache of decoded images: the disk is full"):
        DiskCache(samples, SIZE)
    cut(path)
    assert np.array_equal(kept[0], Uncached(samples, SIZE)[0])


def test_failed_write_leaves_no_file(samples, folder, monkeypatch):
    def failing(_image):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(image_cache.zlib, "crc32", failing)
    with pytest.raises(OutputError, match="the disk is full"):
        DiskCache(samples, SIZE)
    assert entries(folder) == []


def test_too_little_disk_space_is_an_error_before_writing(samples, monkeypatch, folder):
    free = Usage(0, 0, 30_000)
    DiskCache(samples[:3], SIZE)
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda _: free)
    DiskCache(samples[:4], SIZE)  # cached images need no more space
    with pytest.raises(OutputError, match=r"cache disk: .* 0\.1 MB, but only 0\.0 MB are free"):
        DiskCache(samples, 100)


def no_home(folder, monkeypatch):
    monkeypatch.delenv("Y7EDGE_CACHE")
    monkeypatch.setenv("HOME", str(folder / "none"))
    folder.parent.parent.mkdir(exist_ok=True)
    (folder / "none").parent.mkdir(parents=True)
    (folder / "none").touch()


def no_private_folder(folder, monkeypatch):
    def fail(*_, **__):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.delenv("Y7EDGE_CACHE")
    monkeypatch.setattr(Path, "home", lambda: exec("raise RuntimeError"))
    monkeypatch.setattr(files.tempfile, "mkdtemp", fail)
    files._private_folder.cache_clear()


def a_file(folder, monkeypatch):
    folder.parent.touch()


def a_pipe(folder, monkeypatch):
    os.mkfifo(folder.parent)


def a_dangling_link(folder, monkeypatch):
    folder.parent.symlink_to("/nowhere/at/all")


def too_long(folder, monkeypatch):
    monkeypatch.setenv("Y7EDGE_CACHE", "/tmp/" + "x" * 300)


def read_only(folder, monkeypatch):
    monkeypatch.setattr(image_cache, "atomic_write", refusing(errno.EROFS))


def no_permission(folder, monkeypatch):
    monkeypatch.setattr(image_cache, "atomic_write", refusing(errno.EACCES))


def full_while_writing(folder, monkeypatch):
    monkeypatch.setattr(image_cache, "atomic_write", full)


def full_before(folder, monkeypatch):
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda _: Usage(0, 0, 0))


def refusing(number):
    @contextmanager
    def refuse(_path, **_options):
        raise OSError(number, os.strerror(number))
        yield

    return refuse


@pytest.mark.parametrize(
    "trouble",
    [
        *(no_home, no_private_folder, a_file, a_pipe, a_dangling_link, too_long),
        *(read_only, no_permission, full_while_writing, full_before),
    ],
)
def test_unwritable_cache_is_skipped_with_a_warning(samples, folder, trouble, monkeypatch, caplog):
    trouble(folder, monkeypatch)
    images = open_cache("disk", samples, SIZE)
    expected = Uncached(samples, SIZE)
    assert all(np.array_equal(one, two) for one, two in zip(images, expected, strict=True))
    (line,) = caplog.messages
    assert "training without a cache" in line


def test_full_disk_warns_once(samples, folder, monkeypatch, caplog):
    kept = DiskCache(samples, SIZE)
    for path in entries(folder):
        path.unlink()
    monkeypatch.setattr(image_cache, "atomic_write", full)
    assert [image.shape for image in kept] == [image.shape for image in Uncached(samples, SIZE)]
    assert len(caplog.messages) == 1


def test_pipe_in_the_cache_does_not_block(samples, folder):
    kept = DiskCache(samples[:1], SIZE)
    (path,) = entries(folder)
    path.unlink()
    os.mkfifo(path)
    assert np.array_equal(kept[0], Uncached(samples, SIZE)[0])


def fill(samples, results):
    results.put([image.copy() for image in DiskCache(samples, SIZE)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its writers")
def test_processes_may_fill_the_cache_concurrently(samples, folder):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    writers = [context.Process(target=fill, args=(samples, results)) for _ in range(4)]
    for writer in writers:
        writer.start()
    given = [results.get(timeout=30) for _ in writers]
    for writer in writers:
        writer.join()
    wanted = list(Uncached(samples, SIZE))
    assert all(np.array_equal(a, b) for one in given for a, b in zip(one, wanted, strict=True))
    assert len(entries(folder)) == 5
