"""Folding: a training model's weights turned into those of plain convolutions, and the proof of it.

Three identities, all exact but for rounding, and therefore computed in float64:

* **Batch normalisation** behind a bias-free convolution is a scale and a shift per output channel
  (Jacob et al. 2018, arXiv 1712.05877, section 3.2).
* **RepConv**: a 3x3, a 1x1 and an identity branch, each with its own batch normalisation, sum to
  one 3x3 convolution (Ding et al. 2021, RepVGG, arXiv 2101.03697).
* **Implicit knowledge**: a vector added before and one multiplied after the head's 1x1 convolution
  go into its weight and bias (Wang et al. 2021, YOLOR, arXiv 2105.04206).

The functions on arrays know nothing of models; ``fold_checkpoint`` applies them row by row and
drops what only training needs; ``fold`` gives the torch module. ``inventory`` and ``deviation``
show that nothing was left over and that nothing changed.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from y7edge.models.registry import folded, kept_rows
from y7edge.models.shapes import ConvInfo, convolutions, is_buffer, weight_shapes
from y7edge.models.spec import BN_EPS, Row, Spec
from y7edge.models.weights import Checkpoint

if TYPE_CHECKING:
    import torch

    from y7edge.nn.build import Model

LOG = logging.getLogger(__name__)
TOLERANCES = {"float32": 1e-4, "float64": 1e-9}  # of the largest magnitude

Arrays = Mapping[str, npt.NDArray[Any]]
Float64 = npt.NDArray[np.float64]


class BatchNorm(NamedTuple):
    """The four arrays of a batch normalisation, each of shape (channels,)."""

    weight: npt.NDArray[Any]
    bias: npt.NDArray[Any]
    running_mean: npt.NDArray[Any]
    running_var: npt.NDArray[Any]


class Convolution(NamedTuple):
    """A convolution's kernel (cout, cin / groups, k, k) and bias (cout,), in float64."""

    weight: Float64
    bias: Float64


def fold_conv_bn(
    weight: npt.NDArray[Any],
    norm: BatchNorm,
    bias: npt.NDArray[Any] | None = None,
    *,
    eps: float = BN_EPS,
) -> Convolution:
    """Fold a batch normalisation into the convolution in front of it.

    Exact at borders too, whatever the stride and the groups: the padding is applied before the
    convolution in either form.

    Args:
        weight: kernel of shape (cout, cin / groups, k, k).
        norm: statistics and affine part of the batch normalisation over cout channels.
        bias: the convolution's own bias of shape (cout,); None for a bias-free one.
        eps: what the batch normalisation adds to the variance.
    """
    gamma, beta, mean, variance = (np.asarray(part, np.float64) for part in norm)
    scale = gamma / np.sqrt(variance + eps)
    shift = -mean if bias is None else np.asarray(bias, np.float64) - mean
    kernel = np.asarray(weight, np.float64) * scale[:, None, None, None]
    return Convolution(kernel, beta + scale * shift)


def identity_kernel(channels: int, groups: int = 1, size: int = 3) -> Float64:
    """The kernel (channels, channels / groups, size, size) of a convolution that changes nothing.

    In a grouped convolution an output channel sees only its own group, so that its 1 stands at the
    input index *within* the group. The published fold places it at ``index % channels``, which is
    wrong as soon as groups > 1.
    """
    per_group = channels // groups
    kernel = np.zeros((channels, per_group, size, size))
    index = np.arange(channels)
    kernel[index, index % per_group, size // 2, size // 2] = 1.0
    return kernel


def fold_repconv(
    dense: tuple[npt.NDArray[Any], BatchNorm],
    pointwise: tuple[npt.NDArray[Any], BatchNorm],
    identity: BatchNorm | None = None,
    *,
    groups: int = 1,
    eps: float = BN_EPS,
) -> Convolution:
    """Fold the parallel branches of a RepConv into one 3x3 convolution.

    Args:
        dense: 3x3 kernel (cout, cin / groups, 3, 3) and its batch normalisation.
        pointwise: 1x1 kernel (cout, cin / groups, 1, 1) and its batch normalisation.
        identity: batch normalisation of the identity branch; None where there is none.
        groups: of the dense and the pointwise convolution.
        eps: of all the batch normalisations.
    """
    size = np.shape(dense[0])[-1]
    margin = size // 2
    centred = np.pad(pointwise[0], [(0, 0), (0, 0), (margin, margin), (margin, margin)])
    branches = [
        fold_conv_bn(dense[0], dense[1], eps=eps),
        fold_conv_bn(centred, pointwise[1], eps=eps),
    ]
    if identity is not None:
        channels = np.shape(dense[0])[0]
        kernel = identity_kernel(channels, groups, size)
        branches.append(fold_conv_bn(kernel, identity, eps=eps))
    weights, biases = zip(*branches, strict=True)
    return Convolution(np.sum(weights, axis=0), np.sum(biases, axis=0))


def fold_implicit(
    weight: npt.NDArray[Any],
    bias: npt.NDArray[Any],
    add: npt.NDArray[Any],
    multiply: npt.NDArray[Any],
) -> Convolution:
    """Fold implicit knowledge into a head: ``multiply * (weight (x + add) + bias)``.

    The added vector goes through the *unscaled* kernel, so that it is folded first. It is exact
    because the head is 1x1: with padding, the borders would not see the added vector.

    Args:
        weight: kernel (cout, cin, 1, 1).
        bias: of shape (cout,).
        add: added to the input, (1, cin, 1, 1) or (cin,).
        multiply: multiplied with the output, (1, cout, 1, 1) or (cout,).
    """
    kernel = np.asarray(weight, np.float64)
    scale = np.asarray(multiply, np.float64).reshape(-1)
    shifted = np.asarray(bias, np.float64) + kernel[:, :, 0, 0] @ np.asarray(
        add, np.float64
    ).reshape(-1)
    return Convolution(kernel * scale[:, None, None, None], scale * shifted)


def fold_checkpoint(checkpoint: Checkpoint, dtype: npt.DTypeLike = np.float32) -> Checkpoint:
    """Fold a training or deploy checkpoint into plain convolutions.

    Auxiliary rows and heads, batch normalisations, RepConv branches and implicit vectors are gone;
    rows behind dropped ones move up. ``meta["folded_from"]`` names the source. A folded checkpoint
    comes back as it is, and the log says so.

    Args:
        checkpoint: of any form; not changed.
        dtype: of the folded arrays. The arithmetic is float64 always.
    """
    if checkpoint.form == "folded":
        LOG.warning("%s is folded already: nothing to fold", checkpoint.spec.name)
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
    """The folded form of one convolution; ``row`` is where the source has it."""
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
    """The folded module: a new object in evaluation mode, ``model``'s device and dtype kept.

    ``model`` stays as it is. Folding a folded module gives an equal new one, and the log says so.
    """
    import torch

    from y7edge.nn.build import Model, to_checkpoint

    like = next(model.parameters())
    dtype = np.float64 if like.dtype == torch.float64 else np.float32
    checkpoint = fold_checkpoint(to_checkpoint(model), dtype)
    plain = Model(checkpoint.spec, allow_identity=True).to(device=like.device, dtype=like.dtype)
    plain.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in checkpoint.arrays.items()})
    return plain.eval()


def inventory(model: Spec | Checkpoint) -> dict[str, int]:
    """Count what a model is made of: of a spec by its rows, of a checkpoint by its arrays.

    ``parallel_branches`` are the convolutions and batch normalisations side by side in RepConvs;
    ``implicit`` the added and multiplied vectors of the head. After the fold, ``batch_norms``,
    ``parallel_branches``, ``implicit`` and ``auxiliary`` are 0.
    """
    shapes = (
        weight_shapes(model)
        if isinstance(model, Spec)
        else {key: array.shape for key, array in model.arrays.items()}
    )
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
    """How far a folded model is from the model that it came from, on given pictures.

    Deviations are largest absolute differences over the largest magnitude of the unfolded tensor:
    ``heads`` by level, ``layers`` by the unfolded model's row (empty unless asked for).
    """

    dtype: str
    heads: tuple[float, ...]
    layers: Mapping[int, float]
    already_folded: bool

    @property
    def deviation(self) -> float:
        """The largest of the heads'; NaN if any is."""
        return float(np.max(self.heads))

    @property
    def tolerance(self) -> float:
        """What rounding explains in this dtype."""
        return TOLERANCES[self.dtype]

    @property
    def passed(self) -> bool:
        """Whether rounding explains the deviation; never true of numbers that are not finite."""
        return self.deviation <= self.tolerance


def deviation(
    model: Checkpoint | Model,
    images: npt.NDArray[np.float32],
    *,
    double: bool = False,
    by_layer: bool = False,
) -> FoldReport:
    """Fold a model, run both forms on the same pictures and compare.

    Args:
        model: a checkpoint or a module in evaluation mode, of any form; not changed.
        images: (B, 3, H, W), RGB, 0 to 1.
        double: run both in float64, where only a mistake in the algebra remains visible.
        by_layer: compare the output of every row too.
    """
    import torch

    from y7edge.nn.build import from_checkpoint

    source = (
        from_checkpoint(model) if isinstance(model, Checkpoint) else copy.deepcopy(model).eval()
    )
    dtype = torch.float64 if double else torch.float32
    source = source.to(dtype)
    plain = fold(source)
    x = torch.from_numpy(np.ascontiguousarray(images)).to(next(plain.parameters()))
    heads, maps = _run(source, x, kept_rows(source.spec) if by_layer else ())
    plain_heads, plain_maps = _run(plain, x, range(len(plain.spec.rows) - 1) if by_layer else ())
    pairs = zip(maps.items(), plain_maps.values(), strict=True)
    return FoldReport(
        dtype=str(dtype).removeprefix("torch."),
        heads=tuple(_relative(a, b) for a, b in zip(heads, plain_heads, strict=True)),
        layers={row: _relative(a, b) for (row, a), b in pairs},
        already_folded=source.spec.form == "folded",
    )


def _run(
    model: Model, images: torch.Tensor, rows: Sequence[int]
) -> tuple[list[torch.Tensor], dict[int, torch.Tensor]]:
    """Raw lead heads, and the outputs of the given rows in order."""
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
    """Largest difference over the largest magnitude of ``expected``."""
    largest = float(expected.abs().max())
    difference = float((actual - expected).abs().max())
    return difference / largest if largest else difference
