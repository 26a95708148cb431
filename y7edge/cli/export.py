"""``y7edge export``: fold a checkpoint, write the artifact, prove it, or leave nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from y7edge.artifact.reports import ParityReport
from y7edge.cli.console import facts, note, show
from y7edge.cli.gate import parity_lines, report_even_if_failed
from y7edge.cli.models import say_random
from y7edge.cli.options import Device, Images, Json, Size

if TYPE_CHECKING:
    from y7edge.artifact.artifact import Artifact

_Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT", help="A .safetensors or .pt file, or a variant's name (random)."
    ),
]
_Out = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The artifact; default: NAME.onnx, here.")
]
_Target = Annotated[str, typer.Option(help="Format of the artifact.")]
_Outputs = Annotated[
    str,
    typer.Option(
        metavar="heads|decoded", help="Raw heads by level, or boxes and scores before NMS."
    ),
]
_Precision = Annotated[str, typer.Option(metavar="fp32|fp16", help="Of weights and arithmetic.")]
_Batch = Annotated[int, typer.Option(min=1, help="Pictures at once.")]
_Dynamic = Annotated[bool, typer.Option("--dynamic", help="Any number of pictures at once.")]
_Simplify = Annotated[bool, typer.Option(help="Run onnx-simplifier, if it changes no result.")]


def export(
    checkpoint: _Checkpoint,
    out: _Out = None,
    target: _Target = "onnx",
    outputs: _Outputs = "heads",
    precision: _Precision = "fp32",
    imgsz: Size = None,
    batch: _Batch = 1,
    dynamic: _Dynamic = False,
    images: Images = None,
    simplify: _Simplify = True,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Fold a checkpoint, write it as an artifact, and prove it.

    The artifact is run in its own engine against the unfolded model. Beyond tolerance: exit 4, the
    report, and no file.
    """
    from y7edge.export.pipeline import export as make
    from y7edge.nn.source import open_checkpoint

    say_random(checkpoint)
    with report_even_if_failed(as_json):
        artifact = make(
            open_checkpoint(checkpoint),
            out or Path(f"{Path(checkpoint).stem}.onnx"),
            target=target,
            outputs=outputs,
            precision=precision,
            imgsz=imgsz.pair if imgsz else None,
            batch=batch,
            dynamic=dynamic,
            images=images,
            simplify=simplify,
            device=device,
            progress=note,
        )
    record, report = _record(artifact), ParityReport.from_dict(artifact.manifest.parity)
    show(
        record,
        [*facts({**record, "parity": None}), "", *parity_lines(report)],
        as_json=as_json,
    )


def _record(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "artifact": artifact.path,
        "bytes": artifact.path.stat().st_size,
        "model": manifest.model,
        "target": manifest.target,
        "precision": manifest.precision,
        "imgsz": [manifest.input.height, manifest.input.width],
        "digest": manifest.digest,
        "payload_digest": manifest.payload_digest,
        "parity": manifest.parity,
    }
