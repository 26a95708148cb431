"""Measure where the time of an iteration goes: seconds by part, on a CPU or on a GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


class Timing:
    """Measures nothing; see `PartTimes`."""

    def part(self, name: str, *, host: bool = False) -> AbstractContextManager[None]:
        """Enclose the work ``name``; blocks don't overlap. ``host``: no work of a device in it."""
        return nullcontext()


class PartTimes(Timing):
    """Seconds spent in each part since the last :meth:`collect`.

    A GPU works behind the program that drives it, so there the ends of a part are marked in its own
    queue and read when all is done; nothing waits inside of an iteration.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}
        self._marks: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str, *, host: bool = False) -> Iterator[None]:
        """Add the time that a block takes to that of ``name``."""
        if self._device.type == "cuda" and not host:
            start, end = (_mark() for _ in range(2))
            start.record()
            yield
            end.record()
            self._marks.append((name, start, end))
        else:
            begin = time.perf_counter()
            yield
            self._add(name, time.perf_counter() - begin)

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def collect(self) -> dict[str, float]:
        """Seconds by part; start again from 0."""
        self.wait()
        for name, start, end in self._marks:
            self._add(name, start.elapsed_time(end) / 1e3)
        seconds, self._seconds, self._marks = self._seconds, {}, []
        return seconds

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


def _mark() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
