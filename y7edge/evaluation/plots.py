"""Write the plots of an evaluation as PNG files; equal metrics give equal bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from y7edge.evaluation.confusion import IOU as MATCHED
from y7edge.evaluation.confusion import Confusion
from y7edge.evaluation.curves import IOU, THRESHOLDS, Curves
from y7edge.files import atomic_write
from y7edge.runtimes.base import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED = 10  # if there are more classes, their curves are grey and have no names
_WRITTEN = 30  # if there are more rows, the confusion matrix has no numbers


def write_curves(curves: Curves, names: Sequence[str], folder: Path) -> list[Path]:
    """Write ``precision.png``, ``recall.png``, ``f1.png`` and ``pr.png``; return their paths."""
    paths = []
    for name, title in (("precision", "precision"), ("recall", "recall"), ("f1", "F1")):
        figure, axes = canvas()
        _lines(axes, THRESHOLDS, getattr(curves, name), names)
        mean = curves.mean(name)
        axes.plot(THRESHOLDS, mean, color="#0f172a", linewidth=2.5, label=_of_all(name, curves))
        if name == "f1" and curves.best is not None:
            axes.axvline(THRESHOLDS[curves.best], color="#64748b", linestyle=":", linewidth=1.2)
        _finish(axes, "confidence threshold", title, f"{title} at IoU {IOU:g}")
        paths.append(save(figure, folder / f"{name}.png"))
    figure, axes = canvas()
    recall = np.linspace(0, 1, curves.by_recall.shape[1])
    average = curves.by_recall.mean(axis=1)
    named = [f"{name} {ap:.3f}" for name, ap in zip(names, average, strict=True)]
    _lines(axes, recall, curves.by_recall, named)
    overall = curves.mean("by_recall")
    label = f"all classes, mAP@0.5 {overall.mean():.3f}"
    axes.plot(recall, overall, color="#0f172a", linewidth=2.5, label=label)
    _finish(axes, "recall", "precision", f"precision over recall at IoU {IOU:g}")
    return [*paths, save(figure, folder / "pr.png")]


def write_confusion(confusion: Confusion, path: Path) -> Path:
    """Draw the confusion matrix; numbers are counts, colours are fractions of the row.

    In the last row, the background, colours are fractions of the column.
    """
    matrix, labels = confusion.matrix, [_plain(label) for label in confusion.labels]
    size = len(labels)
    side = min(3.2 + 0.55 * size, 16)
    figure, axes = canvas(side + 1.2, side, fitted=True)
    total = np.repeat(matrix.sum(axis=1, keepdims=True), size, axis=1)
    total[-1] = matrix.sum(axis=0)
    fraction = np.divide(matrix, total, out=np.zeros(matrix.shape), where=total > 0)
    image = axes.imshow(fraction, cmap="Blues", vmin=0, vmax=1)
    label = "fraction of the row; of the column in the last row"
    figure.colorbar(image, ax=axes, shrink=0.8, label=label)
    if size <= _WRITTEN:
        _write_counts(axes, matrix, fraction)
    font = 9 if size <= 20 else 6
    axes.set_xticks(range(size), labels, rotation=45, ha="right", fontsize=font)
    axes.set_yticks(range(size), labels, fontsize=font)
    # Lines separate the background from the classes.
    for line in (axes.axhline, axes.axvline):
        line(size - 1.5, color="#64748b", linewidth=0.8)
    axes.set(xlabel="prediction", ylabel="truth")
    axes.set_title(f"confidence above {confusion.conf:g}, IoU above {MATCHED:g}", fontsize=10)
    return save(figure, path)


def require_matplotlib() -> None:
    """Raise RuntimeMissing if matplotlib is not installed. Call this before long work."""
    require({"matplotlib": "y7edge[train]"}, "drawing plots")


def canvas(width: float = 6.4, height: float = 4.4, *, fitted: bool = False) -> tuple[Figure, Axes]:
    """Create a figure with one plot, size in inches; ``fitted`` makes room for long labels."""
    # pyplot is not used: it has global state and searches for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained" if fitted else None)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if not fitted:
        figure.subplots_adjust(left=0.09, right=0.98, bottom=0.12, top=0.93)
    return figure, axes


def save(figure: Figure, path: Path, *, dpi: int = 110) -> Path:
    """Write a figure as PNG, atomically."""
    with atomic_write(path) as temporary:
        # The version of matplotlib is left out, so that equal figures give equal files.
        figure.savefig(temporary, dpi=dpi, metadata={"Software": None})
    return path


def _lines(
    axes: Axes, x: NDArray[np.float64], values: NDArray[np.float64], names: Sequence[str]
) -> None:
    """Draw a line for each class that has labels."""
    known = [index for index, line in enumerate(values) if np.isfinite(line).any()]
    for index in known:
        if len(known) <= _NAMED:
            axes.plot(x, values[index], linewidth=1.2, label=_plain(names[index]))
        else:
            axes.plot(x, values[index], linewidth=0.6, color="#94a3b8", alpha=0.6)


def _of_all(name: str, curves: Curves) -> str:
    if curves.best is None:
        return "all classes"
    value = curves.mean(name)[curves.best]
    return f"all classes, {value:.3f} at {THRESHOLDS[curves.best]:.3f}"


def _plain(name: str) -> str:
    """Escape a name for matplotlib, which hides labels that begin with _ and parses $ as math.

    Characters that are not in its font are replaced by code points such as U+732B.
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font

    drawn = get_font(findfont(FontProperties())).get_charmap()
    shown = "".join(sign if ord(sign) in drawn else f"U+{ord(sign):04X}" for sign in name)
    return shown.replace("$", r"\$").removeprefix("_") or "_"


def _finish(axes: Axes, x_label: str, y_label: str, title: str) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=x_label, ylabel=y_label, title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _write_counts(axes: Axes, matrix: NDArray[np.int64], fraction: NDArray[np.float64]) -> None:
    font = 9 if len(matrix) <= 12 else 6
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            ink = "white" if fraction[row, column] > 0.55 else "#0f172a"
            axes.text(column, row, str(count), ha="center", va="center", color=ink, fontsize=font)
