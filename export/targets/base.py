"""What a target is: a module that turns a proved-to-be graph into one kind of file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Manifest
from y7edge.models.spec import Spec

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class BuildRequest:
    """What to build.

    ``manifest`` is complete but for the payload digest, which only the target can compute, and for
    the parity report. ``path`` is a temporary place; the pipeline moves what was proved.
    """

    graph: onnx.ModelProto
    spec: Spec
    manifest: Manifest
    path: Path


class Target(Protocol):
    """A module in this folder."""

    NAME: str
    """What ``--target`` and ``manifest.target`` call it."""
    SUFFIX: str
    """Of its file, with the dot."""
    NEEDS: Mapping[str, str]
    """Import name of each package that it needs -> what to install."""
    PRECISIONS: tuple[str, ...]

    def build(self, request: BuildRequest) -> Artifact:
        """Write the file with its manifest; the artifact's manifest has the payload digest."""

    def write_manifest(self, artifact: Artifact) -> None:
        """Put the artifact's manifest into its file, in place of the one there."""

    def versions(self) -> dict[str, str]:
        """Versions of the packages that shape the file."""
