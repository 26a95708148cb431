"""Fold a trained model into plain convolutions, and measure the deviation.

Folding is exact except for rounding, and is computed in float64. Three parts are merged into the
weights and biases of convolutions:

* **BatchNorm**, which scales and shifts each output channel of a convolution without bias (Jacob et
  al. 2018, arXiv 1712.05877, section 3.2).
* **RepConv**, the sum of a 3x3, a 1x1 and an identity branch, each with its own BatchNorm. The
  branches become one 3x3 convolution (Ding et al. 2021, RepVGG, arXiv 2101.03697).
* **Implicit knowledge**: a vector is added to the input of the head's 1x1 convolution, and a second
  vector multiplies the output of the convolution (Wang et al. 2021, YOLOR, arXiv 2105.04206).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from y7edge.models.registry import folded, kept_rows
from y7edge.models.shapes import ConvInfo, convolutions, is_buffer, weight_shapes
from y7edge.models.spec import BN_EPS, Row
from y7edge.models.weights import Checkpoint

if TYPE_CHECKING:
    import torch

    from y7edge.nn.build import Model

LOG = logging.getLogger(__name__)
TOLERANCES = {"float32": 1e-4, "float64": 1e-9}  # largest accepted deviation (see FoldReport)

Arrays = Mapping[str, npt.NDArray[Any]]
Float64 = npt.NDArray[np.float64]


class BatchNorm(NamedTuple):
    """The arrays of a BatchNorm, each of shape (channels,)."""

    weight: npt.NDArray[Any]
    bias: npt.NDArray[Any]
    running_mean: npt.NDArray[Any]
    running_var: npt.NDArray[Any]


class Convolution(NamedTuple):
    """A convolution's kernel (cout, cin / groups, k, k) and bias (cout,), float64."""

    weight: Float64
    bias: Float64


def fold_conv_bn(weight: npt.NDArray[Any], norm: BatchNorm) -> Convolution:
    """Fold a BatchNorm into the convolution before it, which has no bias.

    The result is exact at the image borders too, because the padding comes before both operations.

    Args:
        weight: kernel (cout, cin / groups, k, k).
        norm: the BatchNorm of the cout output channels.
    """
    gamma, beta, mean, variance = (np.asarray(part, np.float64) for part in norm)
    scale = gamma / np.sqrt(variance + BN_EPS)
    kernel = np.asarray(weight, np.float64) * scale[:, None, None, None]
    return Convolution(kernel, beta - scale * mean)


def identity_kernel(channels: int, per_group: int) -> Float64:
    """Return a 3x3 kernel that copies its input, (channels, per_group, 3, 3) float64.

    ``per_group`` is the number of input channels per group. Output channel c copies input channel
    c, which has the index ``c % per_group`` within its group. The published code uses
    ``c % channels``, which is wrong for more than one group.
    """
    kernel = np.zeros((channels, per_group, 3, 3))
    index = np.arange(channels)
    kernel[index, index % per_group, 1, 1] = 1.0
    return kernel


def fold_repconv(
    dense: tuple[npt.NDArray[Any], BatchNorm],
    pointwise: tuple[npt.NDArray[Any], BatchNorm],
    identity: BatchNorm | None = None,
) -> Convolution:
    """Fold the parallel branches of a RepConv into one 3x3 convolution.

    Args:
        dense: 3x3 kernel (cout, cin / groups, 3, 3) and its BatchNorm.
        pointwise: 1x1 kernel (cout, cin / groups, 1, 1) and its BatchNorm.
        identity: BatchNorm of the identity branch; None: there is no such branch.
    """
    centred = np.pad(pointwise[0], [(0, 0), (0, 0), (1, 1), (1, 1)])
    branches = [fold_conv_bn(*dense), fold_conv_bn(centred, pointwise[1])]
    if identity is not None:
        branches.append(fold_conv_bn(identity_kernel(*dense[0].shape[:2]), identity))
    weights, biases = zip(*branches, strict=True)
    return Convolution(np.sum(weights, axis=0), np.sum(biases, axis=0))


def fold_implicit(
    weight: npt.NDArray[Any],
    bias: npt.NDArray[Any],
    add: npt.NDArray[Any],
    multiply: npt.NDArray[Any],
) -> Convolution:
    """Fold implicit knowledge into a head, which computes ``multiply * (weight (x + add) + bias)``.

    This is exact because a 1x1 convolution has no padding. Zeros padded after the addition of
    ``add`` would change the result at the borders.

    Args:
        weight: kernel (cout, cin, 1, 1).
        bias: (cout,).
        add: vector added to the input, (1, cin, 1, 1) or (cin,).
        multiply: vector that the output is multiplied by, (1, cout, 1, 1) or (cout,).
    """
    kernel = np.asarray(weight, np.float64)
    scale = np.asarray(multiply, np.float64).reshape(-1)
    shift = kernel[:, :, 0, 0] @ np.asarray(add, np.float64).reshape(-1)
    shifted = np.asarray(bias, np.float64) + shift
    return Convolution(kernel * scale[:, None, None, None], scale * shifted)


def fold_checkpoint(checkpoint: Checkpoint, dtype: npt.DTypeLike = np.float32) -> Checkpoint:
    """Fold a checkpoint of any form into plain convolutions.

    BatchNorm, RepConv branches, implicit vectors, and auxiliary rows and heads are removed. The
    remaining rows are renumbered. ``meta["folded_from"]`` of the result records the digest and form
    of the given checkpoint. If the checkpoint is already folded, a warning is logged and only its
    dtype is converted.
    """
    if checkpoint.form == "folded":
        LOG.warning("%s is already folded", checkpoint.spec.name)
        if all(array.dtype == dtype for array in checkpoint.arrays.values()):
            return checkpoint
        same = {key: array.astype(dtype) for key, array in checkpoint.arrays.items()}
        return replace(checkpoint, arrays=same)
    spec = folded(checkpoint.spec)
    source = (*kept_rows(checkpoint.spec), checkpoint.spec.head.index)
    head = f"rows.{spec.head.index}"
    arrays: dict[str, npt.NDArray[Any]] = {}
    for info in convolutions(spec):
        row = checkpoint.spec.rows[source[info.row]]
        conv = _fold_one(checkpoint, row, info)
        arrays[f"{info.name}.weight"] = conv.weight.astype(dtype)
        arrays[f"{info.name}.bias"] = conv.bias.astype(dtype)
    anchors = checkpoint.arrays[f"rows.{checkpoint.spec.head.index}.anchors"]
    arrays[f"{head}.anchors"] = anchors.astype(dtype)
    ordered = {key: arrays[key] for key in weight_shapes(spec)}
    origin = {"digest": checkpoint.digest, "form": checkpoint.form}
    meta = {**checkpoint.meta, "folded_from": origin}
    return replace(checkpoint, spec=spec, arrays=ordered, meta=meta)


def _fold_one(checkpoint: Checkpoint, row: Row, info: ConvInfo) -> Convolution:
    """Compute the folded convolution ``info`` from ``row`` of the unfolded checkpoint."""
    arrays = checkpoint.arrays
    prefix = f"rows.{row.index}"
    if row.block == "repconv":
        return fold_repconv(
            (arrays[f"{prefix}.dense.conv.weight"], _norm(arrays, f"{prefix}.dense.bn")),
            (arrays[f"{prefix}.pointwise.conv.weight"], _norm(arrays, f"{prefix}.pointwise.bn")),
            _norm(arrays, f"{prefix}.identity") if row.identity else None,
        )
    name = prefix + info.name.removeprefix(f"rows.{info.row}")
    weight = arrays[f"{name}.weight"]
    if row.block != "head":
        return fold_conv_bn(weight, _norm(arrays, name.removesuffix("conv") + "bn"))
    bias = arrays[f"{name}.bias"]
    if not checkpoint.spec.implicit:
        return Convolution(weight.astype(np.float64), bias.astype(np.float64))
    level = name.rsplit(".", 1)[-1]
    return fold_implicit(
        weight, bias, arrays[f"{prefix}.add.{level}"], arrays[f"{prefix}.mul.{level}"]
    )


def _norm(arrays: Arrays, prefix: str) -> BatchNorm:
    return BatchNorm(*(arrays[f"{prefix}.{field}"] for field in BatchNorm._fields))


def fold(model: Model) -> Model:
    """Return a folded copy of a model, in evaluation mode, with the model's device and dtype.

    If the model is already folded, a warning is logged.
    """
    import torch

    from y7edge.nn.build import Model, to_checkpoint

    like = next(model.parameters())
    dtype = np.float64 if like.dtype == torch.float64 else np.float32
    checkpoint = fold_checkpoint(to_checkpoint(model), dtype)
    plain = Model(checkpoint.spec, allow_identity=True).to(device=like.device, dtype=like.dtype)
    plain.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in checkpoint.arrays.items()})
    return plain.eval()


def inventory(checkpoint: Checkpoint) -> dict[str, int]:
    """Return the number of parts of a model, by kind.

    ``parallel_branches`` are the convolutions and identity BatchNorms of RepConvs, ``implicit`` the
    vectors of the head, ``auxiliary`` the convolutions of auxiliary heads. These three and
    ``batch_norms`` are 0 in a folded model.
    """
    shapes = {key: array.shape for key, array in checkpoint.arrays.items()}
    kernels = [key for key, shape in shapes.items() if key.endswith(".weight") and len(shape) == 4]
    norms = [key for key in shapes if key.endswith(".running_mean")]
    branches = (".dense.conv.weight", ".pointwise.conv.weight", ".identity.running_mean")
    return {
        "convolutions": len(kernels),
        "batch_norms": len(norms),
        "parallel_branches": sum(key.endswith(branches) for key in shapes),
        "implicit": sum(".add." in key or ".mul." in key for key in shapes),
        "auxiliary": sum(".aux." in key for key in kernels),
        "parameters": sum(int(np.prod(s)) for key, s in shapes.items() if not is_buffer(key)),
    }


@dataclass(frozen=True, slots=True)
class FoldReport:
    """Deviations of a folded model from the unfolded one.

    A deviation is the largest absolute difference of two tensors, divided by the largest magnitude
    of the unfolded model's tensor.

    Attributes:
        dtype: Arithmetic of the comparison, "float32" or "float64".
        heads: Deviation of each head, finest level first.
        layers: Row of the unfolded model -> deviation of its output. Empty if not measured.
    """

    dtype: str
    heads: tuple[float, ...]
    layers: Mapping[int, float]

    @property
    def deviation(self) -> float:
        """The largest deviation of a head; NaN if one of them is NaN."""
        return float(np.max(self.heads))

    @property
    def tolerance(self) -> float:
        """The largest accepted deviation, for rounding errors in this dtype."""
        return TOLERANCES[self.dtype]

    @property
    def passed(self) -> bool:
        """Whether the deviation is within the tolerance; False for NaN."""
        return self.deviation <= self.tolerance


def deviation(
    checkpoint: Checkpoint,
    images: npt.NDArray[np.float32],
    *,
    double: bool = False,
    by_layer: bool = False,
) -> FoldReport:
    """Fold a model, run both forms on the same images, and compare the outputs.

    Args:
        checkpoint: the model.
        images: (B, 3, H, W) float32, RGB, 0 to 1.
        double: run in float64, so that rounding does not hide errors of the folding.
        by_layer: also compare the output of every row.
    """
    import torch

    from y7edge.nn.build import from_checkpoint

    dtype = torch.float64 if double else torch.float32
    source = from_checkpoint(checkpoint).to(dtype)
    plain = fold(source)
    x = torch.from_numpy(np.ascontiguousarray(images)).to(dtype)
    heads, maps = _run(source, x, kept_rows(source.spec) if by_layer else ())
    plain_heads, plain_maps = _run(plain, x, range(len(plain.spec.rows) - 1) if by_layer else ())
    pairs = zip(maps.items(), plain_maps.values(), strict=True)
    return FoldReport(
        dtype=str(dtype).removeprefix("torch."),
        heads=tuple(map(_relative, heads, plain_heads)),
        layers={row: _relative(a, b) for (row, a), b in pairs},
    )


def row_outputs(
    checkpoint: Checkpoint, images: npt.NDArray[np.float32]
) -> dict[int, npt.NDArray[np.float32]]:
    """Run an unfolded model; return the outputs of all rows that remain after folding.

    ``images``: (B, 3, H, W) float32, RGB, 0 to 1. The keys are the indices of the rows in the
    folded model. The head is not included.
    """
    import torch

    from y7edge.nn.build import from_checkpoint

    model = from_checkpoint(checkpoint).eval()
    kept = kept_rows(model.spec)
    _, maps = _run(model, torch.from_numpy(np.ascontiguousarray(images)), kept)
    return {index: maps[row].numpy() for index, row in enumerate(kept)}


def _run(
    model: Model, images: torch.Tensor, rows: Sequence[int]
) -> tuple[list[torch.Tensor], dict[int, torch.Tensor]]:
    """Run a model; return its heads (without the auxiliary ones), and the outputs of ``rows``."""
    import torch

    maps: dict[int, torch.Tensor] = {}
    hooks = [
        model.rows[row].register_forward_hook(
            lambda _module, _inputs, output, row=row: maps.__setitem__(row, output)
        )
        for row in rows
    ]
    with torch.inference_mode():
        heads = model(images)
    for hook in hooks:
        hook.remove()
    return heads, {row: maps[row] for row in rows}


def _relative(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """Return the largest difference, divided by the largest magnitude of ``expected``."""
    largest = float(expected.abs().max())
    difference = float((actual - expected).abs().max())
    return difference / largest if largest else difference
