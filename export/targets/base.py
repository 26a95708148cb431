"""The protocol of targets: modules that turn a folded model into the files of one toolchain.

A target is a module in this folder or of an entry point of the group ``y7edge.targets``. It imports
its toolkit inside functions only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Manifest
from y7edge.errors import ConfigError
from y7edge.models.checkpoint import Checkpoint
from y7edge.runtimes import registry
from y7edge.runtimes.base import parse_device


@dataclass(frozen=True)
class Unprovable:
    """The reason why no engine here can run a target's artifacts."""

    reason: str


@dataclass(frozen=True)
class BuildRequest:
    """The input of a build.

    Attributes:
        model: The ONNX file to convert, with the precision and outputs of ``manifest``.
        checkpoint: The folded model, for converters that take no ONNX; None if there is none.
        manifest: Without payload digest, probes and parity report.
        folder: An empty folder to write into.
        name: Name of the main file; side files take its stem.
        images: Calibration inputs, each float32 (1, 3, H, W), RGB, 0 to 1; None if none were given.
        device: The device to build for, where the toolkit builds for one.
        options: Target options, known to be in ``OPTIONS``.
    """

    model: Path
    checkpoint: Checkpoint | None
    manifest: Manifest
    folder: Path
    name: str
    images: tuple[NDArray[np.float32], ...] | None = None
    device: str = "auto"
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Path of the main file."""
        return self.folder / self.name


class Target(Protocol):
    """A module that builds one kind of artifact."""

    NAME: str
    """Its name in ``--target`` and in manifests."""
    SUFFIX: str
    """Of its main file, with the dot."""
    NEEDS: Mapping[str, str]
    """Import name of each package that it needs -> extra to install."""
    PRECISIONS: tuple[str, ...]
    """Those of ``fp32``, ``fp16``... that it can build."""
    OUTPUTS: tuple[str, ...]
    """Those of ``heads`` and ``decoded`` that it can build."""
    RUNTIME: str | Unprovable
    """Name of the runtime that proves its artifacts, or why there is none."""
    OPTIONS: Mapping[str, str]
    """Name of each option of its own -> what it does."""
    NEEDS_CHECKPOINT: bool
    """Whether it converts the folded checkpoint, so that an ONNX file alone is not enough."""

    def build(self, request: BuildRequest) -> Artifact:
        """Write the files; return them with a manifest of the outputs, dtypes and layouts made.

        The caller computes the payload digest and writes the manifest. The same request gives the
        same bytes.
        """

    def versions(self) -> dict[str, str]:
        """Versions of the packages that shape the files."""


def require_offered(
    target: Target, outputs: str, precision: str, options: Mapping[str, str]
) -> None:
    """Raise ConfigError for what a target cannot build."""
    for what, asked, known in (
        ("outputs", outputs, target.OUTPUTS),
        ("precision", precision, target.PRECISIONS),
        *(("option", option, tuple(target.OPTIONS)) for option in options),
    ):
        if asked not in known:
            raise ConfigError(
                f"target {target.NAME} has no {what} {asked!r}; choose from "
                f"{', '.join(known) or 'none: it has no options'}"
            )


def require_device(target: Target, device: str) -> None:
    """Raise ConfigError unless the target's runtime understands this device name."""
    if isinstance(target.RUNTIME, str):
        parse_device(device, registry.get(target.RUNTIME).DEVICES)
