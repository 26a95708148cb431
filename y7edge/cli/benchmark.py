"""``y7edge benchmark``: how long a picture takes, stage by stage, with percentiles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from y7edge.cli.console import show
from y7edge.cli.options import Backend, Device, Json, Threads

_Artifacts = Annotated[
    list[Path], typer.Argument(metavar="ARTIFACT...", help="Files made by y7edge export.")
]
_Gate = Annotated[
    bool, typer.Option("--gate", help="Exit with 4 if the code around the engine is too slow.")
]


def benchmark(
    artifacts: _Artifacts,
    threads: Threads = None,
    backend: Backend = "auto",
    device: Device = "auto",
    gate: _Gate = False,
    as_json: Json = False,
) -> None:
    """Measure how long a picture takes, stage by stage.

    --json prints one JSON object for each artifact, on a line of its own. --gate compares the time
    around the engine with that of one cv2.resize, as measured in the same run.
    """
    from y7edge.benchmark import benchmark as measure

    reports = []
    for path in artifacts:
        report = measure(path, threads=threads, backend=backend, device=device, gate=gate)
        show(report, [str(report)], as_json=as_json)
        reports.append(report)
    for report in reports:
        report.require_budget()
