"""A moving test pattern with faults on demand: ``test://pattern``.

A block moves over a fixed background. The number of the frame, as the grabber counts, is drawn as a
row of 32 white and black squares in the upper left corner, the highest bit first: see
``read_number``.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from y7edge.errors import SourceError, SourceTimeout
from y7edge.frames import Format, Frame
from y7edge.sources.base import Captured

Fault = Literal["stall", "slow", "hang", "crash", "corrupt", "resize", "end", "error"]
"""What goes wrong after some frames.

"stall": no more frames; "slow": a tenth of the rate; "hang": a call does not return, and SIGTERM is
ignored; "crash": the process is killed by SIGSEGV; "corrupt": frames have fewer rows than they say;
"resize": frames have half the width and height, and later twice; "end": the stream ends; "error":
the device reports an error.
"""

_BITS, _MAX_SIDE, _MAX_RATE = 32, 16384, 1000.0
_DARK, _LIGHT = 16, 235  # limits of luma in NV12


def grabber(options: Mapping[str, Any]) -> Pattern:
    """Open a pattern.

    Args:
        options: width, height (pixels, 640 and 480), fps (30), format ("bgr", "rgb" or "nv12"),
            stride (bytes from row to row, at least those of a row), fault, and after (frames before
            the fault, 0; -1: while it is opened).

    Raises:
        SourceError: an option is unknown or out of range, or the fault happens while it is opened.
    """
    known = {"width", "height", "fps", "format", "stride", "fault", "after"}
    if unknown := sorted(set(options) - known):
        raise SourceError(
            f"a pattern has no option {unknown[0]!r}: expected {', '.join(sorted(known))}"
        )
    fault, after = read_fault(options)
    pattern = Pattern(
        width=_number(options, "width", 640, 2, _MAX_SIDE),
        height=_number(options, "height", 480, 2, _MAX_SIDE),
        fps=_rate(options.get("fps", 30.0)),
        format=_choice(options, "format", get_args(Format)) or "bgr",
        stride=_number(options, "stride", 0, 0, 8 * _MAX_SIDE),
        fault=fault,
        after=after,
    )
    if after < 0:
        fail(fault)
    return pattern


def read_fault(
    options: Mapping[str, Any], allowed: tuple[str, ...] = get_args(Fault)
) -> tuple[Fault | None, int]:
    """Return the options ``fault`` and ``after``: what happens, and after how many frames."""
    return _choice(options, "fault", allowed), _number(options, "after", 0, -1, 1 << 31)


def fail(fault: Fault | None) -> None:
    """Do what a fault does at once: hang, crash, or raise SourceError."""
    if fault == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)
    if fault == "crash":
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no file
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault in ("error", "end"):
        raise SourceError("the device reports an error (fault=error)")


def read_number(frame: Frame) -> int:
    """Return the number that is drawn on a frame of the pattern, from 0."""
    rows = frame.image if frame.image.ndim == 2 else frame.image[:, :, 1]
    side = _side(*frame.size)
    bits = rows[side // 2, side // 2 : _BITS * side : side] > (_DARK + _LIGHT) // 2
    return int("".join("01"[int(bit)] for bit in bits), 2)


class Pattern:
    """The grabber of ``test://pattern``; see ``grabber`` for its parameters."""

    backend = "y7edge"
    live = True

    def __init__(
        self,
        *,
        width: int,
        height: int,
        fps: float,
        format: Format,
        stride: int = 0,
        fault: Fault | None = None,
        after: int = 0,
    ) -> None:
        self.fps, self.format, self.fault, self.after = fps, format, fault, after
        self._stride = stride
        self._size = (width, height)
        self._draw()
        self._count = 0
        self._begin = self._due = time.monotonic()

    @property
    def detail(self) -> str:
        """Size, format and rate."""
        width, height = self._size
        fault = f", fault {self.fault} after {self.after} frames" if self.fault else ""
        return f"pattern {width}x{height} {self.format} {self.fps:g} fps{fault}"

    def grab(self, timeout: float) -> Captured | None:
        """Return the next frame, when it is due; frames are skipped if this is called too late."""
        faulty = self.fault is not None and self._count >= self.after >= 0
        if faulty and self.fault == "end":
            return None
        if faulty:
            fail(self.fault)
        if faulty and self.fault == "stall":
            time.sleep(timeout)
            raise SourceTimeout("the pattern stalls (fault=stall)")
        interval = (10 if faulty and self.fault == "slow" else 1) / self.fps
        late = time.monotonic() - self._due
        if late < 0:
            time.sleep(min(-late, timeout))
            if -late > timeout:
                raise SourceTimeout(f"the next frame is due in {-late - timeout:.3f} s")
        skipped = max(0, math.floor(late / interval))
        captured_ns = time.monotonic_ns()
        self._due += (skipped + 1) * interval
        self._count += skipped
        if faulty and self.fault == "resize" and self._count - skipped == self.after:
            self._size = (max(64, self._size[0] // 4 * 2), max(2, self._size[1] // 4 * 2))
            self._draw()
        planes = self._move(self._count)
        self._count += 1
        if faulty and self.fault == "corrupt":
            planes = (planes[0][: len(planes[0]) // 2], *planes[1:])
        return Captured(
            planes, self._size, self.format, captured_ns, "driver", skipped, rate=self.fps
        )

    def close(self) -> None:
        """Do nothing: there is no device."""

    def _draw(self) -> None:
        """Draw the background: coloured bars, and a ramp from top to bottom."""
        width, height = self._size
        row = width if self.format == "nv12" else 3 * width
        stride = self._stride or row
        if stride < row or (self.format == "nv12" and (width % 2 or height % 2)):
            raise SourceError(
                f"{self.format} images of {width}x{height} with rows of {stride} "
                f"bytes are not possible, expected at least {row} bytes, and even sides for nv12"
            )
        if width < _BITS:
            raise SourceError(f"width is {width}, expected at least {_BITS}")
        ramp = np.linspace(40, 200, height).astype(np.uint8)[:, None]
        bars = (np.arange(width) * 8 // width * 10).astype(np.uint8)
        luma = np.full((height, stride), 99, np.uint8)  # 99: padding
        if self.format == "nv12":
            luma[:, :width] = ramp + bars // 2
            chroma = np.full((height // 2, stride), 99, np.uint8)
            chroma[:, :width] = 96 + bars
            self._planes: tuple[NDArray[np.uint8], ...] = (luma, chroma)
        else:
            pixels = luma[:, :row].reshape(height, width, 3)
            pixels[:] = (ramp + bars // 2)[:, :, None]
            pixels[:, :, 2] = 96 + bars
            self._planes = (luma,)
        self._pixel = row // width
        self._behind: tuple[slice, NDArray[np.uint8]] | None = None

    def _move(self, count: int) -> tuple[NDArray[np.uint8], ...]:
        """Draw the block and the number of a frame over the background."""
        width, height = self._size
        plane, pixel, side = self._planes[0], self._pixel, _side(width, height)
        top = height // 2
        if self._behind:
            plane[top : top + 2 * side, self._behind[0]] = self._behind[1]
        left = count * max(1, width // 128) % (width - 2 * side + 1)
        columns = slice(left * pixel, (left + 2 * side) * pixel)
        self._behind = columns, plane[top : top + 2 * side, columns].copy()
        plane[top : top + 2 * side, columns] = _LIGHT
        bits = np.array([count >> bit & 1 for bit in range(_BITS - 1, -1, -1)], np.uint8)
        row = np.repeat(np.where(bits, _LIGHT, _DARK).astype(np.uint8), side * pixel)
        plane[:side, : len(row)] = row
        return self._planes


def _side(width: int, height: int) -> int:
    """Return the side of the squares of the number, in pixels."""
    return max(1, min(width // _BITS, height // 8, 16))


def _number(options: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = options.get(name, default)
    try:
        number = int(str(value))
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        raise SourceError(f"{name} is {value!r}, expected {low} to {high}")
    return number


def _rate(value: object) -> float:
    try:
        rate = float(str(value))
    except ValueError:
        rate = math.nan
    if not 0 < rate <= _MAX_RATE:
        raise SourceError(f"fps is {value!r}, expected up to {_MAX_RATE:g}")
    return rate


def _choice(options: Mapping[str, Any], name: str, allowed: tuple[Any, ...]) -> Any:
    value = options.get(name)
    if value is not None and value not in allowed:
        raise SourceError(f"{name} is {value!r}, expected one of {', '.join(allowed)}")
    return value
