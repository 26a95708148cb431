"""``y7edge optimize``: find the fastest artifact for this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from y7edge.cli.console import note, show, table
from y7edge.cli.export import Calib
from y7edge.cli.models import say_random
from y7edge.cli.options import (
    Checkpoint,
    Images,
    Json,
    Size,
    Split,
    Threads,
    completion,
    finite,
)

if TYPE_CHECKING:
    from y7edge.export.optimize import Candidate, Choice

_Data = Annotated[Path, typer.Option(metavar="DATA", help="Data set for the mAP.")]
_Out = Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the artifacts and plot.")]
_Drop = Annotated[
    float,
    typer.Option(min=0, max=1, callback=finite, help="Largest accepted drop of mAP@0.5:0.95."),
]
_Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        metavar="TARGET",
        autocompletion=completion("targets"),
        help="Only this target; repeatable; default: all. {targets}.",
    ),
]
_Runs = Annotated[int, typer.Option(min=1, help="Number of measured calls of each artifact.")]


def optimize(
    checkpoint: Checkpoint,
    data: _Data,
    out: _Out = Path("optimized"),
    split: Split = "val",
    imgsz: Size = None,
    max_map_drop: _Drop = 0.01,
    target: _Targets = None,
    images: Images = None,
    calib: Calib = None,
    threads: Threads = None,
    runs: _Runs = 100,
    as_json: Json = False,
) -> None:
    """Find the fastest artifact for this machine.

    Exports and proves every target and precision whose engine is installed, evaluates each artifact
    on the data set, and measures the latency of all artifacts in turn. Prints a table, which says
    for each artifact that cannot be made here why, and writes the plot latency.png. If no artifact
    is within --max-map-drop, the exit code is 4.
    """
    from y7edge.export.optimize import optimize as find
    from y7edge.nn.source import open_checkpoint

    say_random(checkpoint)
    choice = find(
        open_checkpoint(checkpoint),
        data,
        out,
        name=Path(checkpoint).stem,
        split=split,
        imgsz=imgsz,
        max_map_drop=max_map_drop,
        only=target,
        images=images,
        calib=calib,
        threads=threads,
        runs=runs,
        progress=note,
    )
    show(_record(choice), _lines(choice), as_json=as_json)
    choice.require_winner()


def _record(choice: Choice) -> dict[str, Any]:
    winner = choice.winner
    return {**asdict(choice), "winner": None if winner is None else winner.path}


def _lines(choice: Choice) -> list[str]:
    head = ("artifact", "precision", "ms", "model ms", "mAP@0.5:0.95", "drop", "MB", "")
    rows = [_row(c, choice) for c in choice.candidates if c.path is not None]
    lines = [f"checkpoint: mAP@0.5:0.95 {choice.reference:.4f}", "", *table([head, *rows])]
    lines += [f"{c.target} {c.precision}: {c.problem}" for c in choice.candidates if c.problem]
    lines += ["", f"plot: {choice.plot}"]
    if choice.winner is not None:
        lines += [f"use {choice.winner.path}"]
    return lines


def _row(one: Candidate, choice: Choice) -> tuple[Any, ...]:
    latency = one.latency
    place = "fastest within the accepted drop" if one is choice.winner else ""
    return (
        one.path.name if one.path else "",
        one.precision,
        f"{one.ms:.2f}",
        "" if latency is None else f"{latency.model_ms['p50']:.2f}",
        f"{one.accuracy:.4f}",
        f"{one.drop or 0:.4f}",
        one.size_mb,
        place or ("no other is faster and as accurate" if one.in_front else ""),
    )
