"""Replace the quantisation in a graph by ranges, for engines that do not support QDQ nodes.

TensorRT up to 10.7 quantises for a DLA by itself, with the range of each tensor. The scales of the
QDQ nodes give these ranges.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from y7edge.errors import ExportError

_INT8 = 127


def without_quantizers(model: bytes) -> tuple[bytes, dict[str, float]]:
    """Return the graph without QDQ nodes, and the range of each tensor that was quantised.

    A tensor with the range r was quantised to int8 with the scale r / 127, symmetrically. Quantised
    weights become float32 initializers with the same, rounded values.

    Args:
        model: an ONNX file, quantised symmetrically to int8, one scale for each activation.

    Raises:
        ExportError: an activation has several scales, or a scale is not stored in the file.
    """
    proto = onnx.load_from_string(model)
    graph = proto.graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {output.name for output in graph.output}
    same: dict[str, str] = {}  # tensor -> the tensor that replaces it
    ranges: dict[str, float] = {}
    kept = []
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            kept.append(node)
            continue
        source, target = node.input[0], node.output[0]
        scale = _scale(node, values)
        if source in values:
            weight = _weight(node, numpy_helper.to_array(values[source]), scale)
            values[target] = numpy_helper.from_array(weight, target)
            graph.initializer.append(values[target])
            continue
        if scale.size != 1:
            raise ExportError(
                f"{node.name} has {scale.size} scales, expected one for each activation: quantise "
                "only weights per channel"
            )
        same[target] = same.get(source, source)
        ranges[same[target]] = _INT8 * float(scale.reshape(-1)[0])
    # The graph keeps the names of its outputs: the node before the last pair writes them.
    renamed = {same[name]: name for name in outputs if name in same}
    for node in kept:
        node.input[:] = [renamed.get(same.get(n, n), same.get(n, n)) for n in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    used = {name for node in kept for name in node.input}
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.initializer.extend(initializers)
    ranges = {renamed.get(name, name): largest for name, largest in ranges.items()}
    return proto.SerializeToString(deterministic=True), ranges


def _scale(node: Any, values: dict[str, Any]) -> NDArray[np.float32]:
    """Return the scale of a QDQ node."""
    if node.input[1] not in values:
        raise ExportError(f"{node.name} has a scale that is not stored in the file: quantise again")
    return np.asarray(numpy_helper.to_array(values[node.input[1]]), np.float32)


def _weight(node: Any, weight: NDArray[Any], scale: NDArray[np.float32]) -> NDArray[Any]:
    """Return a weight quantised or dequantised by a node with a zero point of 0."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    if scale.size > 1:
        scale = scale.reshape([-1 if i == axis % weight.ndim else 1 for i in range(weight.ndim)])
    else:
        scale = scale.reshape(())
    if node.op_type == "QuantizeLinear":
        return np.clip(np.rint(weight / scale), -_INT8 - 1, _INT8).astype(np.int8)
    return (weight.astype(np.float32) * scale).astype(np.float32)
