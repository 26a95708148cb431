"""Export every kind of artifact of a model, prove each, and print a table of the differences.

    python examples/research/parity_matrix.py best.safetensors --imgsz 320
    python examples/research/parity_matrix.py yolov7 --imgsz 320 --outputs heads --batch 1
    python examples/research/parity_matrix.py yolov7-e6e --imgsz 640 --target onnx \
        --target openvino --outputs heads --batch 1

Each row is one artifact: a combination of target, precision, outputs and batch size that the
target supports, if its packages are installed. The outputs of the reference are cached, so they are
computed once. The exit code is 4 if a proof fails, or if nothing can be proved here. Random weights
amplify the rounding errors of 16-bit precisions too much: use a trained model.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from y7edge.artifact.reports import ParityReport
from y7edge.errors import (
    ConfigError,
    DeviceError,
    ExportError,
    ParityError,
    RuntimeMissing,
    Y7EdgeError,
)
from y7edge.export import export
from y7edge.export.targets import registry as targets
from y7edge.export.targets.base import Target, Unprovable
from y7edge.models.checkpoint import Checkpoint
from y7edge.nn.source import open_checkpoint
from y7edge.runtimes.base import missing

KEYS = ("target", "precision", "outputs", "batch")
HEADER = (*KEYS, "deviation", "cosine", "IoU", "score", "result")


@dataclass(frozen=True)
class Cell:
    """One kind of artifact."""

    target: str
    precision: str
    outputs: str
    batch: str  # "1", "3" or "dynamic"


def main() -> int:
    """Prove all cells; print the table as Markdown; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default="yolov7-tiny", help="or a variant's name")
    parser.add_argument("--imgsz", type=int, default=320, help="input size in pixels")
    for name in KEYS:
        parser.add_argument(f"--{name}", action="append", help="only this one; repeatable")
    options = parser.parse_args()
    wanted = {name: getattr(options, name) for name in KEYS}
    chosen = [
        cell
        for cell in cells()
        if all(getattr(cell, name) in some for name, some in wanted.items() if some)
    ]
    if not chosen:
        parser.error("no target that is installed here supports this combination")
    try:
        return prove_all(chosen, options.checkpoint, options.imgsz)
    except Y7EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def prove_all(chosen: Sequence[Cell], source: str, imgsz: int) -> int:
    """Prove cells, and print a row for each; return the exit code."""
    checkpoint, started = open_checkpoint(source), time.monotonic()
    results: Counter[str] = Counter()
    print(f"{source} at {imgsz} px\n")
    print(f"| {' | '.join(HEADER)} |\n{'|---' * len(HEADER)}|")
    with tempfile.TemporaryDirectory() as folder:
        for cell in chosen:
            row = prove(cell, checkpoint, imgsz, Path(folder))
            results[row[-1].partition(":")[0]] += 1
            values = [getattr(cell, name) for name in KEYS]
            print(f"| {' | '.join((*values, *row))} |", flush=True)
    counts = ", ".join(f"{count} {result}" for result, count in results.items())
    print(f"\n{counts}; {time.monotonic() - started:.0f} s")
    return 0 if results["passed"] and set(results) <= {"passed", "not here"} else 4


def cells() -> Iterator[Cell]:
    """Yield the kinds of artifacts that can be made and proved here."""
    for name in targets.names():
        target = targets.get(name)
        if isinstance(target.RUNTIME, Unprovable) or missing(target.NEEDS):
            print(f"not here: {name}", file=sys.stderr)
            continue
        for precision in target.PRECISIONS:
            if precision == "int8":  # is accepted by its mAP: see int8_table.py
                continue
            for outputs in target.OUTPUTS:
                for batch in batches(target):
                    yield Cell(name, precision, outputs, batch)


def batches(target: Target) -> list[str]:
    """Return the batch sizes to prove; 3 stands for any fixed size."""
    return ["3" if batch == "N" else batch for batch in target.BATCHES]


def prove(cell: Cell, checkpoint: Checkpoint, imgsz: int, folder: Path) -> tuple[str, ...]:
    """Export one artifact; return its largest differences and the result, such as "passed"."""
    out = folder / f"{cell.target}{targets.get(cell.target).SUFFIX}"
    try:
        made = export(
            checkpoint,
            out,
            target=cell.target,
            outputs=cell.outputs,
            precision=cell.precision,
            imgsz=imgsz,
            batch=1 if cell.batch == "dynamic" else int(cell.batch),
            dynamic=cell.batch == "dynamic",
        )
        report = ParityReport.from_dict(made.manifest.parity)
    except ParityError as error:
        if not isinstance(error.report, ParityReport):
            raise
        report = error.report
    except (DeviceError, RuntimeMissing) as error:  # a CPU without bfloat16, no converter
        return ("-", "-", "-", "-", f"not here: {error}")
    except ConfigError as error:
        if f"target {cell.target} " not in str(error):
            raise  # not about a combination that the target lacks
        return ("-", "-", "-", "-", f"not offered: {error}")
    except ExportError as error:
        return ("-", "-", "-", "-", f"failed: {error}")
    measured = report.measured
    if measured is None:
        return ("-", "-", "-", "-", report.status)
    differences = measured.outputs.values()
    numbers = (
        max((d.deviation or 0.0 for d in differences), default=0.0),
        min((1.0 if d.cosine is None else d.cosine for d in differences), default=1.0),
        measured.candidates.iou or 0.0,
        measured.candidates.score_difference or 0.0,
    )
    words = (f"{numbers[0]:.1e}", f"{numbers[1]:.5f}", f"{numbers[2]:.4f}", f"{numbers[3]:.1e}")
    return (*words, report.status)


if __name__ == "__main__":
    sys.exit(main())
