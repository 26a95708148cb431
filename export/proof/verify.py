"""Verify an artifact: check its digests, and repeat its proof against the checkpoint."""

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
    """Check an artifact's digests, compare it with its checkpoint, and prove it again.

    Classes, anchors, thresholds and input of the manifest are compared with the checkpoint too,
    because somebody who edits them can also write a new digest.

    Args:
        path: the artifact.
        against: the checkpoint that it was exported from.
        images: images for the proof; None: images of the data set that the checkpoint records, or
            synthetic scenes if that data set does not exist.
        backend: a runtime's name; "auto": the runtime that opens the file.
        device: the device to run on.
        threads: number of engine threads; None: the physical cores that this process may use.
        ignore_digests: do not compare digests, class names and thresholds. The checkpoint may then
            be another one with the same levels and number of classes.
        progress: called with one line for each step.

    Raises:
        DigestError: the file or its manifest was changed or damaged.
        ParityError: the artifact differs from the checkpoint; the error's ``report`` has the
            numbers.
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
                f"{path} was exported from another checkpoint: found digest {against.digest[:16]}, "
                f"expected {manifest.source.digest[:16]}; use the checkpoint that it was exported "
                "from",
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
    """Raise ParityError if levels, classes or input differ from the checkpoint's.

    If they differ, boxes or names are wrong even if the heads are equal. ``strict``: compare class
    names and thresholds too.
    """
    manifest, spec, image = artifact.manifest, against.spec, artifact.manifest.input
    anchors = [level.anchors for level in manifest.levels]
    thresholds = Thresholds.of_checkpoint(against.meta) if strict else manifest.thresholds
    names = against.names if strict else manifest.names
    # Name, size, layout and dtype of the input are options of the export.
    pixels, scale = (image.color, image.scale, image.letterbox), 1 / 255
    if image.dtype in ("uint8", "int8"):
        scale = 1.0
    for what, found, expected in (
        ("number of classes", manifest.nc, spec.nc),
        ("strides", manifest.strides, tuple(spec.strides)),
        ("class names", manifest.names, names),
        ("anchors", anchors, list(spec.anchors)),
        ("thresholds", manifest.thresholds, thresholds),
        ("input", pixels, ("rgb", scale, Letterbox())),
    ):
        if found != expected:
            pair = f"found {str(found)[:80]}, expected {str(expected)[:80]}"
            raise ParityError(
                f"{artifact.path} and its checkpoint differ in {what}: {pair}; "
                "use the checkpoint that it was exported from, or export it again",
                ParityReport("failed", (what,), origin=Origin(str(artifact.path))),
            )
