"""Build TensorRT-RTX engines of every kind of graph, without a GPU, and print a table.

    python3 -m venv ENV && ENV/bin/pip install --editable . tensorrt-rtx==1.7.1.116
    Y7EDGE_RTX_PYTHON=ENV/bin/python python examples/research/rtx_builds.py
    ... python examples/research/rtx_builds.py --model yolov7-tiny --outputs heads --size 320

Each row is one graph of a model with random weights. The code of target tensorrt gives it to
NVIDIA's parser and builder, which accept or refuse it. TensorRT-RTX is another product than
TensorRT: its engines are not TensorRT plans, it has no compute capability 8.7, 9.0 or 11.0, and no
engine is opened or run here. The int8 graphs are quantised by ONNX Runtime, symmetrically and
without quantised biases. The last rows have graphs that must be refused: one with a uint8 input,
which target tensorrt does not offer, and one that is quantised asymmetrically, which it refuses.

The exit code is 4 if a graph has another result than expected.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import onnx

from y7edge.artifact.artifact import Artifact, write_sidecar
from y7edge.artifact.description import Input, Outputs, describe
from y7edge.artifact.manifest import Dim, Precision
from y7edge.errors import ExportError, RuntimeMissing
from y7edge.export import converters
from y7edge.export.folding import fold_checkpoint
from y7edge.export.graph import build as graph
from y7edge.export.graph.simplify import simplify
from y7edge.models.checkpoint import Checkpoint
from y7edge.nn.source import open_checkpoint

RECIPE = "python -m venv ENV && ENV/bin/pip install --editable . tensorrt-rtx==1.7.1.116"
CAPABILITIES = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
HEADER = ("model", "input", "precision", "outputs", "batch 1", "dynamic batch")
OUTPUTS = ("heads", "heads-sigmoid", "decoded")


class Case(NamedTuple):
    """One kind of graph."""

    model: str
    size: int
    precision: str  # "fp32", "fp16", "int8", or "int8-asymmetric", which must be refused
    outputs: str
    batches: tuple[Dim, ...]
    input: str = "float32"  # or "uint8", which must be refused


def cases(models: Sequence[str], outputs: Sequence[str], size: int) -> Iterator[Case]:
    """Yield all cases: of each model all kinds, and of the first one the special graphs."""
    for model in models:
        for precision in ("fp32", "fp16", "int8"):
            for kind in outputs:
                yield Case(model, size, precision, kind, (1, "dynamic"))
    yield Case(models[0], size, "fp32", "heads", (1,), "uint8")
    yield Case(models[0], size, "int8-asymmetric", "heads", (1,))


def refused(case: Case) -> bool:
    """Return whether TensorRT is expected to refuse a graph, for one of two reasons.

    It accepts only zero points of 0, and a uint8 input only if the first node is a Cast.
    """
    return case.precision == "int8-asymmetric" or case.input == "uint8"


def main() -> int:
    """Build all cases; print the table as Markdown; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help="default: yolov7-tiny and yolov7")
    parser.add_argument("--outputs", action="append", choices=OUTPUTS, help="only these")
    parser.add_argument("--size", type=int, default=640, help="input size in pixels")
    parser.add_argument("--e6e", action="store_true", help="also yolov7-e6e at 1280, fp16, heads")
    parser.add_argument("--for", dest="capabilities", default=",".join(CAPABILITIES))
    options = parser.parse_args()
    models = options.model or ["yolov7-tiny", "yolov7"]
    chosen = list(cases(models, options.outputs or OUTPUTS, options.size))
    if options.e6e:
        chosen.insert(-2, Case("yolov7-e6e", 1280, "fp16", "heads", (1,)))
    try:
        python = converters.find_interpreter("rtx", "tensorrt_rtx", RECIPE)
    except RuntimeMissing as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"| {' | '.join(HEADER)} |\n{'|---' * len(HEADER)}|")
    count = failed = 0
    for case in chosen:
        records = [run(case, batch, python, options.capabilities) for batch in case.batches]
        count += len(records)
        for record in records:
            accepted = "error" not in record and "refused" not in record
            failed += accepted == refused(case) or (
                ("refused" in record) != (case.precision == "int8-asymmetric")
            )
        print(f"| {' | '.join(row(case, records))} |", flush=True)
    print(
        f"\n{count} graphs, {failed} with another result than expected; one engine for "
        f"{options.capabilities}; TensorRT-RTX {record['version']}; dynamic: batches 1 to 8"
    )
    return 4 if failed else 0


def run(case: Case, batch: Dim, python: Path, capabilities: str) -> dict[str, Any]:
    """Write the graph of a case, and build it in the interpreter ``python``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write(case, batch, path)
        script = Path(__file__).with_name("rtx_build.py")
        command = [str(python), "-I", str(script), str(path), capabilities]
        done = subprocess.run(
            command,
            env={**os.environ, "Y7EDGE_CACHE": folder},
            capture_output=True,
            text=True,
            check=False,
            timeout=1800,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ExportError(f"{' '.join(command)} ended with code {done.returncode}: {last}")
        record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def write(case: Case, batch: Dim, path: Path) -> None:
    """Write the graph of a case."""
    checkpoint = folded(case.model)
    precision = "fp16" if case.precision == "fp16" else "fp32"
    model = graph.build_graph(
        checkpoint,
        outputs=case.outputs,
        input=case.input,
        precision=precision,
        height=case.size,
        width=case.size,
        batch=None if batch == "dynamic" else batch,
    )
    model, _ = simplify(model)
    path.write_bytes(model.SerializeToString())
    manifest = describe(
        checkpoint,
        checkpoint.spec,
        (case.size, case.size),
        batch=batch,
        outputs=cast(Outputs, case.outputs),
        input=cast(Input, case.input),
        precision=cast(Precision, precision),
        target="onnx",
        opset=graph.OPSET,
        tools={},
    )
    if case.precision.startswith("int8"):
        manifest = replace(manifest, precision="int8")
    write_sidecar(Artifact(path, manifest))
    if case.precision.startswith("int8"):
        quantise(path, case.size, symmetric=case.precision == "int8")


_FOLDED: dict[str, Checkpoint] = {}


def folded(name: str) -> Checkpoint:
    """Return the folded checkpoint of a variant with random weights, or of a file."""
    if name not in _FOLDED:
        _FOLDED.clear()
        _FOLDED[name] = fold_checkpoint(open_checkpoint(name))
    return _FOLDED[name]


def quantise(path: Path, size: int, *, symmetric: bool) -> None:
    """Quantise a graph to int8 with ONNX Runtime; the scales come from two random images."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Noise(CalibrationDataReader):  # type: ignore[misc]
        """Two images of noise."""

        def __init__(self) -> None:
            self.left = 2

        def get_next(self) -> dict[str, Any] | None:
            if not self.left:
                return None
            self.left -= 1
            random = np.random.default_rng(self.left)
            return {"images": random.random((1, 3, size, size), dtype=np.float32)}

    prepared = path.with_name("prepared.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(path),
            Noise(),
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options={
                "ActivationSymmetric": symmetric,
                "WeightSymmetric": True,
                "QuantizeBias": False,
            },
        )
    onnx.checker.check_model(str(path))


def row(case: Case, records: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Return the cells of a case; ``records``: one for each of its batches."""
    cells = []
    for record in records:
        if "error" in record:
            problem = " ".join(record["error"].split()).replace("|", "/")
            cells.append(f"refused: {problem[:160]}")
        else:
            cells.append(f"{record['bytes'] / 1e6:.1f} MB, {record['seconds']:.1f} s")
    pixels = f"{case.size}{', uint8' if case.input == 'uint8' else ''}"
    cells += ["-"] * (2 - len(cells))
    return (case.model, pixels, case.precision, case.outputs, *cells)


if __name__ == "__main__":
    sys.exit(main())
