"""Measure how long the parts of an iteration take on a CPU or GPU."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


class Timing:
    """Timer that measures nothing, for runs that are not profiled."""

    def part(self, name: str, *, host: bool = False) -> AbstractContextManager[None]:
        """Measure the time in this context as part ``name``; set ``host`` for code on the CPU only.

        Contexts must not overlap.
        """
        return nullcontext()


class PartTimes(Timing):
    """Timer that sums the seconds of each part until ``collect``.

    A GPU runs asynchronously, so its parts are measured with CUDA events.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._marks: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str, *, host: bool = False) -> Iterator[None]:
        """Add the seconds in this context to those of ``name``."""
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
        """Wait until the device has finished its work."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def collect(self) -> dict[str, float]:
        """Return the seconds of each part, and reset them."""
        self.wait()
        for name, start, end in self._marks:
            self._seconds[name] += start.elapsed_time(end) / 1e3
        seconds, self._seconds, self._marks = self._seconds, defaultdict(float), []
        return seconds
