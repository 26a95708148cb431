"""Write the report of the demo, ``runs/demo/report.html``, from its ``Findings``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import demo_charts

from y7edge import html
from y7edge.artifact.artifact import Artifact
from y7edge.benchmark.measure import Report
from y7edge.evaluation.evaluate import Metrics
from y7edge.export.folding import FoldReport
from y7edge.train.output.results import EpochRow
from y7edge.train.settings.config import TrainConfig

LEAST_MAP50 = 0.90
"""Minimum mAP@0.5 of the artifact on images from other seeds."""

MOST_SHUFFLED_MAP50 = 0.05
"""Maximum mAP@0.5 of the artifact with a shuffled head."""


@dataclass(frozen=True)
class Step:
    """A step of the demo: its title, the lines that it printed, and its duration in seconds."""

    title: str
    lines: Sequence[str]
    seconds: float


@dataclass(frozen=True)
class FoldProof:
    """Numbers of operations before and after folding, and deviations of the folded model."""

    before: Mapping[str, int]  # from y7edge.export.folding.inventory
    after: Mapping[str, int]
    single: FoldReport  # in float32, with the deviation of each layer
    double: FoldReport  # in float64


@dataclass(frozen=True)
class Drawn:
    """Images of the report, as JPEG; pairs are shown side by side."""

    fresh: Sequence[bytes]
    beside_labels: Sequence[tuple[bytes, bytes]]  # (labels, predictions)
    shuffled: Sequence[tuple[bytes, bytes]]  # predictions of (the artifact, its shuffled copy)


@dataclass(frozen=True)
class Findings:
    """All measurements of the demo."""

    config: TrainConfig
    counts: Mapping[str, int]  # numbers of images: train, val, evaluation
    epochs: Sequence[EpochRow]
    best: EpochRow
    parameters: int
    gflops: float
    fold: FoldProof
    artifacts: Sequence[Artifact]  # all measurements below are of the first one
    benchmark: Report
    metrics: Metrics  # of the artifact, on images from other seeds
    checkpoint_metrics: Metrics  # of the checkpoint, on the same images
    shuffled_metrics: Metrics  # of the copy with a shuffled head, on the same images
    moved: int  # number of weights that differ in the copy
    refusal: str  # the self-test's message for the copy
    without_torch: int  # number of detections in a process that cannot import torch
    drawn: Drawn
    steps: Sequence[Step]

    def beyond(self) -> list[str]:
        """Describe the results that miss their limits."""
        found = []
        if not self.metrics.map50 >= LEAST_MAP50:
            found.append(
                f"mAP@0.5 is {self.metrics.map50:.4f}, expected at least {LEAST_MAP50:.2f}"
            )
        if not self.shuffled_metrics.map50 < MOST_SHUFFLED_MAP50:
            found.append(
                f"with a shuffled head mAP@0.5 is {self.shuffled_metrics.map50:.4f}, expected "
                f"below {MOST_SHUFFLED_MAP50:.2f}"
            )
        if not (self.fold.single.passed and self.fold.double.passed):
            found.append(
                f"the folded model deviates by {self.fold.single.deviation:.1e} in float32 and "
                f"{self.fold.double.deviation:.1e} in float64"
            )
        return found


def write(findings: Findings, path: Path) -> None:
    """Write the report, one HTML page without other files."""
    body = [
        *_opening(findings),
        _fresh(findings),
        _training(findings),
        _fold(findings),
        _parity(findings),
        _speed(findings),
        _evaluation(findings),
        _shuffled(findings),
        _steps(findings),
        _reproduce(findings),
    ]
    path.write_text(html.page("y7edge demo: parts on a tray", body), encoding="utf-8")


def _opening(f: Findings) -> list[str]:
    proof = f.artifacts[0].manifest.parity
    deviation = max(output["deviation"] for output in proof["outputs"].values())
    figures = [
        (
            f"{f.metrics.map50:.3f}",
            f"mAP@0.5 of the ONNX file on {f.metrics.images} images from other seeds",
            f.metrics.map50 >= LEAST_MAP50,
        ),
        (
            f"{deviation:.0e}",
            f"largest deviation from the trained model; tolerance "
            f"{proof['tolerance']['deviation']:g}",
            proof["status"] == "passed",
        ),
        (
            f"{f.benchmark.end_to_end_ms['p50']:.1f} ms",
            f"median latency of a {f.benchmark.frame_hw[1]}x{f.benchmark.frame_hw[0]} image, end "
            f"to end, threads: {f.benchmark.threads}",
            True,
        ),
        (
            f"{f.shuffled_metrics.map50:.3f}",
            "mAP@0.5 of a copy of the file with shuffled weights in the head",
            f.shuffled_metrics.map50 < MOST_SHUFFLED_MAP50,
        ),
        (_clock(sum(s.seconds for s in f.steps)), "total time", True),
    ]
    return [
        "<h1>Parts on a tray: from images to a proved detector</h1>",
        html.paragraph(
            "A narrow YOLOv7-tiny was trained, folded into plain convolutions, exported as ONNX, "
            "compared with the trained model, and run without PyTorch. All numbers on this page "
            "were measured in this run.",
            "lead",
        ),
        html.tiles(figures),
    ]


def _steps(f: Findings) -> str:
    parts = []
    for step in f.steps:
        below = "".join(f"<span>{escape(line)}</span>" for line in step.lines)
        parts.append(f"<li><b>{escape(step.title)}<i>{step.seconds:.1f} s</i></b>{below}</li>")
    return html.section("Step by step", f"<ol>{''.join(parts)}</ol>")


def _training(f: Findings) -> str:
    c = f.config
    losses = {
        part: [(row.epoch, getattr(row, part)) for row in f.epochs]
        for part in ("box", "obj", "cls")
    }
    evaluated = [row for row in f.epochs if row.map50 is not None]
    quality = {
        "mAP@0.5": [(row.epoch, row.map50 or 0.0) for row in evaluated],
        "mAP@0.5:0.95": [(row.epoch, row.map50_95 or 0.0) for row in evaluated],
    }
    seconds = sum(row.seconds for row in f.epochs)
    return html.section(
        "Training",
        html.paragraph(
            f"{c.model} with {c.width:g} times the channels has {f.parameters:,} parameters and "
            f"{f.gflops:.2f} GFLOPs at {c.imgsz}x{c.imgsz}. It was trained from random weights on "
            f"{f.counts['train']} images, for {c.epochs} epochs, with batch {c.batch} and seed "
            f"{c.seed}, in {seconds:.0f} s. Nuts, washers, screws and brackets have the same "
            f"colours and sizes, and differ only in shape. Epoch {f.best.epoch} had the best mAP "
            f"on the {f.counts['val']} images of the validation split, and is used below."
        ),
        html.grid(
            [
                html.figure(
                    demo_charts.lines(losses, x_label="epoch"), "Loss on the training images"
                ),
                html.figure(
                    demo_charts.lines(quality, x_label="epoch", top=1.0),
                    "mAP on the validation split, of the moving average of the weights",
                ),
            ]
        ),
    )


def _fold(f: Findings) -> str:
    single, double = f.fold.single, f.fold.double
    names = {
        "convolutions": "convolutions",
        "batch_norms": "BatchNorm layers",
        "parallel_branches": "parallel RepConv branches",
        "implicit": "implicit tensors",
        "auxiliary": "auxiliary heads",
        "parameters": "parameters",
    }
    counts = [(name, f"{f.fold.before[k]:,}", f"{f.fold.after[k]:,}") for k, name in names.items()]
    reports = [
        (r.dtype, f"{r.deviation:.1e}", f"{r.tolerance:g}", r.passed) for r in (single, double)
    ]
    worst = max(single.layers, key=lambda row: single.layers[row])
    return html.section(
        "Fold",
        html.paragraph(
            "BatchNorm and implicit knowledge were folded into the convolutions, in float64. Both "
            "forms were then run on the same images. A deviation is the largest difference, "
            "divided by the largest magnitude."
        ),
        html.table(("operations", "trained", "folded"), counts),
        html.table(("heads, folded and trained", "deviation", "tolerance", ""), reports),
        html.figure(
            demo_charts.bars(
                list(single.layers.values()),
                x_label="rows of the model, first to last",
                goal=(single.tolerance, "tolerance of the heads"),
                decades=(-8, -3),
            ),
            f"Deviation of each layer in float32; the largest is {single.layers[worst]:.1e}, in "
            f"row {worst}.",
        ),
    )


def _parity(f: Findings) -> str:
    first = f.artifacts[0].manifest.parity
    return html.section(
        "Proof of the ONNX files",
        html.paragraph(
            f"Each file was run by its own engine on {first['pictures']['count']} images "
            f"({first['pictures']['source']}) and compared with the unfolded model. If the proof "
            "fails, no file is written. Candidates are boxes before NMS: the unfolded model's best "
            "ones, and one for each score range of 0.01."
        ),
        html.table(
            ("file", "output", "deviation", "limit", "cosine", "limit", ""),
            [row for artifact in f.artifacts for row in _output_rows(artifact)],
        ),
        html.table(
            ("candidates", "compared", "lowest IoU", "limit", "largest Δscore", "limit", "KiB"),
            [_candidate_row(artifact) for artifact in f.artifacts],
        ),
        html.paragraph(
            f"Arithmetic on {first['device']}: {_arithmetic(f.artifacts)}.",
            "soft",
        ),
    )


def _output_rows(artifact: Artifact) -> list[tuple[str | bool, ...]]:
    proof = artifact.manifest.parity
    limits = proof["tolerance"]
    return [
        (
            artifact.path.name,
            name,
            f"{measured['deviation']:.1e}",
            _limit(limits["deviation"]),
            f"{measured['cosine']:.6f}",
            _limit(limits["cosine"]),
            bool(proof["status"] == "passed"),
        )
        for name, measured in proof["outputs"].items()
    ]


def _candidate_row(artifact: Artifact) -> tuple[str, ...]:
    proof = artifact.manifest.parity
    found, limits = proof["candidates"], proof["tolerance"]
    return (
        artifact.path.name,
        str(found["count"]),
        f"{found['iou']:.5f}",
        _limit(limits["iou"]),
        f"{found['score_difference']:.1e}",
        _limit(limits["score"]),
        f"{artifact.path.stat().st_size / 1024:.0f}",
    )


def _arithmetic(artifacts: Sequence[Artifact]) -> str:
    """Describe the arithmetic of each precision, because engines can emulate a precision."""
    found = {a.manifest.precision: a.manifest.parity["arithmetic"] for a in artifacts}
    return "; ".join(f"{precision}: {computed}" for precision, computed in found.items())


def _limit(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _speed(f: Findings) -> str:
    b = f.benchmark
    stages = {
        "letterbox": b.pre_ms,
        "network": b.model_ms,
        "decoding and NMS": b.post_ms,
        "end to end": b.end_to_end_ms,
    }
    rows = [(name, *(f"{ms[p]:.2f}" for p in ("p50", "p95", "p99"))) for name, ms in stages.items()]
    parts = [
        html.paragraph(
            f"Milliseconds per image of {b.frame_hw[1]}x{b.frame_hw[0]}, in {b.runs} runs after "
            f"{b.warmup} warm-up runs, threads: {b.threads}."
        ),
        html.table(("stage", "p50", "p95", "p99"), rows),
    ]
    if b.gate is not None:
        costs = [
            (name, f"{getattr(b.gate, key):.2f}", f"{b.gate.budget[key]:g}")
            for key, name in (("pre", "letterbox"), ("post", "decoding and NMS"), ("rest", "rest"))
        ]
        parts += [
            html.paragraph(
                "Cost of the code around the engine, in a unit that can be compared between "
                "machines: one cv2.resize of the same image to its letterboxed size "
                f"({b.gate.unit_ms:.2f} ms here). Measured at 640x640 with 80 classes and 100 "
                "objects."
            ),
            html.table(("stage", "units", "budget"), costs),
        ]
    versions = ", ".join(f"{name} {version}" for name, version in b.versions.items())
    parts.append(
        html.paragraph(
            f"{b.device} ({b.machine}); {versions}; model {b.model_digest[:16]}; peak memory of "
            f"this process {b.peak_memory_mb} MB.",
            "soft",
        )
    )
    return html.section("Speed", *parts)


def _fresh(f: Findings) -> str:
    return html.section(
        "Fresh images",
        html.paragraph(
            "These images were generated after training, from other seeds; none was left out. A "
            f"process that can import neither torch nor onnx detected the same {f.without_torch} "
            "parts in them."
        ),
        html.grid(
            html.image(jpeg, f"fresh image {number} with detected boxes")
            for number, jpeg in enumerate(f.drawn.fresh, 1)
        ),
    )


def _evaluation(f: Findings) -> str:
    by_class = zip(f.metrics.per_class, f.checkpoint_metrics.per_class, strict=True)
    rows = [
        (a.name, str(a.labels), *(_precision(v) for v in (a.ap50, a.ap50_95, c.ap50, c.ap50_95)))
        for a, c in by_class
    ]
    a, c = f.metrics, f.checkpoint_metrics
    means = (a.map50, a.map50_95, c.map50, c.map50_95)
    rows.append(("all", str(a.labels), *map(_precision, means)))
    header = ("class", "labels", "ONNX @0.5", "@0.5:0.95", "checkpoint @0.5", "@0.5:0.95")
    return html.section(
        "Evaluation on images from other seeds",
        html.paragraph(
            f"{a.images} images that were used neither for training nor to select the best epoch. "
            f"Protocol: {a.protocol}. The limit is mAP@0.5 of at least {LEAST_MAP50:.2f}."
        ),
        html.table(header, rows),
        html.paragraph(
            "Labels are on the left, predictions on the right; the images are evenly spaced in the "
            "data set. Parts that are hidden by more than 60 % have no label.",
            "soft",
        ),
        html.grid(
            (html.pair(*two, "labels | predictions") for two in f.drawn.beside_labels),
            wide=True,
        ),
    )


def _precision(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _shuffled(f: Findings) -> str:
    return html.section(
        "The same file with a shuffled head",
        html.paragraph(
            "This control shows that the boxes come from the trained weights. In a copy of the "
            f"ONNX file, {f.moved:,} weights of the head's convolutions were shuffled, and nothing "
            f"else was changed. mAP@0.5 is {f.shuffled_metrics.map50:.3f} instead of "
            f"{f.metrics.map50:.3f} (limit: below {MOST_SHUFFLED_MAP50:.2f}). The self-test "
            "refuses the copy:"
        ),
        html.code(f.refusal),
        html.grid(
            (html.pair(*two, "trained | shuffled head") for two in f.drawn.shuffled),
            wide=True,
        ),
    )


def _reproduce(f: Findings) -> str:
    recipe = f.config.to_dict()
    hyper: dict[str, Any] = recipe.pop("recipe")
    hyper |= hyper.pop("augmentation")
    settings = ", ".join(f"{k} {v}" for k, v in (recipe | hyper).items() if v is not None)
    artifact = f.artifacts[0]
    return html.section(
        "How to reproduce",
        html.code(
            "make demo\n\n"
            f"y7edge val {artifact.path} --data {artifact.path.parent / 'judged/data.yaml'}\n"
            f"y7edge verify {artifact.path} --against "
            f"{artifact.path.parent / 'train/best.safetensors'}\n"
            f"y7edge selftest {artifact.path}\n"
            f"y7edge benchmark {artifact.path} --threads 1 --gate"
        ),
        html.paragraph(
            "The same seeds give the same images on every machine. Trained weights differ in "
            "their last digits between processors and numbers of threads, so all other results "
            "differ slightly too."
        ),
        html.paragraph(f"Settings: {settings}.", "soft"),
        html.paragraph(
            f"Checkpoint {artifact.manifest.source.digest}; payload "
            f"{artifact.manifest.payload_digest}.",
            "soft",
        ),
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"
