"""Export every kind of artifact of a model, prove each, and print a table of the differences.

    python examples/research/parity_matrix.py best.safetensors --imgsz 320
    python examples/research/parity_matrix.py yolov7 --imgsz 320 --outputs heads --batch 1
    python examples/research/parity_matrix.py yolov7-e6e --imgsz 640 --target onnx \
        --target openvino --outputs heads --batch 1

Each row is one artifact: a combination of target, precision, outputs and batch size that the
target supports, if its packages are installed. The outputs of the reference are cached, so they are
computed once. The exit code is 4 if a proof fails. Random weights amplify the rounding errors of
16-bit precisions too much: use a trained model.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from y7edge.artifact.reports import ParityReport
from y7edge.errors import DeviceError, ParityError, RuntimeMissing
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
    parser.add_argument("checkpoint", nargs="?", default="yolov7-tiny")
    parser.add_argument("--imgsz", type=int, default=320)
    for name in KEYS:
        parser.add_argument(f"--{name}", action="append", help="only this one; repeatable")
    options = parser.parse_args()
    checkpoint, started, failed = open_checkpoint(options.checkpoint), time.monotonic(), 0
    print(f"{options.checkpoint} at {options.imgsz} px\n")
    print(f"| {' | '.join(HEADER)} |\n{'|---' * len(HEADER)}|")
    with tempfile.TemporaryDirectory() as folder:
        for cell in cells():
            wanted = {name: getattr(options, name) for name in KEYS}
            if any(some and getattr(cell, name) not in some for name, some in wanted.items()):
                continue
            row, passed = prove(cell, checkpoint, options.imgsz, Path(folder))
            failed += not passed
            values = [getattr(cell, name) for name in KEYS]
            print(f"| {' | '.join((*values, *row))} |", flush=True)
    print(f"\n{failed} failed; {time.monotonic() - started:.0f} s")
    return 4 if failed else 0


def cells() -> Iterator[Cell]:
    """Yield the kinds of artifacts that can be made and proved here."""
    for name in targets.names():
        target = targets.get(name)
        if isinstance(target.RUNTIME, Unprovable) or missing(target.NEEDS):
            print(f"not here: {name}", file=sys.stderr)
            continue
        for precision in target.PRECISIONS:
            for outputs in target.OUTPUTS:
                for batch in batches(target):
                    yield Cell(name, precision, outputs, batch)


def batches(target: Target) -> list[str]:
    """Return the batch sizes to prove; 3 stands for any fixed size."""
    return ["3" if batch == "N" else batch for batch in target.BATCHES]


def prove(
    cell: Cell, checkpoint: Checkpoint, imgsz: int, folder: Path
) -> tuple[tuple[str, ...], bool]:
    """Export one artifact; return its largest differences and the result, and whether it passed."""
    out = folder / f"model{targets.get(cell.target).SUFFIX}"
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
    except (DeviceError, RuntimeMissing) as error:  # such as a CPU without bfloat16
        return ("-", "-", "-", "-", f"not here: {error}"), True
    measured = report.measured
    if measured is None:
        return ("-", "-", "-", "-", report.status), False
    differences = measured.outputs.values()
    numbers = (
        max((d.deviation or 0.0 for d in differences), default=0.0),
        min((1.0 if d.cosine is None else d.cosine for d in differences), default=1.0),
        measured.candidates.iou or 0.0,
        measured.candidates.score_difference or 0.0,
    )
    words = (f"{numbers[0]:.1e}", f"{numbers[1]:.5f}", f"{numbers[2]:.4f}", f"{numbers[3]:.1e}")
    return (*words, report.status), report.status == "passed"


if __name__ == "__main__":
    sys.exit(main())
