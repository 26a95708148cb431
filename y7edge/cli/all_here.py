"""``y7edge export --target all-here``: every artifact that can be made on this machine."""

from __future__ import annotations

from pathlib import Path

import typer

from y7edge.cli.console import note, show, table
from y7edge.cli.models import say_random

_TAKES = {
    *("checkpoint", "target", "out", "imgsz", "images", "data", "split", "calib", "calib_images"),
    "as_json",
}


def export_all(
    context: typer.Context,
    checkpoint: str,
    out: Path | None,
    imgsz: tuple[int, int] | None,
    images: Path | None,
    data: tuple[Path | None, str],
    calibration: tuple[Path | None, int | None],
    *,
    as_json: bool,
) -> None:
    """Make all artifacts, and print one table of them.

    ``context``: the command, with its options. ``data``: data set for the mAP, and its split.
    ``calibration``: data set or folder, and number of images. The other arguments are those of
    ``y7edge export``.

    Raises:
        typer.BadParameter: an option of a single artifact was given.
    """
    from y7edge.export.everything import ExportPlan, export_all, require_none_refused
    from y7edge.export.proof.accuracy import Baseline
    from y7edge.nn.source import open_checkpoint

    _require_offered(context)
    say_random(checkpoint)
    model, stem, (given, split) = open_checkpoint(checkpoint), Path(checkpoint).stem, data
    plan = ExportPlan(
        model,
        out or Path(f"{stem}-all"),
        stem,
        imgsz,
        None if given is None else Baseline(model, given, split, device="auto", progress=note),
        *calibration,
        images,
    )
    found = export_all(plan, note)
    head = ("target", "precision", "state", "MB", "s", "parity", "mAP", "drop", "ms")
    fields = ("megabytes", "seconds", "parity", "map50_95", "drop", "ms")
    rows = [
        (one.target, one.precision, one.state, *(getattr(one, field) for field in fields))
        for one in found
    ]
    remarks: dict[tuple[str, str], list[str]] = {}
    for one in found:
        if one.problem:
            remarks.setdefault((one.target, one.problem), []).append(one.precision)
    lines = [
        *table([head, *rows]),
        *([""] if remarks else []),
        *_words(remarks),
        "",
        f"in {plan.folder}",
    ]
    show({"artifacts": found, "folder": plan.folder}, lines, as_json=as_json)
    require_none_refused(found)


def _require_offered(context: typer.Context) -> None:
    """Refuse the options of a single artifact, if they were given."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE" and parameter.name not in _TAKES:
            raise typer.BadParameter(f"{parameter.opts[0]} is for a single target, not all-here")


def _words(remarks: dict[tuple[str, str], list[str]]) -> list[str]:
    return [f"{t} {', '.join(which)}: {problem}" for (t, problem), which in remarks.items()]
