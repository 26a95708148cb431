"""``y7edge export``: fold a checkpoint, and write a proved artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from y7edge.cli.console import facts, note, show
from y7edge.cli.gate import parity_lines, report_even_if_failed
from y7edge.cli.models import say_random
from y7edge.cli.options import (
    RANGES,
    Checkpoint,
    Device,
    Images,
    Json,
    Size,
    Split,
    completion,
    finite,
)

if TYPE_CHECKING:
    from y7edge.artifact.artifact import Artifact

Out = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="The artifact; default: the model's name with the target's suffix."
    ),
]
Target = Annotated[
    str,
    typer.Option(
        metavar="TARGET",
        autocompletion=completion("targets"),
        help="Kind of artifact: {targets}.",
    ),
]
_ALL = "all-here"
_Target = Annotated[
    str,
    typer.Option(
        metavar="TARGET",
        autocompletion=completion("targets", _ALL),
        help="Kind of artifact: {targets}; or all-here: all that can be made on this machine.",
    ),
]
_Outputs = Annotated[
    str | None,
    typer.Option(
        metavar="OUTPUTS",
        autocompletion=completion("outputs"),
        help="heads: raw, by level; heads-sigmoid: their sigmoids; decoded: boxes and scores "
        "before NMS; nms: final boxes; default: the target's first, usually heads.",
    ),
]
_Input = Annotated[
    str | None,
    typer.Option(
        metavar="float32|uint8",
        autocompletion=completion("inputs"),
        help="float32: NCHW, values 0 to 1; uint8: NHWC, values 0 to 255; default: the target's "
        "first, usually float32.",
    ),
]
_Rewrites = Annotated[
    list[str] | None,
    typer.Option(
        "--rewrite",
        metavar="NAME",
        autocompletion=completion("rewrites"),
        help="Rewrite a part of the graph; repeatable: {rewrites}, or auto: what the target's chip "
        "needs (--option chip=NAME).",
    ),
]
_Precision = Annotated[
    str | None,
    typer.Option(
        metavar="PRECISION",
        autocompletion=completion("precisions"),
        help="{precisions}; default: the target's first, usually fp32.",
    ),
]
_Batch = Annotated[int, typer.Option(min=1, help="Batch size.")]
_Dynamic = Annotated[bool, typer.Option("--dynamic", help="Make the batch size dynamic.")]
_Simplify = Annotated[
    bool, typer.Option(help="Use onnx-simplifier's graph if its results are equal.")
]
TargetOptions = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="Option of the target; repeatable."),
]
Unverified = Annotated[
    str | None,
    typer.Option(
        metavar="REASON",
        help="Export without a proof, if no runtime supports the target, or in int8 if there is no "
        "labelled data set; REASON is recorded.",
    ),
]

Data = Annotated[
    Path | None,
    typer.Option(
        metavar="DATA", help="Also evaluate the model and the artifact on this data set (mAP)."
    ),
]
MaxMapDrop = Annotated[
    float | None,
    typer.Option(
        callback=finite,
        help="Exit with 4 if mAP@0.5:0.95 on --data drops by more than this; default: 0.005 in "
        "int8, else no limit.",
    ),
]
Calib = Annotated[
    Path | None,
    typer.Option(
        metavar="DATA",
        help="Data set or folder of images to calibrate int8; default: the training split of "
        "--data.",
    ),
]
_CalibImages = Annotated[
    int | None, typer.Option(min=1, help="Number of calibration images; default: 256.")
]
_Profile = Annotated[
    str | None,
    typer.Option(
        metavar="PROFILE",
        autocompletion=completion("profiles"),
        help="Types of activations and weights of the int8 graph: {profiles}; default: the "
        "target's.",
    ),
]
_Ranges = Annotated[
    str | None,
    typer.Option(**RANGES, help="How the ranges of int8 activations are chosen."),
]
_QuantizeHeads = Annotated[
    bool, typer.Option("--quantize-heads", help="Quantise the last convolutions too.")
]


def export(
    context: typer.Context,
    checkpoint: Checkpoint,
    out: Out = None,
    target: _Target = "onnx",
    outputs: _Outputs = None,
    input: _Input = None,
    precision: _Precision = None,
    imgsz: Size = None,
    batch: _Batch = 1,
    dynamic: _Dynamic = False,
    images: Images = None,
    rewrite: _Rewrites = None,
    simplify: _Simplify = True,
    device: Device = "auto",
    option: TargetOptions = None,
    unverified: Unverified = None,
    data: Data = None,
    split: Split = "val",
    max_map_drop: MaxMapDrop = None,
    profile: _Profile = None,
    calib: Calib = None,
    calib_images: _CalibImages = None,
    ranges: _Ranges = None,
    quantize_heads: _QuantizeHeads = False,
    as_json: Json = False,
) -> None:
    """Export a checkpoint as an artifact, and prove the artifact.

    The checkpoint is folded and converted. Then the artifact is run in its own engine and compared
    with the unfolded model. If it deviates by more than the tolerance, or if its mAP on --data
    drops by more than --max-map-drop, the report is printed, no file is written and the exit code
    is 4.

    An int8 artifact needs --data: layers go back to float until the drop of the mAP is accepted.

    With --target all-here, --out is a folder. It gets every kind of artifact that can be made on
    this machine, and the table says how far each was proved: run, emulated, handed over to a
    vendor's converter, or not run. int8 artifacts and hand-overs need --data or --calib.
    """
    if target == _ALL:
        from y7edge.cli.all_here import export_all

        calibration, dataset = (calib, calib_images), (data, split)
        export_all(context, checkpoint, out, imgsz, images, dataset, calibration, as_json=as_json)
        return
    from y7edge.export.pipeline import export as make
    from y7edge.export.proof.accuracy import Baseline
    from y7edge.nn.source import open_checkpoint

    say_random(checkpoint)
    model = open_checkpoint(checkpoint)
    with report_even_if_failed(as_json):
        artifact = make(
            model,
            out or default_out(checkpoint, target),
            target=target,
            outputs=outputs,
            input=input,
            precision=precision,
            imgsz=imgsz,
            batch=batch,
            dynamic=dynamic,
            rewrites=rewrite or (),
            images=images,
            simplify=simplify,
            device=device,
            options=target_options(option),
            unverified=unverified,
            data=data and Baseline(model, data, split, device="auto", progress=note),
            max_map_drop=max_map_drop,
            profile=profile,
            calib=calib,
            calib_images=calib_images,
            ranges=ranges,
            quantize_heads=quantize_heads,
            progress=note,
        )
    show_artifact(artifact, as_json=as_json)


def default_out(source: str, target: str) -> Path:
    """Return the source's name with the target's suffix, in the working folder."""
    from y7edge.export.targets import registry

    return Path(f"{Path(source).stem}{registry.get(target).SUFFIX}")


def target_options(given: list[str] | None) -> dict[str, str]:
    """Parse the values of ``--option``, such as ``["level=2"]``, to a dict.

    Raises:
        typer.BadParameter: a value is not NAME=VALUE.
    """
    pairs = [text.partition("=") for text in given or ()]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise typer.BadParameter(f"--option: expected NAME=VALUE, not {name!r}")
    return {name: value for name, _, value in pairs}


def show_artifact(artifact: Artifact, *, as_json: bool) -> None:
    """Print an artifact's description and proof."""
    from y7edge.artifact.reports import ParityReport

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
