"""The whole export: checkpoint, fold, graph, file, proof; and only then a file at the destination.

Everything is built and proved in a temporary folder elsewhere. The destination is touched once, by
a rename at the end: a failed or killed export leaves there what was there before.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

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
from y7edge.errors import ConfigError, ExportError
from y7edge.export.folding import fold_checkpoint
from y7edge.export.graph import build
from y7edge.export.graph.simplify import simplify as simplified
from y7edge.export.proof import parity
from y7edge.export.proof.images import Images, gather
from y7edge.export.proof.probes import make_probes
from y7edge.export.proof.reference import Reference
from y7edge.export.targets import registry as targets
from y7edge.export.targets.base import BuildRequest, Target
from y7edge.files import atomic_write
from y7edge.models import shapes
from y7edge.models.weights import Checkpoint
from y7edge.runtimes import registry as runtimes
from y7edge.runtimes.base import require

Outputs = Literal["heads", "decoded"]
Size = int | tuple[int, int]
"""Of the input: one number for a square, or (height, width)."""

_UNKNOWN_DIGEST = "0" * 64  # until the target has written the payload


@dataclass(frozen=True)
class _Choice:
    """What was asked for, checked."""

    target: Target
    outputs: Outputs
    precision: Precision
    height: int
    width: int
    batch: Dim


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
    progress: Callable[[str], None] | None = None,
) -> Artifact:
    """Make an artifact from a checkpoint and prove that it is the same model.

    Args:
        checkpoint: of any form; training form is what training writes.
        out: the file to make. It appears only when everything has passed.
        target: what to build, a name of ``y7edge.export.targets.registry.names()``.
        outputs: "heads" (raw, per level) or "decoded" (boxes and scores).
        precision: "fp32" or "fp16".
        imgsz: of the input in pixels, multiples of the largest stride; None: as trained.
        batch: pictures at once.
        dynamic: leave the batch open; it is proved at 1 and 3.
        images: pictures for the proof; None: of the recorded data set, else made scenes.
        simplify: run onnx-simplifier, and keep its graph if the results are the same.
        device: that the proof runs on.
        progress: told what happens, one line each.

    Raises:
        ConfigError: an option or a combination that cannot be.
        RuntimeMissing: a package is not installed.
        ParityError: the artifact differs from the checkpoint, or nothing could be proved; the
            exception's ``report`` has the numbers.
        ExportError: any other reason why there is no artifact.
    """
    destination = Path(out)
    tell = progress or (lambda _: None)
    choice = _checked(checkpoint, destination, target, outputs, precision, imgsz, batch, dynamic)
    require(choice.target.NEEDS, f"target {target}")
    with tempfile.TemporaryDirectory(prefix="y7edge-export-") as folder:
        path = Path(folder) / f"artifact{choice.target.SUFFIX}"
        built, note = _build(checkpoint, choice, path, simplify, tell)
        reference = Reference(checkpoint)
        pictures = gather(images, checkpoint.meta, built.manifest.input)
        probed = _with_probes(built, reference, tell)
        report = parity.prove(probed, reference, pictures, device=device, progress=tell)
        parity.require_passed(report, f"nothing was written to {destination}: the artifact")
        record = replace(report, simplifier=note).to_dict()
        proved = replace(probed, manifest=replace(probed.manifest, parity=record))
        choice.target.write_manifest(proved)
        _move(proved.path, destination)
    tell(f"proved; written to {destination}")
    return Artifact(destination, proved.manifest)


def _move(proved: Path, destination: Path) -> None:
    """Copied and renamed: the two may lie on different disks."""
    try:
        with atomic_write(destination) as temporary:
            shutil.copyfile(proved, temporary)
    except OSError as error:
        raise ExportError(f"cannot write {destination}: {error.strerror or error}") from error


def _build(
    checkpoint: Checkpoint, choice: _Choice, path: Path, simplify: bool, tell: Callable[[str], None]
) -> tuple[Artifact, str]:
    """Fold, write the graph, build the target's file; also what became of the simplification."""
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
    tell(f"build the {choice.target.NAME} file")
    manifest = _draft(checkpoint, folded, choice)
    return choice.target.build(BuildRequest(model, folded.spec, manifest, path)), note


def _with_probes(built: Artifact, reference: Reference, tell: Callable[[str], None]) -> Artifact:
    tell("ask the reference model for the probes")
    deviation = runtimes.find(built.path).DEVIATION
    limits = parity.tolerance(built.manifest.precision, deviation)
    probes = make_probes(built.manifest, reference, limits.probe)
    return replace(built, manifest=replace(built.manifest, probes=probes))


def _checked(
    checkpoint: Checkpoint,
    destination: Path,
    target: str,
    outputs: str,
    precision: str,
    imgsz: Size | None,
    batch: int,
    dynamic: bool,
) -> _Choice:
    """The request with names resolved, or a ConfigError."""
    chosen = targets.get(target)
    if outputs not in get_args(Outputs):
        raise ConfigError(f"outputs is {outputs!r}, expected one of {', '.join(get_args(Outputs))}")
    if precision not in chosen.PRECISIONS:
        known = ", ".join(chosen.PRECISIONS)
        raise ConfigError(f"target {target} has no precision {precision!r}; choose from {known}")
    if destination.suffix.lower() != chosen.SUFFIX or destination.is_dir():
        raise ConfigError(f"{destination} is no name for {target}: expected FILE{chosen.SUFFIX}")
    _require_writable(destination)
    if not 1 <= batch <= 1024:
        raise ConfigError(f"batch is {batch}, expected 1 to 1024, or dynamic=True")
    height, width = _size(checkpoint, imgsz)
    stride = checkpoint.spec.max_stride
    if min(height, width) < stride or height % stride or width % stride:
        raise ConfigError(
            f"imgsz is {height}x{width}, expected multiples of {stride}, the largest stride of "
            f"{checkpoint.spec.name}"
        )
    return _Choice(
        target=chosen,
        outputs=cast(Outputs, outputs),
        precision=cast(Precision, precision),
        height=height,
        width=width,
        batch="dynamic" if dynamic else batch,
    )


def _require_writable(destination: Path) -> None:
    """Now, and not when all is proved; nothing is made yet, so that a failure leaves nothing."""
    folder = next(path for path in destination.absolute().parents if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{destination} cannot be written: {folder} is no folder to write into")


def _size(checkpoint: Checkpoint, imgsz: Size | None) -> tuple[int, int]:
    """(height, width): what was asked for, else what the checkpoint was trained with."""
    trained: Any = checkpoint.meta.get("imgsz", checkpoint.spec.imgsz)
    size = trained if imgsz is None else imgsz
    pair = size if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, int) for side in pair):
        raise ConfigError(f"imgsz is {size}, expected one number or (height, width)")
    return pair[0], pair[1]


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
        tools={"y7edge": __version__, "numpy": np.__version__, **choice.target.versions()},
    )


def _outputs(
    image: InputInfo, levels: tuple[LevelInfo, ...], nc: int, choice: _Choice
) -> tuple[OutputInfo, ...]:
    """Outputs as ``graph.build_graph`` writes them."""
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
