"""Ranges in the place of QDQ nodes: the same weights, the same names, the scales as ranges."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from y7edge.errors import ExportError
from y7edge.export.graph.ranges import without_quantizers

SHAPE = (1, 3, 8, 8)
SCALES = {"images": 0.01, "middle": 0.05, "head0": 0.2}


def pair(source, target, scale="scale"):
    """A QuantizeLinear and a DequantizeLinear."""
    zero = "zero" if scale != "wide" else "zeros"
    return [
        helper.make_node("QuantizeLinear", [source, scale, zero], [f"{source}_q"], f"{source}_Q"),
        helper.make_node(
            "DequantizeLinear", [f"{source}_q", scale, zero], [target], f"{source}_DQ"
        ),
    ]


def model(*, wide=False, stored=True):
    """Two convolutions: one with int8 weights per channel, one with a float weight behind QDQ."""
    random = np.random.default_rng(0)
    weight = random.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    steps = random.uniform(0.001, 0.01, 4).astype(np.float32)
    plain = random.normal(size=(5, 4, 1, 1)).astype(np.float32)
    tensors = {
        "w1_q": weight,
        "w1_scale": steps,
        "w1_zero": np.zeros(4, np.int8),
        "w2": plain,
        "w2_scale": np.array(0.02, np.float32),
        "zero": np.array(0, np.int8),
        "bias": np.ones(4, np.float32),
        "wide": np.array([0.1] * 4, np.float32),
        "zeros": np.zeros(4, np.int8),
        **{f"{name}_scale": np.array(scale, np.float32) for name, scale in SCALES.items()},
    }
    nodes = [
        *pair("images", "images_dq", "images_scale"),
        helper.make_node("DequantizeLinear", ["w1_q", "w1_scale", "w1_zero"], ["w1"], "D", axis=0),
        helper.make_node("Conv", ["images_dq", "w1", "bias"], ["conv"], "/row0/Conv", pads=[1] * 4),
        helper.make_node("LeakyRelu", ["conv"], ["middle"], "/row0/LeakyRelu", alpha=0.1),
        *pair("middle", "middle_dq", "wide" if wide else "middle_scale"),
        *pair("w2", "w2_dq", "w2_scale"),
        helper.make_node("Conv", ["middle_dq", "w2_dq"], ["last"], "/row1/Conv"),
        *pair("last", "head0", "head0_scale"),
    ]
    if not stored:
        nodes.insert(0, helper.make_node("Identity", ["head0_scale"], ["computed"], "I"))
        nodes[-1].input[1] = nodes[-2].input[1] = "computed"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("head0", TensorProto.FLOAT, (1, 5, 8, 8))],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(made)
    return made.SerializeToString(), tensors


def test_nodes_become_ranges_and_weights_keep_their_values():
    data, tensors = model()
    changed, ranges = without_quantizers(data)
    found = onnx.load_from_string(changed)
    onnx.checker.check_model(found, full_check=True)
    assert [node.op_type for node in found.graph.node] == ["Conv", "LeakyRelu", "Conv"]
    assert ranges == pytest.approx({name: 127 * scale for name, scale in SCALES.items()})
    weights = {t.name: numpy_helper.to_array(t) for t in found.graph.initializer}
    assert set(weights) == {"w1", "w2_dq", "bias"}
    steps = tensors["w1_scale"].reshape(4, 1, 1, 1)
    np.testing.assert_array_equal(weights["w1"], tensors["w1_q"].astype(np.float32) * steps)
    rounded = np.clip(np.rint(tensors["w2"] / np.float32(0.02)), -128, 127) * np.float32(0.02)
    np.testing.assert_array_equal(weights["w2_dq"], rounded.astype(np.float32))


def test_the_result_differs_by_the_rounding_of_activations_only():
    data, _ = model()
    images = np.random.default_rng(1).random(SHAPE, np.float32)
    before, after = (
        onnxruntime.InferenceSession(d, providers=["CPUExecutionProvider"]).run(
            ["head0"], {"images": images}
        )[0]
        for d in (data, without_quantizers(data)[0])
    )
    assert np.abs(before - after).max() < 0.05 * np.abs(before).max()
    assert np.abs(before - after).max() > 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"wide": True}, "middle_Q has 4 scales"), ({"stored": False}, "last_Q has a scale that is")],
)
def test_what_cannot_become_a_range(options, problem):
    with pytest.raises(ExportError, match=problem):
        without_quantizers(model(**options)[0])
