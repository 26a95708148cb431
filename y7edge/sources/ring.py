"""A ring of images in memory that two processes share; one writes, the other reads the newest.

The memory is a file without a name (memfd_create(2), or a deleted temporary file on other systems
than Linux). It has ``SLOTS`` slots of equal size: a header, then the rows of an image without
padding. A process locks a slot while it writes or reads it (fcntl(2), advisory record locks), and
never waits for a lock: with three slots there is always one that is neither read nor the newest.
The kernel frees the locks of a process that dies.
"""

from __future__ import annotations

import math
import mmap
import os
import stat
import struct
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray

from y7edge.errors import DataError
from y7edge.frames import Clock, Format
from y7edge.sources.base import Captured

if sys.platform != "win32":
    import fcntl

SLOTS: Final = 3
MAX_IMAGE: Final = 1 << 30  # bytes
_PAGE = 4096
# Number of the frame, from 1 (0: the slot is empty), time, width, height, format, clock, rate (NaN:
# unknown).
_HEADER = struct.Struct("<QqIIBBxxxxxxd")
_FORMATS: tuple[Format, ...] = get_args(Format)
_CLOCKS: tuple[Clock, ...] = get_args(Clock)


@dataclass(frozen=True, eq=False)
class Copied:
    """An image that was copied out of a ring.

    Attributes:
        number: of the frame in its process, from 1; frames that were dropped are counted.
        image: as in ``Frame``, with rows that are not padded.
        format: layout of the pixels.
        timestamp_ns: capture time of ``clock``.
        clock: what the timestamp is.
        rate: frames per second that the source states; None if unknown.
    """

    number: int
    image: NDArray[np.uint8]
    format: Format
    timestamp_ns: int
    clock: Clock
    rate: float | None


def rows_of(format: Format, size: tuple[int, int]) -> tuple[int, int]:
    """Return the number of rows of an image without padding, and the bytes of a row.

    Raises:
        DataError: there is no image of this size.
    """
    width, height = size
    if not (width > 0 and height > 0) or width * height * 3 > MAX_IMAGE:
        raise DataError(f"an image has {width}x{height} pixels, expected 1 to {MAX_IMAGE // 3}")
    if format != "nv12":
        return height, 3 * width
    if width % 2 or height % 2:
        raise DataError(
            f"an NV12 image has {width}x{height} pixels, expected even numbers: choose another "
            "size, or format bgr"
        )
    return height * 3 // 2, width


def _slot_bytes(image_bytes: int) -> int:
    return _PAGE + -(-image_bytes // _PAGE) * _PAGE


class Writer:
    """The writing side of a ring.

    Args:
        image_bytes: size of the largest image without padding.

    Attributes:
        descriptor: of the file; ``close`` closes it.
        capacity: ``image_bytes``.
    """

    def __init__(self, image_bytes: int) -> None:
        self.capacity = image_bytes
        self._step = _slot_bytes(image_bytes)
        self.descriptor = _new_file(SLOTS * self._step)
        self._memory = mmap.mmap(self.descriptor, SLOTS * self._step)
        self._numbers = [0] * SLOTS

    def write(self, captured: Captured, number: int) -> None:
        """Copy an image into a slot that is not read at the moment, never that of the newest one.

        Raises:
            DataError: the planes have fewer bytes than the size and format of the image say, or the
                image is larger than a slot.
        """
        rows, row = rows_of(captured.format, captured.size)
        if rows * row > self.capacity:
            raise DataError(f"an image of {rows * row} bytes does not fit into {self.capacity}")
        parts = _parts(captured, rows, row)
        slot = self._lock()
        offset = slot * self._step
        try:
            # A process that dies while it writes must not leave an old header on new pixels.
            _HEADER.pack_into(self._memory, offset, 0, 0, 0, 0, 0, 0, 0.0)
            image = np.frombuffer(self._memory, np.uint8, rows * row, offset + _PAGE)
            image = image.reshape(rows, row)
            start = 0
            for part in parts:
                image[start : start + len(part)] = part
                start += len(part)
            _HEADER.pack_into(
                self._memory,
                offset,
                number,
                captured.timestamp_ns,
                *captured.size,
                _FORMATS.index(captured.format),
                _CLOCKS.index(captured.clock),
                captured.rate or math.nan,
            )
            self._numbers[slot] = number
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN, _PAGE, offset)

    def _lock(self) -> int:
        """Lock the slot with the oldest image that is not read at the moment; return its index."""
        order = sorted(range(SLOTS), key=self._numbers.__getitem__)
        for slot in order[:-1]:
            with suppress(BlockingIOError, PermissionError):
                fcntl.lockf(
                    self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, _PAGE, slot * self._step
                )
                return slot
        raise DataError("the reader of the images has locked all of them")

    def close(self) -> None:
        """Unmap the memory. A reader keeps its own mapping."""
        self._memory.close()
        os.close(self.descriptor)


def _parts(captured: Captured, rows: int, row: int) -> list[NDArray[np.uint8]]:
    """Cut the padding off the planes of an image."""
    lengths = (rows,) if captured.format != "nv12" else (rows // 3 * 2, rows // 3)
    planes = captured.planes
    whole = len(planes) == len(lengths) and all(
        plane.ndim == 2 and plane.dtype == np.uint8 and len(plane) >= n and plane.shape[1] >= row
        for plane, n in zip(planes, lengths, strict=True)
    )
    if not whole:
        width, height = captured.size
        raise DataError(
            f"a frame is incomplete: its {captured.format} planes have the shapes "
            f"{[plane.shape for plane in planes]}, too small for {width}x{height} pixels"
        )
    return [plane[:n, :row] for plane, n in zip(planes, lengths, strict=True)]


class Reader:
    """The reading side of a ring; does not trust the writer.

    Args:
        descriptor: of the file; it belongs to the reader, even if this call fails.
        image_bytes: size of the largest image, according to the writer.

    Raises:
        DataError: it is not such a file.
    """

    def __init__(self, descriptor: int, image_bytes: int) -> None:
        self._descriptor = descriptor
        self._capacity = image_bytes
        try:
            if not 0 < image_bytes <= MAX_IMAGE:
                raise DataError(f"images have {image_bytes} bytes, expected 1 to {MAX_IMAGE}")
            self._step = _slot_bytes(image_bytes)
            _check_file(descriptor, SLOTS * self._step)
            self._memory = mmap.mmap(descriptor, SLOTS * self._step, prot=mmap.PROT_READ)
        except BaseException:
            os.close(descriptor)
            raise

    def newest(self) -> int:
        """Return the number of the newest frame; 0: there is none."""
        return max(self._number(slot) for slot in range(SLOTS))

    def copy(self, after: int, *, oldest: bool = False) -> Copied | None:
        """Copy the newest image with a number greater than ``after``, or the oldest of them.

        Returns:
            The image; None if there is none at the moment.

        Raises:
            DataError: the header of the image is not valid.
        """
        for _ in range(SLOTS):  # the writer may replace an image before it is locked
            numbers = [(self._number(slot), slot) for slot in range(SLOTS)]
            for number, slot in sorted(numbers, reverse=not oldest):
                if number > after and (copied := self._copy_slot(slot, after)):
                    return copied
        return None

    def _number(self, slot: int) -> int:
        number: int = struct.unpack_from("<Q", self._memory, slot * self._step)[0]
        return number

    def _copy_slot(self, slot: int, after: int) -> Copied | None:
        offset = slot * self._step
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, _PAGE, offset)
        except (BlockingIOError, PermissionError):
            return None
        try:
            number, time_ns, width, height, layout, clock, rate = _HEADER.unpack_from(
                self._memory, offset
            )
            if number <= after:
                return None
            if number >= 1 << 62 or layout >= len(_FORMATS) or clock >= len(_CLOCKS):
                raise DataError("the header of a frame is not valid")
            rows, row = rows_of(_FORMATS[layout], (width, height))
            if rows * row > self._capacity:
                raise DataError(f"a frame of {width}x{height} pixels is larger than its slot")
            # numpy copies without the GIL; the copy belongs to the caller.
            image = np.frombuffer(self._memory, np.uint8, rows * row, offset + _PAGE).copy()
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, _PAGE, offset)
        shape = (rows, row) if _FORMATS[layout] == "nv12" else (height, width, 3)
        known = rate if math.isfinite(rate) and rate > 0 else None
        return Copied(
            number, image.reshape(shape), _FORMATS[layout], time_ns, _CLOCKS[clock], known
        )

    def close(self) -> None:
        """Unmap the memory; images that were copied stay valid."""
        self._memory.close()
        os.close(self._descriptor)


def _new_file(size: int) -> int:
    """Create a file without a name; return its descriptor."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("y7edge frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        descriptor, path = tempfile.mkstemp(prefix="y7edge-frames-")
        os.unlink(path)  # noqa: PTH108 - there is no other use of the path
    try:
        os.ftruncate(descriptor, size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)  # or a full disk would be a SIGBUS later
        if hasattr(os, "memfd_create"):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_file(descriptor: int, size: int) -> None:
    """Raise DataError unless a file has ``size`` bytes and cannot be made shorter."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_size != size:
        raise DataError(f"the memory of the frames has {found.st_size} bytes, expected {size}")
    if hasattr(os, "memfd_create"):
        try:
            seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        except OSError as error:
            raise DataError("the memory of the frames cannot be sealed") from error
        if not seals & fcntl.F_SEAL_SHRINK:
            raise DataError("the memory of the frames is not sealed against being made shorter")
