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

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

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
    eps: float = 1e-3,
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
    eps: float = 1e-3,
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
