"""``y7edge benchmark``: measure latency by stage."""

from __future__ import annotations

from typing import Annotated

import typer

from y7edge.cli.console import show
from y7edge.cli.models import open_detector
from y7edge.cli.options import Backend, Device, Json, Names, Size, Threads

_Models = Annotated[
    list[str],
    typer.Argument(metavar="ARTIFACT...", help="Artifacts, checkpoints or names of variants."),
]
_Gate = Annotated[
    bool, typer.Option("--gate", help="Exit with 4 if the code around the engine is too slow.")
]
_Runs = Annotated[int, typer.Option(min=1, help="Number of measured calls.")]
_Warmup = Annotated[int, typer.Option(min=1, help="Number of calls before the measurement.")]


def benchmark(
    models: _Models,
    names: Names = None,
    imgsz: Size = None,
    threads: Threads = None,
    backend: Backend = "auto",
    device: Device = "auto",
    runs: _Runs = 100,
    warmup: _Warmup = 5,
    gate: _Gate = False,
    as_json: Json = False,
) -> None:
    """Measure latency by stage: preprocessing, network, postprocessing, end to end.

    --json prints one line with a JSON object for each artifact. --gate measures preprocessing and
    postprocessing relative to one cv2.resize in the same run, and compares them with a budget.
    """
    from y7edge.benchmark.measure import benchmark as measure

    reports = []
    for model in models:
        with open_detector(
            model, imgsz=imgsz, names=names, backend=backend, device=device, threads=threads
        ) as detector:
            report = measure(detector, model, threads=threads, warmup=warmup, runs=runs, gate=gate)
        show(report, [str(report)], as_json=as_json)
        reports.append(report)
    for report in reports:
        report.require_budget()
