"""Measure how long results stay away while a model is exchanged, and print a Markdown table.

    python examples/research/swap_gap.py a.onnx b.xml --swaps 10 --threads 1

The models take turns in one Detector, which runs a camera meanwhile. `gap` is the longest time
between two results: while no model is opened, and from the begin of an exchange to its end.
`memory` is the resident memory of this process after the first two exchanges, and at the end.
"""

from __future__ import annotations

import argparse
import itertools
import threading
import time
from pathlib import Path

from y7edge import Detector

PATTERN = "test://pattern?fps=30&width=640&height=480"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--source", default=PATTERN)
    parser.add_argument("--swaps", type=int, default=10, help="number of exchanges, from 3 on")
    parser.add_argument("--pause", type=float, default=3.0, help="seconds between two of them")
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    times: list[float] = []
    swaps: list[tuple[float, float]] = []
    memory: list[int] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def exchange(detector: Detector) -> None:
        try:
            others = itertools.cycle(asked.artifacts[1:] + asked.artifacts[:1])
            for path in itertools.islice(others, asked.swaps):
                time.sleep(asked.pause)
                began = time.monotonic()
                detector.swap(path)
                swaps.append((began, time.monotonic()))
                memory.append(_resident())
            time.sleep(asked.pause)
        except BaseException as error:
            failures.append(error)
        finally:
            done.set()

    with (
        Detector(asked.artifacts[0], threads=asked.threads) as detector,
        detector.stream(asked.source) as stream,
    ):
        next(stream)
        thread = threading.Thread(target=exchange, args=(detector,))
        thread.start()
        for _ in stream:
            times.append(time.monotonic())
            if done.is_set():
                break
        thread.join()
    if failures:
        raise failures[0]
    _print(asked, times, swaps, memory)


def _print(
    asked: argparse.Namespace,
    times: list[float],
    swaps: list[tuple[float, float]],
    memory: list[int],
) -> None:
    during, else_ = [0.0], [0.0]
    for before, after in itertools.pairwise(times):
        overlaps = any(before < end and after > began for began, end in swaps)
        (during if overlaps else else_).append(after - before)
    took = sorted(end - began for began, end in swaps)
    print(
        "| models | results | exchanges | one takes s | gap ms | gap in exchanges ms | memory MB |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    print(
        f"| {', '.join(path.name for path in asked.artifacts)} | {len(times)} | {len(swaps)} | "
        f"{took[0]:.2f} to {took[-1]:.2f} | {1e3 * max(else_):.0f} | {1e3 * max(during):.0f} | "
        f"{memory[1] / 1e6:.0f}, {memory[-1] / 1e6:.0f} |"
    )


def _resident() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("there is no VmRSS in /proc/self/status")


if __name__ == "__main__":
    main()
