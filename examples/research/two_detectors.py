"""Compare engines: speed and CPU time of one session, and of two sessions in two threads.

    python examples/research/two_detectors.py tiny.onnx tiny.xml tiny-ncnn.param --threads 2

For ONNX Runtime, the waiting of its threads is also compared: `spin` is that engine's default, in
which waiting threads spin; `sleep` is what y7edge sets. All variants run in rotation, so that other
load on the machine affects them alike. Results are medians of the rounds, as ratios to the first
row of the same number of sessions.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from y7edge.runtimes import onnxrt, registry
from y7edge.runtimes.base import SessionOptions

Call = Callable[[], object]


def main() -> None:
    """Open all variants, run them in rotation, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one variant in a round")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    variants: dict[str, list[Call]] = {}
    for path in options.artifacts:
        variants |= variants_of(path, options.threads)
    for count in (1, 2):
        times = {name: np.empty((options.rounds, 2)) for name in variants}
        for index in range(options.rounds):
            for name, calls in variants.items():
                times[name][index] = measure(calls[:count], options.seconds)
        base = times[next(iter(times))]
        for name, found in times.items():
            rate, cost = np.median(found / base, axis=0)
            print(
                f"{count} sessions  {name:<30} "
                f"{np.median(found[:, 0]):7.1f} images/s = {rate:.2f} x, "
                f"{1e3 * np.median(found[:, 1]):6.1f} ms CPU time per image = {cost:.2f} x"
            )


def variants_of(path: Path, threads: int | None) -> dict[str, list[Call]]:
    """Open two sessions of an artifact; for ONNX Runtime also two with the engine's default."""
    artifact, options = registry.load(path), SessionOptions("cpu", threads)
    image = artifact.manifest.input
    feeds = {image.name: np.zeros((1, *image.shape[1:]), image.dtype)}
    found: dict[str, list[Call]] = {}
    if artifact.manifest.target == "onnx":
        ort = onnxrt.load_engine()
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.thread_count
        engines = [ort.InferenceSession(str(path), settings) for _ in range(2)]
        found[f"{path.name} spin"] = [lambda e=engine: e.run(None, feeds) for engine in engines]
    sessions = [registry.open_session(artifact, options) for _ in range(2)]
    name = f"{path.name} sleep" if found else path.name
    return {**found, name: [lambda s=session: s.infer(feeds) for session in sessions]}


def measure(calls: list[Call], seconds: float) -> tuple[float, float]:
    """Call each function in a thread of its own; return calls per second, CPU seconds per call."""
    counts = [0] * len(calls)
    started, cpu = time.perf_counter(), time.process_time()

    def work(index: int) -> None:
        while time.perf_counter() < started + seconds:
            calls[index]()
            counts[index] += 1

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(calls))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    elapsed = time.perf_counter() - started
    return sum(counts) / elapsed, (time.process_time() - cpu) / sum(counts)


if __name__ == "__main__":
    main()
