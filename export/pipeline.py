"""Export a checkpoint: fold it, write the graph, build and prove the artifact, and deliver it.

The artifact is built and proved in a temporary folder. ``delivery`` moves it to its destination.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import gettempdir
from typing import cast

import numpy as np
import onnx

from y7edge import __version__
from y7edge.artifact.artifact import Artifact
from y7edge.artifact.bounds import MAX_BATCH
from y7edge.artifact.description import Input, Outputs, Size, describe, kind_of_outputs, pair
from y7edge.artifact.manifest import Dim, Manifest, Precision, Quantization
from y7edge.artifact.reports import AccuracyDifference, FallbackStep, ParityReport
from y7edge.artifact.schema import checked
from y7edge.errors import ConfigError
from y7edge.export.audit.cures import rewrites_for
from y7edge.export.calibration import Calibration
from y7edge.export.delivery import deliver, require_destination, seal
from y7edge.export.fallback import Options, Quantized, quantized
from y7edge.export.folding import fold_checkpoint
from y7edge.export.graph import build
from y7edge.export.graph.rewrites import FLOAT_ONLY, choose, recorded
from y7edge.export.graph.simplify import simplify as simplified
from y7edge.export.proof import parity
from y7edge.export.proof.accuracy import Baseline, MapGate, gate_of, gated, judged
from y7edge.export.proof.images import Images, gather
from y7edge.export.proof.probes import make_probes, own_probes
from y7edge.export.proof.reference import Reference
from y7edge.export.targets import registry as targets
from y7edge.export.targets.base import (
    BuildRequest,
    Target,
    Unprovable,
    require_device,
    require_fit,
    require_offered,
)
from y7edge.files import temporary_folder, writing
from y7edge.models.checkpoint import Checkpoint
from y7edge.models.registry import folded
from y7edge.runtimes import onnxrt, registry
from y7edge.runtimes.base import installed_versions, require

_GRAPH_NEEDS = {"onnx": "y7edge[export]", "onnxsim": "y7edge[export]"}


@checked
def export(
    checkpoint: Checkpoint,
    out: Path | str,
    *,
    target: str = "onnx",
    outputs: str | None = None,
    input: str | None = None,
    precision: str | None = None,
    imgsz: Size | None = None,
    batch: int = 1,
    dynamic: bool = False,
    images: Images | None = None,
    rewrites: Sequence[str] = (),
    simplify: bool = True,
    device: str = "auto",
    options: Mapping[str, str] | None = None,
    unverified: str | None = None,
    data: Path | str | Baseline | None = None,
    max_map_drop: float | None = None,
    profile: str | None = None,
    calib: Path | str | Calibration | None = None,
    calib_images: int | None = None,
    ranges: str | None = None,
    quantize_heads: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Artifact:
    """Export a checkpoint as an artifact, and prove that the artifact equals the model.

    Args:
        checkpoint: a checkpoint of any form.
        out: path of the main file. Files are written only if the proof passes.
        target: a name from ``y7edge.export.targets.registry.names()``.
        outputs: "heads" (raw, of each level), "heads-sigmoid" (their sigmoids), "decoded" (boxes
            and scores before NMS) or "nms" (final boxes); None: the target's first.
        input: "float32" (NCHW, 0 to 1) or "uint8" (NHWC, 0 to 255); None: the target's first.
        precision: one that the target supports, such as "fp16"; None: the target's first.
        imgsz: side or (height, width), multiples of the largest stride; None: that of the training.
        batch: fixed batch size.
        dynamic: make the batch size dynamic; the proof then runs batches of 1 and of 3 images.
        images: images for the proof; None: those of ``data``, of the checkpoint's data set, or of
            ``calib``, else synthetic scenes.
        rewrites: names (``export.graph.rewrites``), or "auto": what the chip needs (``audit``).
        simplify: run onnx-simplifier, and use its graph if the results are equal.
        device: the device that the artifact is built for and proved on.
        options: options of the target, by name.
        unverified: why there is no proof. Only for targets without runtime, and int8 without data.
        data: a data set, on whose split "val" checkpoint and artifact are evaluated; or a
            ``Baseline``, for another split, or to evaluate the checkpoint only once. Required in
            int8, where layers go back to float until the drop of the mAP is accepted.
        max_map_drop: largest accepted drop of the mAP@0.5:0.95; None: 0.005 in int8, else any.
        profile: profile of the int8 graph (``graph.quantize.PROFILES``); None: the target's.
        calib: data set or folder to calibrate int8, or to hand over; None: ``data`` (train).
        calib_images: number of calibration images; None: 256.
        ranges: how int8 ranges are chosen (``graph.quantize_ranges.METHODS``).
        quantize_heads: also quantise the convolutions that write the outputs.
        progress: called with one line for each step.

    Raises:
        ConfigError: an option is invalid, or the destination cannot be written.
        RuntimeMissing: a package is not installed.
        DataError: the images or the data set cannot be used.
        ParityError: the proof failed, or the mAP drops too much; ``report`` has the numbers.
        ExportError: any other failure.
    """
    destination, chosen = Path(out), targets.get(target)
    size, tell = _size(batch, dynamic), progress or (lambda _: None)
    outputs, input = outputs or chosen.OUTPUTS[0], input or chosen.INPUTS[0]
    precision = precision or next(iter(chosen.PRECISIONS))
    int8 = Options(profile, calib, calib_images, ranges, quantize_heads)
    require_offered(chosen, input, outputs, precision, size, options or {})
    int8.check(chosen, precision, outputs, checkpoint)
    _check(chosen, precision, unverified, data is not None)
    _require(chosen, destination, precision, device)
    rewrites = _rewrites(checkpoint, chosen, precision, rewrites, options or {})
    draft = _describe(checkpoint, chosen, imgsz, size, outputs, input, precision, rewrites)
    require_fit(chosen, draft, options or {})
    gate = gate_of(checkpoint, precision, data, max_map_drop, tell)
    found = int8.choose(checkpoint, gate, tell, chosen) if int8.needed(chosen, precision) else None
    order = _Order(checkpoint, chosen, destination, draft, device, unverified, int8, found, tell)
    return _make(order, rewrites, simplify, options or {}, images, gate)


def _size(batch: int, dynamic: bool) -> Dim:
    """Return the batch size; raise ConfigError if it is out of range."""
    if dynamic and batch != 1:
        raise ConfigError(f"batch is {batch}, but the batch size is to be dynamic: give only one")
    if not 1 <= batch <= MAX_BATCH:
        raise ConfigError(f"batch is {batch}, expected 1 to {MAX_BATCH}, or dynamic=True")
    return "dynamic" if dynamic else batch


def _require(target: Target, destination: Path, precision: str, device: str) -> None:
    """Check that the destination can be written, and that device and packages are known."""
    require_destination(destination, target.NAME, target)
    require_device(target, device)
    advice = getattr(target, "misplaced", None)
    require({**_needs(precision), **target.NEEDS}, f"target {target.NAME}", advice)


def _rewrites(
    checkpoint: Checkpoint,
    target: Target,
    precision: str,
    given: Sequence[str],
    options: Mapping[str, str],
) -> tuple[str, ...]:
    """Return the rewrites that are used.

    Raises:
        ConfigError: the target does not read graphs, or a rewrite is for float graphs only.
    """
    given, defaults = rewrites_for(checkpoint.spec, target, options, given), target.REWRITES
    if precision == "int8":
        defaults = tuple(name for name in defaults if name not in FLOAT_ONLY)
        if unsuitable := FLOAT_ONLY.intersection(given):
            raise ConfigError(
                f"rewrite {min(unsuitable)} is for float graphs: omit it in precision int8"
            )
    rewrites = choose(folded(checkpoint.spec), given, defaults)
    if rewrites and target.NEEDS_CHECKPOINT:
        raise ConfigError(
            f"target {target.NAME} converts the checkpoint, not a graph: omit --rewrite"
        )
    return rewrites


@dataclass(frozen=True)
class _Order:
    """What to export, and where to; see the arguments of ``export``."""

    checkpoint: Checkpoint
    target: Target
    destination: Path
    manifest: Manifest  # without payload digest, probes and parity
    device: str
    unverified: str | None
    int8: Options
    calibration: Calibration | None  # in int8, or if the target hands the images over
    tell: Callable[[str], None]

    @property
    def subject(self) -> str:
        """The begin of messages about an artifact that is not accepted."""
        return f"nothing was written to {self.destination}: the artifact"


def _make(
    order: _Order,
    rewrites: Sequence[str],
    simplify: bool,
    options: Mapping[str, str],
    images: Images | None,
    gate: MapGate | None,
) -> Artifact:
    """Build an artifact in a temporary folder, prove it, evaluate it, and deliver it."""
    spec, runtime, tell = order.checkpoint.spec, order.target.RUNTIME, order.tell
    with writing("temporary files", gettempdir()), temporary_folder() as folder:
        tell(f"fold {spec.name} ({spec.form} form)")
        request = BuildRequest(
            model=folder / "graph.onnx",
            checkpoint=fold_checkpoint(order.checkpoint),
            manifest=order.manifest,
            folder=folder / "artifact",
            name=order.destination.name,
            calibration=order.calibration if order.target.CALIBRATES else None,
            device=order.device,
            options=options,
            progress=tell,
        )
        model, note = _graph(request, order.target, rewrites, simplify, tell)
        made, accuracy, steps = _build(order, request, model, gate)
        made, report = _prove(order, made, images, gate)
        if isinstance(runtime, str):
            parity.require_passed(report, order.subject)
            if accuracy is None:
                report = gated(report, gate, made, runtime, order.device, order.subject, tell)
            else:
                report = judged(replace(report, fallback=steps), accuracy, order.subject)
        if order.unverified is not None:
            report = replace(report, status="unverified", reason=order.unverified)
        manifest = replace(made.manifest, parity=replace(report, simplifier=note).to_dict())
        made = deliver(replace(made, manifest=manifest), order.target, order.destination)
    proved = "proved" if order.unverified is None else "not proved"
    tell(f"{proved}; written to {order.destination}")
    return made


def _describe(
    checkpoint: Checkpoint,
    target: Target,
    imgsz: Size | None,
    batch: Dim,
    outputs: str,
    input: str,
    precision: str,
    rewrites: Sequence[str],
) -> Manifest:
    """Return the manifest of the graph, but with the precision of the artifact."""
    manifest = describe(
        checkpoint,
        folded(checkpoint.spec),
        checkpoint.imgsz if imgsz is None else pair(imgsz),
        batch=batch,
        outputs=cast(Outputs, outputs),
        input=cast(Input, input),
        precision=cast(Precision, target.PRECISIONS[precision]),
        target=target.NAME,
        opset=build.OPSET,
        tools={**_versions(target, precision), **recorded(rewrites)},
    )
    return replace(manifest, precision=cast(Precision, precision))


def _graph(
    request: BuildRequest,
    target: Target,
    rewrites: Sequence[str],
    simplify: bool,
    tell: Callable[[str], None],
) -> tuple[onnx.ModelProto, str]:
    """Write the float graph. Also return a note on the simplification."""
    manifest, image = request.manifest, request.manifest.input
    precision, outputs = target.PRECISIONS[manifest.precision], kind_of_outputs(manifest)
    if precision == "int8":
        precision = "fp32"  # is quantised later
    form = ", ".join((outputs, precision, f"{image.height}x{image.width}", *rewrites))
    tell(f"write the float graph: {form}")
    model = build.build_graph(
        cast(Checkpoint, request.checkpoint),
        outputs=outputs,
        input=image.dtype,
        precision=precision,
        height=image.height,
        width=image.width,
        batch=None if image.batch == "dynamic" else image.batch,
        rewrites=rewrites,
    )
    note = "not requested"
    if simplify:
        model, note = simplified(model)
        tell(note)
    return model, note


def _build(
    order: _Order, request: BuildRequest, model: onnx.ModelProto, gate: MapGate | None
) -> tuple[Artifact, AccuracyDifference | None, tuple[FallbackStep, ...]]:
    """Build the artifact, of a quantised graph if the precision is int8.

    Quantised artifacts are evaluated, because their mAP decides which layers stay in float. Returns
    the artifact, its mAP if it was evaluated, and the attempts.
    """
    target, calibration, tell = order.target, order.calibration, order.tell
    tell(f"build the {target.NAME} artifact: {request.manifest.precision}")
    if request.manifest.precision != "int8":
        return _built(request, target, model), None, ()

    def built(graph: onnx.ModelProto, described: Quantization) -> Artifact:
        shutil.rmtree(request.folder, ignore_errors=True)  # of an earlier attempt
        opset = graph.opset_import[0].version
        manifest = replace(request.manifest, quantization=described, opset=opset)
        return _built(replace(request, manifest=manifest), target, graph)

    def measured(artifact: Artifact) -> AccuracyDifference:
        return cast(MapGate, gate).measure(artifact, str(target.RUNTIME), order.device, tell)

    checkpoint, manifest = order.checkpoint, order.manifest
    source = Quantized(model, checkpoint, calibration, order.int8, target, manifest, tell)
    measure = None if gate is None else measured
    found, steps = quantized(source, built, measure, order.subject)
    return found.artifact, found.accuracy, steps


def _built(request: BuildRequest, target: Target, model: onnx.ModelProto) -> Artifact:
    """Build an artifact of a graph."""
    request.model.write_bytes(model.SerializeToString(deterministic=True))
    request.folder.mkdir()
    return seal(target.build(request), target)


def _prove(
    order: _Order, built: Artifact, images: Images | None, gate: MapGate | None
) -> tuple[Artifact, ParityReport]:
    """Add probes to the artifact, run it in its engine, and compare it with the unfolded model.

    A target without a runtime here is not run: the report has the status "unverified". If another
    machine has the runtime, the artifact gets probes.
    """
    runtime, checkpoint, tell = order.target.RUNTIME, order.checkpoint, order.tell
    if isinstance(runtime, Unprovable):
        if runtime.runtime is not None:
            tell("run the reference model on the probes, for `y7edge selftest` on the device")
            limits = parity.tolerance(
                built.manifest.precision, registry.get(runtime.runtime).DEVIATION
            )
            probes = make_probes(built.manifest, Reference(checkpoint), limits.probe)
            built = replace(built, manifest=replace(built.manifest, probes=probes))
        return built, ParityReport("unverified", (runtime.reason,), reason=order.unverified)
    reference = Reference(checkpoint)
    prepared = gather(
        images,
        checkpoint.meta,
        built.manifest.input,
        evaluated=gate.baseline.shown if gate else None,
        calibrated=(used.source, used.images) if (used := order.calibration) else None,
    )
    limits = parity.tolerance(built.manifest.precision, registry.get(runtime).DEVIATION)
    if built.manifest.precision == "int8":
        tell("run the artifact on the probes")
        probes = own_probes(built, runtime, order.device)
    else:
        tell("run the reference model on the probes")
        probes = make_probes(built.manifest, reference, limits.probe)
    probed = replace(built, manifest=replace(built.manifest, probes=probes))
    report = parity.prove(
        probed, reference, prepared, backend=runtime, device=order.device, progress=tell
    )
    return probed, report


def _needs(precision: str) -> dict[str, str]:
    """Return the packages that write the graph; ONNX Runtime calibrates int8."""
    return {**_GRAPH_NEEDS, **(onnxrt.NEEDS if precision == "int8" else {})}


def _versions(target: Target, precision: str) -> dict[str, str]:
    graph = installed_versions(*_needs(precision))
    return {"y7edge": __version__, "numpy": np.__version__, **graph, **target.versions()}


def _check(target: Target, precision: str, unverified: str | None, evaluated: bool) -> None:
    """Raise ConfigError if ``unverified`` or a data set is missing, or does not suit the target.

    If the target has no runtime, ``unverified`` is required; otherwise it is forbidden, unless the
    precision is int8 and nothing is evaluated.
    ``evaluated``: whether the mAP is to be measured, which requires a runtime.
    """
    if isinstance(target.RUNTIME, Unprovable) and not unverified:
        raise ConfigError(
            f"artifacts of target {target.NAME} cannot be proved here ({target.RUNTIME.reason}): "
            "pass --unverified REASON to export one without a proof"
        )
    if isinstance(target.RUNTIME, Unprovable) and evaluated:
        raise ConfigError(
            f"artifacts of target {target.NAME} cannot be evaluated here "
            f"({target.RUNTIME.reason}): omit data and max_map_drop"
        )
    if precision == "int8" and not evaluated and not unverified:
        raise ConfigError(
            "an int8 artifact is accepted by its mAP: give a labelled data set (--data DATA), or "
            "pass --unverified REASON to export one whose accuracy is not known"
        )
    if isinstance(target.RUNTIME, str) and unverified is not None:
        if precision == "int8" and not evaluated:
            return
        how = (
            f"proved by runtime {target.RUNTIME}" if precision != "int8" else "evaluated on --data"
        )
        raise ConfigError(f"artifacts of target {target.NAME} are {how}: omit --unverified")
