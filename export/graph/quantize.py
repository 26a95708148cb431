"""Write a float graph as a QDQ graph: the same graph with quantised tensors and weights.

A QDQ graph has pairs of QuantizeLinear and DequantizeLinear. An engine that finds an operator
between them computes it in integers. Names of nodes and tensors stay as they are: the tensor
``/row5`` is quantised to ``/row5/quantized`` and dequantised to ``/row5/dequantized``.

Weights are quantised symmetrically to int8, with one scale for each output channel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from y7edge.errors import ConfigError, ExportError
from y7edge.export.graph.quantize_placement import REPEATING, Placement, Wiring, place
from y7edge.export.graph.quantize_ranges import Function, Histogram, choose

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Profile:
    """What an engine expects of a QDQ graph.

    Attributes:
        name: Name in ``--profile`` and in manifests: dtypes of activations and weights.
        dtype: Dtype of activations.
        symmetric: Whether zero points are 0.
        fused: Whether the tensors between a convolution and its activation stay in float.
        shared: Whether the tensors of a Concat, and of an Add, have one scale.
        int32_bias: Whether biases are quantised to int32; else they stay in float.
        opset: Opset of the graph; 16-bit QDQ nodes need 21.
    """

    name: str
    dtype: str
    symmetric: bool
    fused: bool
    shared: bool
    int32_bias: bool
    opset: int

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest quantised value of an activation."""
        info = np.iinfo(self.dtype)
        return (-info.max if self.symmetric else int(info.min)), int(info.max)

    @property
    def levels(self) -> int:
        """Number of quantised values."""
        low, high = self.limits
        return high - low + 1


PROFILES = {
    p.name: p
    for p in (
        Profile("u8s8", "uint8", False, False, False, True, 17),  # CPUs with VNNI, QNN, RKNN
        Profile("u8s8-fused", "uint8", False, True, False, True, 17),  # OpenVINO
        Profile("s8s8", "int8", True, True, True, False, 17),  # TensorRT
        Profile("u16s8", "uint16", False, False, False, True, 21),  # NPUs with 16-bit activations
    )
}
"""All profiles, by name."""

_IR_VERSIONS = {17: 8, 21: 10}
_WEIGHT_MAX = 127
_INT32_MAX = 2**31 - 1
_ZERO, _SCALE = "zero_point", "scale"
_LEAST = 1e-30  # a smaller scale, or product of scales, may be 0 in an engine
_EMPTY = 2.0**-30  # scale of a tensor of zeros: small, so that a Concat with it keeps its range


def profile_of(name: str) -> Profile:
    """Return the profile of this name; raise ConfigError if there is none."""
    if name not in PROFILES:
        raise ConfigError(f"no profile {name!r}; choose from {', '.join(PROFILES)}")
    return PROFILES[name]


def placement_of(model: onnx.ModelProto, profile: Profile, kept: Collection[str] = ()) -> Placement:
    """Return where a profile quantises a float graph; ``kept``: convolutions that stay in float."""
    return place(model, fused=profile.fused, shared=profile.shared, kept=kept)


def ranges_of(
    model: onnx.ModelProto,
    placement: Placement,
    profile: Profile,
    histograms: Mapping[str, Histogram],
    method: str,
) -> dict[str, tuple[float, float]]:
    """Choose the range of each group of tensors: it contains the ranges of all its tensors.

    A Concat, and an operator that selects values, write the values that they read: the range of
    their outputs is that of their inputs. A range of their own would clip a second time.

    Args:
        model: the float graph.
        placement: the groups.
        profile: number of quantised values, and whether ranges are symmetric.
        histograms: the values of the tensors.
        method: one of ``quantize_ranges.METHODS``.
    """
    wiring = Wiring(model)
    found: dict[str, tuple[float, float]] = {}
    for group, tensors in placement.groups().items():
        implied = implied_range(wiring, placement, tensors, profile, found)
        if implied is None:
            behind = _behind(wiring, placement, tensors)
            implied = union(
                choose(histograms[tensor], method, profile.levels, profile.symmetric, behind)
                for tensor in tensors
                if wiring.producer[tensor].op_type not in REPEATING
            )
        found[group] = implied
    return found


def implied_range(
    wiring: Wiring,
    placement: Placement,
    tensors: list[str],
    profile: Profile,
    ranges: Mapping[str, tuple[float, float]],
) -> tuple[float, float] | None:
    """Return the range of a group, if it follows from the graph and the ranges of other groups.

    Args:
        wiring: the float graph.
        placement: the groups.
        tensors: the tensors of the group.
        profile: the profile.
        ranges: the groups before this one.
    """
    writers = [wiring.producer[t].op_type for t in tensors if t in wiring.producer]
    if tensors[0] in wiring.inputs or writers[:1] == ["Div"]:  # pixels
        return -1.0 if profile.symmetric else 0.0, 1.0
    if len(tensors) == 1 and writers == ["Sigmoid"]:
        top = (profile.levels - 1) / profile.levels  # the step is a power of two
        return (-1.0, 1.0) if profile.symmetric else (0.0, top)
    if set(writers) <= REPEATING:
        read = wiring.sources(wiring.producer[tensors[0]])
        return union(ranges[placement.group[t]] for t in read if t in placement.group)
    return None


def union(ranges: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Return the smallest range that contains 0 and all of these."""
    lows, highs = zip((0.0, 0.0), *ranges, strict=True)
    return min(lows), max(highs)


def scale_of(profile: Profile, low: float, high: float) -> tuple[np.float32, int]:
    """Return scale and zero point for a range that contains 0."""
    least, most = profile.limits
    if profile.symmetric:
        scale, zero = max(-low, high) / most, 0
    else:
        scale = (high - low) / (most - least)
        zero = round(least - low / scale) if scale else 0
    return np.float32(scale if scale > _LEAST else _EMPTY), zero


def _behind(wiring: Wiring, placement: Placement, tensors: list[str]) -> Function | None:
    """Return the activation that follows a tensor, if nothing else reads the tensor.

    A sigmoid follows the logits that a graph returns.
    """
    if (
        len(tensors) == 1
        and tensors[0] in wiring.outputs
        and wiring.producer[tensors[0]].op_type == "Conv"
    ):
        return _sigmoid
    if len(tensors) > 1 or tensors[0] not in placement.activated:
        return None
    readers = wiring.readers[tensors[0]]
    kinds = {node.op_type for node in readers}
    if kinds == {"LeakyRelu"}:
        slope = next(a.f for a in readers[0].attribute if a.name == "alpha")
        return lambda x: np.where(x < 0, x * slope, x)
    if kinds == {"Sigmoid", "Mul"}:
        return lambda x: x * _sigmoid(x)
    if kinds == {"HardSwish"}:
        return lambda x: x * np.clip(x / 6 + 0.5, 0, 1)
    return None


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sigmoid; the exponential of large numbers would overflow."""
    return np.asarray(1 / (1 + np.exp(-np.maximum(x, -700))), np.float64)


def quantize(
    model: onnx.ModelProto,
    placement: Placement,
    ranges: Mapping[str, tuple[float, float]],
    profile: Profile,
) -> onnx.ModelProto:
    """Write the QDQ graph.

    Args:
        model: the float graph, fp32 with the outputs "heads" or "heads-sigmoid".
        placement: the quantised tensors.
        ranges: group -> smallest and largest value.
        profile: the profile.

    Raises:
        ExportError: a group has no range, or a range or a weight is not finite.
    """
    if missing := sorted(set(placement.group.values()) - ranges.keys()):
        raise ExportError(f"there is no range for {missing[0]}: calibrate the graph again")
    writer = _Writer(model, placement, profile)
    for group, (low, high) in ranges.items():
        writer.group(group, low, high)
    return writer.model()


class _Writer:
    """Write QDQ nodes between the nodes of a graph."""

    def __init__(self, model: onnx.ModelProto, placement: Placement, profile: Profile) -> None:
        self._source, self._placement, self._profile = model, placement, profile
        self._wiring = Wiring(model)
        self._arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self._nodes: list[onnx.NodeProto] = []
        self._made: dict[str, onnx.TensorProto] = {}
        self._scales: dict[str, np.float32] = {}

    def group(self, name: str, low: float, high: float) -> None:
        """Write scale and zero point of a group."""
        low, high = min(low, 0.0), max(high, 0.0)
        if not np.isfinite(high - low):
            raise ExportError(f"the range of {name} is {low:g} to {high:g}: export in fp32")
        self._scales[name], zero = scale_of(self._profile, low, high)
        self._constant(f"{name}/{_SCALE}", self._scales[name])
        self._constant(f"{name}/{_ZERO}", np.asarray(zero, self._profile.dtype))

    def model(self) -> onnx.ModelProto:
        """Return the QDQ graph."""
        for name in self._wiring.inputs:
            self._pair(name, name)
        for node in self._wiring.nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [self._read(name) for name in node.input]
            if node.op_type == "Conv":
                self._convolution(node, copy)
            elif node.op_type in ("Mul", "Max") and node.output[0] in self._placement.group:
                copy.input[:] = [self._scalar(name) for name in copy.input]
            self._nodes.append(copy)
            for index, name in enumerate(node.output):
                outside = name in self._wiring.outputs and name in self._placement.group
                copy.output[index] = f"{name}/float" if outside else name
                self._pair(name, copy.output[index])
        graph = self._source.graph
        made = helper.make_model(
            helper.make_graph(self._nodes, graph.name, graph.input, graph.output, self._kept()),
            producer_name=self._source.producer_name,
            producer_version=self._source.producer_version,
            ir_version=_IR_VERSIONS[self._profile.opset],
            opset_imports=[helper.make_opsetid("", self._profile.opset)],
        )
        onnx.checker.check_model(made, full_check=True)
        return made

    def _kept(self) -> list[onnx.TensorProto]:
        """Return the initializers that nodes still read."""
        used = {name for node in self._nodes for name in node.input}
        own = [t for t in self._source.graph.initializer if t.name not in self._made]
        return [t for t in (*own, *self._made.values()) if t.name in used]

    def _read(self, name: str) -> str:
        if name not in self._placement.group:
            return name
        return name if name in self._wiring.outputs else f"{name}/dequantized"

    def _pair(self, name: str, written: str) -> None:
        """Write QuantizeLinear and DequantizeLinear behind a tensor, if it is quantised."""
        group = self._placement.group.get(name)
        if group is None:
            return
        how = [f"{group}/{_SCALE}", f"{group}/{_ZERO}"]
        inner, outer = f"{name}/quantized", self._read(name)
        for op, source, target in (
            ("QuantizeLinear", written, inner),
            ("DequantizeLinear", inner, outer),
        ):
            node = helper.make_node(op, [source, *how], [target], name=f"{name}/{op}")
            self._nodes.append(node)

    def _constant(self, name: str, value: Any) -> str:
        self._made.setdefault(name, numpy_helper.from_array(np.asarray(value), name))
        return name

    def _scalar(self, name: str) -> str:
        """Quantise a constant that an activation reads; other names are returned as they are."""
        value = self._arrays.get(name)
        if value is None or value.size != 1:
            return name
        most = self._profile.limits[1]
        return self._dequantized(
            name, np.asarray(most, self._profile.dtype), np.abs(value.reshape(())) / most
        )

    def _dequantized(
        self, name: str, values: NDArray[Any], scale: NDArray[Any], axis: int | None = None
    ) -> str:
        """Write a quantised constant and its DequantizeLinear; return the name of the result."""
        result, inner = f"{name}/dequantized", f"{name}/quantized"
        if inner in self._made:
            return result
        scale = np.asarray(scale, np.float32)
        inputs = [
            self._constant(inner, values),
            self._constant(f"{name}/{_SCALE}", scale),
            self._constant(f"{name}/{_ZERO}", np.zeros(scale.shape, values.dtype)),
        ]
        more: dict[str, Any] = {} if axis is None else {"axis": axis}
        op = "DequantizeLinear"
        self._nodes.append(helper.make_node(op, inputs, [result], name=f"{name}/{op}", **more))
        return result

    def _convolution(self, node: onnx.NodeProto, copy: onnx.NodeProto) -> None:
        """Quantise weight and bias of a convolution, unless it stays in float."""
        if node.name not in self._placement.integer:
            return
        weight, bias = self._arrays[node.input[1]], self._arrays[node.input[2]]
        scale = weight_scales(weight)
        if self._profile.int32_bias:
            step = self._scales[self._placement.group[node.input[0]]]
            # The bias has the scale of the products: it must fit into int32, and not be 0.
            least = np.maximum(np.abs(bias.astype(np.float64)) / (0.9 * _INT32_MAX), _LEAST)
            scale = np.maximum(scale, least / float(step)).astype(np.float32)
            scales = scale * step
            rounded = np.rint(bias.astype(np.float64) / scales).astype(np.int32)
            copy.input[2] = self._dequantized(node.input[2], rounded, scales, axis=0)
        copy.input[1] = self._dequantized(node.input[1], rounded_weights(weight, scale), scale, 0)


def weight_scales(weight: Floats) -> Floats:
    """Return the scale of each output channel of a weight (O, I, H, W); 1 if it is all zeros."""
    largest = np.abs(weight).max(axis=(1, 2, 3))
    if not np.isfinite(largest).all():
        raise ExportError("a weight is not finite: export another checkpoint")
    scales = np.where(largest > _WEIGHT_MAX * _LEAST, largest / _WEIGHT_MAX, 1)
    return np.asarray(scales, np.float32)


def rounded_weights(weight: Floats, scale: Floats) -> NDArray[np.int8]:
    """Round a weight (O, I, H, W) to int8, with one scale for each output channel."""
    steps = np.rint(weight / scale[:, None, None, None])
    return np.asarray(np.clip(steps, -_WEIGHT_MAX, _WEIGHT_MAX), np.int8)
