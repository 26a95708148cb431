"""``y7edge benchmark``: latency by stage, with percentiles."""

from __future__ import annotations

from typing import Annotated

import typer

from y7edge.cli.console import show
from y7edge.cli.models import open_detector
from y7edge.cli.options import Backend, Device, Json, Threads

_Models = Annotated[
    list[str],
    typer.Argument(metavar="ARTIFACT...", help="Files made by y7edge export; checkpoints, names."),
]
_Gate = Annotated[
    bool, typer.Option("--gate", help="Exit with 4 if the code around the engine is too slow.")
]
_Runs = Annotated[int, typer.Option(min=1, help="Calls that count.")]
_Warmup = Annotated[int, typer.Option(min=1, help="Calls before the first that counts.")]


def benchmark(
    models: _Models,
    threads: Threads = None,
    backend: Backend = "auto",
    device: Device = "auto",
    runs: _Runs = 100,
    warmup: _Warmup = 5,
    gate: _Gate = False,
    as_json: Json = False,
) -> None:
    """Measure latency by stage.

    --json prints one JSON object for each artifact, on a line of its own. --gate compares the time
    around the engine with that of one cv2.resize, as measured in the same run.
    """
    from y7edge.benchmark.measure import benchmark as measure

    reports = []
    for model in models:
        with open_detector(model, backend=backend, device=device, threads=threads) as detector:
            report = measure(detector, model, threads=threads, warmup=warmup, runs=runs, gate=gate)
        show(report, [str(report)], as_json=as_json)
        reports.append(report)
    for report in reports:
        report.require_budget()
