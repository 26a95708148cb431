"""Compare the latency of one model in several engines, as ratios to ONNX Runtime.

    python examples/research/engine_speed.py                   # yolov7-tiny at 640, random weights
    python examples/research/engine_speed.py best.safetensors --imgsz 320 --runs 50 --threads 4

First, an artifact is exported and proved for each engine. Then, in each round, every session runs
once on the same input, so that other load on the machine affects all engines alike. The result is
the median of the rounds' ratios, because absolute times depend on the load.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from y7edge.export import export
from y7edge.export.targets import registry as targets
from y7edge.export.targets.base import Unprovable
from y7edge.nn.source import open_checkpoint
from y7edge.runtimes import registry
from y7edge.runtimes.base import Session, SessionOptions, missing

BASE = "onnx fp32"


def main() -> None:
    """Export and open the artifacts, measure them in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default="yolov7-tiny")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sessions = open_all(Path(folder), options.checkpoint, options.imgsz, options.threads)
        times = measure(sessions, options.imgsz, options.runs)
    base = times[BASE]
    print(
        f"{options.checkpoint} at {options.imgsz}, {options.threads} threads, {options.runs} rounds"
    )
    for name, found in times.items():
        ratio = np.percentile(found / base, [50, 10, 90])
        print(
            f"{name:<16} {1e3 * np.median(found):8.1f} ms   "
            f"{ratio[0]:.2f} x {BASE} (10 % to 90 %: {ratio[1]:.2f} to {ratio[2]:.2f})   "
            f"{sessions[name].arithmetic}"
        )


def open_all(folder: Path, checkpoint: str, imgsz: int, threads: int) -> dict[str, Session]:
    """Open a session for each target and precision whose engine is installed."""
    sessions = {}
    for name in targets.names():
        target = targets.get(name)
        if isinstance(target.RUNTIME, Unprovable) or missing(target.NEEDS):
            continue
        for precision in target.PRECISIONS:
            out = folder / f"{name}-{precision}{target.SUFFIX}"
            made = export(
                open_checkpoint(checkpoint), out, target=name, precision=precision, imgsz=imgsz
            )
            session = registry.open_session(made, SessionOptions("cpu", threads))
            sessions[f"{name} {precision}"] = session
    return sessions


def measure(sessions: dict[str, Session], imgsz: int, runs: int) -> dict[str, np.ndarray]:
    """Return the seconds of each round, by session; three warm-up rounds come first."""
    rng = np.random.default_rng(0)
    feeds = {"images": rng.random((1, 3, imgsz, imgsz), dtype=np.float32)}
    times = {name: np.empty(runs) for name in sessions}
    for index in range(-3, runs):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.infer(feeds)
            if index >= 0:
                times[name][index] = time.perf_counter() - started
    return times


if __name__ == "__main__":
    main()
