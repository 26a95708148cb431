"""``y7edge export``: fold a checkpoint, and write a proved artifact."""

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
        metavar="CHECKPOINT", help="A .safetensors or .pt file, or a variant (random weights)."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The artifact; default: CHECKPOINT's name, target's suffix."),
]
Target = Annotated[str, typer.Option(metavar="{targets}", help="Toolchain to build for.")]
_Outputs = Annotated[
    str,
    typer.Option(
        metavar="{outputs}", help="Raw heads by level, boxes and scores, or (nms) final boxes."
    ),
]
_Precision = Annotated[str, typer.Option(metavar="{precisions}", help="Of weights and arithmetic.")]
_Batch = Annotated[int, typer.Option(min=1, help="Batch size.")]
_Dynamic = Annotated[bool, typer.Option("--dynamic", help="Make the batch size dynamic.")]
_Simplify = Annotated[bool, typer.Option(help="Run onnx-simplifier, if the results stay equal.")]
TargetOptions = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="Option of the target; repeatable."),
]
Unverified = Annotated[
    str | None,
    typer.Option(
        metavar="REASON",
        help="Export without a proof, for a target without an engine here.",
    ),
]


def export(
    checkpoint: _Checkpoint,
    out: Out = None,
    target: Target = "onnx",
    outputs: _Outputs = "heads",
    precision: _Precision = "fp32",
    imgsz: Size = None,
    batch: _Batch = 1,
    dynamic: _Dynamic = False,
    images: Images = None,
    simplify: _Simplify = True,
    device: Device = "auto",
    option: TargetOptions = None,
    unverified: Unverified = None,
    as_json: Json = False,
) -> None:
    """Fold a checkpoint, write it as an artifact, and prove it.

    The artifact is run in its own engine and compared with the unfolded model. If it exceeds the
    tolerance, the report is printed, no file is written and the exit code is 4.
    """
    from y7edge.export.pipeline import export as make
    from y7edge.nn.source import open_checkpoint

    say_random(checkpoint)
    with report_even_if_failed(as_json):
        artifact = make(
            open_checkpoint(checkpoint),
            out or default_out(checkpoint, target),
            target=target,
            outputs=outputs,
            precision=precision,
            imgsz=imgsz,
            batch=batch,
            dynamic=dynamic,
            images=images,
            simplify=simplify,
            device=device,
            options=target_options(option),
            unverified=unverified,
            progress=note,
        )
    show_artifact(artifact, as_json=as_json)


def default_out(source: str, target: str) -> Path:
    """Return the default path: the source's name in the working directory."""
    from y7edge.export.targets import registry

    return Path(f"{Path(source).stem}{registry.get(target).SUFFIX}")


def target_options(given: list[str] | None) -> dict[str, str]:
    """Parse ``NAME=VALUE`` texts.

    Raises:
        typer.BadParameter: a text without ``=``.
    """
    pairs = [text.partition("=") for text in given or ()]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise typer.BadParameter(f"--option: expected NAME=VALUE, not {name!r}")
    return {name: value for name, _, value in pairs}


def show_artifact(artifact: Artifact, *, as_json: bool) -> None:
    """Print an artifact's description and proof."""
    manifest = artifact.manifest
    record: dict[str, Any] = {
        "artifact": artifact.path,
        "files": list(artifact.files),
        "bytes": artifact.size,
        "model": manifest.model,
        "target": manifest.target,
        "precision": manifest.precision,
        "imgsz": [manifest.input.height, manifest.input.width],
        "digest": manifest.digest,
        "payload_digest": manifest.payload_digest,
        "parity": manifest.parity,
    }
    names = " ".join(file.name for file in artifact.files)
    lines = facts({**record, "files": names, "parity": None})
    report = ParityReport.from_dict(manifest.parity)
    show(record, [*lines, "", *parity_lines(report)], as_json=as_json)
