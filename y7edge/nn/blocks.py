"""Building blocks as torch modules; one class for each kind of row that has weights.

All take and give float tensors (B, C, H, W). A block built with ``plain=True`` is the folded form:
convolutions with bias, no BatchNorm, no parallel branches.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from y7edge.models.shapes import POOLS, downc_members, sppcspc_members
from y7edge.models.spec import BN_EPS, BN_MOMENTUM, LEAKY_SLOPE, Activation


def activation(kind: Activation) -> nn.Module:
    """SiLU, or LeakyReLU with the published slope."""
    return nn.SiLU(inplace=True) if kind == "silu" else nn.LeakyReLU(LEAKY_SLOPE, inplace=True)


def batch_norm(width: int) -> nn.BatchNorm2d:
    """BatchNorm with the published epsilon and momentum."""
    return nn.BatchNorm2d(width, eps=BN_EPS, momentum=BN_MOMENTUM)


class ConvNorm(nn.Module):
    """Convolution -> BatchNorm, without activation: one branch of a RepConv."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            cin, cout, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.bn = batch_norm(cout)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised map, (B, cout, H / stride, W / stride)."""
        return cast(Tensor, self.bn(self.conv(x)))


class ConvBlock(nn.Module):
    """Convolution -> BatchNorm -> activation; padding keeps the map's size at stride 1."""

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int,
        stride: int,
        act: Activation,
        *,
        groups: int = 1,
        plain: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            cin, cout, kernel, stride, padding=kernel // 2, groups=groups, bias=plain
        )
        if not plain:
            self.bn = batch_norm(cout)
        self.act = activation(act)
        self._plain = plain

    def forward(self, x: Tensor) -> Tensor:
        """Activated map, (B, cout, H / stride, W / stride)."""
        x = self.conv(x)
        return cast(Tensor, self.act(x if self._plain else self.bn(x)))


class RepConv(nn.Module):
    """Re-parameterised convolution in training form: 3x3, 1x1 and, if planned, identity, summed.

    "RepVGG: Making VGG-style ConvNets great again" (arXiv 2101.03697); where the identity branch
    may stand is the YOLOv7 paper's plan (:mod:`y7edge.models.planning`).
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int,
        stride: int,
        act: Activation,
        *,
        groups: int = 1,
        identity: bool = False,
    ) -> None:
        super().__init__()
        self.dense = ConvNorm(cin, cout, kernel, stride, groups)
        self.pointwise = ConvNorm(cin, cout, 1, stride, groups)
        self.identity = batch_norm(cin) if identity else None
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """Activated sum of the branches, (B, cout, H / stride, W / stride)."""
        total = self.dense(x) + self.pointwise(x)
        if self.identity is not None:
            total = total + self.identity(x)
        return cast(Tensor, self.act(total))


class DownC(nn.Module):
    """Halve a map by two branches: 1x1 -> 3x3 stride 2, and max-pool -> 1x1; concatenated."""

    def __init__(self, cin: int, cout: int, act: Activation, *, plain: bool = False) -> None:
        super().__init__()
        self.cv1, self.cv2, self.cv3 = (
            ConvBlock(source, out, kernel, stride, act, plain=plain)
            for source, out, kernel, stride in downc_members(cin, cout).values()
        )
        self.pool = nn.MaxPool2d(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, cout, H / 2, W / 2)."""
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
        """(B, C, H, W) to (B, cout, H, W)."""
        inner = self.cv4(self.cv3(self.cv1(x)))
        # The windows of 9 and 13 are that of 5 applied twice and three times: same maxima.
        pools = [inner]
        for _ in POOLS:
            pools.append(
                functional.max_pool2d(pools[-1], POOLS[0], stride=1, padding=POOLS[0] // 2)
            )
        inner = self.cv6(self.cv5(torch.cat(pools, dim=1)))
        return cast(Tensor, self.cv7(torch.cat((inner, self.cv2(x)), dim=1)))


class Reorg(nn.Module):
    """Space to depth: groups (even row, even column), (odd, even), (even, odd), (odd, odd)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 4 C, H / 2, W / 2)."""
        even, odd = x[..., ::2, :], x[..., 1::2, :]
        return torch.cat((even[..., ::2], odd[..., ::2], even[..., 1::2], odd[..., 1::2]), dim=1)


class Concat(nn.Module):
    """Concatenation along channels."""

    def forward(self, *maps: Tensor) -> Tensor:
        """Maps of one size, joined in the order given."""
        return torch.cat(maps, dim=1)


class Sum(nn.Module):
    """Sum of two maps."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Maps of one shape, added."""
        return first + second
