"""Bias correction: means of the outputs of convolutions whose weights are rounded."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from y7edge.export.graph.quantize import rounded_weights, weight_scales
from y7edge.export.graph.quantize_ranges import opened
from y7edge.export.graph.quantize_weights import corrected, output_means

SIDES = (9, 14)


def one_convolution(kernel=3, stride=2, pads=(1, 1, 1, 1)):
    generator = np.random.default_rng(3)
    arrays = {
        "w": generator.normal(size=(5, 4, kernel, kernel)).astype(np.float32),
        "b": generator.normal(size=5).astype(np.float32),
    }
    node = helper.make_node(
        "Conv", ["x", "w", "b"], ["y"], name="/Conv", strides=[stride] * 2, pads=list(pads)
    )
    shapes = (("x", [1, 4, *SIDES]), ("y", [1, 5, None, None]))
    given, made = (helper.make_tensor_value_info(n, 1, shape) for n, shape in shapes)
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph([node], "one", [given], [made], constants)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def constant(model, name):
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)


def with_rounded_weights(model):
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    weight = constant(model, "w")
    scale = weight_scales(weight)
    rounded = rounded_weights(weight, scale) * scale[:, None, None, None]
    changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(rounded, "w"))
    return changed


def mean_of(model, image, tmp_path):
    return opened(model, ["y"], tmp_path)({"x": image})["y"].mean((0, 2, 3), dtype=np.float64)


@pytest.mark.parametrize(
    ("kernel", "stride", "pads"),
    [(1, 1, (0, 0, 0, 0)), (3, 1, (1, 1, 1, 1)), (3, 2, (1, 1, 1, 1)), (6, 2, (2, 3, 2, 1))],
)
def test_the_mean_of_every_channel_is_restored(kernel, stride, pads, tmp_path):
    model = one_convolution(kernel, stride, pads)
    means = np.array([0.1, 2.0, -0.7, 5.0])
    image = np.ones((1, 4, *SIDES), np.float32) * means.astype(np.float32)[:, None, None]
    expected = mean_of(model, image, tmp_path)
    rounded = mean_of(with_rounded_weights(model), image, tmp_path)
    fixed = with_rounded_weights(corrected(model, {"/Conv"}, {"x": means}))
    found = mean_of(fixed, image, tmp_path)
    assert np.abs(rounded - expected).max() > 5e-3
    assert np.abs(found - expected).max() < 2e-5
    assert np.allclose(output_means(model, {"x": means})["w"], expected, atol=2e-5)


def test_only_integer_convolutions_with_known_inputs_are_corrected():
    model = one_convolution()
    before = model.SerializeToString()
    means = {"x": np.ones(4)}
    assert corrected(model, set(), means) == model
    assert corrected(model, {"/Conv"}, {}) == model
    assert output_means(model, {}) == {}
    changed = corrected(model, {"/Conv"}, means)
    assert np.array_equal(constant(changed, "w"), constant(model, "w"))
    assert not np.allclose(constant(changed, "b"), constant(model, "b"), atol=1e-3)
    assert model.SerializeToString() == before
