"""Build TensorRT-RTX engines of every kind of graph, without a GPU, and print a table.

    python3 -m venv ENV && ENV/bin/pip install --editable . tensorrt-rtx==1.7.1.116
    Y7EDGE_RTX_PYTHON=ENV/bin/python python examples/research/rtx_builds.py
    ... python examples/research/rtx_builds.py --model yolov7-tiny --outputs heads --size 320
    ... python examples/research/rtx_builds.py --int8 --size 128

Each row is one graph of a model with random weights. The code of target tensorrt gives it to
NVIDIA's parser and builder, which accept or refuse it. TensorRT-RTX is another product than
TensorRT: its engines are not TensorRT plans, it has no compute capability 8.7, 9.0 or 11.0, and no
engine is opened or run here. The int8 graphs have the profile s8s8, with ranges from one image of
noise, once with the head convolutions in int8, and once with each rewrite of the model.
``--int8`` builds only these, of all variants. The last rows have graphs that must be refused: one
with a uint8 input, which target tensorrt does not offer, and those of the other profiles, which it
refuses.

The exit code is 4 if a graph has another result than expected, or if the parser finds another
number of convolutions in int8 than the graph was written with.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import onnx

from y7edge import interpreters
from y7edge.artifact.artifact import Artifact, write_sidecar
from y7edge.artifact.description import Input, Outputs, describe
from y7edge.artifact.manifest import Dim, Precision
from y7edge.errors import ExportError, RuntimeMissing
from y7edge.export.folding import fold_checkpoint
from y7edge.export.graph import build as graph
from y7edge.export.graph.quantize import PROFILES
from y7edge.export.graph.rewrites import REWRITES
from y7edge.export.graph.simplify import simplify
from y7edge.export.quantization import Quantizer
from y7edge.models import registry
from y7edge.models.checkpoint import Checkpoint
from y7edge.nn.source import open_checkpoint

RECIPE = "python -m venv ENV && ENV/bin/pip install --editable . tensorrt-rtx==1.7.1.116"
CAPABILITIES = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
HEADER = ("model", "input", "precision", "outputs", "batch 1", "dynamic batch")
OUTPUTS = ("heads", "heads-sigmoid", "decoded")
ACCEPTED = "s8s8"  # the profile for TensorRT
BATCHES: tuple[Dim, ...] = (1, "dynamic")


class Case(NamedTuple):
    """One kind of graph."""

    model: str
    size: int
    precision: str  # "fp32", "fp16", or a profile, of which only one is accepted
    outputs: str
    batches: tuple[Dim, ...] = BATCHES
    input: str = "float32"  # or "uint8", which must be refused
    rewrites: tuple[str, ...] = ()
    int8_heads: bool = False


def cases(
    models: Sequence[str], outputs: Sequence[str], size: int, *, int8: bool = False
) -> Iterator[Case]:
    """Yield all cases: of each model all kinds, and of the first one the special graphs.

    Args:
        models: names of variants.
        outputs: kinds of outputs.
        size: input size in pixels.
        int8: leave out the float graphs.
    """
    for model in models:
        for precision in () if int8 else ("fp32", "fp16"):
            for kind in outputs:
                yield Case(model, size, precision, kind)
        for kind in outputs:
            if kind != "decoded":  # has boxes in pixels and scores in one tensor
                yield Case(model, size, ACCEPTED, kind)
        if "heads" in outputs:
            yield Case(model, size, ACCEPTED, "heads", int8_heads=True)
            for name, rewrite in REWRITES.items():
                if rewrite.applies(registry.get(model)):
                    yield Case(model, size, ACCEPTED, "heads", rewrites=(name,))
    yield Case(models[0], size, "fp32", "heads", (1,), "uint8")
    for profile in PROFILES:
        if profile != ACCEPTED:
            yield Case(models[0], size, profile, "heads", (1,))


def refused(case: Case) -> bool:
    """Return whether TensorRT is expected to refuse a graph, for one of two reasons.

    It accepts only int8 with zero points of 0, and a uint8 input only if the first node is a Cast.
    """
    return case.precision in PROFILES.keys() - {ACCEPTED} or case.input == "uint8"


def main() -> int:
    """Build all cases; print the table as Markdown; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help="default: yolov7-tiny and yolov7")
    parser.add_argument("--outputs", action="append", choices=OUTPUTS, help="only these")
    parser.add_argument("--size", type=int, default=640, help="input size in pixels")
    parser.add_argument("--int8", action="store_true", help="only int8; default: all variants")
    parser.add_argument(
        "--brief", action="store_true", help="without rewrites and int8 heads, batch 1"
    )
    parser.add_argument("--e6e", action="store_true", help="also yolov7-e6e at 1280, fp16, heads")
    parser.add_argument("--for", dest="capabilities", default=",".join(CAPABILITIES))
    options = parser.parse_args()
    models = options.model or (registry.names() if options.int8 else ["yolov7-tiny", "yolov7"])
    chosen = list(cases(models, options.outputs or OUTPUTS, options.size, int8=options.int8))
    if options.brief:
        plain = [case for case in chosen if not case.rewrites and not case.int8_heads]
        chosen = [case._replace(batches=(1,)) for case in plain]
    if options.e6e:
        chosen.insert(-len(PROFILES), Case("yolov7-e6e", 1280, "fp16", "heads", (1,)))
    try:
        python = interpreters.find_interpreter("rtx", "tensorrt_rtx", RECIPE)
    except RuntimeMissing as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"| {' | '.join(HEADER)} |\n{'|---' * len(HEADER)}|")
    count = failed = 0
    for case in chosen:
        records = [run(case, batch, python, options.capabilities) for batch in case.batches]
        count += len(records)
        failed += sum(not as_expected(case, record) for record in records)
        print(f"| {' | '.join(row(case, records))} |", flush=True)
    print(
        f"\n{count} graphs, {failed} with another result than expected; one engine for "
        f"{options.capabilities}; TensorRT-RTX {records[-1]['version']}; dynamic: batches 1 to 8"
    )
    return 4 if failed else 0


def as_expected(case: Case, record: Mapping[str, Any]) -> bool:
    """Return whether the target and TensorRT accepted or refused a graph as they should.

    The target itself refuses the graphs of other profiles, before TensorRT sees them.
    """
    if refused(case):
        return "error" in record and ("refused" in record) == (case.precision in PROFILES)
    integer = record.get("convolutions", {}).get("int8", 0)
    return not {"error", "refused"} & record.keys() and integer == record["written"]


def run(case: Case, batch: Dim, python: Path, capabilities: str) -> dict[str, Any]:
    """Write the graph of a case, and build it in the interpreter ``python``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        written = write(case, batch, path)
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
    return {**record, "written": written}


def write(case: Case, batch: Dim, path: Path) -> int:
    """Write the graph of a case; return the number of its convolutions in int8."""
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
        rewrites=case.rewrites,
    )
    model, _ = simplify(model)
    integer = 0
    if case.precision in PROFILES:
        model, integer = quantised(model, case)
        precision = "int8"
    path.write_bytes(model.SerializeToString())
    manifest = describe(
        checkpoint,
        checkpoint.spec,
        (case.size, case.size),
        batch=batch,
        outputs=cast(Outputs, case.outputs),
        input=cast(Input, case.input),
        precision="fp16" if precision == "fp16" else "fp32",
        target="onnx",
        opset=graph.OPSET,
        tools={},
    )
    write_sidecar(Artifact(path, replace(manifest, precision=cast(Precision, precision))))
    return integer


_FOLDED: dict[str, Checkpoint] = {}


def folded(name: str) -> Checkpoint:
    """Return the folded checkpoint of a variant with random weights, or of a file."""
    if name not in _FOLDED:
        _FOLDED.clear()
        _FOLDED[name] = fold_checkpoint(open_checkpoint(name))
    return _FOLDED[name]


def quantised(model: onnx.ModelProto, case: Case) -> tuple[onnx.ModelProto, int]:
    """Return the QDQ graph with ranges from an image of noise, and its convolutions in int8."""
    noise = np.random.default_rng(0).random((1, 3, case.size, case.size), dtype=np.float32)
    quantizer = Quantizer(model, [noise], case.precision)
    kept = frozenset[str]() if case.int8_heads else quantizer.heads
    return quantizer.quantized(kept), len(quantizer.layers) - len(kept)


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
    parts = [case.precision, *case.rewrites, *(["int8 heads"] if case.int8_heads else [])]
    cells += ["-"] * (2 - len(cells))
    return (case.model, pixels, ", ".join(parts), case.outputs, *cells)


if __name__ == "__main__":
    sys.exit(main())
