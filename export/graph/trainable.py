"""Read the nodes of a graph for ``y7edge.nn.quantized``, which trains the weights.

The names of the writer (``y7edge.export.graph.quantize``) say which weight a quantised constant
was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from y7edge.errors import ExportError
from y7edge.nn.quantized import Node, Rounding

_ROW = re.compile(r"/row\d+")


def nodes_of(model: onnx.ModelProto) -> tuple[Node, ...]:
    """Return the nodes of a float graph or of a QDQ graph, as torch computes them.

    A pair of QuantizeLinear and DequantizeLinear becomes one node. A constant with a
    DequantizeLinear is a weight, whose float values the module has.

    Args:
        model: a graph with the outputs "heads", without rewrites.

    Raises:
        ConfigError: the graph has an operator that torch does not compute here.
    """
    return _Reader(model).nodes()


class _Reader:
    """Read the nodes of a graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self._quantised: dict[str, Node] = {}  # output of a QuantizeLinear -> the rounding
        self._rounded: dict[str, Rounding] = {}  # output of a DequantizeLinear -> its values
        self._weights: dict[str, str] = {}  # output of the DequantizeLinear of a constant -> name

    def nodes(self) -> tuple[Node, ...]:
        """Return the nodes."""
        found = []
        for node in self._graph.node:
            if node.op_type == "QuantizeLinear":
                how = self._rounding(node)
                self._quantised[node.output[0]] = Node("Round", (node.input[0],), "", {}, (), how)
            elif node.op_type == "DequantizeLinear" and node.input[0] in self._arrays:
                self._weights[node.output[0]] = node.output[0].removesuffix("/dequantized")
            elif node.op_type == "DequantizeLinear":
                pair = self._quantised[node.input[0]]
                assert pair.rounding is not None
                self._rounded[node.output[0]] = pair.rounding
                found.append(Node("Round", pair.inputs, node.output[0], {}, (), pair.rounding))
            else:
                found.append(self._plain(node))
        return tuple(found)

    def _rounding(self, node: onnx.NodeProto) -> Rounding:
        scale, zero = (self._arrays[name] for name in node.input[1:])
        limits = np.iinfo(zero.dtype)
        group = node.input[1].removesuffix("/scale")
        return Rounding(group, float(scale), int(zero), int(limits.min), int(limits.max))

    def _plain(self, node: onnx.NodeProto) -> Node:
        """Return a node that is neither QuantizeLinear nor DequantizeLinear."""
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        inputs = tuple(n for n in node.input if n and n not in self._arrays)
        numbers: dict[str, Any] = {}
        weights: tuple[str, ...] = ()
        rounding = None
        match node.op_type:
            case "Conv":
                numbers = {"stride": given["strides"], "padding": _symmetric(given["pads"])}
                weights = tuple(self._weights.get(name, name) for name in node.input[1:])
                integer = node.input[1] in self._weights
                rounding = self._rounded[node.input[0]] if integer else None
                inputs = inputs[:1]
            case "MaxPool":
                numbers = {
                    "kernel_size": given["kernel_shape"],
                    "stride": given["strides"],
                    "padding": _symmetric(given["pads"]),
                }
            case "LeakyRelu":
                numbers = {"negative_slope": given["alpha"]}
            case "Resize":
                factors = self._arrays[node.input[2]].tolist()
                numbers = {"scale_factor": factors[2:]}
            case "Slice":
                start, _, _, steps = (self._arrays[name] for name in node.input[1:])
                numbers = {"starts": start.tolist(), "step": int(steps[0])}
        int32 = bool(weights) and node.input[2] in self._weights
        return Node(node.op_type, inputs, node.output[0], numbers, weights, rounding, int32)


def _symmetric(pads: list[int]) -> list[int]:
    """Return the padding of rows and columns, which torch has only for both ends."""
    half = len(pads) // 2
    if pads[:half] != pads[half:]:
        raise ExportError(f"the padding {pads} differs between both ends of a tensor")
    return list(pads[:half])


def weights_of(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """Return weights and biases of the convolutions of a float graph, by name."""
    arrays: Mapping[str, Any] = {t.name: t for t in model.graph.initializer}
    names = [n for node in model.graph.node if node.op_type == "Conv" for n in node.input[1:]]
    return {name: numpy_helper.to_array(arrays[name]) for name in names}


def compared(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the tensors that rows write; the heads are not included."""
    return tuple(n for node in model.graph.node for n in node.output if _ROW.fullmatch(n))
