"""The nodes of a QDQ graph in torch: equal to ONNX Runtime, and gradients of the rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from y7edge.errors import ConfigError
from y7edge.export.folding import fold_checkpoint
from y7edge.export.graph.build import build_graph
from y7edge.export.graph.quantize import PROFILES
from y7edge.export.graph.quantize_ranges import opened
from y7edge.export.graph.quantize_weights import corrected
from y7edge.export.graph.trainable import compared, nodes_of, weights_of
from y7edge.export.quantization import Quantizer
from y7edge.models import registry
from y7edge.models.scaling import scale
from y7edge.nn.quantized import Node, QuantizedGraph, Rounding
from y7edge.nn.random_weights import random_weights


def graph_of(name, width, rewrites=()):
    spec = scale(registry.get(name, nc=2), width=width)
    folded = fold_checkpoint(random_weights(spec, seed=1))
    return build_graph(folded, height=64, width=64, rewrites=rewrites)


def image():
    return np.random.default_rng(0).random((1, 3, 64, 64), np.float32)


def as_torch(model, floats, quantizer=None):
    if quantizer is not None:  # with the corrected biases of the QDQ graph
        integer = {node.weights[0] for node in nodes_of(model) if node.weights and node.rounding}
        names = {n.name for n in floats.graph.node if n.op_type == "Conv" and n.input[1] in integer}
        floats = corrected(floats, names, quantizer.means)
    heads = [value.name for value in model.graph.output]
    return QuantizedGraph(nodes_of(model), "images", heads, weights_of(floats))


CASES = [("yolov7-tiny", 0.125, name) for name in PROFILES]
CASES += [("yolov7", 0.0625, "s8s8"), ("yolov7-w6", 0.0625, "u8s8")]
CASES += [("yolov7-tiny-relu", 0.125, "u8s8"), ("yolov7-tiny-hardswish", 0.0625, "u8s8")]
SEEN = {
    "yolov7": "Mul",
    "yolov7-w6": "Slice",
    "yolov7-tiny": "LeakyRelu",
    "yolov7-tiny-relu": "Relu",
    "yolov7-tiny-hardswish": "HardSwish",
}


@pytest.mark.parametrize(("name", "width", "profile"), CASES)
def test_each_node_equals_onnx_runtime(name, width, profile, tmp_path):
    floats = graph_of(name, width)
    quantiser = Quantizer(floats, [image()], profile)
    model = quantiser.quantized(() if name == "yolov7-tiny" else None)
    graph = as_torch(model, floats, quantiser)
    tensors = [node.output for node in graph.nodes]
    feed = {"images": image()}
    found = {**opened(model, tensors, tmp_path)(feed), **feed}
    seen = set()
    for node in graph.nodes:
        with torch.no_grad():
            made = graph.compute(node, [torch.from_numpy(found[n].copy()) for n in node.inputs])
        error = np.abs(made.numpy() - found[node.output])
        seen.add(node.operator)
        if node.operator == "Round":
            # Only a value halfway between two steps may be rounded to the other one.
            assert error.max() <= 1.001 * node.rounding.scale, node.output
            assert (error > 1e-3 * node.rounding.scale).mean() < 1e-3, node.output
        else:
            assert error.max() <= 1e-4 * max(1, np.abs(found[node.output]).max()), node.output
    rounded = sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
    assert rounded == sum(node.operator == "Round" for node in graph.nodes)
    integers = [node for node in graph.nodes if node.operator == "Conv" and node.rounding]
    assert len(integers) == len(quantiser.layers) - (
        0 if name == "yolov7-tiny" else len(quantiser.heads)
    )
    assert SEEN[name] in seen


def test_the_whole_graph_equals_onnx_runtime(tmp_path):
    floats = graph_of("yolov7-tiny", 0.125)
    quantizer = Quantizer(floats, [image()], "u16s8")
    model = quantizer.quantized(())
    expected = opened(model, [], tmp_path)({"images": image()})
    with torch.no_grad():
        found = as_torch(model, floats, quantizer)(torch.from_numpy(image()))
        plain = as_torch(floats, floats)(torch.from_numpy(image()))
    for name, value in expected.items():
        error = np.abs(found[name].numpy() - value).mean()
        lost = np.abs(plain[name].numpy() - value).mean()
        assert error < 0.05 * lost


def test_the_float_graph_has_no_rounding():
    floats = graph_of("yolov7-tiny", 0.125)
    nodes = nodes_of(floats)
    assert not any(node.rounding or node.int32_bias for node in nodes)
    assert "/row5" in compared(floats)
    assert not {"head0", "/row5/Conv_output"} & set(compared(floats))


def test_the_twin_has_the_same_weights():
    floats = graph_of("yolov7-tiny", 0.125)
    student = as_torch(Quantizer(floats, [image()], "u8s8").quantized(), floats)
    twin = student.float_twin(nodes_of(floats))
    with torch.no_grad():
        for weight in student.weights:
            weight.mul_(0)
        assert all(not head.any() for head in twin(torch.from_numpy(image())).values())


def test_gradients_of_the_rounding():
    how = Rounding("g", 0.5, 10, 0, 15)  # multiples of 0.5 from -5 to 2.5
    graph = QuantizedGraph(
        [Node("Round", ("x",), "y", rounding=how)],
        "x",
        ["y"],
        {"unused": np.ones(1, np.float32)},
        ["g"],
    )
    x = torch.tensor([-9.0, -1.1, 0.6, 9.0], requires_grad=True)
    y = graph(x)["y"]
    assert y.tolist() == [-5.0, -1.0, 0.5, 2.5]
    y.backward(torch.tensor([1.0, 10.0, 100.0, 1000.0]))
    assert x.grad.tolist() == [0, 10, 100, 0]
    # LSQ, equation 3: the end outside; the rounding's error in steps inside. Times 0.5, because the
    # logarithm of the scale is trained.
    expected = 0.5 * (-10 * 1 + 0.2 * 10 - 0.2 * 100 + 5 * 1000)
    assert graph.factors[0].grad.item() == pytest.approx(expected, rel=1e-4)
    with torch.no_grad():
        graph.factors[0].fill_(float(np.log(2)))
    assert graph.scales() == pytest.approx({"g": 1.0})


def test_large_biases_make_the_steps_of_weights_larger():
    how = Rounding("g", 1e-9, 0, 0, 255)
    node = Node("Conv", ("x",), "y", {}, ("w", "b"), how, int32_bias=True)
    weight = np.array([0, 100, 1e-44], np.float32).reshape(3, 1, 1, 1)  # all are rounded to 0
    arrays = {"w": weight, "b": np.array([0, 1e4, 0], np.float32)}
    graph = QuantizedGraph([node], "x", ["y"], arrays)
    y = graph(torch.ones(1, 1, 1, 1))["y"]
    assert y.flatten().tolist() == pytest.approx([0, 1e4, 0])


def test_rewritten_graphs_are_refused():
    with pytest.raises(ConfigError, match=r"operator Max of .* cannot be trained"):
        nodes_of(graph_of("yolov7-tiny", 0.125, ["leaky-max"]))
