"""Blocks of a model as torch modules.

All blocks take and return float tensors (B, C, H, W). With ``plain=True``, blocks are in folded
form: convolutions with bias, without BatchNorm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from y7edge.models.shapes import POOLS, downc_members, sppcspc_members
from y7edge.models.spec import BN_EPS, BN_MOMENTUM, LEAKY_SLOPE, Activation

_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "silu": partial(nn.SiLU, inplace=True),
    "leaky_relu": partial(nn.LeakyReLU, LEAKY_SLOPE, inplace=True),
    "relu": partial(nn.ReLU, inplace=True),
    "hardswish": partial(nn.Hardswish, inplace=True),
}


def activation(kind: Activation) -> nn.Module:
    """Return the activation; LeakyReLU has the published slope."""
    return _ACTIVATIONS[kind]()


def is_activation(module: nn.Module) -> bool:
    """Return whether a module is one that ``activation`` returns."""
    return isinstance(module, nn.SiLU | nn.LeakyReLU | nn.ReLU | nn.Hardswish)


def batch_norm(width: int) -> nn.BatchNorm2d:
    """Return a BatchNorm with the published epsilon and momentum."""
    return nn.BatchNorm2d(width, eps=BN_EPS, momentum=BN_MOMENTUM)


class ConvNorm(nn.Module):
    """Convolution -> BatchNorm; padding keeps height and width at stride 1."""

    def __init__(
        self, cin: int, cout: int, kernel: int, stride: int, *, plain: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, padding=kernel // 2, bias=plain)
        self.bn = nn.Identity() if plain else batch_norm(cout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, cin, H, W) to (B, cout, H / stride, W / stride)."""
        return cast(Tensor, self.bn(self.conv(x)))


class ConvBlock(ConvNorm):
    """Convolution -> BatchNorm -> activation."""

    def __init__(
        self, cin: int, cout: int, kernel: int, stride: int, act: Activation, *, plain: bool = False
    ) -> None:
        super().__init__(cin, cout, kernel, stride, plain=plain)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, cin, H, W) to (B, cout, H / stride, W / stride)."""
        return cast(Tensor, self.act(super().forward(x)))


class RepConv(nn.Module):
    """RepVGG convolution in training form: the sum of 3x3, 1x1 and optional identity branches.

    "RepVGG: Making VGG-style ConvNets Great Again" (arXiv 2101.03697).
    ``y7edge.models.planning`` says where the identity branch is allowed.
    """

    def __init__(
        self, cin: int, cout: int, kernel: int, stride: int, act: Activation, *, identity: bool
    ) -> None:
        super().__init__()
        self.dense = ConvNorm(cin, cout, kernel, stride)
        self.pointwise = ConvNorm(cin, cout, 1, stride)
        self.identity = batch_norm(cin) if identity else None
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, cin, H, W) to (B, cout, H / stride, W / stride)."""
        total = self.dense(x) + self.pointwise(x)
        if self.identity is not None:
            total = total + self.identity(x)
        return cast(Tensor, self.act(total))


class DownC(nn.Module):
    """Halve height and width in two branches, and concatenate their outputs.

    The first branch is a 1x1 convolution, then a 3x3 convolution with stride 2. The second branch
    is a 2x2 max-pooling, then a 1x1 convolution.
    """

    def __init__(self, cin: int, cout: int, act: Activation, *, plain: bool = False) -> None:
        super().__init__()
        self.cv1, self.cv2, self.cv3 = (
            ConvBlock(source, out, kernel, stride, act, plain=plain)
            for source, out, kernel, stride in downc_members(cin, cout).values()
        )
        self.pool = nn.MaxPool2d(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, cout, H / 2, W / 2)."""
        return torch.cat((self.cv2(self.cv1(x)), self.cv3(self.pool(x))), dim=1)


class SPPCSPC(nn.Module):
    """Spatial pyramid pooling (windows 5, 9, 13) inside a cross-stage partial block."""

    def __init__(self, cin: int, cout: int, act: Activation, *, plain: bool = False) -> None:
        super().__init__()
        self.cv1, self.cv2, self.cv3, self.cv4, self.cv5, self.cv6, self.cv7 = (
            ConvBlock(source, out, kernel, 1, act, plain=plain)
            for source, out, kernel in sppcspc_members(cin, cout).values()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, cout, H, W)."""
        inner = self.cv4(self.cv3(self.cv1(x)))
        # Pooling with windows of 9 and 13 equals pooling two and three times with a window of 5.
        pools, window = [inner], POOLS[0]
        for _ in POOLS:
            pools.append(functional.max_pool2d(pools[-1], window, stride=1, padding=window // 2))
        inner = self.cv6(self.cv5(torch.cat(pools, dim=1)))
        return cast(Tensor, self.cv7(torch.cat((inner, self.cv2(x)), dim=1)))


class Reorg(nn.Module):
    """Space to depth: concatenate the maps of even and odd rows and columns along channels.

    Their order is (even rows, even columns), (odd, even), (even, odd), (odd, odd).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, 4 C, H / 2, W / 2)."""
        even, odd = x[..., ::2, :], x[..., 1::2, :]
        return torch.cat((even[..., ::2], odd[..., ::2], even[..., 1::2], odd[..., 1::2]), dim=1)


class Concat(nn.Module):
    """Concatenation along channels."""

    def forward(self, *maps: Tensor) -> Tensor:
        """Concatenate maps of equal height and width in the given order."""
        return torch.cat(maps, dim=1)


class Sum(nn.Module):
    """Sum of two maps."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Add two maps of equal shape."""
        return first + second
