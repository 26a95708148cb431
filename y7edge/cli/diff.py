"""``y7edge diff``: find where two models differ, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from y7edge.cli.console import note, show, table
from y7edge.cli.models import say_random
from y7edge.cli.options import Device, Json, Names, Size, Threads, variants

if TYPE_CHECKING:
    from y7edge.artifact.reports import DiffReport, Side, Stage

_A = Annotated[
    str,
    typer.Argument(
        metavar="A",
        autocompletion=variants,
        help="A checkpoint, an artifact, an ONNX file of another exporter, or a variant's name.",
    ),
]
_B = Annotated[str, typer.Argument(metavar="B", help="The model to compare with A.")]
_Image = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Image to compare on; default: a synthetic one.")
]
_Layers = Annotated[
    bool,
    typer.Option(
        "--layers", help="Also compare each row's output; ONNX files and checkpoints only."
    ),
]


def diff(
    a: _A,
    b: _B,
    image: _Image = None,
    layers: _Layers = False,
    imgsz: Size = None,
    names: Names = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Find where two models differ, and why.

    Compares them stage by stage, and names the first difference and its cause. The stages are the
    preprocessed input, each head, the decoded candidates, and the boxes after NMS. Of a graph with
    NMS, only the boxes after NMS are compared. Each cause is found by a test, such as running A on
    swapped colour channels. Two artifacts are compared without torch. The exit code is 4 if the
    models differ by more than the tolerance of the less precise one.
    """
    from y7edge.export.proof.diff import diff as compare

    for model in (a, b):
        say_random(model)
    report = compare(
        a,
        b,
        image=image,
        layers=layers,
        imgsz=imgsz,
        names=names,
        device=device,
        threads=threads,
        progress=note,
    )
    show(report.to_dict(), _lines(report), as_json=as_json)
    report.require_equal()


def _lines(report: DiffReport) -> list[str]:
    """Format a report as lines, with only the first of the rows that are not equal."""
    rows = [stage for stage in report.rows if stage.status != "equal"]
    lines = [
        f"A  {_described(report.a)}",
        f"B  {_described(report.b)}",
        f"on {report.image}",
        "",
        *table([("stage", "result", "measured", "at"), *map(_row, report.stages)]),
    ]
    if report.rows:
        counts = [sum(r.status == status for r in rows) for status in ("differs", "close")]
        lines += ["", f"of {len(report.rows)} rows {counts[0]} differ, {counts[1]} are close"]
    if rows:
        lines += table([("row", "result", "measured", "at"), *map(_row, rows[:5])])
    words = {
        "equal": "equal",
        "close": f"equal within the tolerance of the less precise model; {report.first} is not "
        "within that of the other one",
        "differs": f"first difference: {report.first}",
    }
    lines += ["", words[report.status]]
    if report.first_row:
        lines.append(f"first row that is not equal: {report.first_row}")
    if report.cause:
        lines.append(f"cause: {report.cause.name}: {report.cause.text}")
    return lines


def _described(side: Side) -> str:
    return f"{side.path}: {side.model}, {side.target}, {side.precision}, {side.arithmetic}"


def _row(stage: Stage) -> tuple[str, str, str, str]:
    """Return name, status, numbers and place of a stage."""
    numbers = ", ".join(
        f"{key.replace('_', ' ')} {'-' if value is None else format(value, '.4g')}"
        for key, value in stage.measured.items()
    )
    return stage.name, stage.status, numbers or "-", stage.at
