"""Repeat an artifact's proof against its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Letterbox, Thresholds
from y7edge.artifact.reports import Origin, ParityReport
from y7edge.artifact.schema import checked
from y7edge.detect.selftest import load_undamaged
from y7edge.errors import ParityError
from y7edge.export.proof import parity
from y7edge.export.proof.images import Images, gather
from y7edge.export.proof.reference import Reference
from y7edge.models.weights import Checkpoint
from y7edge.runtimes import registry


@checked
def verify(
    path: Path | str,
    against: Checkpoint,
    *,
    images: Images | None = None,
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    ignore_digests: bool = False,
    progress: Callable[[str], None] | None = None,
) -> ParityReport:
    """Check an artifact's digests, that it came from ``against``, and prove it again.

    Classes, anchors and input of the manifest must be the checkpoint's too: a digest detects
    damage, but anyone can compute another. ``images`` None: those of the recorded data set, else
    synthetic scenes. With ``ignore_digests`` only the numbers are compared, also of a changed
    payload or another checkpoint of the same shape. Other options as in ``parity.prove``.

    Raises:
        DigestError: file or manifest were changed, or are damaged.
        ParityError: the artifact is not this checkpoint's; ``report`` has the numbers.
        ConfigError: the backend does not exist or does not read this kind of file.
        RuntimeMissing, DeviceError: the engine cannot be started.
    """
    artifact = load_undamaged(path, backend)
    manifest = artifact.manifest
    origin = Origin(str(path))
    if not ignore_digests:
        origin = Origin(str(path), registry.check_payload(artifact, backend), against.digest)
        if manifest.source.digest != against.digest:
            raise ParityError(
                f"{path} was made from another checkpoint: its source is "
                f"{manifest.source.digest[:16]}, the one given is {against.digest[:16]}; give the "
                "checkpoint that it was exported from",
                ParityReport("failed", ("source digest",), origin=origin),
            )
    _require_same_model(artifact, against, strict=not ignore_digests)
    prepared = gather(images, against.meta, manifest.input)
    report = parity.prove(
        artifact,
        Reference(against),
        prepared,
        backend=backend,
        device=device,
        threads=threads,
        progress=progress,
    )
    report = replace(report, origin=origin)
    parity.require_passed(report, str(path))
    return report


def _require_same_model(artifact: Artifact, against: Checkpoint, strict: bool) -> None:
    """Raise ParityError unless levels, classes and input are the checkpoint's.

    Otherwise heads could agree to the last bit while boxes or names are wrong.
    """
    manifest, spec, image = artifact.manifest, against.spec, artifact.manifest.input
    anchors = [level.anchors for level in manifest.levels]
    thresholds = Thresholds.of_checkpoint(against.meta) if strict else manifest.thresholds
    names = against.names if strict else manifest.names
    # The export chooses name, size, layout and dtype.
    pixels = (image.color, image.scale, image.letterbox)
    for what, found, expected in (
        ("number of classes", manifest.nc, spec.nc),
        ("strides", manifest.strides, tuple(spec.strides)),
        ("class names", manifest.names, names),
        ("anchors", anchors, list(spec.anchors)),
        ("thresholds", manifest.thresholds, thresholds),
        ("input", pixels, ("rgb", 1 / 255, Letterbox())),
    ):
        if found != expected:
            pair = f"{str(found)[:80]} and not {str(expected)[:80]}"
            raise ParityError(
                f"{artifact.path} has other {what} than its checkpoint, {pair}: "
                "give the checkpoint that it was exported from, or export it again",
                ParityReport("failed", (what,), origin=Origin(str(artifact.path))),
            )
