"""Read the facts of a graph's nodes that the tables of chips limit: kernels, strides, shapes.

The values of weights are not needed: a graph of ``graph.build.build_structure`` has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import helper, numpy_helper

from y7edge.errors import ArtifactError, ExportError
from y7edge.files import is_file, is_folder, read_regular, reason
from y7edge.runtimes import handover

Values = tuple[float | str, ...]

WORDS = {
    "side": "longest side",
    "rank": "rank",
    "batch": "batch size",
    "inputs": "number of inputs",
    "constants": "number of constant inputs",
    "channels": "channels of the inputs",
    "out_channels": "channels of the output",
    "height": "height of the output",
    "width": "width of the output",
    "type": "type",
    "kernel": "kernel",
    "kernel_area": "kernel area",
    "stride": "stride",
    "stride_h": "vertical stride",
    "stride_w": "horizontal stride",
    "pad": "padding",
    "pad_1x1": "padding of a 1x1 kernel",
    "dilation": "dilation",
    "group": "groups",
    "ceil": "ceil_mode",
    "gap": "stride minus kernel",
    "slope": "slope",
    "axis": "axis",
    "mode": "mode",
    "coordinates": "coordinate mode",
    "rounding": "nearest mode",
    "axes": "number of resized axes",
    "scale": "factor",
    "uneven": "ratio of the two factors",
    "step": "step",
    "outputs": "number of outputs",
    "scales": "number of different scales of inputs and output",
}
"""Facts that tables may limit -> their names in messages."""

_CASTS = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast", "Identity"})
# What attributes and constants of wrong types and sizes raise.
_DAMAGED = (ExportError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
_LARGEST_FILE = (1 << 31) - 1  # bytes; a larger protobuf cannot be read
_LARGEST = 1 << 12  # bytes of an initializer that is read: constants of Resize, Slice and Mul


@dataclass(frozen=True)
class Node:
    """A node of a graph.

    Attributes:
        name: Name, or name of its first output.
        op: Operator; of another domain than ONNX's, with the domain.
        facts: Fact -> its values, all of which must be within a limit. Empty if the fact does not
            apply to this node; missing if it cannot be read from the graph.
        products: Multiplications of a convolution for one image, else 0.
        reads: Tensors that it reads.
        writes: Tensors that it writes.
    """

    name: str
    op: str
    facts: Mapping[str, Values]
    products: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True)
class Structure:
    """What an audit knows of a graph.

    Attributes:
        nodes: In the order of computation.
        opset: Version of the standard operators.
        shape: Of the first input; None for axes of unknown size.
        uint8: Whether the first input is uint8 NHWC instead of float32 NCHW.
        parameters: Number of weights.
    """

    nodes: tuple[Node, ...]
    opset: int
    shape: tuple[int | None, ...]
    uint8: bool
    parameters: int

    @property
    def input(self) -> dict[str, Values]:
        """The facts of the input: ``side`` and ``batch``, if they are known."""
        sides = self.shape[1:3] if self.uint8 else self.shape[2:4]
        found: dict[str, Values] = {}
        if sides and None not in sides:
            found["side"] = (max(float(n or 0) for n in sides),)
        if self.shape and self.shape[0] is not None:
            found["batch"] = (float(self.shape[0]),)
        return found


def load_structure(path: Path) -> Structure:
    """Return the facts of an ONNX file, or of the one in a hand-over folder.

    Raises:
        ArtifactError: the file cannot be read, or is not an ONNX model.
        ExportError: shapes cannot be inferred.
    """
    if is_folder(path) and is_file(path / handover.LISTING):
        path = path / handover.read_listing(path).model
    if path.suffix.lower() != ".onnx":
        raise ArtifactError(
            f"{path}: the audit reads ONNX graphs: give the .onnx artifact, the checkpoint, or the "
            "name of the variant"
        )
    try:
        model = onnx.ModelProto.FromString(read_regular(path, _LARGEST_FILE))
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {reason(error)}") from error
    except Exception as error:  # of several types, by version of protobuf
        raise ArtifactError(f"{path} is not an ONNX model: {reason(error)}") from error
    try:
        return read_structure(model)
    except _DAMAGED as error:
        raise ArtifactError(f"{path}: {reason(error)}") from error


def read_structure(model: onnx.ModelProto) -> Structure:
    """Return the facts of a graph. The values of large weights are not read.

    Raises:
        ExportError: shapes cannot be inferred, or the graph has no input.
    """
    for node in model.graph.node:
        for text in (node.name, node.op_type, node.domain, *node.input, *node.output):
            if not isinstance(text, str):  # protobuf gives bytes for text that is not UTF-8
                raise ExportError(f"a node has the name {text!r:.80}, which is not valid UTF-8")
    light = _without_weights(model)
    try:
        light = onnx.shape_inference.infer_shapes(light)
    except Exception as error:  # of several types, by version of onnx
        reason = " ".join(str(error).split())[:200]
        raise ExportError(f"the shapes of the graph cannot be inferred: {reason}") from error
    reader = _Reader(light)
    constants = {tensor.name for tensor in light.graph.initializer}
    images = [value for value in light.graph.input if value.name not in constants]
    if not images:
        raise ExportError("the graph has no input")
    opset = next((o.version for o in light.opset_import if o.domain in ("", "ai.onnx")), 0)
    return Structure(
        nodes=tuple(reader.node(node) for node in light.graph.node if node.op_type != "Constant"),
        opset=opset,
        shape=tuple(reader.shapes.get(images[0].name, ())),
        uint8=images[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8,
        parameters=sum(math.prod(t.dims) for t in light.graph.initializer if len(t.dims) > 0),
    )


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model without the values of its large initializers."""
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    for tensor in model.graph.initializer:
        copy = graph.initializer.add()
        if tensor.ByteSize() <= _LARGEST:
            copy.CopyFrom(tensor)
            continue
        copy.name, copy.data_type = tensor.name, tensor.data_type
        copy.dims.extend(tensor.dims)
        copy.data_location = onnx.TensorProto.EXTERNAL
    return light


class _Reader:
    """Read the facts of nodes from a model with inferred shapes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.HasField("t"):
                        self.constants[node.output[0]] = attribute.t
        self.types: dict[str, int] = {}
        self.shapes: dict[str, list[int | None]] = {}
        for name, tensor in self.constants.items():
            self.shapes[name], self.types[name] = list(tensor.dims), tensor.data_type
        for value in (*graph.input, *graph.output, *graph.value_info):
            kind = value.type.tensor_type
            self.types[value.name] = kind.elem_type
            if kind.HasField("shape"):
                self.shapes[value.name] = [
                    d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim
                ]

        # Constants, and what is computed from constants only, such as a dequantised weight.
        self.fixed = set(self.constants)
        for node in graph.node:
            if node.op_type in _CASTS and self.fixed.issuperset(filter(None, node.input)):
                self.fixed |= set(node.output)
        # Tensor -> its scale and zero point, if a DequantizeLinear writes or a QuantizeLinear
        # reads it.
        self.quantised: dict[str, tuple[float, ...]] = {}
        for node in graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                tensor = (node.output if node.op_type == "DequantizeLinear" else node.input)[0]
                values = [self.values(name) for name in node.input[1:3]]
                if all(found and len(found) == 1 for found in values):
                    self.quantised[tensor] = tuple(found[0] for found in values if found)

    def node(self, node: onnx.NodeProto) -> Node:
        """Return a node with its facts."""
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        facts: dict[str, Values | None] = self._general(node)
        if special := _SPECIAL.get(node.op_type):
            facts |= special(self, node, attributes)
        standard = node.domain in ("", "ai.onnx")
        return Node(
            name=node.name or (node.output[0] if node.output else node.op_type),
            op=node.op_type if standard else f"{node.domain}.{node.op_type}",
            facts={name: values for name, values in facts.items() if values is not None},
            products=self._products(node) if node.op_type == "Conv" else 0,
            reads=tuple(name for name in node.input if name),
            writes=tuple(node.output),
        )

    def shape(self, name: str) -> list[int | None] | None:
        """Return the shape of a tensor; None if even its rank is unknown."""
        return self.shapes.get(name)

    def values(self, name: str) -> list[float] | None:
        """Return the values of a small constant; None if they are not known."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
            return None
        return [float(v) for v in numpy_helper.to_array(tensor).reshape(-1)]

    def _general(self, node: onnx.NodeProto) -> dict[str, Values | None]:
        data = [name for name in node.input if name and name not in self.fixed]
        shapes = [self.shape(name) for name in (*data, *node.output[:1])]
        first = self.shape(node.output[0]) if node.output else None
        kind = self.types.get(node.output[0], 0) if node.output else 0
        known = [self.quantised.get(name) for name in (*data, *node.output[:1])]
        return {
            "rank": _all(None if s is None else len(s) for s in shapes),
            "batch": _all(s[0] if s else None for s in shapes if s is None or len(s) == 4),
            "inputs": (len(data),),
            "constants": (sum(name in self.fixed for name in node.input),),
            "outputs": (len(node.output),),
            "scales": () if None in known else (len(set(known)),),
            "channels": _all(s[1] if s else None for s in map(self.shape, data) if _planar(s)),
            "out_channels": _axis(first, 1),
            "height": _axis(first, 2),
            "width": _axis(first, 3),
            "type": (onnx.TensorProto.DataType.Name(kind).lower(),) if kind else None,
        }

    def _products(self, node: onnx.NodeProto) -> int:
        weight, out = self.shape(node.input[1]), self.shape(node.output[0])
        if weight is None or out is None or None in weight or None in out[1:]:
            return 0
        per_value = math.prod(n for n in weight[1:] if n)
        return per_value * math.prod(n for n in out[1:] if n)


def _planar(shape: Sequence[int | None] | None) -> bool:
    return shape is None or len(shape) == 4


def _all(values: Any) -> Values | None:
    """Return all values as a tuple; None if one of them is None."""
    found = tuple(values)
    return None if None in found else found


def _axis(shape: Sequence[int | None] | None, axis: int) -> Values | None:
    """Return the size of an axis of a map; empty if the tensor is not a map."""
    if shape is None:
        return None
    if len(shape) != 4:
        return ()
    return None if shape[axis] is None else (float(shape[axis] or 0),)


def _window(
    reader: _Reader, node: onnx.NodeProto, attributes: Mapping[str, Any]
) -> dict[str, Values | None]:
    """Return the facts of a convolution or pooling."""
    kernel: Sequence[int] | None = attributes.get("kernel_shape")
    weight = reader.shape(node.input[1]) if node.op_type == "Conv" else None
    if kernel is None and weight is not None and None not in weight:
        kernel = [int(n or 0) for n in weight[2:]]
    rank = len(kernel) if kernel else 2
    strides = attributes.get("strides") or [1] * rank
    pads = attributes.get("pads") or [0] * 2 * rank
    explicit = attributes.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    padding = tuple(map(float, pads)) if explicit else None
    return {
        "kernel": tuple(map(float, kernel)) if kernel else None,
        "kernel_area": (float(math.prod(kernel)),) if kernel else None,
        "stride": tuple(map(float, strides)),
        "stride_h": (float(strides[0]),),
        "stride_w": (float(strides[-1]),),
        "pad": padding,
        "pad_1x1": padding if kernel is not None and set(kernel) == {1} else (),
        "dilation": tuple(map(float, attributes.get("dilations") or [1])),
        "group": (float(attributes.get("group", 1)),),
        "ceil": (float(attributes.get("ceil_mode", 0)),),
        "gap": tuple(float(s - k) for s, k in zip(strides, kernel, strict=False))
        if kernel
        else None,
    }


def _resize(
    reader: _Reader, node: onnx.NodeProto, attributes: Mapping[str, Any]
) -> dict[str, Values | None]:
    before, after = reader.shape(node.input[0]), reader.shape(node.output[0])
    scales = reader.values(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if not scales and before and after and None not in (*before, *after):
        scales = [(b or 1) / (a or 1) for a, b in zip(before, after, strict=False)]
    spatial = scales[2:] if scales else None
    return {
        "mode": (_text(attributes, "mode", "nearest"),),
        "coordinates": (_text(attributes, "coordinate_transformation_mode", "half_pixel"),),
        "rounding": (_text(attributes, "nearest_mode", "round_prefer_floor"),),
        "axes": (float(sum(s != 1 for s in scales)),) if scales else None,
        "scale": tuple(s for s in scales if s != 1) if scales else None,
        "uneven": (max(spatial) / min(spatial),) if spatial and min(spatial) > 0 else None,
    }


def _text(attributes: Mapping[str, Any], name: str, default: str) -> str:
    value = attributes.get(name, default)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _slice(
    reader: _Reader, node: onnx.NodeProto, attributes: Mapping[str, Any]
) -> dict[str, Values | None]:
    if len(node.input) < 5 or not node.input[4]:
        return {"step": (1.0,)}
    steps = reader.values(node.input[4])
    return {"step": None if steps is None else tuple(steps)}


def _leaky(
    reader: _Reader, node: onnx.NodeProto, attributes: Mapping[str, Any]
) -> dict[str, Values | None]:
    return {"slope": (round(float(attributes.get("alpha", 0.01)), 7),)}


def _with_axis(
    reader: _Reader, node: onnx.NodeProto, attributes: Mapping[str, Any]
) -> dict[str, Values | None]:
    return {"axis": (float(attributes.get("axis", 0 if node.op_type == "Split" else 1)),)}


_SPECIAL: dict[
    str, Callable[[_Reader, onnx.NodeProto, Mapping[str, Any]], dict[str, Values | None]]
] = {
    "Conv": _window,
    "MaxPool": _window,
    "AveragePool": _window,
    "Resize": _resize,
    "Slice": _slice,
    "LeakyRelu": _leaky,
    "Concat": _with_axis,
    "Split": _with_axis,
}
