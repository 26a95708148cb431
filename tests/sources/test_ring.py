"""Images in shared memory: what is written is read; what is not valid is refused."""

from __future__ import annotations

import fcntl
import math
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from y7edge.errors import DataError
from y7edge.sources import ring
from y7edge.sources.base import Captured
from y7edge.sources.ring import SLOTS, Reader, Writer, rows_of


def captured(seed=0, size=(34, 10), format="bgr", pad=6, **changes):
    width, height = size
    rng = np.random.default_rng(seed)
    row = width if format == "nv12" else 3 * width
    planes = [rng.integers(0, 256, (height, row + pad), np.uint8)]
    if format == "nv12":
        # The planes of drivers are apart, and their strides may differ.
        planes.append(rng.integers(0, 256, (height // 2 + 3, row + 2 * pad), np.uint8))
    fields = {"planes": tuple(planes), "size": size, "format": format}
    return Captured(**{**fields, "timestamp_ns": 5, "clock": "driver", **changes})


@pytest.fixture
def pair():
    opened = []

    def make(image_bytes=3 * 34 * 10):
        writer = Writer(image_bytes)
        opened.append(writer)
        opened.append(Reader(os.dup(writer.descriptor), image_bytes))
        return writer, opened[-1]

    yield make
    for end in opened:
        end.close()


@pytest.mark.parametrize("format", ["bgr", "rgb", "nv12"])
def test_an_image_arrives_without_its_padding(pair, format):
    writer, reader = pair()
    frame = captured(1, format=format, timestamp_ns=-7, clock="sensor", rate=29.97)
    writer.write(frame, 9)
    copied = reader.copy(0)
    assert (copied.number, copied.format, copied.timestamp_ns) == (9, format, -7)
    assert (copied.clock, copied.rate) == ("sensor", 29.97)
    if format == "nv12":
        assert copied.image.shape == (15, 34)
        assert (copied.image[:10] == frame.planes[0][:, :34]).all()
        assert (copied.image[10:] == frame.planes[1][:5, :34]).all()
    else:
        assert (copied.image == frame.planes[0][:, :102].reshape(10, 34, 3)).all()
    assert copied.image.flags.c_contiguous and copied.image.flags.writeable


def test_the_newest_or_the_oldest_is_read_and_nothing_twice(pair):
    writer, reader = pair()
    assert reader.newest() == 0 and reader.copy(0) is None
    for number in (1, 2, 4, 5):
        writer.write(captured(number), number)
    assert reader.newest() == 5
    assert reader.copy(0).number == 5
    assert reader.copy(2, oldest=True).number == 4
    assert reader.copy(5) is None


def test_a_copy_stays_when_its_slot_is_written_and_unmapped():
    writer = Writer(1020)
    reader = Reader(os.dup(writer.descriptor), 1020)
    writer.write(captured(1), 1)
    image = reader.copy(0).image
    for number in range(2, 6):
        writer.write(captured(number), number)
    reader.close()
    writer.close()
    assert (image == captured(1).planes[0][:, :102].reshape(10, 34, 3)).all()


def test_smaller_images_fit_and_larger_ones_do_not(pair):
    writer, reader = pair()
    writer.write(captured(1, (8, 4), "rgb"), 1)
    assert reader.copy(0).image.shape == (4, 8, 3)
    with pytest.raises(DataError, match="does not fit"):
        writer.write(captured(2, (64, 64)), 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"planes": ()},
        {"planes": (np.zeros((9, 102), np.uint8),)},
        {"planes": (np.zeros((10, 101), np.uint8),)},
        {"planes": (np.zeros((10, 102), np.uint16),)},
        {"planes": (np.zeros((10, 34, 3), np.uint8),)},
        {"format": "nv12"},
        {"size": (34, 0)},
        {"size": (-34, 10)},
        {"size": (1 << 20, 1 << 20)},
    ],
)
def test_an_incomplete_image_is_refused_and_leaves_the_ring_usable(pair, changes):
    writer, reader = pair()
    writer.write(captured(1), 1)
    with pytest.raises(DataError):
        writer.write(replace(captured(2), **changes), 2)
    assert reader.newest() == 1
    writer.write(captured(3), 3)
    assert reader.copy(0).number == 3


@pytest.mark.parametrize("size", [(33, 10), (34, 9)])
def test_nv12_of_odd_sides_is_refused_with_a_way_out(size):
    with pytest.raises(DataError, match="expected even numbers: choose another size, or format"):
        rows_of("nv12", size)


# --- two processes -------------------------------------------------------------------------------

_LOCK = """
import fcntl, sys
fcntl.lockf(int(sys.argv[1]), fcntl.{kind}, 4096, int(sys.argv[2]))
print("locked", flush=True)
sys.stdin.read()
"""


class Locker:
    """Another process that holds the lock of a slot."""

    def __init__(self, writer, slot, kind):
        step = ring._slot_bytes(writer.capacity)
        command = [sys.executable, "-c", _LOCK.format(kind=kind)]
        self.process = subprocess.Popen(
            [*command, str(writer.descriptor), str(slot * step)],
            pass_fds=[writer.descriptor],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self):
        assert self.process.stdout.readline() == b"locked\n"
        return self

    def __exit__(self, *_):
        self.process.communicate()


def test_the_writer_never_waits_for_a_reader_and_keeps_what_is_read(pair):
    writer, reader = pair()
    for number in (1, 2, 3):
        writer.write(captured(number), number)
    with Locker(writer, 1, "LOCK_SH"):  # frame 2 is being read, by a process that is stuck
        for number in range(4, 9):
            writer.write(captured(number), number)
            assert reader.newest() == number
        assert reader.copy(0, oldest=True).number == 2
    writer.write(captured(9), 9)
    assert reader.copy(0, oldest=True).number > 2


def test_the_reader_skips_what_is_being_written(pair):
    writer, reader = pair()
    for number in (1, 2, 3):
        writer.write(captured(number), number)
    with Locker(writer, 2, "LOCK_EX"):
        assert reader.copy(0).number == 2
        assert reader.copy(2) is None
    assert reader.copy(2).number == 3


def test_frames_are_whole_while_another_process_writes():
    """Each frame is of one value; a torn frame would have two."""
    code = (
        "import sys, numpy as np; from y7edge.sources.ring import Writer;"
        "from y7edge.sources.base import Captured;"
        "w = Writer(3000000); print(w.descriptor, flush=True); sys.stdin.readline()\n"
        "for n in range(1, 601):\n"
        "    plane = np.full((1000, 3000), n % 251, np.uint8)\n"
        "    w.write(Captured((plane,), (1000, 1000), 'bgr', n, 'driver'), n)\n"
        "print('done', flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        number = int(process.stdout.readline())
        reader = Reader(os.open(f"/proc/{process.pid}/fd/{number}", os.O_RDWR), 3000000)
        process.stdin.write(b"\n")
        process.stdin.flush()
        last, seen, end = 0, 0, time.monotonic() + 60
        while last < 600 and time.monotonic() < end:
            if copied := reader.copy(last):
                assert (copied.image == copied.number % 251).all()
                assert copied.number > last
                last, seen = copied.number, seen + 1
        reader.close()
        process.stdin.close()
    assert last == 600 and seen > 2


# --- a writer that is not to be trusted ----------------------------------------------------------


def memory(size, seals=fcntl.F_SEAL_SHRINK):
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    if seals:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("image_bytes", [0, -1, 1 << 31, 100_000])
def test_memory_of_another_size_is_refused_and_closed(image_bytes):
    descriptor = memory(SLOTS * ring._slot_bytes(1000))
    with pytest.raises(DataError):
        Reader(descriptor, image_bytes)
    assert not is_open(descriptor)


def test_memory_that_can_be_made_shorter_is_refused():
    """Or the process that reads it would die by SIGBUS."""
    descriptor = memory(SLOTS * ring._slot_bytes(1000), seals=0)
    with pytest.raises(DataError, match="not sealed"):
        Reader(descriptor, 1000)
    assert not is_open(descriptor)


def test_what_is_not_a_file_is_refused():
    ours, other = os.pipe()
    with pytest.raises(DataError):
        Reader(ours, 1000)
    os.close(other)


@pytest.mark.parametrize(
    "header",
    [
        (1, 0, 1 << 31, 1 << 31, 0, 0, 0.0),
        (1, 0, 0xFFFFFFFF, 1, 0, 0, 0.0),
        (1, 0, 0, 10, 0, 0, 0.0),
        (1, 0, 34, 11, 0, 0, 0.0),  # one row more than fits
        (1, 0, 33, 10, 2, 0, 0.0),  # NV12 of an odd width
        (1, 0, 34, 10, 3, 0, 0.0),
        (1, 0, 34, 10, 0, 9, 0.0),
        (1 << 63, 0, 34, 10, 0, 0, 0.0),
    ],
)
def test_a_header_that_is_not_valid_is_refused(pair, header):
    writer, reader = pair()
    ring._HEADER.pack_into(writer._memory, 0, *header)
    # The last byte that the slot has room for is at 1020, rounded up to a page.
    with pytest.raises(DataError):
        reader.copy(0)


@pytest.mark.parametrize("rate", [math.nan, math.inf, -1.0, 0.0])
def test_a_rate_that_is_not_one_is_unknown(pair, rate):
    writer, reader = pair()
    ring._HEADER.pack_into(writer._memory, 0, 1, 0, 34, 10, 0, 0, rate)
    assert reader.copy(0).rate is None


def test_a_temporary_file_takes_the_place_of_a_memfd(monkeypatch):
    """As on macOS."""
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.delattr(os, "posix_fallocate")
    writer = Writer(1020)
    reader = Reader(os.dup(writer.descriptor), 1020)
    writer.write(captured(4), 4)
    assert reader.copy(0).number == 4
    assert os.fstat(writer.descriptor).st_nlink == 0
    reader.close()
    writer.close()
