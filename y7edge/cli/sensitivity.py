"""``y7edge sensitivity``: find out what each convolution costs in int8."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from y7edge.cli.console import note, show, table
from y7edge.cli.models import say_random
from y7edge.cli.options import (
    RANGES,
    Checkpoint,
    Json,
    Size,
    Threads,
    completion,
    out_folder,
)

if TYPE_CHECKING:
    from y7edge.export.sensitivity import LayerDamage
    from y7edge.export.sensitivity_report import Sensitivity

_Data = Annotated[
    Path,
    typer.Option(metavar="DATA", help="Data set; its split train is used; or a folder of images."),
]
_Out = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER", callback=out_folder, help="Folder for the plot and the JSON file."
    ),
]
_Profile = Annotated[
    str,
    typer.Option(
        metavar="PROFILE",
        autocompletion=completion("profiles"),
        help="Types of activations and weights of the int8 graphs: {profiles}.",
    ),
]
_Ranges = Annotated[
    str | None,
    typer.Option(
        **RANGES, help="How the ranges of int8 activations are chosen; default: as in an export."
    ),
]
_Count = Annotated[int, typer.Option(min=1, help="Number of images on which boxes are compared.")]
_Evaluated = Annotated[
    int,
    typer.Option(
        "--map", min=0, metavar="N", help="Also measure the mAP on N images of the split val."
    ),
]


def sensitivity(
    checkpoint: Checkpoint,
    data: _Data,
    out: _Out = Path("sensitivity"),
    profile: _Profile = "u8s8",
    ranges: _Ranges = None,
    images: _Count = 32,
    evaluated: _Evaluated = 0,
    imgsz: Size = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure what each convolution costs in int8.

    Each convolution is quantised alone; its damage to the boxes and the time that it saves are
    measured. First prints how long this takes. Then prints a table, the layers that an export would
    put back to float first at the top, and writes sensitivity.png and sensitivity.json.
    """
    from y7edge.export.quantization import METHOD
    from y7edge.export.sensitivity_report import analyse
    from y7edge.nn.source import open_checkpoint

    say_random(checkpoint)
    found = analyse(
        open_checkpoint(checkpoint),
        data,
        out,
        profile=profile,
        ranges=ranges or METHOD,
        images=images,
        evaluated=evaluated,
        imgsz=imgsz,
        threads=threads,
        progress=note,
    )
    show(asdict(found), _lines(found), as_json=as_json)


def _lines(found: Sensitivity) -> list[str]:
    total = sum(layer.macs for layer in found.layers)
    by_name = {layer.name: layer for layer in found.layers}
    rows = [_row(i + 1, by_name[name], total) for i, name in enumerate(found.order)]
    rows += [_row("float", by_name[name], total) for name in found.heads]
    head = ("fallback", "layer", "damage", "boxes", "scores", "ms saved", "% of MACs", "mAP drop")
    width = len(head) if found.map50_95 is not None else len(head) - 1
    lines = (
        []
        if found.map50_95 is None
        else [
            f"mAP@0.5:0.95 of the float graph on {found.evaluated} images: {found.map50_95:.4f}",
            "",
        ]
    )
    return [*lines, *table([row[:width] for row in (head, *rows)]), "", f"plot: {found.plot}"]


def _row(place: int | str, layer: LayerDamage, total: int) -> tuple[Any, ...]:
    return (
        place,
        layer.name,
        f"{layer.damage:.5f}",
        f"{layer.boxes:.5f}",
        f"{layer.scores:.5f}",
        f"{layer.ms_saved:.3f}",
        f"{100 * layer.macs / total:.1f}",
        "" if layer.map_drop is None else f"{layer.map_drop:.4f}",
    )
