"""Write ``report.html``, a self-contained page about a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from y7edge import html
from y7edge.data.dataset import Dataset, Sample
from y7edge.evaluation import report
from y7edge.evaluation.evaluate import Metrics
from y7edge.evaluation.report import Saved
from y7edge.files import write_text
from y7edge.models import shapes
from y7edge.models.spec import Spec
from y7edge.train.output.folder import CONFIG
from y7edge.train.output.results import EpochRow
from y7edge.train.run.progress import clock
from y7edge.train.settings.config import TrainConfig


@dataclass(frozen=True)
class Summary:
    """Contents of the report."""

    config: TrainConfig
    data: Dataset
    spec: Spec
    meta: Mapping[str, Any]  # of the run's checkpoints
    rows: Sequence[EpochRow]
    best: EpochRow
    metrics: Metrics  # of the best checkpoint
    saved: Saved
    curves: Path  # losses and mAP over the epochs
    batches: Sequence[Path]
    settings: str  # the text of config.yaml
    notes: Sequence[str]


def write(run: Summary, path: Path) -> None:
    """Write the report as an HTML file."""
    config = run.config
    source = run.data.source
    title = f"{run.spec.name} on {source.parent.name if source.suffix else source.name}"
    seconds, notes = sum(row.seconds for row in run.rows), [*run.notes, *run.data.warnings]
    lead = (
        f"{len(run.rows)} of {config.epochs} epochs in {clock(seconds)}; epoch "
        f"{run.best.epoch} was the best. All scores below are those of best.safetensors on the "
        f"split {config.val_split}."
    )
    body = [
        html.heading(title),
        html.paragraph(lead, "lead"),
        report.tiles(run.metrics),
        _what(run),
        _history(run),
        *report.sections(run.metrics, run.saved),
        *_batches(run),
        *([html.section("Notes", *map(html.paragraph, notes))] if notes else []),
        html.section("Settings", html.code(run.settings)),
        html.section("How to repeat it", html.code(_repeat(run))),
    ]
    write_text(path, html.page(title, body))


def _what(run: Summary) -> str:
    config, spec = run.config, run.spec
    nominal = run.meta["config"]["nominal_batch"]
    gflops = shapes.gflops(spec, config.imgsz, config.imgsz)
    train, val = (run.data.split(s) for s in (config.train_split, config.val_split))
    rows = [
        ("model", f"{spec.name}, {shapes.parameters(spec):,} parameters, {gflops:.2f} GFLOPs"),
        ("input", f"{config.imgsz} x {config.imgsz} pixels"),
        ("weights", run.meta["provenance"]),
        ("data", f"{run.data.source}, {spec.nc} classes"),
        ("train", _counted(train)),
        ("val", _counted(val)),
        ("batch", f"{config.batch} images, an optimizer step every {nominal}"),
        ("licence of the weights", config.licence),
    ]
    return html.section("What was trained", html.pairs(rows))


def _counted(samples: Sequence[Sample]) -> str:
    labels = sum(len(sample.boxes) for sample in samples)
    return f"{len(samples)} images, {labels} labels"


def _history(run: Summary) -> str:
    evaluated = [row for row in run.rows if row.map50 is not None]
    table = html.table(
        ("epoch", "box", "obj", "cls", "mAP@0.5", "mAP@0.5:0.95", "precision", "recall", "F1"),
        [
            (
                f"{row.epoch}, best" if row.epoch == run.best.epoch else str(row.epoch),
                *(f"{loss:.4f}" for loss in (row.box, row.obj, row.cls)),
                *map(report.figure, (row.map50, row.map50_95, row.precision, row.recall, row.f1)),
            )
            for row in _sampled(evaluated, run.best)
        ],
    )
    plot = html.image(run.curves.read_bytes(), "losses, mAP and learning rate over the epochs")
    return html.section("History", plot, table)


def _sampled(rows: Sequence[EpochRow], best: EpochRow, most: int = 20) -> list[EpochRow]:
    """Select about ``most`` evenly spaced rows, and the best and the last row."""
    step = -(-len(rows) // most)
    last = rows[-1].epoch if rows else 0
    return [
        row
        for index, row in enumerate(rows)
        if index % step == 0 or row.epoch in (best.epoch, last)
    ]


def _batches(run: Summary) -> list[str]:
    if not run.batches:
        return []
    images = [
        html.figure(html.image(path.read_bytes(), f"batch {path.stem}"), path.name)
        for path in run.batches
    ]
    words = "The first images of some training batches, after augmentation."
    parts = (html.paragraph(words, "soft"), html.grid(images, wide=True))
    return [html.section("Batches", *parts)]


def _repeat(run: Summary) -> str:
    """Return command, seed, data, machine and versions as lines of text."""
    data, versions = run.meta["data"], run.meta["versions"]
    facts = {
        "command": run.config.command or f"train(configfile.read({CONFIG!r}))",
        "seed": run.config.seed,
        "data": data["path"],
        "digest": f"{data['digest']} (SHA-256 of class names, labels, names and sizes of images)",
        "machine": run.meta["machine"],
        **{f"version {name}": number for name, number in versions.items()},
    }
    lines = [f"{name}: {value}" for name, value in facts.items()]
    equal = "The same versions, seed, data, threads and processor give the same weights."
    return "\n".join((*lines, "", equal))
