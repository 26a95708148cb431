"""Compare two models stage by stage; find the first stage that differs, and the cause.

The models are checkpoints (run by torch), artifacts of any target, or ONNX files of other
exporters. Two artifacts are compared without torch and onnx. The stages are the preprocessed input,
the head of each level, the decoded candidates, and the boxes that the Detector returns. Of graphs
with NMS, only the last stage is compared. The tolerance is that of the proof
(``y7edge.export.proof.parity.tolerance``), in the precision of the less precise model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from y7edge.artifact.description import Size
from y7edge.artifact.manifest import Manifest
from y7edge.artifact.reports import Cause, DiffReport, Side, Stage
from y7edge.artifact.schema import checked
from y7edge.data.images import read_image
from y7edge.data.synthetic import scenes
from y7edge.detect.opening import needs_torch, open_model
from y7edge.errors import ArtifactError, ConfigError, ManifestMissing
from y7edge.export.folding import TOLERANCES
from y7edge.export.proof import causes, parity, rows
from y7edge.export.proof.sides import (
    Frame,
    Limits,
    Opened,
    Outputs,
    compare_boxes,
    compare_candidates,
    compare_final,
    compare_heads,
    compare_inputs,
    prepared,
)
from y7edge.runtimes import registry
from y7edge.runtimes.base import SessionOptions


@checked
def diff(
    a: Path | str,
    b: Path | str,
    *,
    image: Path | str | None = None,
    layers: bool = False,
    imgsz: Size | None = None,
    names: Sequence[str] | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> DiffReport:
    """Compare two models on one image, stage by stage.

    Args:
        a: a checkpoint, an artifact, or a variant's name (random weights).
        b: the other model, given in the same way.
        image: the image; None: a synthetic scene whose proportions differ from the input's, so that
            the letterbox has a border.
        layers: also compare the output of each row. Both models must be ONNX artifacts or
            checkpoints; needs onnx.
        imgsz: input size of checkpoints, one side or (height, width). None: the input size of the
            artifact; for two checkpoints, the training size of ``a``. Artifacts must have this
            size.
        names: class names of files of other exporters.
        device: the device of both models.
        threads: number of engine threads; None: the engine's default.
        progress: called with one line for each step.

    Returns:
        The report. Its status is "equal", "close" (equal within the tolerance of the less precise
        model, but not within that of the more precise one), or "differs".

    Raises:
        ConfigError: an option is not supported, ``names`` was given, but no file of another
            exporter, or a precision has no tolerance.
        DataError: the image cannot be read, or a class id is not in ``names``.
        ArtifactError, DigestError, CheckpointError: a file cannot be used.
        RuntimeMissing, DeviceError: an engine cannot be used.
    """
    tell = progress or (lambda _: None)
    with ExitStack() as stack:
        options = SessionOptions(device, threads, check_payload=False)
        first, second = _open(a, b, imgsz, names, options)
        for side in (first, second):
            stack.callback(side.session.close)
        if layers:
            rows.require_rows(first, second)
        frame, source = _frame(image, first.manifest)
        limits = _limits(first, second)
        tell(f"compare the stages on {source}")
        stages, cause = _stages(first, second, frame, limits)
        compared: tuple[Stage, ...] = ()
        if layers and stages[0].measured:  # the inputs have the same size
            tell("compare the outputs of the rows")
            fed = prepared(frame, first.manifest.input), prepared(frame, second.manifest.input)
            compared = rows.compare_rows(first, second, fed, limits)
            if cause is None or cause.name in ("other checkpoint", "changed files", "unknown"):
                cause = rows.of_weights(first, second) or cause
        return _report(first, second, source, limits, stages, compared, cause)


def _open(
    a: Path | str,
    b: Path | str,
    imgsz: Size | None,
    names: Sequence[str] | None,
    options: SessionOptions,
) -> tuple[Opened, Opened]:
    """Open both models, artifacts first, because checkpoints are run at the artifact's size."""
    sources = [str(a), str(b)]
    foreign = [_is_foreign(source) for source in sources]
    if names is not None and not any(foreign):
        raise ConfigError(
            f"names were given, but {a} and {b} have their own: omit names (--names), which are "
            "for files of other exporters"
        )
    opened: dict[int, Opened] = {}
    size = imgsz
    with ExitStack() as stack:
        for index in sorted((0, 1), key=lambda i: needs_torch(sources[i])):
            wanted = size if needs_torch(sources[index]) else imgsz
            given = names if foreign[index] else None
            session, manifest = open_model(sources[index], "auto", options, wanted, given)
            stack.callback(session.close)
            opened[index] = Opened(sources[index], session, manifest)
            size = size or (manifest.input.height, manifest.input.width)
        stack.pop_all()
    return opened[0], opened[1]


def _is_foreign(source: str) -> bool:
    """Return whether a model is a file of another exporter; errors are left to its opening."""
    if needs_torch(source):
        return False
    try:
        registry.load(source)
    except ManifestMissing:
        return True
    except ArtifactError:
        return False
    return False


def _frame(image: Path | str | None, manifest: Manifest) -> tuple[Frame, str]:
    """Read the image (BGR), or make a scene with other proportions than the input."""
    if image is not None:
        return read_image(Path(image)), str(image)
    upright = manifest.input.height <= manifest.input.width
    size = (640, 480) if upright else (480, 640)
    return scenes.scene(0, size).image, f"a synthetic scene of {size[0]}x{size[1]} pixels"


def _limits(a: Opened, b: Opened) -> Limits:
    """Return the tolerances of the less precise model and of the other one."""
    both = []
    for side in (a, b):
        deviation = TOLERANCES["float32"]
        if not side.is_checkpoint:
            deviation = registry.find(side.path).DEVIATION
        both.append(parity.comparable(side.manifest.precision, deviation))
    strict, loose = sorted(both, key=lambda limits: limits.probe)
    return Limits(loose, strict)


def _stages(a: Opened, b: Opened, frame: Frame, limits: Limits) -> tuple[list[Stage], Cause | None]:
    """Compare all stages; find the cause of the first difference."""
    fed = prepared(frame, a.manifest.input), prepared(frame, b.manifest.input)
    stages = [compare_inputs(a, b, frame, fed)]
    if not stages[0].measured:
        return stages, causes.of_input(a, b, frame)
    outputs = a.run(fed[0]), b.run(fed[1])
    final = any(out.final for out in outputs)
    if final:
        stages += compare_final(a, b, frame, outputs, limits)
    else:
        stages += _computed(a, b, frame, outputs, limits)
    first = _first(stages)
    settings = causes.of_boxes(a, b, frame) if stages[-1].measured else None
    agrees = first is None or first.status == "close"
    if settings and (agrees or (first and first.name == "detections" and not final)):
        stages[-1] = replace(stages[-1], status="differs", at=settings.text)
        return stages, settings
    if first is None:
        return stages, None
    if first.name == "input":
        return stages, causes.of_input(a, b, frame) or _UNKNOWN
    case = causes.Case(a, b, frame, fed, outputs, limits, first.status == "close")
    cause = causes.of_outputs(case) or settings or causes.of_files(a, b) or _UNKNOWN
    if cause.name in _OF_VALUES and _declared(a.manifest) != _declared(b.manifest):
        # The manifests declare different input values, for which the graphs do not compensate.
        found = {"largest_difference": float(np.abs(fed[0] - fed[1]).max())}
        stages[0] = Stage("input", "differs", found, "the values that the network gets")
    return stages, cause


def _computed(
    a: Opened, b: Opened, frame: Frame, outputs: tuple[Outputs, Outputs], limits: Limits
) -> list[Stage]:
    """Compare heads, candidates, and the boxes after the NMS of the Detector."""
    stages = [*compare_heads(*outputs, limits), compare_candidates(*outputs, limits)]
    if all(out.finite for out in outputs) and stages[-1].measured:
        return [*stages, compare_boxes(a, b, frame, outputs[0].candidates, limits)]
    return [*stages, Stage("detections", "skipped", {}, "the candidates cannot be compared")]


_OF_VALUES = ("colour order", "scale")
_UNKNOWN = Cause(
    "unknown", "no test explains the difference; compare rows with --layers, or use another --image"
)


def _declared(manifest: Manifest) -> tuple[str, float]:
    return manifest.input.color, manifest.input.scale


def _first(stages: Sequence[Stage]) -> Stage | None:
    """Return the first stage that differs, or else the first that is only close."""
    for status in ("differs", "close"):
        for stage in stages:
            if stage.status == status:
                return stage
    return None


def _report(
    a: Opened,
    b: Opened,
    image: str,
    limits: Limits,
    stages: Sequence[Stage],
    compared: tuple[Stage, ...],
    cause: Cause | None,
) -> DiffReport:
    first, row = _first(stages), _first(compared)
    return DiffReport(
        status="equal" if first is None else "close" if first.status == "close" else "differs",
        a=_side(a),
        b=_side(b),
        image=image,
        tolerance=limits.loose,
        stages=tuple(stages),
        rows=compared,
        first=first.name if first else None,
        first_row=row.name if row else None,
        cause=cause,
    )


def _side(side: Opened) -> Side:
    manifest = side.manifest
    return Side(
        path=side.path,
        model=manifest.model,
        target=manifest.target,
        precision=manifest.precision,
        arithmetic=side.session.arithmetic,
        payload_digest=manifest.payload_digest,
        source_digest=manifest.source.digest,
    )
