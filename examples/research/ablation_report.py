"""Write the table and the plot of the ablation, with the paper's results for comparison."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from y7edge.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {
    "repconv": "RepConv in the chains of a YOLOv7",
    "auxiliary": "Auxiliary heads of a YOLOv7-W6",
    "implicit": "Implicit knowledge in the head",
    "average": "Moving average of the weights",
}
# The paper's COCO val AP of full-size models (arXiv 2207.02696), quoted from memory and not checked
# against its tables: {experiment: {setting: ((AP, model), ...)}}.
PAPER: dict[str, dict[str, tuple[tuple[float, str], ...]]] = {
    "repconv": {
        "plain": ((52.26, "3-stacked ELAN"), (54.82, "YOLOR-W6")),
        "RepConv": ((54.67, "RepCSP in YOLOR-W6"),),
        "RepConvN": tuple(
            (value, f"placement {name} in 3-stacked ELAN")
            for name, value in zip("abcde", (52.18, 52.30, 52.33, 52.17, 52.23), strict=True)
        ),
    },
    "auxiliary": {
        "no auxiliary": ((55.6, "YOLOv7-E6"),),
        "independent": ((55.8, "YOLOv7-E6"),),
        "lead-guided": ((55.9, "YOLOv7-E6"),),
        "coarse-to-fine": ((55.9, "YOLOv7-E6"),),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """The result of one training in an experiment."""

    experiment: str
    setting: str
    seed: int
    map50_95: float
    map50: float


def write(results: Sequence[Result], settings: Mapping[str, object], out: Path) -> str:
    """Write results, table and plot; return the table.

    Args:
        results: sorted by experiment, setting and seed. The first setting of an experiment is the
            one that the others are compared with.
        settings: settings that all trainings share.
        out: folder for ``results.json``, ``results.csv``, ``table.md`` and ``ablation.png``.
    """
    record = {"settings": dict(settings), "results": [vars(result) for result in results]}
    table = markdown(results)
    with atomic_write(out / "results.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    with (
        atomic_write(out / "results.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(field.name for field in fields(Result))
        writer.writerows(astuple(result) for result in results)
    with atomic_write(out / "table.md") as temporary:
        temporary.write_text(table, encoding="utf-8")
    draw(results, out / "ablation.png")
    return table


def grouped(results: Sequence[Result]) -> dict[str, dict[str, list[Result]]]:
    """Group results by experiment and setting, in the order of the seeds."""
    groups: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        groups.setdefault(result.experiment, {}).setdefault(result.setting, []).append(result)
    return groups


def markdown(results: Sequence[Result]) -> str:
    """Return a Markdown table for each experiment."""
    parts = []
    for experiment, compared in grouped(results).items():
        first = next(iter(compared))
        lines = [
            f"### {TITLES[experiment]}\n",
            f"| setting | mAP@0.5:0.95, seed by seed | mean | against {first}, seed by seed "
            "| mAP@0.5, mean | paper: COCO AP of full-size models |",
            "|---|---|---|---|---|---|",
        ]
        for setting, found in compared.items():
            values = [result.map50_95 for result in found]
            away = [a - b.map50_95 for a, b in zip(values, compared[first], strict=True)]
            cells = (
                setting,
                ", ".join(f"{value:.3f}" for value in values),
                f"{fmean(values):.3f}",
                "" if setting == first else ", ".join(f"{value:+.3f}" for value in away),
                f"{fmean([result.map50 for result in found]):.3f}",
                quoted(experiment, setting),
            )
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def quoted(experiment: str, setting: str) -> str:
    """Return the paper's results for a setting as text."""
    if experiment not in PAPER:
        return "none known to us"
    return ", ".join(f"{value:g} ({what})" for value, what in PAPER[experiment][setting])


def draw(results: Sequence[Result], path: Path) -> None:
    """Plot one column for each experiment: our results, a dot per seed, above the paper's."""
    # pyplot would use global state and search for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = grouped(results)
    widths = [max(len(compared), 2) for compared in groups.values()]
    figure = Figure(figsize=(1.0 * sum(widths) + 1, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(
        2, len(groups), squeeze=False, height_ratios=(3, 2), width_ratios=widths
    )
    for (experiment, compared), ours, theirs in zip(groups.items(), *panels, strict=True):
        _draw_ours(ours, compared)
        ours.set_title(TITLES[experiment].replace(" of ", "\nof ").replace(" in ", "\nin "), size=9)
        _draw_paper(theirs, experiment, list(compared))
    panels[0][0].set_ylabel("here: mAP@0.5:0.95\nnarrow models, few images", size=8)
    panels[1][0].set_ylabel("paper: COCO AP\nfull-size models", size=8, color="#64748b")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=90, metadata={"Software": None})


def _draw_ours(axes: Axes, compared: Mapping[str, Sequence[Result]]) -> None:
    seeds = len(next(iter(compared.values())))
    for seed in range(seeds):  # connect the results with the same seed
        values = [found[seed].map50_95 for found in compared.values()]
        axes.plot(values, color="#cbd5e1", linewidth=0.8, zorder=1)
    for index, found in enumerate(compared.values()):
        values = [result.map50_95 for result in found]
        axes.scatter([index] * len(values), values, s=18, color="#0f766e", zorder=3)
        axes.hlines(fmean(values), index - 0.3, index + 0.3, color="#0f766e", linewidth=2, zorder=2)
    _name(axes, list(compared))


def _draw_paper(axes: Axes, experiment: str, names: Sequence[str]) -> None:
    figures = PAPER.get(experiment, {})
    marks: dict[str, str] = {}  # model -> its marker
    for index, name in enumerate(names):
        for value, what in figures.get(name, ()):
            model = what.rpartition(" in ")[2]
            known = model in marks
            mark = marks.setdefault(model, "Ds^v"[len(marks) % 4])
            axes.scatter(
                index, value, s=18, marker=mark, facecolors="none", edgecolors="#64748b",
                label=None if known else model,
            )  # fmt: skip
    if figures:
        axes.legend(fontsize=7, frameon=False)
    else:
        axes.text(
            0.5, 0.5, "no figures\nknown to us", ha="center", va="center", size=8,
            color="#64748b", transform=axes.transAxes,
        )  # fmt: skip
        axes.set_yticks([])
    _name(axes, names)


def _name(axes: Axes, names: Sequence[str]) -> None:
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xticks(range(len(names)), [n.replace(" ", "\n").replace("-", "-\n") for n in names])
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
