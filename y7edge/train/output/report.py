"""``report.html``: one page about a run that needs no other file and no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from y7edge import html
from y7edge.data.dataset import Dataset, Sample
from y7edge.evaluation import report
from y7edge.evaluation.evaluate import Metrics
from y7edge.evaluation.report import Saved
from y7edge.files import atomic_write
from y7edge.models import shapes
from y7edge.models.spec import Spec
from y7edge.train.output.results import EpochRow
from y7edge.train.run.progress import clock
from y7edge.train.settings.config import TrainConfig


@dataclass(frozen=True)
class Story:
    """What the page tells."""

    config: TrainConfig
    data: Dataset
    spec: Spec
    origin: str  # where the weights began
    rows: Sequence[EpochRow]
    best: EpochRow
    metrics: Metrics  # of the best checkpoint
    saved: Saved
    curves: Path  # losses and mAP over the epochs
    batches: Sequence[Path]
    settings: str  # the text of config.yaml
    nominal: int  # pictures for an optimiser step
    repeat: str  # the text of repeat.txt
    notes: Sequence[str]


def write(story: Story, path: Path) -> None:
    """Write the page."""
    config = story.config
    title = f"{story.spec.name} on {_short(story.data.source)}"
    seconds = sum(row.seconds for row in story.rows)
    lead = (
        f"{len(story.rows)} of {config.epochs} epochs in {clock(seconds)}; epoch "
        f"{story.best.epoch} was the best. All figures below are those of best.safetensors on the "
        f"split {config.val_split}."
    )
    body = [
        html.heading(title),
        html.paragraph(lead, "lead"),
        report.tiles(story.metrics),
        _what(story),
        _course(story),
        *report.sections(story.metrics, story.saved),
        *_batches(story),
        *_notes(story),
        html.section("Settings", html.code(story.settings)),
        html.section("To repeat it", html.code(story.repeat)),
    ]
    with atomic_write(path) as temporary:
        temporary.write_text(html.page(title, body), encoding="utf-8")


def _short(path: Path) -> str:
    """The name that people call a data set by: that of its folder."""
    return path.parent.name if path.suffix else path.name


def _what(story: Story) -> str:
    config, spec = story.config, story.spec
    gflops = shapes.gflops(spec, config.imgsz, config.imgsz)
    train, val = (story.data.split(s) for s in (config.train_split, config.val_split))
    rows = [
        ("model", f"{spec.name}, {shapes.parameters(spec):,} parameters, {gflops:.2f} GFLOPs"),
        ("input", f"{config.imgsz} x {config.imgsz} pixels"),
        ("weights", story.origin),
        ("data", f"{story.data.source}, {spec.nc} classes"),
        ("train", _counted(train)),
        ("val", _counted(val)),
        ("batch", f"{config.batch} pictures, an optimiser step every {story.nominal}"),
        ("licence of the weights", config.licence),
    ]
    return html.section("What was trained", html.pairs(rows))


def _counted(samples: Sequence[Sample]) -> str:
    labels = sum(len(sample.boxes) for sample in samples)
    return f"{len(samples)} pictures, {labels} labels"


def _course(story: Story) -> str:
    judged = [row for row in story.rows if row.map50 is not None]
    table = html.table(
        ("epoch", "box", "obj", "cls", "mAP@0.5", "mAP@0.5:0.95", "precision", "recall", "F1"),
        [
            (
                f"{row.epoch}, best" if row.epoch == story.best.epoch else str(row.epoch),
                *(f"{loss:.4f}" for loss in (row.box, row.obj, row.cls)),
                *map(report.figure, (row.map50, row.map50_95, row.precision, row.recall, row.f1)),
            )
            for row in _thinned(judged, story.best)
        ],
    )
    plot = html.image(story.curves.read_bytes(), "losses, mAP and learning rate over the epochs")
    return html.section("Course", plot, table)


def _thinned(rows: Sequence[EpochRow], best: EpochRow, most: int = 20) -> list[EpochRow]:
    """At most about ``most`` rows, evenly spread; the best and the last are among them."""
    step = -(-len(rows) // most)
    last = rows[-1].epoch if rows else 0
    return [
        row
        for index, row in enumerate(rows)
        if index % step == 0 or row.epoch in (best.epoch, last)
    ]


def _batches(story: Story) -> list[str]:
    if not story.batches:
        return []
    pictures = [
        html.figure(html.image(path.read_bytes(), f"batch {path.stem}"), path.name)
        for path in story.batches
    ]
    words = "The first pictures of some batches, as the network saw them."
    parts = (html.paragraph(words, "soft"), html.grid(pictures, wide=True))
    return [html.section("Batches", *parts)]


def _notes(story: Story) -> list[str]:
    lines = [*story.notes, *story.data.warnings]
    return [html.section("Notes", *(html.paragraph(line) for line in lines))] if lines else []
