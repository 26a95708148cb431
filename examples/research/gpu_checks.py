"""Compare an NVIDIA GPU with the CPU, and the precisions of training with each other.

    python examples/research/gpu_checks.py kernels
    python examples/research/gpu_checks.py speed --data bccd --models yolov7-tiny yolov7
    python examples/research/gpu_checks.py loss --data bccd --models yolov7-tiny --epochs 3
    python examples/research/gpu_checks.py val --data bccd --checkpoint best.safetensors

* kernels: times of the CUDA kernels and copies of a session, and of the same steps in numpy. Needs
  pycuda and cuda-python. `tests/runtimes/test_gpu.py` checks the results;
* speed: `y7edge train --profile` for every precision, without and with torch.compile. fp32 is
  measured first and last;
* loss: losses of short trainings of every precision with the same seed, relative to fp32. A second
  fp32 run and one with another seed show how much they vary;
* val: heads and mAP of a checkpoint on the GPU and on the CPU.

Convolutions of fp32 trainings use TF32, as is the default of torch; evaluations do not. Each
command writes its results to --out as JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from y7edge.errors import Y7EdgeError

PRECISIONS = {"fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}
REPEATS = 20


def main() -> None:
    """Run one of the comparisons."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=sorted(COMMANDS))
    parser.add_argument("--data", type=Path, help="data set of all commands but kernels")
    parser.add_argument("--models", nargs="+", default=["yolov7-tiny"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument(
        "--compile", choices=("no", "yes", "both"), default="both", help="for speed"
    )
    parser.add_argument("--checkpoint", type=Path, help="for val")
    parser.add_argument("--imgsz", type=int, default=320, help="for kernels always 640")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=20, help="measured ones, for speed")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu_checks.json"))
    options = parser.parse_args()
    rows = []
    for row in COMMANDS[options.what](options):
        rows.append(row)
        print(json.dumps(row), flush=True)
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


# --- kernels -------------------------------------------------------------------------------------


def kernels(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure the kernels of a session of yolov7 at 640 px, for frames of 1280 x 720 pixels."""
    from y7edge.models import registry
    from y7edge.nn.eager import describe
    from y7edge.nn.random_weights import random_weights
    from y7edge.runtimes import _cuda, _cuda_frames

    manifest = describe(random_weights(registry.get("yolov7"), seed=0), (640, 640))
    for dtype in ("float32", "float16"):
        outputs = tuple(replace(output, dtype=dtype) for output in manifest.outputs)
        image = replace(manifest.input, dtype=dtype)
        form = replace(manifest, input=image, outputs=outputs)
        gpu = _cuda.open_gpu(0)
        with gpu.current():
            memory = _cuda.Memory(gpu)
            memory.open_stream()
            buffers = [
                memory.buffer((1, *port.shape[1:]), port.dtype, output=number > 0)
                for number, port in enumerate((form.input, *form.outputs))
            ]
            frames = _cuda_frames.FrameKernels(gpu, memory, form, buffers)
            try:
                found = _steps(form, memory, buffers, frames)
            finally:
                memory.free()
        base = found["letterbox, numpy"] + found["copy of the input to the GPU"]
        base += found["copy of the heads to the host"] + found["selection, numpy"]
        for name, ms in found.items():
            yield {"gpu": gpu.name, "dtype": dtype, "step": name, "ms": ms, "of numpy": ms / base}


def _steps(form: Any, memory: Any, buffers: Any, frames: Any) -> dict[str, float]:
    """Return the milliseconds of each step."""
    from y7edge.detect.postprocess import Criteria, Postprocessor
    from y7edge.detect.preprocess import Preprocessor, place
    from y7edge.frames import CudaFrame

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (720, 1280, 3), np.uint8)
    preprocess = Preprocessor(form.input)
    placed, _ = place(pixels, "bgr", form.input)
    for buffer in buffers[1:]:
        values = rng.normal(-2, 1.5, buffer.host.shape).reshape(3, 5 + form.nc, -1)
        values[:, 4] -= 4
        buffer.host[:] = values.reshape(buffer.host.shape)
        buffer.upload(memory)
    anchor = Postprocessor(form.levels, form.nc, "logit", [None] * 3, form.outputs[0].layout)
    heads = [np.array(buffer.host) for buffer in buffers[1:]]
    stored = memory.buffer(pixels.shape, "uint8")
    stored.host[:] = pixels
    stored.upload(memory)
    on_gpu = placed._replace(pixels=CudaFrame(pixels.shape, stored.address, 3 * 1280, None, stored))
    selection, found = frames._selection, frames._found
    addresses = [buffer.address for buffer in buffers[1:]]

    def select() -> None:
        for launch in selection.launches(addresses, frames._anchors, found.address, 1, 0.25):
            frames._launch(launch)

    wait = memory.stream.synchronize
    host = {
        "letterbox, numpy": lambda: preprocess(pixels),
        "selection, numpy": lambda: anchor.heads(heads, Criteria(conf=0.25)),
        "copy of the input to the GPU": lambda: (buffers[0].upload(memory), wait()),
        "copy of the frame to the GPU": lambda: (stored.upload(memory), wait()),
        "copy of the heads to the host": lambda: (
            [buffer.download(memory) for buffer in buffers[1:]],
            wait(),
        ),
        "letterbox of a frame in host memory": lambda: (frames.letterbox([placed]), wait()),
        "letterbox of a frame on the GPU": lambda: (frames.letterbox([on_gpu]), wait()),
        "selection and copy of candidates": lambda: frames.select(0.25, 1),
    }
    times = {name: _wall(step) for name, step in host.items()}
    times["letterbox, kernel alone"] = _alone(memory, lambda: frames.letterbox([on_gpu]))
    times["selection, kernels alone"] = _alone(memory, select)
    return times


def _wall(step: Callable[[], object], groups: int = 5) -> float:
    """Return the milliseconds of a step: the least median of groups of calls."""
    step()
    medians = []
    for _ in range(groups):
        each = []
        for _ in range(REPEATS):
            begin = time.perf_counter()
            step()
            each.append(time.perf_counter() - begin)
        medians.append(float(np.median(each)))
    return 1e3 * min(medians)


def _alone(memory: Any, enqueue: Callable[[], None]) -> float:
    """Return the milliseconds of kernels, launched from a CUDA graph of ``REPEATS`` calls."""
    from y7edge.runtimes import _cuda

    def several() -> None:
        for _ in range(REPEATS):
            enqueue()

    several()
    graph = _cuda.Graph(_cuda.graphs(), memory.stream.handle, several)
    try:
        return _wall(lambda: (graph.launch(), memory.stream.synchronize())) / REPEATS
    finally:
        graph.destroy()


# --- training ------------------------------------------------------------------------------------


def config_of(options: argparse.Namespace, model: str, precision: str, **more: Any) -> Any:
    """Return the configuration of a training."""
    from y7edge.train.settings.config import TrainConfig
    from y7edge.train.settings.recipes import RECIPES

    fields = {
        **{"data": options.data, "model": model, "imgsz": options.imgsz, "batch": options.batch},
        **{"recipe": RECIPES["small-data"].recipe, "epochs": options.epochs},
        **{"device": options.device, "workers": options.workers, "report": False},
        **{"precision": PRECISIONS[precision], "autoanchor": False},
    }
    return TrainConfig(**{**fields, **more})


def speed(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure iterations of every precision, without and with torch.compile."""
    import torch

    from y7edge.train.run.profile import profile

    compiled = {"no": [False], "yes": [True], "both": [False, True]}[options.compile]
    for model in options.models:
        plain = None
        cases = [*product(compiled, options.precisions)]
        cases += [(False, options.precisions[0])] if False in compiled else []
        for compile_it, precision in cases:
            case = {"model": model, "precision": precision, "compile": compile_it}
            more = {"compile": compile_it, "profile": options.iterations, "epochs": 100}
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            begin = time.perf_counter()
            try:
                found = profile(config_of(options, model, precision, **more)).to_dict()
            except (Y7EdgeError, RuntimeError) as error:
                yield {**case, "error": " ".join(str(error).split())[:300]}
                continue
            plain = plain or found
            ratios = {
                f"{name} / first": found[name] / plain[name]
                for name in ("images_per_second", "network_images_per_second", "memory_mb")
            }
            seconds = time.perf_counter() - begin
            yield {**case, **ratios, **found, "seconds": round(seconds, 1)}


def loss(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compare the losses of short trainings."""
    from y7edge.train.run import loop

    for model in options.models:
        runs: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in options.precisions]
        runs += [("fp32", {}), ("fp32", {"seed": 1})]
        first = None
        for precision, more in runs:
            case = {"model": model, "precision": precision, **more}
            with TemporaryDirectory() as folder:
                place = {"out": Path(folder) / "run", "val_every": options.epochs}
                try:
                    done = loop.train(config_of(options, model, precision, **place, **more))
                except (Y7EdgeError, RuntimeError) as error:
                    yield {**case, "error": " ".join(str(error).split())[:300]}
                    continue
                losses = _losses(place["out"] / "results.csv")
            sums = losses.sum(axis=1)
            first = sums if first is None else first
            yield {
                **case,
                "finite": bool(np.isfinite(losses).all()),
                "losses": losses.round(5).tolist(),
                "sum / first fp32": (sums / first).round(4).tolist(),
                "map50": done.metrics.map50,
                "seconds_per_epoch": done.seconds_per_epoch,
            }


def _losses(path: Path) -> Any:
    """Return box, objectness and class loss by epoch."""
    names, *rows = (line.split(",") for line in path.read_text().splitlines())
    columns = [index for index, name in enumerate(names) if name.strip() in ("box", "obj", "cls")]
    assert len(columns) == 3, names
    return np.array([[float(row[index]) for index in columns] for row in rows])


# --- evaluation ----------------------------------------------------------------------------------


def val(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compare a checkpoint on the GPU with the CPU."""
    from y7edge.data.dataset import load
    from y7edge.data.images import read_image
    from y7edge.detect.detector import Detector
    from y7edge.evaluation.evaluate import evaluate, same_classes

    found, heads = {}, {}
    for device in (options.device, "cpu"):
        with Detector(options.checkpoint, imgsz=options.imgsz, device=device) as detector:
            data = same_classes(detector.names, load(options.data, splits=["val"]), print)
            samples = data.split("val")
            pixels = read_image(samples[0].path)
            detector(pixels)
            rng = np.random.default_rng(0)
            images = rng.random((1, 3, options.imgsz, options.imgsz), np.float32)
            heads[device] = detector.session.infer({"images": images})
            begin = time.perf_counter()
            metrics = evaluate(detector.detect_for_evaluation, samples, data.names)
            seconds = time.perf_counter() - begin
            once = _wall(lambda one=detector, image=pixels: one(image))
        found[device] = {
            **{"device": device, "map50": metrics.map50, "map50_95": metrics.map50_95},
            **{"seconds": seconds, "ms per image": once, "images": len(samples)},
        }
        yield found[device]
    gpu, cpu = heads[options.device], heads["cpu"]
    yield {
        "largest difference of logits": max(float(abs(gpu[n] - cpu[n]).max()) for n in cpu),
        "largest logit": max(float(abs(cpu[n]).max()) for n in cpu),
        "map50_95, GPU - CPU": found[options.device]["map50_95"] - found["cpu"]["map50_95"],
    }


COMMANDS: dict[str, Callable[[argparse.Namespace], Iterator[dict[str, Any]]]] = {
    "kernels": kernels,
    "speed": speed,
    "loss": loss,
    "val": val,
}

if __name__ == "__main__":
    main()
