"""The whole export: checkpoint, fold, graph, artifact, proof; only then files at the destination.

Everything is built and proved in a temporary folder elsewhere; see ``delivery`` for the last step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from y7edge import __version__
from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import (
    Dim,
    InputInfo,
    LevelInfo,
    Manifest,
    OutputInfo,
    Precision,
    Source,
    Thresholds,
    expected_shapes,
)
from y7edge.artifact.reports import ParityReport
from y7edge.errors import ConfigError
from y7edge.export.delivery import deliver, require_destination, seal
from y7edge.export.folding import fold_checkpoint
from y7edge.export.graph import build
from y7edge.export.graph.simplify import simplify as simplified
from y7edge.export.proof import parity
from y7edge.export.proof.images import Images, gather
from y7edge.export.proof.probes import make_probes
from y7edge.export.proof.reference import Reference
from y7edge.export.targets import registry as targets
from y7edge.export.targets.base import (
    BuildRequest,
    Target,
    Unprovable,
    require_device,
    require_offered,
)
from y7edge.models import shapes
from y7edge.models.checkpoint import MAX_SIDE, Checkpoint
from y7edge.runtimes import registry
from y7edge.runtimes.base import installed_versions, require

Outputs = Literal["heads", "decoded"]
Size = int | tuple[int, int]
"""Of the input: one number for a square, or (height, width)."""

_UNKNOWN_DIGEST = "0" * 64  # until the target has written the payload
_GRAPH_NEEDS = {"onnx": "y7edge[export]", "onnxsim": "y7edge[export]"}
_GRAPH_PACKAGES = ("onnx", "onnxsim")


@dataclass(frozen=True)
class _Choice:
    """What was asked for, checked."""

    target: Target
    outputs: Outputs
    precision: Precision
    height: int
    width: int
    batch: Dim
    options: Mapping[str, str]
    unverified: str | None


def export(
    checkpoint: Checkpoint,
    out: Path | str,
    *,
    target: str = "onnx",
    outputs: str = "heads",
    precision: str = "fp32",
    imgsz: Size | None = None,
    batch: int = 1,
    dynamic: bool = False,
    images: Images | None = None,
    simplify: bool = True,
    device: str = "auto",
    options: Mapping[str, str] | None = None,
    unverified: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Artifact:
    """Make an artifact from a checkpoint and prove that it is the same model.

    Args:
        checkpoint: of any form; training form is what training writes.
        out: the main file to make. It appears only when everything has passed.
        target: what to build, a name of ``y7edge.export.targets.registry.names()``.
        outputs: "heads" (raw, per level) or "decoded" (boxes and scores).
        precision: "fp32" or "fp16".
        imgsz: of the input in pixels, multiples of the largest stride; None: as trained.
        batch: images at once.
        dynamic: leave the batch open; it is proved at 1 and 3.
        images: images for the proof; None: of the recorded data set, else synthetic scenes.
        simplify: run onnx-simplifier, and keep its graph if the results are the same.
        device: that the artifact is built for and proved on.
        options: target options.
        unverified: why an artifact is wanted that no engine here can run, for a target that has
            no runtime; it goes into the manifest instead of a proof.
        progress: called with one line for each step.

    Raises:
        ConfigError: an option or a combination that is not possible, or a destination that cannot
            be written.
        RuntimeMissing: a package is not installed.
        ParityError: the artifact differs from the checkpoint, or nothing could be proved; the
            exception's ``report`` has the numbers.
        ExportError: any other reason why there is no artifact.
    """
    destination = Path(out)
    tell = progress or (lambda _: None)
    choice = _Choice(
        target=targets.get(target),
        outputs=cast(Outputs, outputs),
        precision=cast(Precision, precision),
        **_input_size(checkpoint, imgsz),
        batch="dynamic" if dynamic else batch,
        options=options or {},
        unverified=unverified,
    )
    _check(choice)
    require_destination(destination, target, choice.target)
    require_device(choice.target, device)
    require(_GRAPH_NEEDS, f"target {target}")
    require(choice.target.NEEDS, f"target {target}")
    with tempfile.TemporaryDirectory(prefix="y7edge-export-") as folder:
        built, note = _build(
            checkpoint, choice, Path(folder), destination.name, simplify, device, tell
        )
        if choice.unverified is None:
            proved, report = _prove(built, choice.target, checkpoint, images, device, tell)
            parity.require_passed(report, f"nothing was written to {destination}: the artifact")
        else:
            proved, report = built, _unproved(choice)
        record = replace(report, simplifier=note).to_dict()
        manifest = replace(proved.manifest, parity=record)
        artifact = deliver(replace(built, manifest=manifest), choice.target, destination)
    tell(f"{'proved' if choice.unverified is None else 'not proved'}; written to {destination}")
    return artifact


def _build(
    checkpoint: Checkpoint,
    choice: _Choice,
    folder: Path,
    name: str,
    simplify: bool,
    device: str,
    tell: Callable[[str], None],
) -> tuple[Artifact, str]:
    """Fold, write the graph, build the artifact; also what became of the simplification."""
    tell(f"fold {checkpoint.spec.name} ({checkpoint.form} form)")
    folded = fold_checkpoint(checkpoint)
    tell(f"write the graph: {choice.outputs}, {choice.precision}, {choice.height}x{choice.width}")
    model = build.build_graph(
        folded,
        outputs=choice.outputs,
        precision=cast(build.Precision, choice.precision),
        height=choice.height,
        width=choice.width,
        batch=None if choice.batch == "dynamic" else choice.batch,
    )
    note = "not asked for"
    if simplify:
        model, note = simplified(model)
        tell(note)
    tell(f"build the {choice.target.NAME} artifact")
    graph, place = folder / "graph.onnx", folder / "artifact"
    graph.write_bytes(model.SerializeToString(deterministic=True))
    place.mkdir()
    request = BuildRequest(
        model=graph,
        checkpoint=folded,
        manifest=_draft(checkpoint, folded, choice),
        folder=place,
        name=name,
        device=device,
        options=choice.options,
    )
    return seal(choice.target.build(request), choice.target), note


def _prove(
    built: Artifact,
    target: Target,
    checkpoint: Checkpoint,
    images: Images | None,
    device: str,
    tell: Callable[[str], None],
) -> tuple[Artifact, ParityReport]:
    """Give the artifact its probes and compare it, in its own engine, with the reference."""
    runtime = cast(str, target.RUNTIME)
    reference = Reference(checkpoint)
    prepared = gather(images, checkpoint.meta, built.manifest.input)
    tell("run the reference model on the probes")
    limits = parity.tolerance(built.manifest.precision, registry.get(runtime).DEVIATION)
    probes = make_probes(built.manifest, reference, limits.probe)
    probed = replace(built, manifest=replace(built.manifest, probes=probes))
    report = parity.prove(
        probed, reference, prepared, backend=runtime, device=device, progress=tell
    )
    return probed, report


def _unproved(choice: _Choice) -> ParityReport:
    problem = cast(Unprovable, choice.target.RUNTIME).reason
    return ParityReport("unverified", (problem,), reason=choice.unverified)


def _check(choice: _Choice) -> None:
    """Raise ConfigError for what the target cannot build, and say what it can."""
    target = choice.target
    require_offered(target, choice.outputs, choice.precision, choice.options)
    if choice.batch != "dynamic" and not 1 <= choice.batch <= 1024:
        raise ConfigError(f"batch is {choice.batch}, expected 1 to 1024, or dynamic=True")
    unprovable = isinstance(target.RUNTIME, Unprovable)
    if unprovable and not choice.unverified:
        raise ConfigError(
            f"artifacts of target {target.NAME} cannot be proved here "
            f"({cast(Unprovable, target.RUNTIME).reason}): "
            "pass --unverified REASON to export one without a proof"
        )
    if choice.unverified is not None and not unprovable:
        raise ConfigError(
            f"target {target.NAME} is proved by runtime {target.RUNTIME}: leave --unverified out"
        )


def _input_size(checkpoint: Checkpoint, imgsz: Size | None) -> dict[str, int]:
    """Height and width: what was asked for, else what the checkpoint was trained with."""
    size = checkpoint.imgsz if imgsz is None else imgsz
    pair = size if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, int) for side in pair):
        raise ConfigError(f"imgsz is {size}, expected one number or (height, width)")
    height, width = pair
    stride = checkpoint.spec.max_stride
    if min(pair) < stride or height % stride or width % stride or max(pair) > MAX_SIDE:
        raise ConfigError(
            f"imgsz is {height}x{width}, expected multiples of {stride}, the largest stride of "
            f"{checkpoint.spec.name}, up to {MAX_SIDE}"
        )
    return {"height": height, "width": width}


def _draft(checkpoint: Checkpoint, folded: Checkpoint, choice: _Choice) -> Manifest:
    """The manifest but for payload digest, probes and parity report."""
    spec = folded.spec
    image = InputInfo(build.INPUT, choice.batch, choice.height, choice.width)
    levels = tuple(
        LevelInfo(stride, anchors)
        for stride, anchors in zip(spec.strides, spec.anchors, strict=True)
    )
    return Manifest(
        model=spec.name,
        nc=spec.nc,
        names=folded.names,
        input=image,
        outputs=_outputs(image, levels, spec.nc, choice),
        levels=levels,
        source=Source(
            digest=checkpoint.digest,
            form=checkpoint.form,
            parameters=shapes.parameters(spec),
            gflops=round(shapes.gflops(spec, choice.height, choice.width), 4),
        ),
        precision=choice.precision,
        target=choice.target.NAME,
        opset=build.OPSET,
        payload_digest=_UNKNOWN_DIGEST,
        thresholds=Thresholds.of_checkpoint(checkpoint.meta),
        licence=_text(checkpoint.meta.get("licence")),
        tools={
            "y7edge": __version__,
            "numpy": np.__version__,
            **installed_versions(*_GRAPH_PACKAGES),
            **choice.target.versions(),
        },
    )


def _outputs(
    image: InputInfo, levels: tuple[LevelInfo, ...], nc: int, choice: _Choice
) -> tuple[OutputInfo, ...]:
    """Outputs as ``build.build_graph`` writes them."""
    expected = expected_shapes(image, levels, nc)
    if choice.outputs == "decoded":
        return (
            OutputInfo("boxes", "boxes", expected["boxes"], layout="NWC", activation=None),
            OutputInfo("scores", "scores", expected["scores"], layout="NWC", activation=None),
        )
    dtype = build.DTYPES[cast(build.Precision, choice.precision)].name
    return tuple(
        OutputInfo(f"head{i}", "head", expected[f"head{i}"], level=i, dtype=dtype)
        for i in range(len(levels))
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
