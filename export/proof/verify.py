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
from y7edge.export.proof.accuracy import Baseline, gate_of, gated
from y7edge.export.proof.images import Images, gather
from y7edge.export.proof.reference import Reference
from y7edge.models.weights import Checkpoint
from y7edge.runtimes import registry
from y7edge.runtimes.base import require


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
    data: Path | str | Baseline | None = None,
    max_map_drop: float | None = None,
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
        data: a data set. Checkpoint and artifact are evaluated on its split "val"; or a
            ``Baseline`` of the checkpoint. Without it, the mAP of an int8 artifact is not checked,
            but only its rules and that it computes what it computed at the export.
        max_map_drop: largest accepted drop of the mAP@0.5:0.95; None: 0.005 in int8, and only
            measure it in other precisions.
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
    require_rules(artifact)
    tell = progress or (lambda _: None)
    gate = gate_of(against, manifest.precision, data, max_map_drop, tell)
    if gate is None and manifest.precision == "int8":
        tell("the mAP is not measured: give the data set too (--data DATA)")
    prepared = gather(
        images, against.meta, manifest.input, evaluated=gate.baseline.shown if gate else None
    )
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
    return gated(report, gate, artifact, backend, device, str(path), tell)


def require_rules(artifact: Artifact) -> None:
    """Raise ParityError if the QDQ graph of an ONNX artifact breaks the rules of its profile.

    Raises:
        ConfigError: the profile does not exist in this version.
        ParityError: a rule is broken, or the manifest does not name the layers in float.
        RuntimeMissing: onnx is not installed.
    """
    manifest, described = artifact.manifest, artifact.manifest.quantization
    if manifest.target != "onnx" or (described is None and manifest.precision != "int8"):
        return
    if described is None:
        raise ParityError(
            f"{artifact.path} has precision int8, and its manifest does not say how it was "
            "quantised: export it again",
            ParityReport("failed", ("quantization",), origin=Origin(str(artifact.path))),
        )
    require({"onnx": "y7edge[export]"}, "the check of a quantised graph")
    import onnx

    from y7edge.export.graph.quantize import profile_of
    from y7edge.export.graph.quantize_check import violations

    profile = profile_of(described.profile)
    model = onnx.load_model_from_string(artifact.path.read_bytes())
    problems = violations(model, profile)
    if not problems:  # a graph that breaks no rule is valid: all convolutions have weights
        written = {name: node.op_type for node in model.graph.node for name in node.output}
        floats = {
            node.name
            for node in model.graph.node
            if node.op_type == "Conv" and written.get(node.input[1]) != "DequantizeLinear"
        }
        wrong = sorted(floats.symmetric_difference(described.kept))
        problems = [f"the manifest is wrong about {n}: whether it is in float" for n in wrong]
    if problems:
        raise ParityError(
            f"{artifact.path} breaks a rule of profile {profile.name}: {problems[0]}; export it "
            "again",
            ParityReport("failed", tuple(problems), origin=Origin(str(artifact.path))),
        )


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
