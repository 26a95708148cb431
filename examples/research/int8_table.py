"""Measure int8 graphs of a model: drop of the mAP, layers in float, speed against fp32.

    python examples/research/int8_table.py best.safetensors --data DATA --imgsz 320 --out rows.jsonl
    python examples/research/int8_table.py yolov7 --imgsz 640 --ranges minmax --out rows.jsonl
    python examples/research/int8_table.py --out rows.jsonl

One row for each engine, profile and range method. The graphs are written by y7edge, built by the
code of the targets, and evaluated with the Detector in their own engine, on the split "val". The
ranges come from images of the split "train". All convolutions but the heads are in int8. With
``--max-map-drop``, layers go back to float as in an export, if the mAP@0.5:0.95 drops by more.

``time / fp32`` is the time of the int8 artifact as a fraction of the fp32 artifact's, in the same
engine and process, on one thread: medians of the processor time of alternating calls.

Without ``--data``, for random weights, the ranges come from synthetic scenes, and only cosines and
speed are measured. ``cosine`` is the smallest of the outputs, over 8 images, without the channels'
means; ``logits`` the mean difference of the logits; both against the fp32 artifact.

``--nncf`` adds what NNCF makes of the same graph and the same images: FakeQuantize operators in
OpenVINO's own format, and QDQ nodes in an ONNX file. It needs an interpreter of its own:

    python -m venv ENV && ENV/bin/pip install nncf==3.4.0 openvino==2026.4.1 onnx onnxruntime
    Y7EDGE_NNCF_PYTHON=ENV/bin/python python examples/research/int8_table.py ... --nncf

Each row is appended to the file ``--out`` at once, and rows that the file already has are not
measured again. The last form of the command only prints the table of a file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from y7edge import interpreters
from y7edge.artifact.artifact import Artifact
from y7edge.artifact.description import Size, describe, pair
from y7edge.artifact.manifest import Manifest
from y7edge.artifact.reports import AccuracyDifference, FallbackStep
from y7edge.data import dataset
from y7edge.data.images import read_image
from y7edge.data.synthetic import scenes
from y7edge.detect.detector import Detector
from y7edge.detect.preprocess import Preprocessor
from y7edge.errors import ConfigError, Y7EdgeError
from y7edge.evaluation.evaluate import evaluate, same_classes
from y7edge.export import converters, sensitivity
from y7edge.export.calibration import COUNT, Calibration, choose_images
from y7edge.export.delivery import seal
from y7edge.export.fallback import LEAST_SHARE, Attempt, fall_back
from y7edge.export.folding import fold_checkpoint
from y7edge.export.graph import build as graph
from y7edge.export.graph.quantize import PROFILES
from y7edge.export.graph.quantize_placement import Wiring
from y7edge.export.graph.quantize_ranges import METHODS
from y7edge.export.graph.simplify import simplify
from y7edge.export.proof.agreement import TensorAgreement
from y7edge.export.quantization import Quantizer
from y7edge.export.targets import registry as targets
from y7edge.export.targets.base import BuildRequest
from y7edge.nn.source import open_checkpoint
from y7edge.runtimes import registry
from y7edge.runtimes.base import Session, SessionOptions

RECIPE = "python -m venv ENV && ENV/bin/pip install nncf==3.4.0 openvino==2026.4.1 onnx onnxruntime"
TARGETS = ("onnx", "openvino")
NNCF = "nncf"
COMPARED = 8  # images for the cosines
_SCENE = (480, 640)
KEY = ("model", "size", "images", "evaluated", "target", "profile", "ranges", "heads")
HEADER = {
    "model": "model",
    "target": "engine",
    "profile": "profile",
    "ranges": "ranges",
    "map": "mAP",
    "drop": "drop",
    "floats": "layers in float",
    "share": "multiplications in int8",
    "cosine": "cosine",
    "logits": "logits",
    "speed": "time / fp32",
    "ms": "ms",
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """One kind of int8 artifact."""

    target: str
    profile: str  # or NNCF
    ranges: str
    heads: str = "float"  # or "int8"


class Model:
    """A model with its data: float graph, calibrated graphs, and images to evaluate."""

    def __init__(
        self,
        source: str,
        data: str | None,
        imgsz: Size | None = None,
        images: int = COUNT,
        evaluated: int | None = None,
    ) -> None:
        """Write the float graph, and choose the images.

        Args:
            source: a checkpoint, or the name of a variant.
            data: the data set; None: synthetic scenes, which are not evaluated.
            imgsz: side, or (height, width), of the input in pixels; None: the checkpoint's.
            images: number of calibration images.
            evaluated: number of images of "val"; None: all.
        """
        checkpoint = open_checkpoint(source)
        folded = fold_checkpoint(checkpoint)
        self.name, self.names = Path(source).stem, checkpoint.names
        self.key = {"model": self.name, "size": imgsz, "images": images, "evaluated": evaluated}
        height, width = size = folded.imgsz if imgsz is None else pair(imgsz)
        self.manifest: Manifest = describe(
            folded, folded.spec, size, batch=1, target="onnx", opset=graph.OPSET, tools={}
        )
        written = graph.build_graph(folded, height=height, width=width)
        self.graph, _ = simplify(written)
        self._data, self._images, self._evaluated = data, images, evaluated
        self._quantizers: dict[str, Quantizer] = {}

    @cached_property
    def calibration(self) -> Calibration | None:
        """The calibration images of the data set."""
        if self._data is None:
            return None
        return choose_images(self._data, self.names, count=self._images)

    def inputs(self) -> Iterator[NDArray[Any]]:
        """Yield the calibration images as the network's input."""
        if self.calibration is not None:
            yield from self.calibration.inputs(self.manifest.input)
        else:
            yield from self._prepared(scenes.scene(n, _SCENE).image for n in range(self._images))

    @cached_property
    def some(self) -> list[NDArray[Any]]:
        """Some images that are not used for the calibration."""
        return self.others(COMPARED)

    def others(self, count: int) -> list[NDArray[Any]]:
        """Return images of "val", or scenes, that are not used for the calibration."""
        if self._data is not None:
            samples = self._samples[0][:count]
            return list(self._prepared(read_image(s.path, s.levels) for s in samples))
        seeds = range(self._images, self._images + count)
        return list(self._prepared(scenes.scene(seed, _SCENE).image for seed in seeds))

    def _prepared(self, frames: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[Any]]:
        preprocess = Preprocessor(self.manifest.input)
        for frame in frames:
            pixels = np.empty(preprocess.tensor.shape, preprocess.tensor.dtype)
            preprocess(frame, out=pixels[0])
            yield pixels

    def quantizer(self, profile: str, method: str) -> Quantizer:
        """Return the graph that is calibrated for a profile, with a range method."""
        if profile not in self._quantizers:
            self._quantizers = {profile: Quantizer(self.graph, self.inputs(), profile)}
        self._quantizers[profile].method = method
        return self._quantizers[profile]

    def evaluate(self, session: Session, manifest: Manifest) -> float:
        """Return the mAP@0.5:0.95 of an open session on the split "val"."""
        if self._data is None:
            raise ConfigError("there is no data set to evaluate on: give --data")
        detector = Detector.from_session(session, manifest)  # not closed: the caller's session
        samples, names = self._samples
        chosen = samples[: self._evaluated]
        return evaluate(detector.detect_for_evaluation, chosen, names).map50_95

    @cached_property
    def _samples(self) -> tuple[Sequence[Any], Sequence[str]]:
        loaded = same_classes(self.names, dataset.load(str(self._data), splits=["val"]), None)
        return loaded.split("val"), self.names


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments of a table: model, images, and the file of its rows."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("checkpoint", nargs="?", help="or a variant's name; none: only the table")
    parser.add_argument("--data", help="data set with the splits train and val")
    parser.add_argument("--imgsz", type=int, default=320, help="input size in pixels")
    parser.add_argument("--images", type=int, default=256, help="number of calibration images")
    parser.add_argument("--out", type=Path, required=True, help="file of the rows, JSON lines")
    return parser


def main() -> int:
    """Measure the rows that the file lacks; print the table."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--evaluate", type=int, help="evaluate only so many images")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only these")
    parser.add_argument(
        "--profile",
        action="append",
        choices=tuple(PROFILES),
        help="only these, also those that a target does not take",
    )
    parser.add_argument("--ranges", action="append", choices=METHODS, help="only these")
    parser.add_argument("--int8-heads", action="store_true", help="also rows with int8 heads")
    parser.add_argument("--nncf", action="store_true", help="also rows of NNCF")
    parser.add_argument("--max-map-drop", type=float, help="put layers back to float")
    parser.add_argument("--runs", type=int, default=15, help="timed calls of each artifact")
    options = parser.parse_args()
    try:
        if options.checkpoint is not None:
            measure(options)
    except Y7EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(table(read(options.out), HEADER, FORMS))
    return 0


def kinds(options: argparse.Namespace) -> Iterator[Kind]:
    """Yield the kinds of artifacts, those of one calibration one after the other."""
    chosen = options.target or TARGETS
    heads = ("float", "int8") if options.int8_heads else ("float",)
    for profile in options.profile or PROFILES:
        for method in options.ranges or METHODS:
            for target in chosen:
                if options.profile or profile in targets.get(target).PROFILES:
                    yield from (Kind(target, profile, method, head) for head in heads)
    if options.nncf:
        for target in chosen:
            yield from (Kind(target, NNCF, NNCF, head) for head in ("float", "int8"))


def measure(options: argparse.Namespace) -> None:
    """Measure the rows that the file lacks, and append them."""
    model = Model(options.checkpoint, options.data, options.imgsz, options.images, options.evaluate)
    done = {tuple(row[key] for key in KEY) for row in read(options.out)}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        floats: dict[str, Bench] = {}
        for kind in kinds(options):
            key = {**model.key, **asdict(kind)}
            if tuple(key[name] for name in KEY) in done:
                continue
            place = Path(folder)
            if kind.target not in floats:
                artifact = built(model, kind.target, model.graph, place / f"fp32-{kind.target}")
                bench = Bench.of(model, artifact, data=options.data is not None)
                floats[kind.target] = stack.enter_context(closing(bench))
            print(f"{model.name}: {' '.join(asdict(kind).values())}", file=sys.stderr, flush=True)
            row = {**key, **measured(model, kind, floats[kind.target], place / "int8", options)}
            with options.out.open("a") as stream:
                print(json.dumps(row), file=stream)


class Bench:
    """A session of a model, its mAP, and its outputs for some images.

    Attributes:
        session: The open session.
        map: The mAP@0.5:0.95 on the split "val"; None if there are no data.
    """

    def __init__(self, model: Model, session: Session, manifest: Manifest, *, data: bool) -> None:
        """Evaluate the session if there is ``data``."""
        self.session, self._model, self._manifest = session, model, manifest
        self.map = model.evaluate(session, manifest) if data else None

    @classmethod
    def of(cls, model: Model, artifact: Artifact, *, data: bool) -> Bench:
        """Open an artifact in its engine, on one thread."""
        runtime = str(targets.get(artifact.manifest.target).RUNTIME)
        given = SessionOptions("cpu", threads=1, check_payload=False)
        session = registry.open_session(artifact, given, runtime)
        return cls(model, session, artifact.manifest, data=data)

    @cached_property
    def outputs(self) -> list[list[NDArray[Any]]]:
        """The outputs for each of the compared images."""
        names = [output.name for output in self._manifest.outputs]
        found = [self.session.infer({self._image: pixels}) for pixels in self._model.some]
        return [[outputs[key] for key in names] for outputs in found]

    def call(self) -> float:
        """Run the first image; return the milliseconds of processor time.

        On one thread, this is the latency of a machine that does nothing else.
        """
        began = time.process_time()
        self.session.infer({self._image: self._model.some[0]})
        return 1000 * (time.process_time() - began)

    def close(self) -> None:
        """Free the engine's memory."""
        self.session.close()

    @property
    def _image(self) -> str:
        return self._manifest.input.name


def measured(
    model: Model, kind: Kind, reference: Bench, folder: Path, options: argparse.Namespace
) -> Row:
    """Build an int8 artifact, put layers back to float if needed, evaluate it, and time it."""
    row: Row = {}
    if kind.profile == NNCF:
        artifact = by_nncf(model, kind, folder)
    else:
        source = model.quantizer(kind.profile, kind.ranges)
        heads = frozenset[str]() if kind.heads == "int8" else source.heads
        kept: Sequence[str] = ()
        if reference.map is not None and options.max_map_drop is not None:
            search = Search(model, source, heads, kind.target, folder, reference.map)
            kept = search.kept(options.max_map_drop)
            row["attempts"] = search.attempts
        floats = heads.union(kept)
        artifact = built(model, kind.target, source.quantized(floats), folder)
        row |= {"floats": len(floats), "layers": len(source.layers), "share": source.share(floats)}
    with closing(Bench.of(model, artifact, data=options.data is not None)) as bench:
        row |= compared(reference, bench) | timed(reference, bench, options.runs)
        if bench.map is not None and reference.map is not None:
            row |= {"map": bench.map, "reference": reference.map, "drop": reference.map - bench.map}
        return {**row, "versions": bench.session.versions}


class Search:
    """The search for the layers that go back to float, as in an export.

    Attributes:
        attempts: Number of artifacts that were evaluated.
    """

    def __init__(
        self,
        model: Model,
        source: Quantizer,
        heads: frozenset[str],
        target: str,
        folder: Path,
        reference: float,
    ) -> None:
        """Store the calibrated graph, and the mAP of the fp32 artifact."""
        self._model, self._source, self._heads = model, source, heads
        self._target, self._folder, self._reference = target, folder, reference
        self.attempts = 0

    def kept(self, limit: float) -> Sequence[str]:
        """Return the layers in float besides the heads.

        If no selection is accurate enough, the one of the largest number of layers is returned.
        """
        if self._attempt((), limit).accepted:
            return ()
        model, share = self._model, self._share
        found = sensitivity.measure(
            self._source,
            list(itertools.islice(model.inputs(), COMPARED)),
            model.manifest.levels,
            model.manifest.nc,
            threads=1,
        )
        order = [name for name in sensitivity.order(found) if name not in self._heads]
        chosen = fall_back(lambda names: self._attempt(names, limit), order, share)
        if chosen is not None and chosen.step is not None:
            return chosen.step.kept
        return order[: sum(share(order[: n + 1]) >= LEAST_SHARE for n in range(len(order)))]

    def _share(self, kept: Sequence[str]) -> float:
        return self._source.share(self._heads.union(kept))

    def _attempt(self, kept: Sequence[str], limit: float) -> Attempt:
        self.attempts += 1
        proto = self._source.quantized(self._heads.union(kept))
        artifact = built(self._model, self._target, proto, self._folder)
        with closing(Bench.of(self._model, artifact, data=True)) as bench:
            found = AccuracyDifference("", "val", 0, self._reference, bench.map or 0.0, limit)
        share = self._share(kept)
        print(f"  {len(kept)} more in float: drop {found.drop:.4f}", file=sys.stderr, flush=True)
        step = FallbackStep(tuple(kept), share, found.artifact, found.drop)
        return Attempt(artifact, found, step)


def compared(reference: Bench, bench: Bench) -> Row:
    """Compare the outputs for some images with those of the fp32 artifact."""
    agreements = [TensorAgreement(1) for _ in reference.outputs[0]]
    errors = []
    for ours, theirs in zip(reference.outputs, bench.outputs, strict=True):
        for agreement, a, b in zip(agreements, ours, theirs, strict=True):
            agreement.add(a, b)
            errors.append(float(np.abs(a - b).mean()))
    return {"cosine": min(a.cosine for a in agreements), "logits": float(np.mean(errors))}


def timed(reference: Bench, bench: Bench, runs: int) -> Row:
    """Run both artifacts alternately; return the medians in milliseconds, and their ratio."""
    both = (reference, bench)
    for each in both:
        each.call()
    times = [[each.call() for each in both] for _ in range(runs)]
    fp32, int8 = (median(column) for column in zip(*times, strict=True))
    return {"ms_fp32": fp32, "ms": int8, "speed": int8 / fp32}


def built(model: Model, target: str, proto: onnx.ModelProto, folder: Path) -> Artifact:
    """Build the artifact of a graph with a target's own code."""
    module = targets.get(target)
    path = folder.with_suffix(".graph.onnx")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path.write_bytes(proto.SerializeToString(deterministic=True))
    manifest = replace(model.manifest, target=target, opset=proto.opset_import[0].version)
    if any(node.op_type == "QuantizeLinear" for node in proto.graph.node):
        manifest = replace(manifest, precision="int8")
    request = BuildRequest(path, None, manifest, folder, f"model{module.SUFFIX}")
    return seal(module.build(request), module)


def by_nncf(model: Model, kind: Kind, folder: Path) -> Artifact:
    """Quantise the float graph with NNCF, in its own interpreter, with the same images."""
    module = targets.get(kind.target)
    python = interpreters.find_interpreter(NNCF, NNCF, RECIPE)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    given, main_file = folder / "float.onnx", folder / f"model{module.SUFFIX}"
    given.write_bytes(model.graph.SerializeToString(deterministic=True))
    images = np.concatenate(list(model.inputs()))
    np.save(folder / "images.npy", images)
    wiring = Wiring(model.graph)
    kept = wiring.heads() if kind.heads == "float" else []
    script = Path(__file__).with_name("int8_nncf.py")
    words = [str(given), str(folder / "images.npy"), str(main_file), *kept]
    command = [str(python), "-I", str(script), *words]
    converters.run(command, folder, "NNCF", main_file, 3600)
    manifest = replace(model.manifest, target=kind.target, precision="int8")
    side = tuple(p for p in registry.get(str(module.RUNTIME)).files(main_file) if p != main_file)
    return seal(Artifact(main_file, manifest, side), module)


def read(path: Path) -> list[Row]:
    """Return the rows of a file; none if it does not exist."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


_ENGINES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}
FORMS: Mapping[str, str] = {
    "map": ".4f",
    "drop": ".4f",
    "share": ".1%",
    "cosine": ".5f",
    "logits": ".3f",
    "speed": ".2f",
    "ms": ".1f",
}


def table(rows: Iterable[Row], header: Mapping[str, str], forms: Mapping[str, str]) -> str:
    """Return the rows as a Markdown table.

    Args:
        rows: the rows.
        header: key in the rows -> title of the column.
        forms: key -> how numbers are formatted.
    """
    lines = [f"| {' | '.join(header.values())} |", "|---" * len(header) + "|"]
    for row in rows:
        shown = {
            **row,
            "model": f"{row['model']}, {row['size']} px",
            "target": _ENGINES.get(row.get("target", "")),
            "floats": f"{row['floats']} of {row['layers']}" if "floats" in row else None,
            "profile": row["profile"] + (", int8 heads" if row["heads"] == "int8" else ""),
        }
        cells = (
            "-" if shown.get(key) is None else format(shown[key], forms.get(key, ""))
            for key in header
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
