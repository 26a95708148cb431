"""Measure the sensitivity of a checkpoint's convolutions to int8, and write a plot and a JSON file.

``sensitivity`` has the measurement; this module prepares the graph, the images and the evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from numpy.typing import NDArray

from y7edge import __version__
from y7edge.artifact.artifact import Artifact
from y7edge.artifact.description import Size, describe, pair
from y7edge.artifact.manifest import Manifest
from y7edge.artifact.schema import checked
from y7edge.data import dataset
from y7edge.data.dataset import Dataset
from y7edge.detect.detector import Detector
from y7edge.errors import ConfigError
from y7edge.evaluation import plots
from y7edge.evaluation.evaluate import evaluate, same_classes
from y7edge.export.calibration import Calibration, choose_images
from y7edge.export.folding import fold_checkpoint
from y7edge.export.graph import build
from y7edge.export.graph.quantize import profile_of
from y7edge.export.graph.quantize_ranges import require_method
from y7edge.export.qat import recorded
from y7edge.export.quantization import METHOD, Quantizer
from y7edge.export.sensitivity import TIMED, LayerDamage, Progress, measure, order
from y7edge.files import atomic_write, require_replaceable, temporary_folder, writing
from y7edge.models.checkpoint import Checkpoint
from y7edge.models.registry import folded
from y7edge.runtimes import registry
from y7edge.runtimes.base import SessionOptions, installed_versions, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IMAGES = 32
"""Default number of images on which the candidates are compared."""

_NEEDS = {"onnx": "y7edge[export]", "onnxruntime": "y7edge[onnxruntime]"}
_NUMBERED = 10  # layers whose place in the order is written into the plot


@dataclass(frozen=True)
class Sensitivity:
    """The result of ``analyse``.

    Attributes:
        model: Name of the model.
        digest: Digest of the checkpoint.
        profile: Profile of the QDQ graphs.
        ranges: Method that chose the ranges.
        imgsz: Height and width of the input.
        calibration: Digest of the calibration images.
        calibrated: Number of calibration images.
        images: Number of images on which the candidates were compared.
        evaluated: Number of images on which the mAP was measured.
        map50_95: mAP@0.5:0.95 of the float graph on these; None if it was not measured.
        layers: One record for each convolution, in the order of computation.
        heads: Names of the convolutions that an export keeps in float by default.
        order: Names of all others, in the order in which they go back to float.
        versions: Versions of y7edge and of the engine.
        plot: The plot.
    """

    model: str
    digest: str
    profile: str
    ranges: str
    imgsz: tuple[int, int]
    calibration: str
    calibrated: int
    images: int
    evaluated: int
    map50_95: float | None
    layers: tuple[LayerDamage, ...]
    heads: tuple[str, ...]
    order: tuple[str, ...]
    versions: Mapping[str, str]
    plot: Path


@checked
def analyse(
    checkpoint: Checkpoint,
    data: Path | str,
    out: Path | str,
    *,
    profile: str = TIMED,
    ranges: str = METHOD,
    images: int = IMAGES,
    evaluated: int = 0,
    imgsz: Size | None = None,
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Sensitivity:
    """Measure what each convolution of a checkpoint costs in int8; write a plot and a JSON file.

    The float graph is calibrated on images of the split "train", as in an export. The candidates
    are compared on some of the same images.

    Args:
        checkpoint: a checkpoint of any form.
        data: a data set; or a folder of images without labels, if ``evaluated`` is 0.
        out: folder for ``sensitivity.png`` and ``sensitivity.json``.
        profile: profile of the QDQ graphs.
        ranges: method that chooses the ranges.
        images: number of images on which the candidates are compared.
        evaluated: number of images of the split "val" on which the mAP is measured for each
            convolution; 0: it is not measured.
        imgsz: input size; None: the size of the training.
        threads: number of engine threads; None: the physical cores that this process may use.
        progress: called with one line for each step.

    Raises:
        ConfigError: an option is invalid.
        DataError: the data set cannot be used.
        RuntimeMissing: a package is not installed.
        OutputError: a file cannot be written.
        ExportError: the graph cannot be quantised.
    """
    tell = progress or (lambda _: None)
    _check(checkpoint, profile, ranges, images, evaluated)
    options = SessionOptions("cpu", threads, check_payload=False)
    plot = _destination(Path(out))
    spec, size = folded(checkpoint.spec), checkpoint.imgsz if imgsz is None else pair(imgsz)
    versions = {"y7edge": __version__, **installed_versions("onnxruntime")}
    manifest = describe(checkpoint, spec, size, batch=1, target="onnx", tools=versions)
    calibration = _chosen(checkpoint, data, tell)
    count = len(calibration.images)
    evaluator = _Evaluator(checkpoint, data, evaluated, manifest, options, tell)
    graph = build.build_graph(fold_checkpoint(checkpoint), height=size[0], width=size[1])
    compared: list[NDArray[Any]] = []
    inputs = _taken(calibration.inputs(manifest.input), count, images, compared)
    quantizer = Quantizer(graph, inputs, profile, method=ranges, progress=progress)
    reference = evaluator.map50_95(graph) if evaluated else None
    drop = None if reference is None else lambda g: reference - evaluator.map50_95(g)
    levels, nc = manifest.levels, manifest.nc
    layers = measure(quantizer, compared, levels, nc, progress=tell, threads=threads, drop=drop)
    found = Sensitivity(
        model=spec.name,
        digest=checkpoint.digest,
        profile=profile,
        ranges=ranges,
        imgsz=size,
        calibration=calibration.digest,
        calibrated=count,
        images=len(compared),
        evaluated=len(evaluator.samples),
        map50_95=reference,
        layers=layers,
        heads=tuple(one.name for one in quantizer.layers if one.head),
        order=tuple(name for name in order(layers) if name not in quantizer.heads),
        versions=versions,
        plot=plot,
    )
    _write(found)
    return found


def _chosen(checkpoint: Checkpoint, data: Path | str, tell: Progress) -> Calibration:
    """Choose the calibration images; report what may be wrong with them."""
    found = choose_images(data, checkpoint.names)
    for warning in found.warnings:
        tell(warning)
    tell(f"calibrate {checkpoint.spec.name} on {len(found.images)} images of {found.source}")
    return found


def _destination(out: Path) -> Path:
    """Return the path of the plot; raise OutputError if plot or JSON file cannot be replaced."""
    plot = out / "sensitivity.png"
    for file in (plot, plot.with_suffix(".json")):
        with writing("the sensitivity", file):
            require_replaceable(file, folder=False)
    return plot


def _write(found: Sensitivity) -> None:
    """Write the plot and the JSON file."""
    record = found.plot.with_suffix(".json")
    with writing("the sensitivity", found.plot):
        draw(found, found.plot)
    with writing("the sensitivity", record), atomic_write(record) as temporary:
        temporary.write_text(json.dumps(asdict(found), default=str, indent=1) + "\n")


def _check(checkpoint: Checkpoint, profile: str, ranges: str, images: int, evaluated: int) -> None:
    """Raise ConfigError or RuntimeMissing before the work begins."""
    if recorded(checkpoint) is not None:
        raise ConfigError(
            "the checkpoint was trained with --qat for int8 with its own ranges, expected a float "
            "checkpoint: give the one that the training began with"
        )
    profile_of(profile)
    require_method(ranges)
    if images < 1 or evaluated < 0:
        raise ConfigError(
            f"images is {images} and evaluated {evaluated}, expected at least 1 and at least 0"
        )
    require(_NEEDS, "the sensitivity of layers")
    plots.require_matplotlib()
    if evaluated:
        require({"faster_coco_eval": "y7edge[eval]"}, "an evaluation")


def _taken(
    inputs: Iterable[NDArray[Any]], total: int, count: int, taken: list[NDArray[Any]]
) -> Iterator[NDArray[Any]]:
    """Yield all inputs; append ``count`` of them, at even distances, to ``taken``."""
    count = min(count, total)
    wanted = {i * total // count for i in range(count)}
    for index, image in enumerate(inputs):
        if index in wanted:
            taken.append(image)
        yield image


class _Evaluator:
    """Measure the mAP of graphs on images of the split "val".

    Attributes:
        samples: The labelled images; empty if the mAP is not to be measured.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        data: Path | str,
        count: int,
        manifest: Manifest,
        options: SessionOptions,
        tell: Progress,
    ) -> None:
        """Load the labels of up to ``count`` images, at even distances in the split."""
        self._manifest, self._options = manifest, options
        if not count:
            self.samples: list[Any] = []
            return
        loaded: Dataset = same_classes(checkpoint.names, dataset.load(data, ["val"]), tell)
        samples, self._names = loaded.split("val"), loaded.names
        count = min(count, len(samples))
        self.samples = [samples[i * len(samples) // count] for i in range(count)]

    def map50_95(self, graph: onnx.ModelProto) -> float:
        """Run a graph in ONNX Runtime on the images; return the mAP@0.5:0.95."""
        with temporary_folder() as folder:
            path = folder / "graph.onnx"
            path.write_bytes(graph.SerializeToString())
            artifact = Artifact(path, self._manifest)
            session = registry.open_session(artifact, self._options, "onnxrt")
            with closing(Detector.from_session(session, self._manifest)) as detector:
                found = evaluate(detector.detect_for_evaluation, self.samples, self._names)
        return found.map50_95


def draw(found: Sensitivity, path: Path) -> None:
    """Draw damage and saved time of each convolution as horizontal bars; write a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers, panels = found.layers, 2 if found.map50_95 is None else 3
    figure = Figure(figsize=(8.2, 1.2 + 0.165 * len(layers)), layout="constrained")
    FigureCanvasAgg(figure)
    axes: list[Axes] = list(
        figure.subplots(1, panels, sharey=True, width_ratios=[3, 2, 2][:panels])
    )
    rows = range(len(layers))
    boxes, scores = [x.boxes for x in layers], [x.scores for x in layers]
    axes[0].barh(rows, boxes, color="#2563eb", label="boxes: 1 - IoU")
    axes[0].barh(rows, scores, left=boxes, color="#93c5fd", label="scores")
    axes[0].set_xlabel("damage if only this convolution is int8")
    places = {name: i + 1 for i, name in enumerate(found.order[:_NUMBERED])}
    for row, layer in zip(rows, layers, strict=True):
        mark = "float" if layer.name in found.heads else str(places.get(layer.name, ""))
        axes[0].annotate(
            mark,
            (layer.damage, row),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color="#dc2626",
        )
    axes[0].legend(fontsize=7, loc="best")
    axes[0].margins(x=0.09)  # room for "float"
    axes[1].barh(rows, [x.ms_saved for x in layers], color="#16a34a")
    axes[1].set_xlabel("milliseconds saved")
    if panels == 3:
        axes[2].barh(rows, [x.map_drop or 0.0 for x in layers], color="#ea580c")
        axes[2].set_xlabel("drop of mAP@0.5:0.95")
    labels = [x.name.strip("/").removesuffix("/Conv") for x in layers]
    axes[0].set_yticks(rows, labels, fontsize=7)
    axes[0].set_ylim(len(layers) - 0.4, -0.6)
    for one in axes:
        one.grid(axis="x", alpha=0.3)
        one.tick_params(axis="x", labelsize=7)
        one.axvline(0, color="#0f172a", linewidth=0.6)
    height, width = found.imgsz
    figure.suptitle(
        f"{found.model}, {height}x{width}, {found.profile}, {found.ranges}; red numbers: order of "
        "the fallback",
        fontsize=9,
    )
    plots.save(figure, path)
