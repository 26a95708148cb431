"""Measure frame ages of `Detector.stream`, from capture to result, and print a Markdown table.

    python examples/research/frame_age.py tiny.onnx tiny.xml --seconds 60 --threads 1
    python examples/research/frame_age.py tiny.onnx --cameras 2
    python examples/research/frame_age.py tiny.onnx --source rtsp://camera/stream

Every camera has a row. `engine` is the time in the engine, of the whole batch if frames
of several cameras are run at once. `memory` is the resident memory of this process and of the
processes that capture, at the start, after a warm-up, and at the end.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from y7edge import Detector, Frame, SourceError
from y7edge.detect.ages import Ages
from y7edge.detect.detections import Detections
from y7edge.detect.streaming import Stream

PATTERN = "test://pattern?fps=30&width=1280&height=720"
HEADER = (
    "engine",
    "model",
    "camera",
    "frames/s",
    "engine p50/p99 ms",
    "age p50/p95/p99/max ms",
    "made = shown + dropped",
    "memory MB",
)


@dataclass
class Measured:
    """The ages of frames by camera, and what was measured with them.

    ``engine`` has times in the engine; ``memory`` is in bytes, at the start and at the end.
    """

    seconds: float
    ages: dict[str, Ages] = field(default_factory=dict)
    engine: dict[str, Ages] = field(default_factory=dict)
    shown: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    made: Counter[str] = field(default_factory=Counter)
    memory: tuple[int, int] = (0, 0)


def main() -> None:
    """Measure every artifact in turn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--source", default=PATTERN)
    parser.add_argument("--cameras", type=int, default=1, help="how often the source is opened")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--warmup", type=float, default=3, help="seconds before the measurement")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args()
    print(row(HEADER), row(["---"] * len(HEADER)), sep="\n")
    for path in options.artifacts:
        with (
            Detector(path, options.backend, threads=options.threads) as detector,
            detector.stream([options.source] * options.cameras) as stream,
        ):
            measured = measure(stream, options.seconds, options.warmup)
            for line in rows(detector, measured):
                print(line, flush=True)


def measure(stream: Stream, seconds: float, warmup: float = 0.0) -> Measured:
    """Measure the frames of the next ``seconds``, after ``warmup`` seconds."""
    for _ in until(stream, time.monotonic() + warmup):
        pass
    names = stream.names
    found = Measured(seconds)
    window = max(1, round(seconds * 1000))  # keep all ages
    found.ages = {name: Ages(window) for name in names}
    found.engine = {name: Ages(window) for name in names}
    first: dict[str, tuple[int, int]] = {}
    before, started = 0, time.monotonic()
    for frame, detections in until(stream, started + seconds):
        age = frame.age_ns(time.monotonic_ns())
        if frame.source not in names or age is None or detections.timing is None:
            raise SourceError(f"{frame.source}: expected frames with a capture time")
        before = before or memory()  # with one frame in memory, as at the end
        sequence, dropped = first.setdefault(frame.source, (frame.sequence, frame.dropped))
        found.ages[frame.source].add(age)
        found.engine[frame.source].add(round(detections.timing.infer * 1e6))
        found.shown[frame.source] += 1
        found.dropped[frame.source] = frame.dropped - dropped
        found.made[frame.source] = frame.sequence - sequence + 1
    found.seconds = time.monotonic() - started
    found.memory = before, memory()
    return found


def until(stream: Stream, end: float) -> Iterator[tuple[Frame, Detections]]:
    """Yield results until ``end``, of ``time.monotonic()``; do not close the stream."""
    while time.monotonic() < end and (result := next(stream, None)) is not None:
        yield result


def memory() -> int:
    """Return the resident memory of this process and its children in bytes."""
    return sum(resident(process) for process in [os.getpid(), *children(os.getpid())])


def children(parent: int) -> list[int]:
    """Return the ids of the child processes of a process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[1]) == parent:
            found.append(int(folder.name))
    return found


def resident(process: int) -> int:
    """Return the resident memory of a process in bytes; 0 if it has ended."""
    try:
        pages = (Path("/proc") / str(process) / "statm").read_text(encoding="utf-8").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def rows(detector: Detector, measured: Measured) -> list[str]:
    """Return the rows of the table, one for each camera."""
    lines = []
    start, end = (value / 1e6 for value in measured.memory)
    for name, ages in measured.ages.items():
        age, engine = ages.summary(), measured.engine[name].summary()
        shown, dropped = measured.shown[name], measured.dropped[name]
        lines.append(
            row(
                [
                    str(detector.info["backend"]),
                    str(detector.info["model"]),
                    name,
                    f"{shown / measured.seconds:.1f}",
                    "/".join(f"{engine[key]:.1f}" for key in ("p50_ms", "p99_ms")),
                    "/".join(f"{age[k]:.0f}" for k in ("p50_ms", "p95_ms", "p99_ms", "max_ms")),
                    f"{measured.made[name]} = {shown} + {dropped}",
                    f"{start:.0f} → {end:.0f}",
                ]
            )
        )
    return lines


def row(cells: object) -> str:
    """Return a row of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
