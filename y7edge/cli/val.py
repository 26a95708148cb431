"""``y7edge val``: measure the mAP of checkpoints and artifacts with the same protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from y7edge import __version__
from y7edge.cli.console import note, show, table
from y7edge.cli.models import open_detector
from y7edge.cli.options import (
    Backend,
    Device,
    Json,
    Model,
    Names,
    Size,
    Split,
    Threads,
    out_folder,
)
from y7edge.cli.progress import Progress
from y7edge.files import writing

if TYPE_CHECKING:
    from y7edge.evaluation.evaluate import Metrics

_Data = Annotated[
    Path,
    typer.Option(
        help="data.yaml or its folder, or a folder of Pascal VOC or COCO files.", metavar="DATA"
    ),
]
_Save = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        callback=out_folder,
        help="Write curves, confusion matrix, images, COCO results and a report to this folder.",
    ),
]
_CocoIds = Annotated[
    bool,
    typer.Option("--coco-ids", help="With --save: COCO's category ids (1 to 90, with gaps)."),
]


def val(
    model: Model,
    data: _Data,
    split: Split = "val",
    names: Names = None,
    imgsz: Size = None,
    backend: Backend = "auto",
    device: Device = "auto",
    threads: Threads = None,
    save: _Save = None,
    coco_ids: _CocoIds = False,
    as_json: Json = False,
) -> None:
    """Measure the mAP of a checkpoint or an artifact.

    The protocol is the same for both: square letterbox, multi-label, confidence 0.001, NMS IoU 0.65
    within each class, 300 boxes per image. Precision, recall and F1 are measured at IoU 0.5, and at
    the confidence at which the mean F1 of all classes is highest.
    """
    from y7edge.data.dataset import load
    from y7edge.evaluation.coco_results import require_coco
    from y7edge.evaluation.evaluate import collect, metrics_of, same_classes
    from y7edge.evaluation.plots import require_matplotlib
    from y7edge.evaluation.report import save as write
    from y7edge.evaluation.report import write_page

    if save is not None:
        require_matplotlib()
    dataset = load(data, splits=[split])
    dataset.split(split)  # raises DataError before the model is opened
    with open_detector(
        model, imgsz=imgsz, names=names, backend=backend, device=device, threads=threads
    ) as detector:
        detector.require_candidates()
        dataset = same_classes(detector.names, dataset, note)
        samples = dataset.split(split)
        if coco_ids:
            require_coco(len(dataset.names))
        if save is not None:
            with writing("the evaluation", save):  # before the evaluation, which may take minutes
                save.mkdir(parents=True, exist_ok=True)
        predict, labels = detector.detect_for_evaluation, dataset.names
        with Progress("images") as progress:
            tables = collect(predict, samples, labels, progress.update)
        metrics = metrics_of(tables, labels)
        if save is not None:
            lead = f"{model} on the split {split} of {data}, by y7edge {__version__}."
            title = f"Evaluation of {Path(model).name}"
            with writing("the evaluation", save):
                saved = write(
                    *(save, tables, metrics, samples, labels, detector),
                    coco_ids=coco_ids,
                    category_ids=dataset.category_ids.get(split, ()),
                )
                write_page(title, lead, metrics, saved, save / "report.html")
            note(f"curves, images, COCO results and report.html are in {save}")
    record = {"model": model, "data": data, "split": split, **metrics.to_dict()}
    show(record, _lines(metrics), as_json=as_json)


def _lines(metrics: Metrics) -> list[str]:
    head = ("class", "labels", "mAP@0.5", "mAP@0.5:0.95", "precision", "recall", "F1")
    best = "no detection was correct at any confidence"
    if metrics.conf is not None:
        best = f"best F1 at confidence {metrics.conf:g}"
    return [
        f"{metrics.images} images; {metrics.protocol}",
        *table([head, *metrics.class_rows()]),
        "",
        *table([("objects", "mAP@0.5:0.95", "average recall"), *metrics.size_rows()]),
        "",
        best,
    ]
