"""An artifact: a deployable file and the manifest that came with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from y7edge.artifact.manifest import Manifest


@dataclass(frozen=True)
class Artifact:
    """A model file for one engine (of several files: the main one) and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def model_id(self) -> str:
        """Short name of exactly these weights and this graph: the payload digest's first digits."""
        return self.manifest.payload_digest[:16]
