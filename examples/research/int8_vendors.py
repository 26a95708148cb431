"""Run int8 graphs in the tools of NPU vendors, without an NPU, and print a table.

    python -m venv QNN && QNN/bin/pip install onnxruntime==1.32.0 onnxruntime-qnn==2.7.0
    Y7EDGE_QNN_PYTHON=QNN/bin/python python examples/research/int8_vendors.py best.safetensors \
        --data DATA --imgsz 320 --vendor qnn --out vendors.jsonl
    python examples/research/int8_vendors.py --out vendors.jsonl

qnn is Qualcomm's execution provider for ONNX Runtime. Its wheel for x86-64 emulates the arithmetic
of the HTP, with the same compiler as for a device. The fallback to the CPU is switched off, so that
every node is compiled for the HTP. rknn is Rockchip's toolkit with its simulator; docs/rknn.md has
the commands that install it.

Each row is one graph: its profile, and whether the head convolutions are in int8. "own": the tool
quantises the float graph itself. The outputs are compared with those of the float graph in ONNX
Runtime on 8 images of the split "val": the cosine without the channels' means, the mean difference
of the logits, and of the best candidates the mean IoU and the mean difference of the scores. The
columns "same graph" have these of the same int8 graph in ONNX Runtime. With ``--evaluate N``,
the mAP@0.5:0.95 is measured on N images of "val".

Neither tool gives the time on a device, and how close the emulation is to the device is not known.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from int8_table import FORMS, Bench, Model, Row, arguments, built, compared, read, table
from numpy.typing import NDArray

from y7edge import interpreters
from y7edge.artifact.manifest import Manifest
from y7edge.errors import DeviceError, Y7EdgeError
from y7edge.export.graph.quantize_ranges import METHODS
from y7edge.export.proof.agreement import candidates_of, decode, iou
from y7edge.export.quantization import METHOD
from y7edge.runtimes import rknnrt
from y7edge.runtimes.base import Session

OWN = "own"  # the vendor's tool quantises
GRAPHS = {"qnn": ("u8s8", "s8s8", "u16s8"), "rknn": (OWN, "u8s8", "s8s8", "u16s8")}
CHIPS = {"qnn": "75", "rknn": "rk3588"}  # version of the HTP; Rockchip's name
RECIPES = {  # module, package, and the commands that install it
    "qnn": ("onnxruntime_qnn", "onnxruntime-qnn", "pip install onnxruntime-qnn==2.7.0"),
    "rknn": ("rknn", "rknn-toolkit2", rknnrt.RECIPE),
}
KEY = ("model", "size", "images", "evaluated", "vendor", "chip", "profile", "ranges", "heads")
HEADER = {
    "model": "model",
    "vendor": "tool",
    "chip": "chip",
    "profile": "profile",
    "state": "result",
    "cosine": "cosine",
    "logits": "logits",
    "boxes": "IoU",
    "scores": "scores",
    "same_cosine": "same graph: cosine",
    "same_logits": "logits",
    "map": "mAP",
    "drop": "drop",
    "seconds": "s / image",
}


@dataclass(frozen=True)
class Case:
    """One graph in one tool."""

    vendor: str
    chip: str
    profile: str  # or OWN
    ranges: str
    heads: str  # "float" or "int8"


def main() -> int:
    """Run the cases that the file lacks; print the table."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--evaluate", type=int, default=0, help="number of evaluated images")
    parser.add_argument("--vendor", action="append", choices=tuple(GRAPHS), help="only these")
    parser.add_argument("--chip", help="another version of the HTP, or another chip of Rockchip")
    parser.add_argument("--profile", action="append", help=f"only these; {OWN!r}: the tool's own")
    parser.add_argument("--ranges", default=METHOD, choices=METHODS)
    options = parser.parse_args()
    try:
        if options.checkpoint is not None:
            run(options)
    except Y7EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    forms = {**FORMS, "boxes": ".4f", "scores": ".4f", "same_cosine": ".5f", "same_logits": ".3f"}
    print(table(read(options.out), HEADER, {**forms, "seconds": ".1f"}))
    return 0


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield the cases, those of one calibration one after the other."""
    for vendor in options.vendor or GRAPHS:
        chip = options.chip or CHIPS[vendor]
        for profile in GRAPHS[vendor]:
            if profile in (options.profile or GRAPHS[vendor]):
                for heads in ("int8",) if profile == OWN else ("float", "int8"):
                    ranges = OWN if profile == OWN else options.ranges
                    yield Case(vendor, chip, profile, ranges, heads)


def run(options: argparse.Namespace) -> None:
    """Run the cases that the file lacks, and append them."""
    count = options.evaluate
    model = Model(options.checkpoint, options.data, options.imgsz, options.images, count)
    done = {tuple(row[key] for key in KEY) for row in read(options.out)}
    evaluated = options.data is not None and count > 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        artifact = built(model, "onnx", model.graph, place / "fp32")
        with closing(Bench.of(model, artifact, data=evaluated)) as reference:
            for case in cases(options):
                key = {**model.key, **asdict(case)}
                if tuple(key[name] for name in KEY) in done:
                    continue
                print(" ".join(asdict(case).values()), file=sys.stderr, flush=True)
                row = {**key, **measured(model, case, reference, place / "case")}
                with options.out.open("a") as stream:
                    print(json.dumps(row), file=stream)


def measured(model: Model, case: Case, reference: Bench, folder: Path) -> Row:
    """Run one graph in a vendor's tool, and in ONNX Runtime; compare both with the float graph."""
    given, row, proto = {"chip": case.chip}, Row(), model.graph
    if case.profile != OWN:
        source = model.quantizer(case.profile, case.ranges)
        proto = source.quantized(frozenset[str]() if case.heads == "int8" else source.heads)
    artifact = built(model, "onnx", proto, folder)
    if case.profile == OWN:
        given["dataset"] = str(dataset(model, folder))
    else:
        with closing(Bench.of(model, artifact, data=False)) as same:
            row |= {f"same_{name}": value for name, value in compared(reference, same).items()}
    try:
        session = VendorSession(case.vendor, artifact.path, given, model.manifest, folder)
    except DeviceError as error:
        return {**row, "state": f"refused: {error}"}
    with closing(Bench(model, session, model.manifest, data=reference.map is not None)) as bench:
        row |= compared(reference, bench) | candidates(model, reference, bench)
        if bench.map is not None and reference.map is not None:
            row |= {"map": bench.map, "drop": reference.map - bench.map}
        row |= {"state": "accepted", "versions": session.versions, "prepared": session.prepared}
        return {**row, "seconds": session.seconds}


def candidates(model: Model, reference: Bench, bench: Bench) -> Row:
    """Compare the best candidates of the float graph: the mean IoU, and difference of scores."""
    boxes, scores = [], []
    levels, nc = model.manifest.levels, model.manifest.nc
    for index, (ours, theirs) in enumerate(zip(reference.outputs, bench.outputs, strict=True)):
        found = decode(theirs, levels, nc)
        for best in candidates_of(index, decode(ours, levels, nc)):
            boxes.append(iou(best.box, found.boxes[best.index]))
            scores.append(abs(best.score - float(found.scores[best.index, best.class_id])))
    return {"boxes": float(np.mean(boxes)), "scores": float(np.mean(scores))}


def dataset(model: Model, folder: Path) -> Path:
    """Write the calibration images as Rockchip's toolkit reads them; return the list of files."""
    paths = []
    for index, pixels in enumerate(model.inputs()):
        path = folder / f"image{index}.npy"
        np.save(path, np.rint(pixels * 255).astype(np.uint8))
        paths.append(str(path))
    found = folder / "dataset.txt"
    found.write_text("\n".join(paths))
    return found


class VendorSession(Session):
    """A graph in a vendor's tool, which runs in another interpreter.

    Attributes:
        prepared: Seconds that the tool took to compile the graph.
        seconds: Mean seconds for an image; None before the first.
    """

    ENGINE = "the vendor's tool"

    def __init__(
        self,
        vendor: str,
        path: Path,
        options: Mapping[str, str],
        manifest: Manifest,
        folder: Path,
    ) -> None:
        """Start the tool.

        Raises:
            RuntimeMissing: its interpreter was not found.
            DeviceError: it does not accept the graph.
        """
        module, package, recipe = RECIPES[vendor]
        python = interpreters.find_interpreter(vendor, module, recipe)
        interpreters.require_packages(python, (package,), recipe)
        script = Path(__file__).with_name("int8_vendor.py").absolute()
        self._image, self._names = folder / "image.npy", [o.name for o in manifest.outputs]
        self._times: list[float] = []
        self._stack = ExitStack()
        log = self._stack.enter_context((folder / "log").open("w"))
        self._tool = self._stack.enter_context(
            subprocess.Popen(
                [str(python), "-I", str(script), vendor, str(path.absolute()), json.dumps(options)],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        )
        try:
            answer = self._answer()
        except DeviceError:
            self._stack.close()
            raise
        self.prepared = float(answer["seconds"])
        super().__init__(
            vendor, manifest, device="cpu", arithmetic=vendor, versions=answer["versions"]
        )

    @property
    def seconds(self) -> float | None:
        """Mean seconds for an image."""
        return float(np.mean(self._times)) if self._times else None

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        (pixels,) = feeds.values()
        np.save(self._image, pixels)
        stdin = cast(IO[str], self._tool.stdin)
        print(self._image, file=stdin, flush=True)
        self._times.append(float(self._answer()["seconds"]))
        with np.load(self._image.with_suffix(".npz")) as found:
            arrays = [found[key].astype(np.float32) for key in found.files]
        return dict(zip(self._names, arrays, strict=True))

    def _answer(self) -> dict[str, Any]:
        """Return the next line of the tool; raise DeviceError if it is an error, or missing."""
        line = cast(IO[str], self._tool.stdout).readline()
        found: dict[str, Any] = json.loads(line) if line else {"error": "the tool crashed"}
        if "error" in found:
            raise DeviceError(str(found["error"]))
        return found

    def _close(self) -> None:
        cast(IO[str], self._tool.stdin).close()
        self._stack.close()


if __name__ == "__main__":
    sys.exit(main())
