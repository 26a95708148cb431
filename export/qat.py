"""Train the weights of a checkpoint for its quantised graph (quantisation-aware training).

The training starts from the folded checkpoint, with the ranges of a calibration and the corrected
biases of an export. It changes weights, biases and ranges. The trained checkpoint records the
ranges, so that an export in int8 writes the same graph as without training: only numbers differ.

This module needs torch only for the training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from y7edge import __version__
from y7edge.artifact import bounds
from y7edge.artifact.description import describe
from y7edge.artifact.manifest import InputInfo, Quantization
from y7edge.artifact.schema import decode
from y7edge.data import dataset
from y7edge.errors import (
    ArtifactError,
    CheckpointError,
    ConfigError,
    DataError,
    TrainingError,
)
from y7edge.export.calibration import Calibration, choose_images
from y7edge.export.folding import fold_checkpoint
from y7edge.export.graph.build import build_graph
from y7edge.export.graph.quantize import PROFILES, implied_range, placement_of, profile_of
from y7edge.export.graph.quantize_placement import REPEATING, Wiring
from y7edge.export.graph.quantize_ranges import METHODS, require_method
from y7edge.export.graph.quantize_weights import corrected
from y7edge.export.graph.trainable import compared, nodes_of, weights_of
from y7edge.export.quantization import METHOD, Quantizer
from y7edge.files import is_file
from y7edge.models import weights
from y7edge.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from y7edge.data.dataset import Dataset
    from y7edge.evaluation.evaluate import Metrics
    from y7edge.nn.quantized import QuantizedGraph
    from y7edge.train.run.distil import Distillation, Round, Task
    from y7edge.train.run.progress import Progress
    from y7edge.train.run.state import State
    from y7edge.train.settings.qat import QatConfig

KEY = "quantization"
"""Entry of a trained checkpoint's ``meta``."""

_MOST = 100_000  # tensors
_LARGEST = 1e30  # value of a tensor; scales are float32
_NONE: Mapping[str, float] = {}


@dataclass(frozen=True)
class Trained:
    """For which quantised graph the weights of a checkpoint were trained.

    Attributes:
        profile: Its profile.
        method: The method that chose the ranges.
        ranges: Tensor -> smallest and largest value.
        calibration: Digest of the images that gave the ranges.
        images: Their names.
        heads: Whether the convolutions that write the outputs were quantised too.
        source: Digest of the float checkpoint.
        drop: mAP@0.5:0.95 of the float checkpoint minus that of the trained weights in float; None:
            not measured.
    """

    profile: str
    method: str
    ranges: Mapping[str, tuple[float, float]]
    calibration: str
    images: tuple[str, ...]
    heads: bool
    source: str
    drop: float | None = None

    def __post_init__(self) -> None:
        for what, given, known in (
            ("profile", self.profile, tuple(PROFILES)),
            ("method", self.method, METHODS),
        ):
            if given not in known:
                raise CheckpointError(f"{what} {given[:80]!r}, expected one of {', '.join(known)}")
        if self.drop is not None and not -1 <= self.drop <= 1:
            raise CheckpointError(f"drop is {self.drop:g}, expected -1 to 1")
        if not 0 < len(self.ranges) <= _MOST:
            raise CheckpointError(f"{len(self.ranges)} ranges, expected 1 to {_MOST}")
        for name, (low, high) in self.ranges.items():
            if not -_LARGEST <= low <= 0 <= high <= _LARGEST:
                raise CheckpointError(
                    f"the range of {name[:80]!r} is {low:g} to {high:g}, expected numbers around "
                    f"0, up to {_LARGEST:g}"
                )
        try:  # that an export can write them to the manifest
            Quantization(self.profile, self.method, self.calibration, self.images, (), 1.0)
        except ArtifactError as error:
            raise CheckpointError(str(error)) from error
        if not all(name.isprintable() for name in self.images):
            raise CheckpointError("the name of a calibration image cannot be printed")


@dataclass(frozen=True)
class QatResult:
    """The result of a training.

    Attributes:
        folder: Folder of the run.
        best: Checkpoint of the best weights.
        last: Checkpoint of the last weights.
        start: Results before the training, with the ranges of the calibration.
        chosen: Results of the best weights.
        iterations: Number of iterations.
    """

    folder: Path
    best: Path
    last: Path
    start: Round
    chosen: Round
    iterations: int


def recorded(checkpoint: Checkpoint) -> Trained | None:
    """Return for which quantised graph a checkpoint was trained; None: for none.

    Raises:
        CheckpointError: the entry of the checkpoint's metadata is invalid.
    """
    entry = checkpoint.meta.get(KEY)
    if entry is None:
        return None
    origin = f"{checkpoint.spec.name}: meta: {KEY}"
    return decode(Trained, entry, origin=origin, error=CheckpointError)


def train(config: QatConfig, *, progress: Progress | None = None) -> QatResult:
    """Train a checkpoint for its quantised graph; save the best and last weights.

    Labels are optional: the loss is the difference to the float graph. If the data set has a split
    "val" with labels, the mAP of the quantised graph selects the best weights.

    Raises:
        ConfigError: a setting is invalid, or the folder already holds a run.
        DataError: the images cannot be read.
        CheckpointError: the checkpoint cannot be used.
        DeviceError: the device does not exist.
        RuntimeMissing: a package is not installed.
        TrainingError: the loss is not finite, memory ran out, or the disk is full.
        KeyboardInterrupt: Ctrl-C or SIGTERM stopped the run; its state was saved.
    """
    from y7edge.train.output import folder as files

    files.check_free(config.out)
    return _run(config, progress, None)


def is_run(folder: Path | str) -> bool:
    """Return whether a folder holds a run of ``train``; raise ConfigError for a bad file."""
    from y7edge.train.output import folder as files
    from y7edge.train.settings import configfile
    from y7edge.train.settings.qat import QatConfig

    path = Path(folder) / files.CONFIG
    return is_file(path) and isinstance(configfile.read_any(path), QatConfig)


def resume(folder: Path | str, *, progress: Progress | None = None) -> QatResult:
    """Resume the interrupted run in a folder.

    On a CPU the final weights equal those of an uninterrupted run, bit by bit.

    Raises:
        ConfigError: the folder holds no such run, or the run is finished.
        CheckpointError: the folder has no complete state.
        DataError: the images have changed since the run began.
        Y7EdgeError: any other error of ``train``.
    """
    from y7edge.train.output import folder as files
    from y7edge.train.settings import configfile
    from y7edge.train.settings.qat import QatConfig

    folder = Path(folder)
    config = configfile.read_any(folder / files.CONFIG)
    if not isinstance(config, QatConfig):
        raise ConfigError(f"{folder}: expected a run with --qat, found another training")
    return _run(replace(config, out=folder), progress, folder)


def _run(config: QatConfig, progress: Progress | None, resumed: Path | None) -> QatResult:
    from y7edge.nn.eager import pick_device
    from y7edge.train.output import folder as files
    from y7edge.train.run import state
    from y7edge.train.run.loop import is_out_of_memory
    from y7edge.train.run.progress import Progress
    from y7edge.train.settings import configfile
    from y7edge.train.setup.parts import check_packages

    check_packages()
    device, shown = pick_device(config.device), progress or Progress()
    with ExitStack() as held:
        held.callback(shown.close)
        if resumed is not None:
            files.claim(resumed, held)
        source = _Source(config, str(device), shown.log)
        folder = resumed or files.create(config.out, held)
        task = source.task(folder)

        def begin(saved: State | None) -> Distillation:
            from y7edge.train.run.distil import Distillation

            if saved and saved.facts.finished:
                raise ConfigError(f"{folder}: the run is finished: start a new one with --qat")
            return Distillation(task, config, folder, device, shown, saved)

        try:
            if resumed is None:
                configfile.write(config, folder / files.CONFIG)
                loop = begin(None)
            else:
                loop = state.load(folder, begin, log=shown.log)
            loop.run()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                f"out of memory on {device} with batch {config.batch} at {source.side} px: use a "
                "smaller --batch or --imgsz"
            ) from error
    best, last = folder / files.BEST, folder / files.LAST
    return QatResult(folder, best, last, loop.rows[0], loop.best, config.iterations)


class _Source:
    """What a run is made from: the checkpoint, its graphs, and the images."""

    def __init__(self, config: QatConfig, device: str, tell: Callable[[str], None]) -> None:
        """Fold and calibrate the checkpoint, and write its float graph and its QDQ graph.

        Raises:
            ConfigError: a setting is invalid, or the checkpoint was trained for a quantised graph.
            CheckpointError, DataError: checkpoint or images cannot be used.
        """
        from y7edge.nn.source import open_checkpoint

        self._config, self._device = config, device
        profile, method = profile_of(config.profile).name, config.ranges or METHOD
        require_method(method)
        checkpoint = open_checkpoint(str(config.checkpoint))
        if recorded(checkpoint) is not None:
            raise ConfigError(
                f"{config.checkpoint} was already trained with --qat: start from the float "
                "checkpoint, with more --qat-iterations"
            )
        self._checkpoint, self._folded = checkpoint, fold_checkpoint(checkpoint)
        side = config.imgsz
        self._size = checkpoint.imgsz if side is None else (side, side)
        image = self._input()
        self._labelled = _labelled(config.data, checkpoint.names, tell)
        wanted = config.iterations * config.batch
        self._images = self._chosen(min(wanted, bounds.MAX_CALIBRATION))
        calibration = self._chosen(config.calib_images)
        for warning in calibration.warnings:
            tell(warning)
        tell(f"calibrate on {len(calibration.images)} images")
        height, width = self._size
        self._graph = build_graph(self._folded, height=height, width=width)
        quantizer = Quantizer(self._graph, calibration.inputs(image), profile, method=method)
        kept = frozenset() if config.quantize_heads else quantizer.heads
        self._quantised = quantizer.quantized(kept)
        integer = {layer.name for layer in quantizer.layers} - kept
        self._start = weights_of(corrected(self._graph, integer, quantizer.means))
        self._placement = placement_of(self._graph, quantizer.profile, kept)
        # Also of tensors around the layers that stay in float here.
        everywhere = placement_of(self._graph, quantizer.profile)
        self._ranges = self._ranges_in(quantizer.quantized(()), everywhere.group)
        self._trained = Trained(
            *(profile, method, self._ranges, calibration.digest, calibration.names),
            *(config.quantize_heads, checkpoint.digest),
        )
        tell(
            f"{checkpoint.spec.name}, {profile}, {quantizer.share(kept):.1%} of the "
            f"multiplications in int8: {len(self._images.images)} training images, "
            f"{len(self._labelled.split('val')) if self._labelled else 'no'} validation images, "
            f"{config.iterations} iterations at {self.side} px, batch {config.batch}, on {device}"
        )

    @property
    def side(self) -> str:
        """The input size, for messages."""
        return "x".join(map(str, self._size))

    def task(self, folder: Path) -> Task:
        """Return the task of a run whose files are in ``folder``."""
        from y7edge.nn.quantized import QuantizedGraph
        from y7edge.train.run.distil import Batches, Task

        config, floats = self._config, weights_of(self._graph)
        (image,) = (value.name for value in self._graph.graph.input)
        heads = [value.name for value in self._graph.graph.output]
        plain, implied = nodes_of(self._graph), self._implied()
        learned = [group for group in self._placement.groups() if group not in implied]
        student = QuantizedGraph(
            nodes_of(self._quantised), image, heads, self._start, learned, implied
        )
        digests = [self._images.digest, self._trained.calibration]
        if self._labelled is not None:
            digests.append(self._labelled.digest)

        def save(name: str, row: Round, first: Round) -> None:
            weights.save(self._saved(student, row, first), folder / name)

        return Task(
            student=student,
            plain=student.float_twin(plain),
            teacher=QuantizedGraph(plain, image, heads, floats).requires_grad_(False),
            observed=compared(self._graph),
            batches=Batches(self._images.images, self._input(), config.batch, config.seed),
            digest=hashlib.sha256("".join(digests).encode()).hexdigest(),
            checkpoint=self._checkpoint.digest,
            anchors=self._folded.spec.anchors,
            evaluate=None if self._labelled is None else self._evaluate,
            save=save,
        )

    def _chosen(self, count: int) -> Calibration:
        config, labelled = self._config, self._labelled
        evaluated = [sample.path for sample in labelled.split("val")] if labelled else []
        return choose_images(
            *(config.data, self._checkpoint.names),
            count=count,
            seed=config.seed,
            without=evaluated,
        )

    def _input(self) -> InputInfo:
        """Return the input of the graph."""
        spec = self._folded.spec
        return describe(self._checkpoint, spec, self._size, batch=1, tools={}).input

    def _ranges_in(
        self, model: onnx.ModelProto, group: Mapping[str, str], scales: Mapping[str, float] = _NONE
    ) -> dict[str, tuple[float, float]]:
        """Return the ranges of the tensors of a QDQ graph, which give exactly its zero points.

        Args:
            model: the QDQ graph.
            group: tensor -> its group.
            scales: group -> the scale to use instead of the graph's.
        """
        least, most = PROFILES[self._config.profile].limits
        found = {}
        rounded = [node.rounding for node in nodes_of(model) if node.rounding is not None]
        ends = {}
        for how in rounded:
            scale = scales.get(how.group, how.scale)
            ends[how.group] = ((least - how.zero) * scale, (most - how.zero) * scale)
        for tensor, name in group.items():
            found[tensor] = ends[name]
        return found

    def _implied(self) -> dict[str, list[str]]:
        """Return the groups whose ranges follow from the graph, and from which other groups.

        Pixels and sigmoids have fixed ranges, which follow from no group.
        """
        wiring, placement = Wiring(self._graph), self._placement
        profile, groups = PROFILES[self._config.profile], placement.groups()
        ranges = {group: self._ranges[tensors[0]] for group, tensors in groups.items()}
        found = {}
        for group, tensors in groups.items():
            if implied_range(wiring, placement, tensors, profile, ranges) is not None:
                writer = wiring.producer.get(tensors[0])
                repeats = writer is not None and writer.op_type in REPEATING
                read = wiring.sources(writer) if writer is not None and repeats else []
                found[group] = [placement.group[t] for t in read if t in placement.group]
        return found

    def _evaluate(self, graph: QuantizedGraph) -> Metrics:
        """Evaluate a graph on the labelled images."""
        from y7edge.detect.detector import Detector
        from y7edge.evaluation.evaluate import evaluate
        from y7edge.nn.eager import EagerSession
        from y7edge.nn.eager import describe as described
        from y7edge.runtimes.base import SessionOptions

        assert self._labelled is not None
        manifest = described(self._folded, self._size)
        session = EagerSession(graph, manifest, SessionOptions(self._device))
        samples = self._labelled.split("val")
        with closing(Detector.from_session(session, manifest)) as detector:
            return evaluate(detector.detect_for_evaluation, samples, self._checkpoint.names)

    def _saved(self, student: QuantizedGraph, row: Round, first: Round) -> Checkpoint:
        """Return the checkpoint of the student's weights."""
        drop = None
        if row.float_map50_95 is not None and first.float_map50_95 is not None:
            drop = round(first.float_map50_95 - row.float_map50_95, 6)
        own = self._ranges_in(self._quantised, self._placement.group, student.scales())
        meta = {
            **self._folded.meta,
            "imgsz": list(self._size),
            "metrics": asdict(row),
            "provenance": f"y7edge {__version__}, --qat of {self._checkpoint.digest[:16]}",
            KEY: asdict(replace(self._trained, ranges={**self._ranges, **own}, drop=drop)),
        }
        arrays = {**self._folded.arrays, **student.arrays()}
        return replace(self._folded, arrays=arrays, meta=meta)


def _labelled(
    data: Path | str, names: tuple[str, ...], tell: Callable[[str], None]
) -> Dataset | None:
    """Return the labelled images for evaluations; None, and a message, if there are none."""
    from y7edge.evaluation.evaluate import same_classes

    choice = "the weights with the smallest loss are the best ones"
    scan = dataset.open_scan(data, ["val"])
    if any(problem.check == "undescribed" for problem in scan.problems):
        tell(f"{data} has no labels: {choice}")
        return None
    try:
        found = same_classes(names, dataset.load(data, ["val"]), tell)
        samples = found.split("val")
    except DataError as error:
        tell(f"{error}: {choice}")
        return None
    if any(len(sample.boxes) for sample in samples):
        return found
    tell(f"the split val of {data} has no labels: {choice}")
    return None
