"""Correct the biases of convolutions for the rounding of their weights.

Rounded weights change the mean of each output channel, because activations are not centred at zero.
The mean error of a channel is the sum over its weights of rounding error times mean input. It is
subtracted from the bias. This is the bias correction of Nagel et al. 2019, "Data-Free Quantization
Through Weight Equalization and Bias Correction" (arXiv 1906.04721, section 4.2), with means of the
inputs that were measured on calibration images.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from y7edge.export.graph.quantize import rounded_weights, weight_scales

Floats64 = NDArray[np.float64]
Means = Mapping[str, Floats64]
"""Tensor -> mean of each channel (C,)."""


def corrected(model: onnx.ModelProto, integer: Collection[str], means: Means) -> onnx.ModelProto:
    """Return a copy of a float graph with corrected biases.

    Args:
        model: the float graph.
        integer: names of the convolutions whose weights will be quantised.
        means: the means of their inputs; a convolution whose input is missing is not corrected.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in changed.graph.initializer}
    sides = _sides(model)
    for node in changed.graph.node:
        if node.name not in integer or node.input[0] not in means:
            continue
        source, weight_name, bias_name = node.input
        weight = numpy_helper.to_array(tensors[weight_name])
        bias = numpy_helper.to_array(tensors[bias_name])
        scale = weight_scales(weight)
        rounded = rounded_weights(weight, scale) * scale[:, None, None, None].astype(np.float64)
        error = _response(rounded - weight, node, means[source], sides[source])
        tensors[bias_name].CopyFrom(
            numpy_helper.from_array((bias - error).astype(np.float32), bias_name)
        )
    return changed


def output_means(model: onnx.ModelProto, means: Means) -> dict[str, Floats64]:
    """Return the mean of each output channel (C,) of the convolutions, by the weight's name.

    Args:
        model: the float graph.
        means: the means of the convolutions' inputs; those without are left out.
    """
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    sides, found = _sides(model), {}
    for node in model.graph.node:
        if node.op_type != "Conv" or node.input[0] not in means:
            continue
        source, weight_name, bias_name = node.input
        weight = numpy_helper.to_array(arrays[weight_name]).astype(np.float64)
        response = _response(weight, node, means[source], sides[source])
        found[weight_name] = response + numpy_helper.to_array(arrays[bias_name])
    return found


def _response(
    weight: Floats64, node: onnx.NodeProto, mean: Floats64, sides: tuple[int, int]
) -> Floats64:
    """Return the mean output (O,) of a convolution without bias, for an input of these means.

    The padding is zeros, so a weight meets an input only at a part of the positions.
    """
    how: dict[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    strides, pads = how.get("strides", (1, 1)), how.get("pads", (0, 0, 0, 0))
    met = [
        _inside(side, size, stride, before, after)
        for side, size, stride, before, after in zip(
            sides, weight.shape[2:], strides, pads[:2], pads[2:], strict=True
        )
    ]
    return np.asarray(np.einsum("oihw,i,h,w->o", weight, mean, *met), np.float64)


def _inside(side: int, size: int, stride: int, before: int, after: int) -> Floats64:
    """Return the fraction of positions at which each of ``size`` weights meets the input."""
    count = (side + before + after - size) // stride + 1
    at = np.arange(count)[:, None] * stride - before + np.arange(size)
    return np.asarray(((at >= 0) & (at < side)).mean(axis=0), np.float64)


def _sides(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Return height and width of the tensors of a graph."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim[2:])
        for value in (*graph.input, *graph.value_info, *graph.output)
        if len(value.type.tensor_type.shape.dim) == 4
    }
