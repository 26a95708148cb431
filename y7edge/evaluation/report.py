"""The files of one evaluation: plots, images, COCO results, and a page that shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from y7edge import html
from y7edge.data.sample import Sample
from y7edge.detect.detections import Detections
from y7edge.evaluation.average_precision import COUNTS
from y7edge.evaluation.coco_results import write_submission
from y7edge.evaluation.evaluate import ClassMetrics, Metrics
from y7edge.evaluation.plots import write_confusion, write_curves
from y7edge.evaluation.predictions import Image, write_predictions
from y7edge.evaluation.tables import Tables
from y7edge.files import atomic_write

CAPTIONS = {
    "precision": "Precision: the share of what is kept that is right.",
    "recall": "Recall: the share of the objects that is found.",
    "f1": "F1: their harmonic mean; the dotted line is the best threshold.",
    "pr": "Precision over recall; the mean of a line is that class's average precision.",
    "confusion": "Confusion: rows are the truth, columns what was found; background is nothing.",
}


CURVES, PREDICTIONS, RESULTS = "curves", "predictions", "predictions.json"


@dataclass(frozen=True, slots=True)
class Saved:
    """Where the files of an evaluation lie."""

    plots: tuple[Path, ...]  # precision, recall, F1, precision over recall, confusion
    predictions: tuple[Path, ...]
    results: Path  # COCO results JSON


def save(
    folder: Path,
    tables: Tables,
    metrics: Metrics,
    samples: Sequence[Sample],
    names: Sequence[str],
    detect: Callable[[Image], Detections],
    *,
    coco_ids: bool = False,
    category_ids: Sequence[int | str | None] = (),
) -> Saved:
    """Write ``curves/*.png``, ``predictions/*.jpg`` and ``predictions.json`` into a folder.

    Args:
        folder: made if missing.
        tables: all boxes, labelled and found.
        metrics: what follows from them.
        samples: the pictures.
        names: class names.
        detect: a detector at its own thresholds, for the pictures.
        coco_ids: category ids of COCO's files in the results.
        category_ids: those of the data set's own file, by class; empty if it has none.

    Raises:
        ConfigError: COCO's ids for a data set of other than 80 classes.
        DataError: an image cannot be read.
        OutputError: an image cannot be written.
    """
    written = write_submission(
        tables.found,
        samples,
        folder / RESULTS,
        classes=len(names),
        coco_ids=coco_ids,
        category_ids=category_ids,
    )
    plots: list[Path] = []
    if metrics.curves is not None:
        plots += write_curves(metrics.curves, names, folder / CURVES)
    if metrics.confusion is not None:
        plots.append(write_confusion(metrics.confusion, folder / CURVES / "confusion.png"))
    return Saved(
        plots=tuple(plots),
        predictions=tuple(write_predictions(detect, samples, names, folder / PREDICTIONS)),
        results=written[0],
    )


def write_page(title: str, lead: str, metrics: Metrics, saved: Saved, path: Path) -> None:
    """Write a page about one evaluation.

    Args:
        title: what was judged.
        lead: on what.
        metrics: the figures.
        saved: plots and pictures, which the page takes in.
        path: the HTML file.
    """
    body = [
        html.heading(title),
        html.paragraph(lead, "lead"),
        tiles(metrics),
        *sections(metrics, saved),
    ]
    with atomic_write(path) as temporary:
        temporary.write_text(html.page(title, body), encoding="utf-8")


def tiles(metrics: Metrics) -> str:
    """The four figures that matter most."""
    conf, words = "none", "best confidence threshold: nothing was found right; 0.25 stays in force"
    if metrics.conf is not None:
        conf = f"{metrics.conf:.3f}"
        words = "best confidence threshold; an exported detector uses it by default"
    figures = [
        (figure(metrics.map50), "mAP@0.5", True),
        (figure(metrics.map50_95), "mAP@0.5:0.95", True),
        (figure(metrics.f1), "F1 at the best threshold, mean over the classes", True),
        (conf, words, True),
    ]
    return html.tiles(figures)


def sections(metrics: Metrics, saved: Saved) -> list[str]:
    """Tables, curves, confusion and pictures."""
    curves = _plots(saved)
    pictures = [path.read_bytes() for path in saved.predictions[::2]]  # the page stays readable
    parts = [
        html.section("Classes", _classes(metrics), html.paragraph(_about(metrics), "soft")),
        html.section("Sizes and recall", _sizes(metrics)),
    ]
    if curves:
        parts.append(html.section("Curves and confusion", html.grid(curves, wide=True)))
    if pictures:
        shown = [html.image(p, f"picture {n}: labels, detections") for n, p in enumerate(pictures)]
        words = (
            f"{len(pictures)} of {metrics.images} pictures, spread evenly over the split. Left: "
            "labels. Right: what the detector gives at its default thresholds."
        )
        parts.append(html.section("Pictures", html.paragraph(words, "soft"), html.column(shown)))
    return parts


def figure(value: float | None) -> str:
    """A figure from 0 to 1 in three decimals; a dash where there is none."""
    return "–" if value is None else f"{value:.3f}"


def _classes(metrics: Metrics) -> str:
    def row(item: ClassMetrics) -> tuple[str, ...]:
        scores = (item.ap50, item.ap50_95, item.precision, item.recall, item.f1)
        return (item.name, str(item.labels), *map(figure, scores))

    means = ClassMetrics(
        "all",
        metrics.map50,
        metrics.map50_95,
        metrics.labels,
        metrics.precision,
        metrics.recall,
        metrics.f1,
    )
    head = ("class", "labels", "AP@0.5", "AP@0.5:0.95", "precision", "recall", "F1")
    return html.table(head, [row(item) for item in (*metrics.per_class, means)])


def _about(metrics: Metrics) -> str:
    at = "" if metrics.conf is None else f" at confidence {metrics.conf:.3f}"
    return (
        f"{metrics.images} pictures, {metrics.labels} labels; {metrics.protocol}. Precision, "
        f"recall and F1 at IoU 0.5{at}."
    )


def _sizes(metrics: Metrics) -> str:
    sizes = (
        ("all", metrics.map50_95, metrics.ar300),
        ("small, up to 32 x 32 pixels", metrics.map_small, metrics.ar_small),
        ("medium", metrics.map_medium, metrics.ar_medium),
        ("large, from 96 x 96 pixels", metrics.map_large, metrics.ar_large),
    )
    counts = [(f"best {n} boxes", figure(getattr(metrics, f"ar{n}"))) for n in COUNTS]
    return html.table(
        ("objects", "mAP@0.5:0.95", "average recall, 300 boxes"),
        [(name, figure(ap), figure(ar)) for name, ap, ar in sizes],
    ) + html.table(("of each picture and class", "average recall"), counts)


def _plots(saved: Saved) -> list[str]:
    return [
        html.figure(html.image(path.read_bytes(), path.stem), CAPTIONS[path.stem])
        for path in saved.plots
    ]
