"""Display the progress of a run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import IO

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as RichBar

from y7edge.text import printable
from y7edge.train.output.results import EpochRow

try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class Status:
    """Values to display after an iteration. Epochs and iterations count from 1."""

    epoch: int
    epochs: int
    iteration: int  # within the epoch
    batches: int  # iterations per epoch
    box: float  # box, obj, cls: loss parts, means over the epoch so far
    obj: float
    cls: float
    lr: float  # of the convolution weights
    memory_mb: float  # peak memory of the GPU, or of the process on a CPU
    eta_seconds: float  # until the end of the run


class Progress:
    """Display of a run; this base class displays nothing."""

    def log(self, line: str) -> None:
        """Display a message."""

    def step(self, status: Status) -> None:
        """Display an iteration.

        On a GPU, this is called every tenth iteration, since reading the loss waits for the GPU.
        """

    def advance(self, title: str, done: int, total: int, text: str) -> None:
        """Display that ``done`` of ``total`` steps are done; ``text`` has their values."""

    def epoch(self, row: EpochRow, epochs: int, left: float) -> None:
        """Display a finished epoch.

        ``row`` is its row of ``results.csv``; ``left`` is the time until the last of the ``epochs``
        epochs, in seconds.
        """

    def close(self) -> None:
        """End the display."""


class Lines(Progress):
    """Print a line per epoch, for logs and pipes."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def log(self, line: str) -> None:
        """Print the message."""
        print(printable(line), file=self._stream, flush=True)

    def epoch(self, row: EpochRow, epochs: int, left: float) -> None:
        """Print losses, learning rate, seconds, memory, mAP and the time left."""
        self.log(describe(row, epochs, left))


class Bar(Lines):
    """Display a bar of the current epoch below a line per finished epoch."""

    def __init__(self, console: Console) -> None:
        self._bar = RichBar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None

    def log(self, line: str) -> None:
        """Print the message above the bar."""
        self._bar.console.print(printable(line), markup=False, highlight=False)

    def step(self, status: Status) -> None:
        """Update the bar and the values beside it."""
        self.advance(
            f"epoch {status.epoch}/{status.epochs}",
            status.iteration,
            status.batches,
            f"box {status.box:.4f}  obj {status.obj:.4f}  cls {status.cls:.4f}  "
            f"lr {status.lr:.5f}  {status.memory_mb:.0f} MB  left {clock(status.eta_seconds)}",
        )

    def advance(self, title: str, done: int, total: int, text: str) -> None:
        """Update the bar and the text beside it."""
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("", total=total, status="")
        self._bar.update(self._task, description=title, completed=done, total=total, status=text)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()


def for_terminal(stream: IO[str] | None = None) -> Progress:
    """Return a bar if ``stream`` (default: standard error) is a terminal, else plain lines."""
    stream = stream or sys.stderr
    return Bar(Console(file=stream)) if stream.isatty() else Lines(stream)


def describe(row: EpochRow, epochs: int, left: float) -> str:
    """Format a finished epoch in one line; ``left`` in seconds."""
    figures = "" if row.map50 is None else f"  mAP50 {row.map50:.3f}  mAP50-95 {row.map50_95:.3f}"
    return (
        f"epoch {row.epoch}/{epochs}: box {row.box:.4f}  obj {row.obj:.4f}  cls {row.cls:.4f}  "
        f"lr {row.lr:.5f}  {row.seconds:.1f} s  {row.memory_mb:.0f} MB{figures}"
        f"{f'  left {clock(left)}' if row.epoch < epochs else ''}"
    )


def clock(seconds: float) -> str:
    """Format seconds as ``1:02:03``, or ``2:03`` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Stopwatch:
    """Estimate the time left from the work done."""

    def __init__(self, total: int, done: int = 0) -> None:
        """Start the clock; ``done`` of ``total`` units of work were done before."""
        self._start = time.perf_counter()
        self._total, self._before = total, done

    def left(self, done: int) -> float:
        """Return the expected seconds until all units are done, if ``done`` are done now."""
        pace = (time.perf_counter() - self._start) / max(done - self._before, 1)
        return pace * (self._total - done)


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory of the GPU, or of this process on a CPU, in 10**6 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 1e6
    if resource is None:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
