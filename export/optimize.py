"""Find the fastest artifact for this machine whose mAP does not drop too much.

Every target and precision whose engine is installed here is exported and proved. The artifacts are
evaluated on a data set, and their latency is measured in turns in one process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.description import Size, pair
from y7edge.artifact.reports import ParityReport
from y7edge.benchmark.measure import Report, compare_files
from y7edge.errors import (
    ConfigError,
    DataError,
    DeviceError,
    ExportError,
    GateError,
    RuntimeMissing,
)
from y7edge.evaluation import plots
from y7edge.export.delivery import require_destination
from y7edge.export.pipeline import export
from y7edge.export.proof.accuracy import Baseline
from y7edge.export.proof.images import Images
from y7edge.export.targets import registry as targets
from y7edge.export.targets.base import is_handover
from y7edge.files import require_replaceable, writing
from y7edge.models.checkpoint import Checkpoint
from y7edge.runtimes import registry
from y7edge.runtimes.base import SessionOptions, is_simulated

MAX_MAP_DROP = 0.01
"""Default of the largest accepted drop of the mAP@0.5:0.95."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """One kind of artifact: its accuracy and latency, or why there is none (then they are None).

    Attributes:
        target: Name of the target.
        precision: Precision of the artifact.
        path: Main file.
        problem: Why there is no artifact, in one line; empty if there is one.
        size_mb: Size of all files in MB.
        map50_95: mAP@0.5:0.95 on the data set.
        drop: How much lower the mAP is than the checkpoint's; negative if it is higher.
        latency: The measurement.
        in_front: Whether the artifact is on the Pareto front: no other artifact is both faster and
            at least as accurate.
    """

    target: str
    precision: str
    path: Path | None = None
    problem: str = ""
    size_mb: float | None = None
    map50_95: float | None = None
    drop: float | None = None
    latency: Report | None = None
    in_front: bool = False

    @property
    def ms(self) -> float:
        """Median of the time from image to boxes, in milliseconds; infinite without an artifact."""
        return float("inf") if self.latency is None else self.latency.end_to_end_ms["p50"]

    @property
    def accuracy(self) -> float:
        """The mAP@0.5:0.95; 0 without artifact."""
        return 0.0 if self.map50_95 is None else self.map50_95


@dataclass(frozen=True)
class Choice:
    """The result of ``optimize``: all kinds of artifacts, the fastest first, and the winner.

    Attributes:
        reference: mAP@0.5:0.95 of the checkpoint.
        max_map_drop: Largest accepted drop.
        candidates: All kinds of artifacts; those that could not be made are last.
        plot: The plot of mAP over latency.
    """

    reference: float
    max_map_drop: float
    candidates: tuple[Candidate, ...]
    plot: Path

    @property
    def winner(self) -> Candidate | None:
        """The fastest candidate within the accepted drop; None if there is none."""
        fit = (c for c in self.candidates if c.drop is not None and c.drop <= self.max_map_drop)
        return min(fit, key=lambda c: c.ms, default=None)

    def require_winner(self) -> Candidate:
        """Return the winner; raise GateError if no artifact is within the accepted drop."""
        if self.winner is None:
            least = min(one.drop for one in self.candidates if one.drop is not None)
            raise GateError(
                f"the mAP@0.5:0.95 of every artifact is lower than the checkpoint's, "
                f"{self.reference:.4f}, by {least:.4f} or more, expected at most "
                f"{self.max_map_drop:g}: accept more (--max-map-drop), or install another engine"
            )
        return self.winner


def optimize(
    checkpoint: Checkpoint,
    data: Path | str,
    out: Path | str,
    *,
    name: str = "model",
    split: str = "val",
    imgsz: Size | None = None,
    max_map_drop: float = MAX_MAP_DROP,
    only: Collection[str] | None = None,
    images: Images | None = None,
    calib: Path | str | None = None,
    threads: int | None = None,
    runs: int = 100,
    progress: Progress | None = None,
) -> Choice:
    """Export, prove, evaluate and measure all kinds of artifacts that this machine can run.

    Args:
        checkpoint: a checkpoint of any form.
        data: the data set for the mAP, as for ``y7edge val``.
        out: folder for the artifacts and the plot ``latency.png``.
        name: stem of the files' names.
        split: split of the data set.
        imgsz: input size; None: the size of the training.
        max_map_drop: largest accepted drop of the mAP@0.5:0.95.
        only: names of targets; None: all that have a runtime, except hand-overs and emulators.
        images: images for the proofs, as for ``export``.
        calib: calibration images of int8; None: the split "train" of ``data``.
        threads: threads of engine and OpenCV; None: the physical cores of this process.
        runs: number of measured rounds.
        progress: called with one line for each step.

    Raises:
        ConfigError: a target does not exist or has no runtime, an option is out of range, or a
            file in ``out`` does not belong to an artifact of the same name.
        DataError: the data set cannot be used.
        RuntimeMissing: matplotlib or a package of the evaluation is not installed.
        OutputError: the plot cannot be written.
        ExportError, DeviceError, RuntimeMissing: no artifact could be made. This is the error of
            the first kind of artifact.
    """
    tell = progress or (lambda _: None)
    if not 0 <= max_map_drop <= 1:
        raise ConfigError(f"max_map_drop is {max_map_drop}, expected 0 to 1, such as 0.01")
    if runs < 1:
        raise ConfigError(f"runs is {runs}, expected 1 or more")
    SessionOptions(threads=threads)  # raises ConfigError before the work
    size = checkpoint.imgsz if imgsz is None else pair(imgsz)
    plot = Path(out) / "latency.png"
    kinds = _kinds(only, Path(out) / name)
    _require_writable(kinds, plot)
    baseline = Baseline(checkpoint, data, split, progress=tell)
    made: list[tuple[Candidate, Artifact | None]] = []
    problems: list[Exception] = []
    for kind, path in kinds:
        tell(f"--- {kind.target} {kind.precision}")
        try:
            made.append(
                _make(kind, path, checkpoint, size, baseline, images, calib, max_map_drop, tell)
            )
        except (ConfigError, DataError, DeviceError, ExportError, RuntimeMissing) as error:
            # In int8, calibration images may be missing, or the checkpoint trained for another one.
            if isinstance(error, ConfigError | DataError) and kind.precision != "int8":
                raise
            tell(f"not possible here: {error}")
            made.append((replace(kind, problem=str(error)), None))
            problems.append(error)
    if len(problems) == len(made):
        raise problems[0]
    measured = _measure(made, threads, runs, tell)
    ranked = sorted(_with_front(measured), key=lambda c: c.ms)
    choice = Choice(baseline.metrics(size).map50_95, max_map_drop, tuple(ranked), plot)
    with writing("the plot", plot):
        _plot(choice)
    return choice


def _kinds(only: Collection[str] | None, stem: Path) -> list[tuple[Candidate, Path]]:
    """Return all kinds of artifacts that have a runtime, each with the path of its main file.

    ``only``: names of targets; None: all. ``stem``: the common beginning of the paths.
    """
    found = []
    for name in targets.names() if only is None else dict.fromkeys(only):
        target = targets.get(name)
        if isinstance(target.RUNTIME, str):
            # Hand-overs contain a model of another target; the time of an emulator means nothing.
            if only is None and (is_handover(target) or is_simulated(registry.get(target.RUNTIME))):
                continue
            for precision in target.PRECISIONS:
                path = stem.with_name(f"{stem.name}-{name}-{precision}{target.SUFFIX}")
                found.append((Candidate(name, precision), path))
        elif only is not None:
            raise ConfigError(
                f"target {name} has no runtime that could measure it ({target.RUNTIME.reason}): "
                "omit it"
            )
    return found


def _require_writable(kinds: list[tuple[Candidate, Path]], plot: Path) -> None:
    """Check before the work, which takes minutes, that its results can be written."""
    plots.require_matplotlib()
    for kind, path in kinds:
        require_destination(path, kind.target, targets.get(kind.target))
    with writing("the plot", plot):
        require_replaceable(plot, folder=False)


def _make(
    kind: Candidate,
    path: Path,
    checkpoint: Checkpoint,
    imgsz: tuple[int, int],
    baseline: Baseline,
    images: Images | None,
    calib: Path | str | None,
    max_map_drop: float,
    tell: Progress,
) -> tuple[Candidate, Artifact]:
    """Export one kind of artifact with its proof and its mAP.

    In int8, layers stay in float until the drop is at most ``max_map_drop``.
    """
    int8 = kind.precision == "int8"
    made = export(
        checkpoint,
        path,
        target=kind.target,
        precision=kind.precision,
        imgsz=imgsz,
        images=images,
        data=baseline,
        max_map_drop=max_map_drop if int8 else None,
        calib=calib if int8 else None,
        progress=tell,
    )
    accuracy = ParityReport.from_dict(made.manifest.parity).accuracy
    assert accuracy is not None  # a baseline was given
    candidate = replace(
        kind,
        path=made.path,
        size_mb=round(made.size / 1e6, 1),
        map50_95=accuracy.artifact,
        drop=accuracy.drop,
    )
    return candidate, made


def _measure(
    made: list[tuple[Candidate, Artifact | None]], threads: int | None, runs: int, tell: Progress
) -> list[Candidate]:
    """Measure the latency of all artifacts in turns."""
    tell("measure the latency of all artifacts in turns")
    paths = [artifact.path for _, artifact in made if artifact is not None]
    reports = iter(compare_files(paths, threads=threads, runs=runs))
    return [
        candidate if artifact is None else replace(candidate, latency=next(reports))
        for candidate, artifact in made
    ]


def _with_front(candidates: list[Candidate]) -> list[Candidate]:
    """Mark the candidates of the Pareto front of latency and mAP."""

    def beaten(one: Candidate) -> bool:
        return any(
            other.ms <= one.ms
            and other.accuracy >= one.accuracy
            and (other.ms, other.accuracy) != (one.ms, one.accuracy)
            for other in candidates
            if other.path is not None
        )

    return [replace(c, in_front=c.path is not None and not beaten(c)) for c in candidates]


def _plot(choice: Choice) -> None:
    """Draw the mAP over the latency: the Pareto front as a line, the winner as a filled circle."""
    figure, axes = plots.canvas(7.2, 4.6, fitted=True)
    found = [c for c in choice.candidates if c.path is not None]
    front = [c for c in found if c.in_front]
    axes.step([c.ms for c in front], [c.accuracy for c in front], where="post", color="#94a3b8")
    for one in found:
        full = one is choice.winner
        axes.plot(one.ms, one.accuracy, "o", color="#2563eb", fillstyle="full" if full else "none")
    axes.axhline(choice.reference, color="#0f172a", linewidth=0.8, label="checkpoint")
    least = choice.reference - choice.max_map_drop
    axes.axhline(least, color="#dc2626", linestyle="--", linewidth=0.8, label="accepted drop")
    axes.set(xlabel="milliseconds from image to boxes (median)", ylabel="mAP@0.5:0.95")
    axes.margins(0.15, 0.6)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.draw_without_rendering()  # places the axes, so that distances are known
    last = -math.inf
    for one in sorted(found, key=lambda c: c.ms):
        place = axes.transData.transform((one.ms, one.accuracy))[0] * 72 / figure.dpi  # points
        last = max(place + 2, last + 11)  # equally fast artifacts keep readable labels
        axes.annotate(
            f"{one.target} {one.precision}",
            (one.ms, one.accuracy),
            xytext=(last - place, 12),
            textcoords="offset points",
            rotation=60,
            fontsize=8,
            weight="bold" if one is choice.winner else "normal",
            arrowprops={"arrowstyle": "-", "color": "#94a3b8", "linewidth": 0.5},
        )
    plots.save(figure, choice.plot)
