"""Check a QDQ graph, also one of another program, against the rules of a profile.

The pairs of QuantizeLinear and DequantizeLinear are removed, and the rules of
``y7edge.export.graph.quantize_placement`` are applied to the float graph that is left. Every
difference between the two placements is a violation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from y7edge.export.graph.quantize import Profile, implied_range, placement_of, scale_of
from y7edge.export.graph.quantize_placement import Placement, Wiring

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_TOLERANCE = 1e-5  # of scales that must be equal; float32 has 6e-8
_WEIGHT, _BIAS = 1, 2  # inputs of a Conv


@dataclass(frozen=True)
class Numbers:
    """Scale and zero point of a quantised tensor or constant."""

    scale: NDArray[Any]
    zero: NDArray[Any]

    def close(self, other: Numbers) -> bool:
        """Whether both are equal, but for rounding."""
        return (
            self.scale.shape == other.scale.shape
            and self.zero.dtype == other.zero.dtype
            and np.allclose(self.scale, other.scale, _TOLERANCE, 0, equal_nan=True)
            and np.array_equal(self.zero, other.zero)
        )


@dataclass(frozen=True)
class Constant:
    """A quantised constant."""

    values: NDArray[Any]
    numbers: Numbers
    axis: int


@dataclass
class Parsed:
    """A QDQ graph, taken apart.

    Attributes:
        model: The float graph: without pairs, and constants have a name, but no values.
        tensors: Quantised tensor of the float graph -> its numbers.
        constants: Quantised constant of the float graph -> its values.
        problems: What a graph of pairs must not have.
    """

    model: onnx.ModelProto
    tensors: dict[str, Numbers] = field(default_factory=dict)
    constants: dict[str, Constant] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def violations(model: onnx.ModelProto, profile: Profile) -> list[str]:
    """Return what breaks the rules of a profile in a QDQ graph, one line each.

    The first line is often the cause of the others. The list is empty for graphs of this package.

    Args:
        model: a QDQ graph with the outputs "heads" or "heads-sigmoid". A convolution whose weight
            is in float counts as one that is to stay in float.
        profile: the profile.
    """
    if any(tensor.external_data for tensor in model.graph.initializer):
        return ["the graph has weights in other files; expected all in one file"]
    if model.functions or any(node.domain not in ("", "ai.onnx") for node in model.graph.node):
        return ["the graph has operators that are not those of ONNX"]
    try:
        onnx.checker.check_model(model, full_check=True)
        parsed = parse(model)
    # ValueError, TypeError: the values of a constant do not have its shape or dtype.
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        ValueError,
        TypeError,
    ) as error:
        return [f"the graph is not valid ONNX: {(str(error).splitlines() or [''])[0]}"]
    if parsed.problems:
        return parsed.problems
    wiring = Wiring(parsed.model)
    convolutions = wiring.convolutions
    for node in convolutions:
        if node.input[0] in wiring.constants:
            return [f"{node.name} reads a constant, expected a tensor"]
    kept = [c.name for c in convolutions if c.input[_WEIGHT] not in parsed.constants]
    if len(kept) == len(convolutions):
        return ["no convolution has quantised weights"]
    placement = placement_of(parsed.model, profile, kept)
    found = [
        *_misplaced(parsed, placement, wiring),
        *_wrong_numbers(parsed, profile),
        *_unequal(parsed, placement),
    ]
    if not found:  # these need all tensors to be quantised, and with valid numbers
        found += _wrong_ranges(parsed, placement, wiring, profile)
        for node in convolutions:
            if node.name in placement.integer:
                found += _wrong_weights(node, parsed, profile)
    return found


def parse(model: onnx.ModelProto) -> Parsed:
    """Remove all pairs of QuantizeLinear and DequantizeLinear from a graph."""
    parsed = Parsed(onnx.ModelProto())
    arrays = {t.name: t for t in model.graph.initializer}
    written = {name: node for node in model.graph.node for name in node.output}
    origin: dict[str, str] = {}  # dequantised tensor -> the float tensor
    read: dict[str, int] = {}  # integer tensor -> number of its readers
    graph = parsed.model.graph
    for node in model.graph.node:
        if node.op_type == _QUANTIZE:
            tensor = origin.get(node.input[0], node.input[0])
            if tensor in parsed.tensors:
                parsed.problems.append(f"{tensor} is quantised twice")
            elif numbers := _numbers(node, arrays):
                parsed.tensors[tensor] = numbers
            else:
                parsed.problems.append(f"{tensor} has no constant scale and zero point")
            read.setdefault(node.output[0], 0)
        elif node.op_type == _DEQUANTIZE:
            _dequantized(node, parsed, arrays, written, origin)
            read[node.input[0]] = read.get(node.input[0], 0) + 1
        else:
            copy = graph.node.add()
            copy.CopyFrom(node)
            copy.input[:] = [origin.get(name, name) for name in node.input]
    for name, count in read.items():
        writer = written.get(name)
        if writer is not None and writer.op_type == _QUANTIZE and count != 1:
            parsed.problems.append(f"{name} is read by {count} DequantizeLinear, expected one")
    _finish(model, parsed, origin)
    return parsed


def _dequantized(
    node: onnx.NodeProto,
    parsed: Parsed,
    arrays: dict[str, onnx.TensorProto],
    written: dict[str, onnx.NodeProto],
    origin: dict[str, str],
) -> None:
    """Record a DequantizeLinear: of a constant, or behind a QuantizeLinear."""
    source, result = node.input[0], node.output[0]
    numbers = _numbers(node, arrays)
    if numbers is None:
        parsed.problems.append(f"{result} has no constant scale and zero point")
    elif source in arrays:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        values = numpy_helper.to_array(arrays[source])
        parsed.constants[result] = Constant(values, numbers, axis)
    elif source in written and written[source].op_type == _QUANTIZE:
        quantize = written[source]
        if not numbers.close(_numbers(quantize, arrays) or numbers):
            parsed.problems.append(f"{source} is dequantised with another scale or zero point")
        origin[result] = origin.get(quantize.input[0], quantize.input[0])
    else:
        parsed.problems.append(f"{source} is dequantised, but no QuantizeLinear writes it")


def _numbers(node: onnx.NodeProto, arrays: dict[str, onnx.TensorProto]) -> Numbers | None:
    """Return scale and zero point of a node, if both are constants."""
    if len(node.input) < 3 or not all(name in arrays for name in node.input[1:3]):
        return None
    scale, zero = (numpy_helper.to_array(arrays[name]) for name in node.input[1:3])
    return Numbers(scale, zero)


def _finish(model: onnx.ModelProto, parsed: Parsed, origin: dict[str, str]) -> None:
    """Give the float graph its inputs, outputs, constants, and a name for each node."""
    graph, outputs = parsed.model.graph, {value.name for value in model.graph.output}
    # A quantised output has its name behind the pair; the float graph has no other tensor for it.
    renamed = {origin[name]: name for name in outputs if name in origin}
    taken: set[str] = set()
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
        if not node.name or node.name in taken:
            node.name = node.output[0]
        taken.add(node.name)
    parsed.tensors = {renamed.get(name, name): n for name, n in parsed.tensors.items()}
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    names = [*(t.name for t in model.graph.initializer), *parsed.constants]
    graph.initializer.extend(onnx.TensorProto(name=name) for name in names)


def _misplaced(parsed: Parsed, placement: Placement, wiring: Wiring) -> Iterator[str]:
    """Yield tensors that are not quantised but should be, and the reverse."""
    inside = set()  # tensors between a convolution and its activation
    for node in wiring.convolutions:
        nodes, end = wiring.activation(node)
        inside |= {node.output[0], *(n.output[0] for n in nodes)} - {end}
    for tensor in placement.group:
        if tensor not in parsed.tensors:
            yield f"{tensor} is not quantised"
    for tensor in parsed.tensors:
        if tensor in placement.group:
            continue
        if tensor in inside:
            why = "is between a convolution and its activation"
        elif tensor in wiring.outputs:
            why = "is an output that no convolution in integers writes"
        else:
            why = "is not read by a convolution in integers"
        yield f"{tensor} is quantised, but {why}"


def _wrong_numbers(parsed: Parsed, profile: Profile) -> Iterator[str]:
    """Yield tensors whose scale or zero point has another form than the profile's."""
    for tensor, numbers in parsed.tensors.items():
        scale, zero = numbers.scale, numbers.zero
        if scale.shape or zero.shape:
            yield f"{tensor} has {scale.size} scales, expected one"
        elif not (np.isfinite(scale) and scale > 0):
            yield f"{tensor} has the scale {float(scale):g}, expected a positive number"
        elif zero.dtype != profile.dtype:
            yield f"{tensor} is quantised to {zero.dtype}, expected {profile.dtype}"
        elif profile.symmetric and zero != 0:
            yield f"{tensor} has the zero point {int(zero)}, expected 0"


def _unequal(parsed: Parsed, placement: Placement) -> Iterator[str]:
    """Yield tensors that must have one scale and have two."""
    for first, *others in placement.groups().values():
        for other in others:
            if first not in parsed.tensors or other not in parsed.tensors:
                continue
            one, two = parsed.tensors[first], parsed.tensors[other]
            if not one.close(two):
                found = f"{_short(one)} and {_short(two)}"
                yield f"{first} and {other} must have one scale and zero point, found {found}"


def _short(numbers: Numbers) -> str:
    return f"{numbers.scale.reshape(-1)[0]:.6g} ({numbers.zero.reshape(-1)[0]})"


def _wrong_ranges(
    parsed: Parsed, placement: Placement, wiring: Wiring, profile: Profile
) -> Iterator[str]:
    """Yield tensors whose range follows from the graph, and that have another range."""
    least, most = profile.limits
    ranges: dict[str, tuple[float, float]] = {}
    for group, tensors in placement.groups().items():
        numbers = parsed.tensors[group]
        scale, zero = float(numbers.scale), int(numbers.zero)
        ranges[group] = (least - zero) * scale, (most - zero) * scale
        implied = implied_range(wiring, placement, tensors, profile, ranges)
        if implied is None:
            continue
        expected, at = scale_of(profile, *implied)
        # The rounding of zero points moves ranges by up to half a step.
        if abs(scale / expected - 1) > 1.5 / profile.levels or abs(zero - at) > 1:
            what = f"{_short(numbers)}, expected about {expected:.6g} ({at})"
            yield f"{group} has the scale and zero point {what}, because of what writes it"


def _wrong_weights(node: onnx.NodeProto, parsed: Parsed, profile: Profile) -> Iterator[str]:
    """Yield what is wrong with weight and bias of a convolution in integers."""
    weight = parsed.constants[node.input[_WEIGHT]]
    channels, scale = len(weight.values), weight.numbers.scale
    if weight.values.dtype != np.int8:
        yield f"the weights of {node.name} are {weight.values.dtype}, expected int8"
    elif scale.shape != (channels,) or weight.axis != 0:
        yield f"the weights of {node.name} have {scale.size} scales, expected {channels}"
    elif not (np.isfinite(scale) & (scale > 0)).all():
        yield f"the weights of {node.name} have a scale that is not a positive number"
    elif weight.numbers.zero.any():
        yield f"the weights of {node.name} have a zero point other than 0"
    elif len(node.input) > _BIAS:
        bias = parsed.constants.get(node.input[_BIAS])
        expected = scale * parsed.tensors[node.input[0]].scale
        if not profile.int32_bias:
            if bias is not None:
                yield f"the bias of {node.name} is quantised, expected float32"
        elif bias is None or bias.values.dtype != np.int32 or bias.numbers.zero.any():
            yield f"the bias of {node.name} is not quantised to int32 with zero point 0"
        elif bias.numbers.scale.shape != expected.shape or not np.allclose(
            bias.numbers.scale, expected, rtol=_TOLERANCE, atol=0
        ):
            yield f"the bias of {node.name} has other scales than its input times its weight"
