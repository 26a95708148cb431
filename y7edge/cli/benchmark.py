"""``y7edge benchmark``: measure latency by stage."""

from __future__ import annotations

import re
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from y7edge.cli.console import show, table
from y7edge.cli.models import kind_of, open_detector
from y7edge.cli.options import Backend, Device, Json, Names, Size, variants

if TYPE_CHECKING:
    from y7edge.benchmark.measure import Report

_Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL",
        autocompletion=variants,
        help="Variants' names (random weights), checkpoints or artifacts.",
    ),
]
_Gate = Annotated[
    bool, typer.Option("--gate", help="Exit with 4 if the code around the engine is too slow.")
]
_Runs = Annotated[int, typer.Option(min=1, help="Number of measured calls.")]
_Warmup = Annotated[int, typer.Option(min=1, help="Number of calls before the measurement.")]

_PowerInterval = Annotated[
    int,
    typer.Option(
        min=20,
        max=1000,
        metavar="MS",
        help="On a Jetson: milliseconds between two samples of tegrastats.",
    ),
]


def _counts(text: str) -> list[int | None]:
    """Parse ``1``, ``all`` or ``1,all``; None stands for all usable cores."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("all|[1-9][0-9]{0,3}", part, re.ASCII) for part in parts):
        problem = f"expected numbers from 1, or all, as in 1,all; got {text!r}"
        raise typer.BadParameter(problem, param_hint="'--threads'")
    return [None if part == "all" else int(part) for part in dict.fromkeys(parts)]


_ThreadCounts = Annotated[
    str,
    typer.Option(
        metavar="N",
        help="Engine threads: 1, all (the physical cores that may be used), or several: 1,all.",
    ),
]


def benchmark(
    models: _Models,
    names: Names = None,
    imgsz: Size = None,
    threads: _ThreadCounts = "all",
    backend: Backend = "auto",
    device: Device = "auto",
    runs: _Runs = 100,
    warmup: _Warmup = 5,
    gate: _Gate = False,
    power_interval: _PowerInterval = 100,
    as_json: Json = False,
) -> None:
    """Measure latency by stage.

    The stages are preprocessing, network, postprocessing, and end to end, in ms. All artifacts are
    opened first, then run in turn. For comparison, the engine's own API is run on the same input.
    The report of several artifacts ends with a table of the medians. --json prints one line with a
    JSON object for each artifact and number of threads. --gate measures preprocessing and
    postprocessing relative to one cv2.resize in the same run, and compares them with a budget. The
    network may take 3 % longer than with the engine's own API. On a Jetson, each artifact then runs
    alone for some seconds while tegrastats samples the power of the board, and the energy per frame
    in mJ is reported.
    """
    from y7edge.benchmark.measure import compare, open_measured

    for model in models:
        kind_of(model)  # all must exist before the first one is opened, which may take long
    opener = partial(open_detector, imgsz=imgsz, names=names, backend=backend, device=device)
    with ExitStack() as stack:
        opened = []
        for model in models:
            for count in _counts(threads):
                opened.append(open_measured(partial(opener, model, threads=count), model, count))
                stack.enter_context(opened[-1].detector)
        reports = compare(opened, warmup=warmup, runs=runs, gate=gate, power_ms=power_interval)
    for report in reports:
        show(report, report.lines(), as_json=as_json)
    if len(reports) > 1 and not as_json:
        show(None, ["", *table([_HEAD, *(_row(report) for report in reports)])], as_json=False)
    for report in reports:
        report.require_budget()


_HEAD = ("artifact", "threads", "model ms", "end to end ms", "model / engine's own API")


def _row(report: Report) -> tuple[object, ...]:
    """Return the medians of a report."""
    times = report.model_ms["p50"], report.end_to_end_ms["p50"]
    return report.artifact, report.threads, *times, report.overhead
