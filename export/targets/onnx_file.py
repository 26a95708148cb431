"""Target ``onnx``: the graph itself, as one .onnx file with its manifest inside."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version

from y7edge.artifact.artifact import Artifact
from y7edge.export.targets.base import BuildRequest
from y7edge.runtimes import onnxrt

NAME = "onnx"
SUFFIX = ".onnx"
NEEDS = {"onnx": "y7edge[export]", "onnxsim": "y7edge[export]"}
PRECISIONS = ("fp32", "fp16")


def build(request: BuildRequest) -> Artifact:
    """Write the graph; the same graph is the same bytes."""
    request.path.write_bytes(request.graph.SerializeToString(deterministic=True))
    manifest = replace(request.manifest, payload_digest=onnxrt.payload_digest(request.path))
    artifact = Artifact(request.path, manifest)
    write_manifest(artifact)
    return artifact


def write_manifest(artifact: Artifact) -> None:
    """Put the artifact's manifest into its file, in place of the one there."""
    onnxrt.write_manifest(artifact.path, artifact.manifest)


def versions() -> dict[str, str]:
    """Versions of the packages that shape the file."""
    return {name: version(name) for name in NEEDS}
