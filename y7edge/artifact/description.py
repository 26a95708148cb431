"""Make the manifest that describes a checkpoint, for an export or for evaluation in torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
Outputs = Literal["heads", "decoded", "nms"]
Size = int | tuple[int, int]
"""Input size: one number for a square, or (height, width)."""


def pair(size: Size) -> tuple[int, int]:
    """Convert a size to (height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@contextmanager
def _as_options() -> Iterator[None]:
    """Re-raise an ArtifactError of the block as ConfigError, because the user set the options."""
    try:
        yield
    except ArtifactError as error:
        raise ConfigError(f"the model cannot be described: {error}") from error


@_as_options()
def describe(
    checkpoint: Checkpoint,
    spec: Spec,
    imgsz: tuple[int, int],
    *,
    batch: Dim = "dynamic",
    outputs: Outputs = "heads",
    precision: Precision = "fp32",
    target: str = "checkpoint",
    opset: int | None = None,
    tools: Mapping[str, str],
) -> Manifest:
    """Return a manifest without probes and parity; its payload digest is the checkpoint's digest.

    ``spec``: the rows that are run, in the checkpoint's form or folded. ``imgsz``: the input size
    (height, width).

    Raises:
        ConfigError: the size is not a multiple of the largest stride, or size or batch is too
            large.
    """
    (height, width), stride = imgsz, spec.max_stride
    if any(side % stride or not stride <= side <= MAX_SIDE for side in imgsz):
        near = "x".join(
            str(stride * max(1, round(max(0, min(side, MAX_SIDE)) / stride))) for side in imgsz
        )
        raise ConfigError(
            f"imgsz is {height}x{width}, expected multiples of {stride}, the largest stride of "
            f"{spec.name}, up to {MAX_SIDE}: the nearest that fits is {near}"
        )
    shapes.require_affordable(spec, height, width, asked=True)
    image = InputInfo(INPUT, batch, *imgsz, levels=_levels(checkpoint.meta))
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
        described = tuple(
            OutputInfo(f"head{i}", "head", expected[f"head{i}"], level=i, dtype=dtype)
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
    """Return the data set's levels of 16-bit images from the checkpoint's ``meta``, if any."""
    data = meta.get("data")
    levels = data.get("levels") if isinstance(data, Mapping) else None
    if not isinstance(levels, list) or [type(level) for level in levels] != [int, int]:
        return None
    return levels[0], levels[1]
