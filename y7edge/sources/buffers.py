"""Read GStreamer's buffers by their address: pixels without a copy, and the sensor's time.

PyGObject returns the data of a mapped buffer as ``bytes``: a copy of 12 MB per frame for 4K. So the
functions of the C library are called with the address of the buffer, which is the hash of a boxed
object (``gboxed_hash`` in PyGObject's ``pygboxed.c``).
"""

from __future__ import annotations

import ctypes
import time
from collections import deque
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.errors import RuntimeMissing, SourceError

_READ = 1  # GST_MAP_READ
_REMEMBERED = 64  # buffers between two elements of a pipeline
_OLDEST_NS = 10_000_000_000  # of a sensor's time; older ones are of another clock


class _MapInfo(ctypes.Structure):
    """GstMapInfo of gstmemory.h, part of GStreamer's stable ABI."""

    _fields_ = (
        ("memory", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("maxsize", ctypes.c_size_t),
        ("user_data", ctypes.c_void_p * 4),
        ("reserved", ctypes.c_void_p * 4),
    )


class _ArgusMetadata(ctypes.Structure):
    """What nvarguscamerasrc attaches to a buffer: AuxData of its gstnvarguscamerasrc.hpp."""

    _fields_ = (
        ("frame_number", ctypes.c_int64),
        ("timestamp_ns", ctypes.c_int64),  # start of the frame, CLOCK_MONOTONIC
        ("sensor_data", ctypes.c_void_p),
    )


@cache
def _library(name: str) -> ctypes.CDLL:
    return ctypes.CDLL(name)  # found, not loaded again: PyGObject has loaded it


def check_addresses(buffer: Any) -> None:
    """Check that the hash of a Gst.Buffer is its address, which its ``repr`` has too.

    Raises:
        RuntimeMissing: it is not, in this release of PyGObject.
    """
    if f"{hash(buffer):#x})" not in repr(buffer):
        raise RuntimeMissing(
            "this release of PyGObject does not give access to the memory of frames: pip install "
            '"PyGObject<3.52"'
        )


class MappedBuffer:
    """The bytes of a buffer, valid until ``release``."""

    def __init__(self, buffer: Any) -> None:
        """Map a Gst.Buffer for reading.

        Raises:
            SourceError: the driver's memory cannot be read by the CPU.
        """
        self._library = _library("libgstreamer-1.0.so.0")
        self._buffer: Any = buffer  # holds a reference
        self._address = ctypes.c_void_p(hash(buffer))
        self._info = _MapInfo()
        if not self._library.gst_buffer_map(self._address, ctypes.byref(self._info), _READ):
            self._buffer = None
            raise SourceError(
                "the memory of the frame cannot be read by the CPU: end a gst:// pipeline with an "
                'element that copies to host memory, as "nvvidconv ! video/x-raw"'
            )

    def plane(self, offset: int, stride: int, rows: int, row_bytes: int) -> NDArray[np.uint8]:
        """Return (rows, row_bytes) uint8 of which the rows are ``stride`` bytes apart.

        Raises:
            SourceError: the buffer is smaller.
        """
        end = offset + stride * (rows - 1) + row_bytes
        if min(offset, rows - 1, row_bytes - 1, stride - row_bytes) < 0 or end > self._info.size:
            raise SourceError(
                f"a frame has {self._info.size} bytes, expected {end} for {rows} rows of "
                f"{row_bytes} bytes, {stride} bytes apart: the driver's format is wrong"
            )
        memory = (ctypes.c_uint8 * (end - offset)).from_address(self._info.data + offset)
        flat = np.ctypeslib.as_array(memory)
        return np.lib.stride_tricks.as_strided(flat, (rows, row_bytes), (stride, 1))

    def release(self) -> None:
        """Unmap the buffer; its planes become invalid."""
        if self._buffer is not None:
            self._library.gst_buffer_unmap(self._address, ctypes.byref(self._info))
            self._buffer = None


def sensor_time(buffer: Any) -> int | None:
    """Return the sensor's start of frame of a buffer of nvarguscamerasrc, in monotonic nanoseconds.

    Only buffers at the source pad have it, because nvvidconv makes new buffers. None if this
    release does not attach it, or its clock is another one.
    """
    glib, gstreamer = _library("libglib-2.0.so.0"), _library("libgstreamer-1.0.so.0")
    glib.g_quark_try_string.restype = ctypes.c_uint32
    quark = glib.g_quark_try_string(b"GstBufferMetaData")
    if not quark:  # no element of this process uses the name
        return None
    gstreamer.gst_mini_object_get_qdata.restype = ctypes.c_void_p
    address = gstreamer.gst_mini_object_get_qdata(
        ctypes.c_void_p(hash(buffer)), ctypes.c_uint32(quark)
    )
    if not address:
        return None
    captured = int(_ArgusMetadata.from_address(address).timestamp_ns)
    return captured if 0 <= time.monotonic_ns() - captured < _OLDEST_NS else None


class Passed:
    """What was seen of the buffers that passed a pad, by their time stamp."""

    def __init__(self) -> None:
        self.count = 0
        self._seen: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED)

    def add(self, pts: int, value: int) -> None:
        """Record a buffer; called in the thread of the pipeline."""
        self.count += 1
        self._seen.append((pts, value))

    def find(self, pts: int) -> int | None:
        """Return the value of the buffer with this time stamp; None if it is not known."""
        for seen, value in reversed(tuple(self._seen)):
            if seen == pts:
                return value
        return None
