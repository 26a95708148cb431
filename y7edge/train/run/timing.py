"""Measure the parts of an iteration on a CPU or GPU."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


class Timing:
    """Measure nothing; see `PartTimes`."""

    def part(self, name: str, *, host: bool = False) -> AbstractContextManager[None]:
        """Time the block as ``name``; blocks don't overlap. ``host``: without device work."""
        return nullcontext()


class PartTimes(Timing):
    """Seconds spent in each part since the last :meth:`collect`.

    A GPU runs asynchronously, so parts are marked by events in its stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._marks: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str, *, host: bool = False) -> Iterator[None]:
        """Add the time of a block to that of ``name``."""
        if self._device.type == "cuda" and not host:
            event: Any = torch.cuda.Event
            start, end = event(enable_timing=True), event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._marks.append((name, start, end))
        else:
            begin = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - begin

    def wait(self) -> None:
        """Synchronize with the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def collect(self) -> dict[str, float]:
        """Return seconds by part, and reset."""
        self.wait()
        for name, start, end in self._marks:
            self._seconds[name] += start.elapsed_time(end) / 1e3
        seconds, self._seconds, self._marks = self._seconds, defaultdict(float), []
        return seconds
