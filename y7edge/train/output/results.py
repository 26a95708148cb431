"""Write and read ``results.csv``, with a line per epoch of a run, and plot ``results.png``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

from y7edge.errors import CheckpointError, DataError
from y7edge.evaluation.evaluate import Metrics
from y7edge.evaluation.plots import save
from y7edge.files import atomic_write


@dataclass(frozen=True, slots=True)
class EpochRow:
    """Losses and scores of one epoch; scores are of the averaged weights, None if not evaluated."""

    epoch: int  # from 1
    box: float  # loss parts, means over the epoch, times their gains
    obj: float
    cls: float
    lr: float  # of the convolution weights, at the last iteration
    seconds: float  # without validation
    memory_mb: float  # peak: of the GPU, else of the process
    map50: float | None = None
    map50_95: float | None = None
    map75: float | None = None
    map_small: float | None = None  # COCO's sizes; also None without such objects
    map_medium: float | None = None
    map_large: float | None = None
    ar300: float | None = None  # average recall of the 300 best boxes
    precision: float | None = None  # means over classes at the best F1's threshold
    recall: float | None = None
    f1: float | None = None
    conf: float | None = None  # that threshold

    def evaluated(self, metrics: Metrics) -> EpochRow:
        """Return a copy of the row, with the scores from ``metrics``."""
        return replace(self, **{name: getattr(metrics, name) for name in COLUMNS[_UNEVALUATED:]})


DRAWN = ("000.jpg", "001.jpg", "002.jpg", "closed.jpg")
"""File names of drawn training batches: the first three, and the first without mosaic."""


@dataclass(frozen=True)
class Written:
    """The written results of a run: its rows, the last threshold, the files of drawn batches."""

    rows: tuple[EpochRow, ...] = ()
    conf: float | None = None
    batches: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if [row.epoch for row in self.rows] != list(range(1, len(self.rows) + 1)):
            raise CheckpointError("expected a row for each epoch, from 1")
        if any((row.map50 is None) != (row.map50_95 is None) for row in self.rows):
            raise CheckpointError("a row has only one mAP")
        if self.conf is not None and not 0 <= self.conf <= 1:
            raise CheckpointError(f"conf is {self.conf}, expected 0 to 1")
        if len(set(self.batches)) < len(self.batches) or not set(self.batches) <= set(DRAWN):
            raise CheckpointError(f"batches are {self.batches}, expected some of {DRAWN}")


COLUMNS = tuple(field.name for field in fields(EpochRow))
_UNEVALUATED = COLUMNS.index("map50")  # columns before the scores

_GROUPS = {
    "loss": ("box", "obj", "cls"),
    "quality": ("map50", "map50_95", "map75", "map_small", "map_medium", "map_large", "ar300"),
    "at_best_f1": ("precision", "recall", "f1", "conf"),
    "run": ("lr", "seconds", "memory_mb"),
}
TAGS = {name: f"{group}/{name}" for group, names in _GROUPS.items() for name in names}
"""TensorBoard's tag of each column of ``results.csv``, except the epoch."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Paths and scores of a run; ``best`` and ``last`` are checkpoints of the averaged weights."""

    folder: Path
    best: Path
    last: Path
    metrics: EpochRow  # of the best epoch
    epochs: int  # finished
    seconds_per_epoch: float  # mean, without validation
    stopped_early: bool  # patience ended


def write_csv(rows: Sequence[EpochRow], path: Path) -> None:
    """Write the table; a missing mAP is an empty field."""
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for row in rows:
            values = ["" if value is None else f"{value:.6g}" for value in astuple(row)[1:]]
            writer.writerow([row.epoch, *values])


def read_csv(path: Path) -> list[EpochRow]:
    """Read what :func:`write_csv` wrote.

    Raises:
        DataError: other columns, or fields that are not numbers.
    """
    with path.open(newline="", encoding="utf-8") as stream:
        header, *lines = list(csv.reader(stream)) or [[]]
    # Earlier versions had fewer columns of scores.
    if tuple(header) != COLUMNS[: len(header)] or len(header) < _UNEVALUATED:
        raise DataError(f"{path}: expected the columns {', '.join(COLUMNS)}, found {header}")
    try:
        return [
            EpochRow(int(line[0]), *(float(v) if v else None for v in line[1:]))  # type: ignore[arg-type]
            for line in lines
        ]
    except ValueError as error:
        raise DataError(f"{path}: a field is not a number: {error}") from error


def write_png(rows: Sequence[EpochRow], path: Path) -> None:
    """Plot loss parts, mAP and learning rate over the epochs."""
    # Without pyplot, which has global state and needs a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    losses, quality, rate = figure.subplots(1, 3)
    epochs = [row.epoch for row in rows]
    for part in ("box", "obj", "cls"):
        losses.plot(epochs, [getattr(row, part) for row in rows], label=part)
    evaluated = [row for row in rows if row.map50 is not None]
    for name, label in (("map50", "mAP@0.5"), ("map50_95", "mAP@0.5:0.95")):
        values = [getattr(row, name) for row in evaluated]
        quality.plot([row.epoch for row in evaluated], values, marker=".", label=label)
    quality.set_ylim(0, 1)
    rate.plot(epochs, [row.lr for row in rows])
    titles = ("loss (training)", "mAP (validation)", "learning rate")
    for axes, title in zip((losses, quality, rate), titles, strict=True):
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    losses.legend()
    quality.legend(loc="lower right")
    save(figure, path, dpi=100)
