"""``y7edge build``: from a proved ONNX artifact to another target's, where it will run."""

from __future__ import annotations

from y7edge.cli.console import note
from y7edge.cli.export import Out, Target, TargetOptions, default_out, show_artifact, target_options
from y7edge.cli.gate import report_even_if_failed
from y7edge.cli.options import Artifact, Device, Json


def build(
    artifact: Artifact,
    target: Target,
    out: Out = None,
    device: Device = "auto",
    option: TargetOptions = None,
    as_json: Json = False,
) -> None:
    """Build another target's artifact from a proved ONNX artifact.

    For the robot: needs neither torch nor the checkpoint. The new artifact is proved by the samples
    of the reference that the ONNX artifact carries. Beyond tolerance: exit 4, and no file.
    """
    from y7edge.export.conversion import build as convert

    with report_even_if_failed(as_json):
        made = convert(
            artifact,
            out or default_out(str(artifact), target),
            target=target,
            device=device,
            options=target_options(option),
            progress=note,
        )
    show_artifact(made, as_json=as_json)
