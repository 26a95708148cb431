"""Measure every published variant: size, GFLOPs, and the deviation of each conversion.

    python examples/research/model_table.py --markdown
    python examples/research/model_table.py --models yolov7-tiny yolov7-w6 --imgsz 640

Columns:

* parameters and GFLOPs (2 x multiply-accumulates, at the published size), in training form and
  folded;
* golden: largest absolute difference between the outputs (lead and auxiliary heads) of y7edge and
  of the published implementation, with the same weights and the same 128 px input. The standard
  deviation of the outputs is about 1.3. "-": there is no golden file with the published outputs of
  this variant;
* fold: largest difference between the outputs of the folded and the unfolded model in float32, as a
  fraction of the output's largest magnitude, with the weights of the golden file, or random weights
  if there is no such file;
* ONNX: the same difference between the exported file in ONNX Runtime and the unfolded model, with
  random weights, on 8 synthetic images, from the proof of the export.

Progress is printed on stderr. The exit code is 4 if a proof fails. All eight variants take some
minutes and a few GB of memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from y7edge.errors import ParityError, Y7EdgeError
from y7edge.export import export
from y7edge.export.folding import deviation
from y7edge.models import registry
from y7edge.models.published import official
from y7edge.models.shapes import gflops, parameters
from y7edge.nn import create
from y7edge.nn.build import Model, to_checkpoint
from y7edge.nn.random_weights import random_checkpoint

GOLDEN = Path(__file__).parents[2] / "tests" / "reference" / "golden"
FOLD_SHAPE = (1, 3, 256, 256)  # of the input to measure a fold, if there is no golden file


@dataclass(frozen=True)
class Line:
    """The measurements of one variant."""

    name: str
    parameters: int
    parameters_folded: int
    gflops: float
    gflops_folded: float
    imgsz: int
    golden: float | None
    fold: float
    fold_weights: str  # "golden" or "random"
    onnx: float | None  # None: NaN or infinite
    onnx_status: str  # "passed", "failed" or "inconclusive"


class Golden:
    """A golden file: weights, input and outputs of one variant in the published implementation."""

    def __init__(self, folder: Path, name: str) -> None:
        self.description = json.loads((folder / f"model_{name}.json").read_text("utf-8"))
        with np.load(folder / f"model_{name}.npz") as outputs:
            self.outputs = dict(outputs)

    @property
    def image(self) -> np.ndarray:
        """The input (1, 3, 128, 128) float32, 0 to 1."""
        key, shape = self.description["input_key"], self.description["input_shape"]
        return _regenerate(key, shape, "uniform", 0.0, 1.0)

    def model(self, name: str) -> Model:
        """Return the training form with the golden weights, in evaluation mode."""
        explicit = self.description["explicit"]
        published = {
            key: np.asarray(explicit[key], np.float32).reshape(shape)
            if kind == "explicit"
            else _regenerate(key, shape, kind, a, b)
            for key, shape, _, kind, a, b in self.description["state_dict"]
        }
        ours = official.convert({k: torch.from_numpy(v) for k, v in published.items()}, name)
        model = create(name)
        model.load_state_dict(ours, strict=True)
        return model.eval()

    def difference(self, model: Model) -> float:
        """Return the largest absolute difference from the golden outputs, over all heads."""
        with torch.inference_mode():
            raws = [raw.numpy() for raw in model.raw(torch.from_numpy(self.image))]
        levels = model.spec.levels
        expected = [
            self.outputs[f"raw{i}" if i < levels else f"aux{i - levels}"] for i in range(len(raws))
        ]
        return max(float(np.abs(a - b).max()) for a, b in zip(raws, expected, strict=True))


def _regenerate(key: str, shape: list[int], kind: str, a: float, b: float) -> np.ndarray:
    """Generate an array from its key, in the same way as the golden files were generated."""
    if kind == "zeros":
        return np.zeros(shape, np.int64)
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    draw = rng.standard_normal if kind == "normal" else rng.random
    return draw(shape, dtype=np.float32) * np.float32(b) + np.float32(a)


def measure(name: str, imgsz: int, folder: Path) -> Line:
    """Measure one variant; ``imgsz`` is for the ONNX file, ``folder`` has the golden files."""
    spec, folded = registry.get(name), registry.get(name, form="folded")
    size = (spec.imgsz, spec.imgsz)
    golden, fold, weights = _golden_and_fold(name, folder)
    report = _onnx(name, imgsz)
    deviations = [output["deviation"] for output in report["outputs"].values()]
    return Line(
        name=name,
        parameters=parameters(spec),
        parameters_folded=parameters(folded),
        gflops=round(gflops(spec, *size), 4),
        gflops_folded=round(gflops(folded, *size), 4),
        imgsz=spec.imgsz,
        golden=golden,
        fold=fold,
        fold_weights=weights,
        onnx=None if None in deviations else max(deviations),
        onnx_status=report["status"],
    )


def _golden_and_fold(name: str, folder: Path) -> tuple[float | None, float, str]:
    """Return the difference from the golden outputs, the fold's deviation, and the weights used."""
    if not (folder / f"model_{name}.json").exists():
        _tell(f"{name}: no golden file in {folder}; fold with random weights")
        image = np.random.default_rng(0).random(FOLD_SHAPE, dtype=np.float32)
        return None, deviation(random_checkpoint(name), image).deviation, "random"
    golden = Golden(folder, name)
    _tell(f"{name}: golden outputs")
    model = golden.model(name)
    difference = golden.difference(model)
    _tell(f"{name}: fold")
    return difference, deviation(to_checkpoint(model), golden.image).deviation, "golden"


def _onnx(name: str, imgsz: int) -> Mapping[str, Any]:
    """Export with random weights; return the parity report, even if the proof failed."""
    with tempfile.TemporaryDirectory(prefix="y7edge-table-") as folder:
        try:
            artifact = export(
                random_checkpoint(name),
                Path(folder) / f"{name}.onnx",
                imgsz=imgsz,
                progress=lambda line: _tell(f"{name}: {line}"),
            )
        except ParityError as error:
            _tell(f"{name}: {error}")
            return error.report.to_dict() if error.report else {}
    return artifact.manifest.parity


def as_table(lines: list[Line], *, markdown: bool) -> str:
    """Format the lines as a table; all columns except the first are right-aligned."""
    head = ["model", "parameters", "folded", "GFLOPs", "folded", "at", "golden", "fold", "ONNX"]
    rows = [head, *(_cells(line) for line in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    text = [
        [cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(pairs)]
        for pairs in (zip(row, widths, strict=True) for row in rows)
    ]
    if not markdown:
        return "\n".join("  ".join(row) for row in text)
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (text[0], rule, *text[1:]))


def _cells(line: Line) -> list[str]:
    onnx = "NaN" if line.onnx is None else _short(line.onnx)
    return [
        line.name,
        f"{line.parameters:,}".replace(",", " "),
        f"{line.parameters_folded:,}".replace(",", " "),
        f"{line.gflops:.1f}",
        f"{line.gflops_folded:.1f}",
        str(line.imgsz),
        "-" if line.golden is None else _short(line.golden),
        _short(line.fold) + (" (random)" if line.fold_weights == "random" else ""),
        onnx if line.onnx_status == "passed" else f"{onnx} {line.onnx_status}",
    ]


def _short(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Run the script; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = registry.names()
    parser.add_argument("--models", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument(
        "--imgsz", type=int, default=320, help="input side of ONNX files; default: 320"
    )
    parser.add_argument("--golden", type=Path, default=GOLDEN, metavar="DIR")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--markdown", action="store_true", help="print a Markdown table")
    how.add_argument("--json", action="store_true", help="print JSON, with all digits")
    options = parser.parse_args()
    try:
        lines = [measure(name, options.imgsz, options.golden) for name in options.models]
    except Y7EdgeError as error:
        _tell(f"error: {error}")
        return error.exit_code
    if options.json:
        print(json.dumps([asdict(line) for line in lines], indent=1))
    else:
        print(as_table(lines, markdown=options.markdown))
    return 0 if all(line.onnx_status == "passed" for line in lines) else 4


if __name__ == "__main__":
    sys.exit(main())
