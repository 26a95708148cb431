"""Run the nodes of a graph with torch, with the rounding of a quantised graph, and gradients.

A quantised tensor is rounded to the values that it can have in integers, and stays a float tensor.
The gradient of the rounding is 1 inside the range of the tensor and 0 outside of it (Jacob et al.
2018, arXiv 1712.05877, section 3). The scales of activations have gradients too (Esser et al. 2020,
arXiv 1902.08153, equation 3). Thus weights and ranges can be trained for the quantised graph.

The nodes are plain data. ``y7edge.export.qat`` reads them from the ONNX graph that the export
writes, so that both have the same quantised tensors and the same scales.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from y7edge.errors import ConfigError

OPERATORS = (
    *("Add", "Concat", "Conv", "HardSwish", "LeakyRelu", "MaxPool", "Mul", "Relu", "Resize"),
    *("Round", "Sigmoid", "Slice"),
)
"""Operators of ``Node``: those of ONNX, and ``Round``, which stands for a QDQ pair."""

_WEIGHT_MAX = 127
_BIAS_MAX = 0.9 * (2**31 - 1)
_LEAST = 1e-30  # as in the export


@dataclass(frozen=True)
class Rounding:
    """The values of a quantised tensor: ``scale * (n - zero)`` for n from ``low`` to ``high``.

    ``group``: name of the tensors that have this scale.
    """

    group: str
    scale: float
    zero: int
    low: int
    high: int


@dataclass(frozen=True)
class Node:
    """A node of a graph.

    Attributes:
        operator: One of ``OPERATORS``.
        inputs: Names of the tensors that it reads, without constants.
        output: Name of the tensor that it writes.
        numbers: Attributes and constant inputs, as arguments of the torch function.
        weights: Of a convolution: keys of weight and bias.
        rounding: Of ``Round``: the values of the output. Of a convolution in integers: those of its
            input.
        int32_bias: Whether the bias of a convolution in integers is an integer too.
    """

    operator: str
    inputs: tuple[str, ...]
    output: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[str, ...] = ()
    rounding: Rounding | None = None
    int32_bias: bool = False

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            raise ConfigError(
                f"operator {self.operator} of {self.output} cannot be trained, expected one of "
                f"{', '.join(OPERATORS)}"
            )


class _Round(torch.autograd.Function):
    """Round a tensor to multiples of a scale, with gradients of the tensor and of the scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        """Return the tensor, rounded to ``low * scale`` to ``high * scale``."""
        ctx.save_for_backward(x, scale)
        ctx.limits = low, high
        return torch.div(x, scale).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return the gradients of the tensor and of the scale."""
        (gradient,), (x, scale), (low, high) = gradients, ctx.saved_tensors, ctx.limits
        steps = torch.div(x, scale)
        inside = (steps >= low) & (steps <= high)
        change = steps.round().clamp_(low, high)
        change -= steps.mul_(inside)
        return gradient * inside, (gradient * change).sum().reshape(scale.shape), None, None


class QuantizedGraph(nn.Module):
    """A graph of float or quantised operators, whose weights and ranges can be trained."""

    def __init__(
        self,
        nodes: Sequence[Node],
        image: str,
        outputs: Sequence[str],
        weights: Mapping[str, NDArray[np.float32]],
        learned: Collection[str] = (),
        implied: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        """Copy the weights.

        Args:
            nodes: the nodes, in the order of computation.
            image: name of the input, (B, 3, H, W) float32, RGB, 0 to 1.
            outputs: names of the heads, finest level first.
            weights: weights and biases of the convolutions, by key.
            learned: groups of tensors whose scale is trained too.
            implied: group -> the groups whose values it contains, so that its range is the union of
                theirs, such as the output of a Concat.
        """
        super().__init__()
        self.nodes, self._image, self._outputs = tuple(nodes), image, tuple(outputs)
        self._index = {key: index for index, key in enumerate(weights)}
        self.weights = nn.ParameterList(torch.tensor(value) for value in weights.values())
        # A scale is trained by the logarithm of its factor, so that it stays positive.
        self._factor = {group: index for index, group in enumerate(learned)}
        self.factors = nn.ParameterList(torch.zeros(()) for _ in self._factor)
        self._implied = dict(implied or {})
        rounded = (node.rounding for node in self.nodes if node.rounding is not None)
        self._roundings = {how.group: how for how in rounded}
        self._last = {name: i for i, node in enumerate(self.nodes) for name in node.inputs}

    def float_twin(self, nodes: Sequence[Node]) -> QuantizedGraph:
        """Return a graph of the nodes ``nodes``, which uses the same weights as this one."""
        twin = QuantizedGraph(nodes, self._image, self._outputs, {})
        twin._index, twin.weights = self._index, self.weights
        return twin

    def forward(self, images: Tensor, observed: Collection[str] = ()) -> dict[str, Tensor]:
        """Return the heads, each (B, A * (5 + nc), H, W), and the tensors ``observed``, by name."""
        asked = {*self._outputs, *observed}
        tensors = {self._image: images}
        for index, node in enumerate(self.nodes):
            tensors[node.output] = self.compute(node, [tensors[name] for name in node.inputs])
            for name in node.inputs:
                if self._last[name] == index and name not in asked:
                    tensors.pop(name, None)
        return {name: tensors[name] for name in (*self._outputs, *observed)}

    def heads(self, images: Tensor) -> list[Tensor]:
        """Return the heads, each (B, A * (5 + nc), H, W), as ``Model.heads`` does."""
        return list(self(images).values())

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return copies of weights and biases by key."""
        values = (p.detach().cpu().numpy().copy() for p in self.weights)
        return dict(zip(self._index, values, strict=True))

    def scales(self) -> dict[str, float]:
        """Return the scale of each group of quantised tensors; all are float32."""
        return {group: float(self._scale(group)[0].detach()) for group in self._roundings}

    def _scale(self, group: str) -> tuple[Tensor, int]:
        """Return the scale of a group, a scalar, and its zero point."""
        how = self._roundings[group]
        if sources := [name for name in self._implied.get(group, ()) if name in self._roundings]:
            return self._union(how, sources)
        start = torch.tensor(how.scale, device=self.weights[0].device)
        if group not in self._factor:
            return start, how.zero
        factor: Tensor = self.factors[self._factor[group]].exp()
        return start * factor, how.zero

    def _union(self, how: Rounding, sources: Sequence[str]) -> tuple[Tensor, int]:
        """Return scale and zero point of the smallest range that contains those of ``sources``."""
        found = [self._scale(name) for name in sources]
        if how.low < 0:  # symmetric
            return torch.stack([scale for scale, _ in found]).max(), 0
        # In float64, as the export computes them; the gradient is that of the outermost ranges.
        exact = [(float(scale.detach()), scale, zero) for scale, zero in found]
        least = min(exact, key=lambda end: (how.low - end[2]) * end[0])
        most = max(exact, key=lambda end: (how.high - end[2]) * end[0])
        bottom, top = (how.low - least[2]) * least[0], (how.high - most[2]) * most[0]
        low, high = (how.low - least[2]) * least[1], (how.high - most[2]) * most[1]
        step = (top - bottom) / (how.high - how.low)
        scale = (high - low) / (how.high - how.low)
        scale = scale + (torch.full_like(scale, step) - scale).detach()
        return scale, round(how.low - bottom / step)

    def _rounded(self, x: Tensor, how: Rounding) -> Tensor:
        scale, zero = self._scale(how.group)
        made: Tensor = _Round.apply(x, scale, how.low - zero, how.high - zero)  # type: ignore[no-untyped-call]
        return made

    def compute(self, node: Node, inputs: list[Tensor]) -> Tensor:
        """Return the output of a node for these inputs."""
        x, numbers = inputs[0], node.numbers
        match node.operator:
            case "Conv":
                weight, bias = self._weights(node)
                return functional.conv2d(x, weight, bias, **numbers)
            case "Round":
                assert node.rounding is not None
                return self._rounded(x, node.rounding)
            case "LeakyRelu":
                return functional.leaky_relu(x, **numbers)
            case "Relu":
                return torch.relu(x)
            case "HardSwish":
                return functional.hardswish(x)
            case "Sigmoid":
                return torch.sigmoid(x)
            case "Mul":
                return x * inputs[1]
            case "Add":
                return x + inputs[1]
            case "Concat":
                return torch.cat(inputs, 1)
            case "MaxPool":
                pooled: Tensor = functional.max_pool2d(x, **numbers)
                return pooled
            case "Resize":
                return functional.interpolate(x, mode="nearest", **numbers)
            case _:  # Slice
                (top, left), step = numbers["starts"], numbers["step"]
                return x[:, :, top::step, left::step]

    def _weights(self, node: Node) -> tuple[Tensor, Tensor]:
        """Return weight and bias of a convolution, rounded as the export rounds them."""
        weight, bias = (self.weights[self._index[key]] for key in node.weights)
        if node.rounding is None:
            return weight, bias
        largest = weight.detach().abs().amax((1, 2, 3))
        empty = largest <= _WEIGHT_MAX * _LEAST
        scale = torch.where(empty, torch.ones_like(largest), largest / _WEIGHT_MAX)
        if node.int32_bias:
            step = self._scale(node.rounding.group)[0].detach()
            least = (bias.detach().abs() / _BIAS_MAX).clamp(min=_LEAST)
            scale = torch.maximum(scale, least / step)
            steps = scale * step
            bias = bias + (torch.round(bias / steps) * steps - bias).detach()
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        weight = torch.fake_quantize_per_channel_affine(
            weight, scale, zeros, 0, -_WEIGHT_MAX, _WEIGHT_MAX
        )
        return weight, bias
