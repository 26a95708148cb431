"""Create the manifest of a checkpoint, for an export or for evaluation in torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

from y7edge.artifact.bounds import MAX_SIDE
from y7edge.artifact.manifest import (
    THRESHOLD_INPUTS,
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
from y7edge.errors import ArtifactError, ConfigError
from y7edge.models import shapes
from y7edge.models.checkpoint import Checkpoint
from y7edge.models.spec import Spec

INPUT = "images"
Outputs = Literal["heads", "heads-sigmoid", "decoded", "nms"]
Input = Literal["float32", "uint8"]
Size = int | tuple[int, int]
"""Input size: one number for a square, or (height, width)."""


def pair(size: Size) -> tuple[int, int]:
    """Convert a size to (height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def kind_of_outputs(manifest: Manifest) -> Outputs:
    """Return the value of ``y7edge export --outputs`` that gives the outputs of a manifest."""
    first = manifest.outputs[0]
    if first.role != "head":
        return "nms" if first.role == "detections" else "decoded"
    return "heads-sigmoid" if first.activation == "sigmoid" else "heads"


@contextmanager
def _as_options() -> Iterator[None]:
    """Re-raise an ArtifactError as ConfigError, because invalid options cause it here."""
    try:
        yield
    except ArtifactError as error:
        raise ConfigError(f"the model cannot be described: {error}") from error


@_as_options()
def require_size(spec: Spec, imgsz: tuple[int, int]) -> None:
    """Raise ConfigError unless a model can have this input size (height, width)."""
    (height, width), stride = imgsz, spec.max_stride
    if any(side % stride or not stride <= side <= MAX_SIDE for side in imgsz):
        near = "x".join(
            str(stride * max(1, round(max(0, min(side, MAX_SIDE)) / stride))) for side in imgsz
        )
        raise ConfigError(
            f"imgsz is {height}x{width}, expected multiples of {stride} (the largest stride of "
            f"{spec.name}) up to {MAX_SIDE}: the nearest that fits is {near}"
        )
    shapes.require_affordable(spec, height, width, asked=True)


@_as_options()
def describe(
    checkpoint: Checkpoint,
    spec: Spec,
    imgsz: tuple[int, int],
    *,
    batch: Dim = "dynamic",
    outputs: Outputs = "heads",
    input: Input = "float32",
    precision: Precision = "fp32",
    target: str = "checkpoint",
    opset: int | None = None,
    tools: Mapping[str, str],
) -> Manifest:
    """Create a checkpoint's manifest, without probes and proof.

    The payload digest is the checkpoint's digest. ``spec``: the spec that is run, in the
    checkpoint's form or folded. ``imgsz``: input size (height, width). ``input``: "float32" has
    layout NCHW and values from 0 to 1; "uint8" has layout NHWC and values from 0 to 255.

    Raises:
        ConfigError: the size is not a multiple of the largest stride, or size or batch is too
            large.
    """
    require_size(spec, imgsz)
    image = InputInfo(INPUT, batch, *imgsz, levels=_levels(checkpoint.meta))
    if input == "uint8":
        image = replace(image, layout="NHWC", dtype="uint8", scale=1.0)
    levels = tuple(map(LevelInfo, spec.strides, spec.anchors))
    expected = expected_shapes(image, levels, spec.nc)
    if outputs == "decoded":
        described: tuple[OutputInfo, ...] = (
            OutputInfo("boxes", "boxes", expected["boxes"], layout="NWC", activation=None),
            OutputInfo("scores", "scores", expected["scores"], layout="NWC", activation=None),
        )
    elif outputs == "nms":
        shape = expected["detections"]
        described = (OutputInfo("detections", "detections", shape, layout="NC", activation=None),)
    else:
        dtype = "float16" if precision == "fp16" else "float32"
        head = OutputInfo("head0", "head", expected["head0"], 0, dtype)
        if outputs == "heads-sigmoid":
            head = replace(head, activation="sigmoid")
        described = tuple(
            replace(head, name=f"head{i}", shape=expected[f"head{i}"], level=i)
            for i in range(spec.levels)
        )
    licence = checkpoint.meta.get("licence")
    return Manifest(
        model=spec.name,
        nc=spec.nc,
        names=checkpoint.names,
        input=image,
        outputs=described,
        levels=levels,
        source=Source(
            digest=checkpoint.digest,
            form=checkpoint.form,
            parameters=shapes.parameters(spec),
            gflops=round(shapes.gflops(spec, *imgsz), 4),
        ),
        precision=precision,
        target=target,
        opset=opset,
        payload_digest=checkpoint.digest,
        thresholds=Thresholds.of_checkpoint(checkpoint.meta),
        licence=licence if isinstance(licence, str) else None,
        tools=tools,
        threshold_inputs=tuple(THRESHOLD_INPUTS) if outputs == "nms" else (),  # type: ignore[arg-type]
    )


def _levels(meta: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return ``InputInfo.levels`` from a checkpoint's ``meta``."""
    data = meta.get("data")
    levels = data.get("levels") if isinstance(data, Mapping) else None
    if not isinstance(levels, list) or [type(level) for level in levels] != [int, int]:
        return None
    return levels[0], levels[1]
