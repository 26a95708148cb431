"""Write the files of an evaluation: plots, images, COCO results, and an HTML page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from y7edge import html
from y7edge.data.sample import Sample
from y7edge.detect.detections import Detections
from y7edge.evaluation.average_precision import COUNTS
from y7edge.evaluation.coco_results import write_submission
from y7edge.evaluation.evaluate import Metrics
from y7edge.evaluation.plots import write_confusion, write_curves
from y7edge.evaluation.predictions import Image, write_predictions
from y7edge.evaluation.tables import Tables
from y7edge.files import write_text

CAPTIONS = {
    "precision": "Precision: the fraction of the detections that is correct.",
    "recall": "Recall: the fraction of the objects that is found.",
    "f1": "F1: the harmonic mean of precision and recall; dotted: the best threshold.",
    "pr": "Precision over recall; the mean of a line is the average precision of its class.",
    "confusion": "Confusion at the best threshold: rows are the truth, columns the prediction. The "
    "last column has missed objects, the last row detections without an object.",
}
CURVES, PREDICTIONS, RESULTS = "curves", "predictions", "predictions.json"


@dataclass(frozen=True, slots=True)
class Saved:
    """Paths of the files of an evaluation."""

    plots: tuple[Path, ...]  # curves, then the confusion matrix
    predictions: tuple[Path, ...]  # images with labels and detections
    results: Path  # COCO results, JSON


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

    ``detect`` returns the detections to draw, with default thresholds. ``coco_ids`` and
    ``category_ids`` as for ``y7edge.evaluation.coco_results.write_submission``.

    Raises:
        ConfigError: ``coco_ids`` is set, but the data set does not have 80 classes.
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
    """Write an HTML page about one evaluation, with embedded plots and images."""
    start = [html.heading(title), html.paragraph(lead, "lead"), tiles(metrics)]
    write_text(path, html.page(title, [*start, *sections(metrics, saved)]))


def tiles(metrics: Metrics) -> str:
    """Return the main metrics as HTML tiles."""
    conf, words = "none", "best confidence threshold: no detection is correct, 0.25 is used"
    if metrics.conf is not None:
        conf = f"{metrics.conf:.3f}"
        words = "best confidence threshold; an exported detector uses it by default"
    figures = {
        "mAP@0.5": figure(metrics.map50),
        "mAP@0.5:0.95": figure(metrics.map50_95),
        "F1 at the best threshold, mean over the classes": figure(metrics.f1),
        words: conf,
    }
    return html.tiles([(value, name, True) for name, value in figures.items()])


def sections(metrics: Metrics, saved: Saved) -> list[str]:
    """Return HTML sections with tables, curves, the confusion matrix and images."""
    curves = [
        html.figure(html.image(path.read_bytes(), path.stem), CAPTIONS[path.stem])
        for path in saved.plots
    ]
    images = [
        path.read_bytes() for path in saved.predictions[::2]
    ]  # every second one, for a short page
    parts = [
        html.section("Classes", _classes(metrics), html.paragraph(_about(metrics), "soft")),
        html.section("Sizes and recall", _sizes(metrics)),
    ]
    if curves:
        parts.append(html.section("Curves and confusion", html.grid(curves, wide=True)))
    if images:
        shown = [
            html.image(jpeg, f"image {n}: labels, detections") for n, jpeg in enumerate(images)
        ]
        words = (
            f"{len(images)} of {metrics.images} images, spread evenly over the split. Left: "
            "labels. Right: detections at the confidence threshold that the model has stored."
        )
        parts.append(html.section("Images", html.paragraph(words, "soft"), html.column(shown)))
    return parts


def figure(value: float | None) -> str:
    """Format a metric with three decimals, None as a dash."""
    return "–" if value is None else f"{value:.3f}"


def _classes(metrics: Metrics) -> str:
    head = ("class", "labels", "AP@0.5", "AP@0.5:0.95", "precision", "recall", "F1")
    rows = metrics.class_rows()
    return html.table(head, [(name, str(n), *map(figure, scores)) for name, n, *scores in rows])


def _about(metrics: Metrics) -> str:
    at = "" if metrics.conf is None else f" at confidence {metrics.conf:.3f}"
    return (
        f"{metrics.images} images, {metrics.labels} labels; {metrics.protocol}. Precision, "
        f"recall and F1 at IoU 0.5{at}."
    )


def _sizes(metrics: Metrics) -> str:
    limits = {"small": ", up to 32 x 32 pixels", "large": ", from 96 x 96 pixels"}
    counts = [(f"best {n} boxes", figure(getattr(metrics, f"ar{n}"))) for n in COUNTS]
    return html.table(
        ("objects", "mAP@0.5:0.95", "average recall, 300 boxes"),
        [(n + limits.get(n, ""), figure(ap), figure(ar)) for n, ap, ar in metrics.size_rows()],
    ) + html.table(("of each image and class", "average recall"), counts)
