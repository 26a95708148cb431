"""Compare the latency of one model in several engines, as ratios to ONNX Runtime in fp32.

    python examples/research/engine_speed.py                   # yolov7-tiny at 640, random weights
    python examples/research/engine_speed.py best.safetensors --imgsz 320 --runs 50 --threads 4
    python examples/research/engine_speed.py --precision fp32 --input float32 uint8

First, an artifact is exported and proved for each engine. Then, in each round, every detector runs
once on the same image, so that other load on the machine affects all engines alike. The result is
the median of the rounds' ratios, of the engine alone and from image to boxes. Without ONNX Runtime
in fp32, ratios are to the first row. Absolute times depend on the load.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np

from y7edge import Detector
from y7edge.benchmark.hotpath import images, opencv_threads
from y7edge.errors import DeviceError, RuntimeMissing
from y7edge.export import export
from y7edge.export.targets import registry as targets
from y7edge.export.targets.base import Unprovable, exportable
from y7edge.nn.source import open_checkpoint
from y7edge.runtimes.base import missing


def main() -> None:
    """Export and open the artifacts, measure them in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default="yolov7-tiny")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--precision", nargs="*", help="default: all of each target")
    parser.add_argument("--input", nargs="*", default=["float32"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        detectors = open_all(Path(folder), options)
        if not detectors:
            parser.error("no target that is installed here supports this combination")
        times = measure(detectors, options.runs, options.threads)
    print(
        f"{options.checkpoint} at {options.imgsz}, {options.threads} threads, {options.runs} rounds"
    )
    base = "onnx fp32" if "onnx fp32" in times else next(iter(times))
    for name, found in times.items():
        ratios = found / times[base]
        model, whole = (np.percentile(column, [50, 10, 90]) for column in ratios.T)
        print(
            f"{name:<20} {np.median(found[:, 0]):8.1f} ms   "
            f"{model[0]:.2f} x {base} (10 % to 90 %: {model[1]:.2f} to {model[2]:.2f}), "
            f"image to boxes {whole[0]:.3f} x   {detectors[name].info['arithmetic']}"
        )


def open_all(folder: Path, options: argparse.Namespace) -> dict[str, Detector]:
    """Open a detector for each target, precision and input whose engine is installed."""
    detectors = {}
    for name in targets.names():
        target = targets.get(name)
        if isinstance(target.RUNTIME, Unprovable) or missing(target.NEEDS):
            continue
        precisions = [p for p in exportable(target) if p in (options.precision or [p])]
        inputs = [kind for kind in target.INPUTS if kind in options.input]
        for precision, kind in product(precisions, inputs):
            out = folder / f"{name}-{precision}-{kind}{target.SUFFIX}"
            checkpoint = open_checkpoint(options.checkpoint)
            forms = {"target": name, "precision": precision, "input": kind}
            label = f"{name} {precision}" + (" uint8" if kind == "uint8" else "")
            try:
                export(checkpoint, out, imgsz=options.imgsz, **forms)
            except (DeviceError, RuntimeMissing) as error:  # a CPU without bfloat16, no converter
                print(f"{label}: not here: {error}")
                continue
            detectors[label] = Detector(out, device="cpu", threads=options.threads)
    return detectors


def measure(detectors: dict[str, Detector], runs: int, threads: int) -> dict[str, np.ndarray]:
    """Return, by detector, the milliseconds of the engine and of the whole call, (runs, 2).

    Three warm-up rounds are not included.
    """
    frames = images()
    times = {name: np.empty((runs, 2)) for name in detectors}
    with opencv_threads(threads):
        for index in range(-3, runs):
            for name, detector in detectors.items():
                started = time.perf_counter()
                timing = detector(frames[index % len(frames)]).timing
                if index >= 0:
                    whole = time.perf_counter() - started
                    times[name][index] = timing.infer, 1e3 * whole
    return times


if __name__ == "__main__":
    main()
