"""Write and read ``results.csv``, which has a row per epoch, and plot it to ``results.png``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

from y7edge.errors import CheckpointError, DataError
from y7edge.evaluation.evaluate import Metrics
from y7edge.evaluation.plots import save
from y7edge.files import atomic_write, is_file
from y7edge.train.output.folder import REPORT


@dataclass(frozen=True, slots=True)
class EpochRow:
    """Losses of one epoch, and scores of the averaged weights (None if not evaluated)."""

    epoch: int  # from 1
    box: float  # box, obj, cls: loss parts times their gains, means over the epoch
    obj: float
    cls: float
    lr: float  # of the convolution weights, at the last iteration
    seconds: float  # without validation
    memory_mb: float  # peak memory of the GPU, or of the process on a CPU
    map50: float | None = None
    map50_95: float | None = None
    map75: float | None = None
    map_small: float | None = None  # by COCO's object sizes; None if no object has this size
    map_medium: float | None = None
    map_large: float | None = None
    ar300: float | None = None  # average recall of the 300 best boxes
    precision: float | None = None  # precision, recall, f1: means over classes at ``conf``
    recall: float | None = None
    f1: float | None = None
    conf: float | None = None  # confidence threshold with the best F1

    def evaluated(self, metrics: Metrics) -> EpochRow:
        """Return a copy of the row, with the scores from ``metrics``."""
        return replace(self, **{name: getattr(metrics, name) for name in COLUMNS[_UNEVALUATED:]})


DRAWN = ("000.jpg", "001.jpg", "002.jpg", "closed.jpg")
"""File names of drawn training batches: the first three, and the first without mosaic."""


@dataclass(frozen=True)
class Written:
    """Results of a run so far: rows, last confidence threshold, file names of drawn batches."""

    rows: tuple[EpochRow, ...] = ()
    conf: float | None = None
    batches: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if [row.epoch for row in self.rows] != list(range(1, len(self.rows) + 1)):
            raise CheckpointError("rows: expected one for each epoch, from 1")
        if any((row.map50 is None) != (row.map50_95 is None) for row in self.rows):
            raise CheckpointError("a row has only one of map50 and map50_95, expected both")
        if self.conf is not None and not 0 <= self.conf <= 1:
            raise CheckpointError(f"conf: expected 0 to 1, found {self.conf}")
        if len(set(self.batches)) < len(self.batches) or not set(self.batches) <= set(DRAWN):
            raise CheckpointError(f"batches: expected some of {DRAWN}, found {self.batches}")


COLUMNS = tuple(field.name for field in fields(EpochRow))
_UNEVALUATED = COLUMNS.index("map50")  # columns before the scores

_GROUPS = {
    "loss": ("box", "obj", "cls"),
    "quality": ("map50", "map50_95", "map75", "map_small", "map_medium", "map_large", "ar300"),
    "at_best_f1": ("precision", "recall", "f1", "conf"),
    "run": ("lr", "seconds", "memory_mb"),
}
TAGS = {name: f"{group}/{name}" for group, names in _GROUPS.items() for name in names}
"""TensorBoard tags by column of ``results.csv``, for example ``loss/box``."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Paths and scores of a run; ``best`` and ``last`` are checkpoints of the averaged weights."""

    folder: Path
    best: Path
    last: Path
    metrics: EpochRow  # of the best epoch
    epochs: int  # finished
    seconds_per_epoch: float  # mean, without validation
    stopped_early: bool  # by ``patience``, before the last epoch

    @property
    def report(self) -> Path | None:
        """The page with curves and images; None if it was not written."""
        page = self.folder / REPORT
        return page if is_file(page) else None


def write_csv(rows: Sequence[EpochRow], path: Path) -> None:
    """Write the rows as a table; a score that is None is an empty field."""
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
    """Read a table that ``write_csv`` wrote.

    Raises:
        DataError: columns are missing or unexpected, or a field is not a number.
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
    # pyplot is not used, since it has global state and needs a display.
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
