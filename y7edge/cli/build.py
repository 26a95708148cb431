"""``y7edge build``: convert a proved ONNX artifact to another target, without torch."""

from __future__ import annotations

from typing import Annotated

import typer

from y7edge.cli.console import note
from y7edge.cli.export import (
    Data,
    MaxMapDrop,
    Out,
    Target,
    TargetOptions,
    Unverified,
    default_out,
    show_artifact,
    target_options,
)
from y7edge.cli.gate import report_even_if_failed
from y7edge.cli.options import Artifact, Device, Json, Split, completion

_Precision = Annotated[
    str | None,
    typer.Option(
        metavar="PRECISION",
        autocompletion=completion("precisions"),
        help="{precisions}; default: that of ARTIFACT.",
    ),
]


def build(
    artifact: Artifact,
    target: Target,
    out: Out = None,
    precision: _Precision = None,
    device: Device = "auto",
    option: TargetOptions = None,
    unverified: Unverified = None,
    data: Data = None,
    split: Split = "val",
    max_map_drop: MaxMapDrop = None,
    as_json: Json = False,
) -> None:
    """Convert a proved ONNX artifact to another target.

    Can run on the robot, because it needs neither torch nor the checkpoint. The new artifact is
    proved with the probes stored in the ONNX artifact. If an output deviates by more than the
    tolerance, or if the mAP on --data is lower than the ONNX artifact's by more than
    --max-map-drop, no file is written and the exit code is 4. An int8 artifact needs --data; what
    the ONNX artifact lost before is added to the drop.
    """
    from y7edge.detect.selftest import load_undamaged
    from y7edge.export.conversion import build as convert
    from y7edge.export.proof.accuracy import Baseline

    with report_even_if_failed(as_json):
        made = convert(
            artifact,
            out or default_out(str(artifact), target),
            target=target,
            precision=precision,
            device=device,
            options=target_options(option),
            data=data and Baseline(load_undamaged(artifact), data, split, progress=note),
            max_map_drop=max_map_drop,
            unverified=unverified,
            progress=note,
        )
    show_artifact(made, as_json=as_json)
