"""All files of one evaluation: plots, pictures and COCO results, for ``val`` and for training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from y7edge.data.sample import Sample
from y7edge.detect.detections import Detections
from y7edge.evaluation.coco_results import write_submission
from y7edge.evaluation.evaluate import Metrics
from y7edge.evaluation.plots import write_confusion, write_curves
from y7edge.evaluation.predictions import Image, write_predictions
from y7edge.evaluation.tables import Tables

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

    Raises:
        ConfigError: COCO's ids for a data set of other than 80 classes.
        DataError: an image cannot be read.
        OutputError: an image cannot be written.
    """
    written = write_submission(
        tables.found, samples, folder / RESULTS, classes=len(names), coco_ids=coco_ids
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
