"""The interface of targets, which convert a folded model to the files of one toolchain.

A target is a module with the members of ``Target``, in this folder or announced by an entry
point of the group ``y7edge.targets``. It imports its toolkit inside functions only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Dim, Manifest
from y7edge.errors import ConfigError
from y7edge.models.checkpoint import Checkpoint
from y7edge.runtimes import registry
from y7edge.runtimes.base import parse_device

if TYPE_CHECKING:
    from y7edge.export.calibration import Calibration


@dataclass(frozen=True)
class Unprovable:
    """The reason why no runtime can run a target's artifacts here.

    Attributes:
        reason: The reason, for messages.
        runtime: Name of the runtime that runs them on another machine, where `y7edge selftest`
            completes the proof; None if there is none.
    """

    reason: str
    runtime: str | None = None


@dataclass(frozen=True)
class BuildRequest:
    """The arguments of ``Target.build``.

    Attributes:
        model: The ONNX file to convert. Its precision is ``Target.PRECISIONS[manifest.precision]``.
        checkpoint: The folded checkpoint, for converters that do not read ONNX. None in
            ``y7edge build``, which has only the ONNX file.
        manifest: The manifest without payload digest, probes and parity report.
        folder: An empty folder for the files.
        name: Name of the main file; side files have the same stem.
        calibration: Images for the vendor's quantisation, if ``Target.CALIBRATES``; else None.
        device: The device to build for, if the toolkit builds for a device.
        options: Options of the target, by the names in ``OPTIONS``.
        progress: Called with one line for each step of a long build, and for each result that is
            not an error.
    """

    model: Path
    checkpoint: Checkpoint | None
    manifest: Manifest
    folder: Path
    name: str
    calibration: Calibration | None = None
    device: str = "auto"
    options: Mapping[str, str] = field(default_factory=dict)
    progress: Callable[[str], None] = lambda _: None

    @property
    def path(self) -> Path:
        """Path of the main file."""
        return self.folder / self.name


class Target(Protocol):
    """A module that builds one kind of artifact."""

    NAME: str
    """The target's name in ``--target`` and in manifests."""
    SUFFIX: str
    """Suffix of the main file, with the dot."""
    NEEDS: Mapping[str, str]
    """Import name of each required package -> extra to install."""
    PRECISIONS: Mapping[str, str]
    """Supported precision -> precision of the ONNX graph that ``build`` converts.

    int8 graphs are QDQ graphs of one of the ``PROFILES``.
    """
    PROFILES: tuple[str, ...]
    """Profiles of the QDQ graphs that the target takes, the default first; () if it takes none."""
    INPUTS: tuple[str, ...]
    """Supported inputs, the default first: ``float32`` (NCHW, 0 to 1), ``uint8`` (NHWC, 0..255)."""
    OUTPUTS: tuple[str, ...]
    """Supported outputs: ``heads``, ``heads-sigmoid``, ``decoded``, ``nms``."""
    BATCHES: tuple[str, ...]
    """Supported batch sizes: ``1``, ``N`` (any fixed size), ``dynamic``."""
    RUNTIME: str | Unprovable
    """Name of the runtime that proves the artifacts, or the reason why there is none."""
    OPTIONS: Mapping[str, str]
    """Name of each option of this target -> its description."""
    REWRITES: tuple[str, ...]
    """Names of the rewrites (``graph.rewrites``) that are used if they apply to the model."""
    INT8_HEADS: bool
    """Whether int8 graphs must compute in integers only: with the heads, and no layer in float."""
    CALIBRATES: bool
    """Whether ``build`` hands over calibration images, for all precisions."""
    NEEDS_CHECKPOINT: bool
    """Whether ``build`` converts the folded checkpoint instead of the ONNX file."""

    def build(self, request: BuildRequest) -> Artifact:
        """Write the files; return the artifact with a manifest that describes its outputs.

        The caller computes the payload digest and writes the manifest. The same request must always
        give the same bytes.
        """

    def versions(self) -> dict[str, str]:
        """Return the versions of the packages that determine the files.

        Raises:
            RuntimeMissing: the converter, or the interpreter that it needs, was not found.
        """


def require_offered(
    target: Target,
    input: str,
    outputs: str,
    precision: str,
    batch: Dim,
    options: Mapping[str, str],
) -> None:
    """Raise ConfigError unless the target supports all options of an export."""
    fixed = batch != "dynamic" and batch != 1 and "N" in target.BATCHES
    for what, asked, known in (
        ("input", input, target.INPUTS),
        ("outputs", outputs, target.OUTPUTS),
        ("precision", precision, tuple(target.PRECISIONS)),
        ("batch size", "N" if fixed else str(batch), target.BATCHES),
        *(("option", option, tuple(target.OPTIONS)) for option in options),
    ):
        if asked not in known:
            why = getattr(target, "REFUSED", {}).get(asked)  # the reason, if the target gives one
            raise ConfigError(
                f"target {target.NAME} has no {what} {asked!r}{f': {why}' if why else ''}; "
                f"{'choose from ' + ', '.join(known) if known else 'it has no options'}"
            )


def is_handover(target: Target) -> bool:
    """Return whether a target writes a folder for a vendor's converter."""
    return target.SUFFIX.endswith(".handover")


def runtime_of(target: Target) -> str | None:
    """Return the runtime that reads a target's artifacts, here or on another machine, if any."""
    return target.RUNTIME if isinstance(target.RUNTIME, str) else target.RUNTIME.runtime


def require_fit(target: Target, manifest: Manifest, options: Mapping[str, str]) -> None:
    """Raise ConfigError if a target refuses a model or the value of an option.

    A target that refuses some has a function ``require_fit(manifest, options)``, which is called
    before the export begins. ``manifest``: that of the float graph.
    """
    check = getattr(target, "require_fit", None)
    if check is not None:
        check(manifest, options)


def require_device(target: Target, device: str) -> None:
    """Raise ConfigError unless the target's runtime supports this device name."""
    if runtime := runtime_of(target):
        parse_device(device, registry.get(runtime).DEVICES)
