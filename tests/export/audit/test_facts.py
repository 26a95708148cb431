"""Facts of graphs: with and without weights, quantised, and of strangers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.export.graph.test_build import build, narrow
from tests.export.graph.test_quantize_check import made
from y7edge.errors import ArtifactError, ExportError
from y7edge.export.audit.facts import load_structure, read_structure
from y7edge.export.graph.build import build_structure
from y7edge.export.graph.rewrites import REWRITES
from y7edge.models import registry
from y7edge.models.registry import folded
from y7edge.models.shapes import gflops, parameters


def structure(name, rewrites=(), **options):
    return read_structure(build(name, rewrites=rewrites, **options))


def only(found, op):
    return [node for node in found.nodes if node.op == op]


@pytest.mark.parametrize("outputs", ["heads", "heads-sigmoid", "decoded", "nms"])
@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7-w6"])
def test_a_graph_without_weights_has_the_same_facts(name: str, outputs: str) -> None:
    _, checkpoint = narrow(name, 3)
    bare = build_structure(checkpoint.spec, outputs=outputs, height=128, width=128)
    assert read_structure(bare) == structure(name, outputs=outputs, size=(128, 128))
    assert bare.ByteSize() < 1 << 20


@pytest.mark.parametrize("rewrite", REWRITES)
def test_rewritten_graphs_without_weights(rewrite: str) -> None:
    name = "yolov7-w6" if rewrite.startswith("reorg") else "yolov7-tiny"
    _, checkpoint = narrow(name, 3)
    bare = build_structure(checkpoint.spec, height=128, width=128, rewrites=[rewrite])
    assert read_structure(bare) == structure(name, [rewrite], size=(128, 128))


def test_multiplications_and_parameters_are_those_of_the_model() -> None:
    spec = folded(registry.get("yolov7"))
    found = read_structure(build_structure(spec, height=640, width=640))
    assert 2 * sum(node.products for node in found.nodes) == pytest.approx(
        1e9 * gflops(spec, 640, 640)
    )
    assert found.parameters == pytest.approx(parameters(spec), rel=1e-4)


def test_weights_are_not_copied(monkeypatch) -> None:
    """Shapes are inferred on a graph without the values of its weights."""
    sizes, infer = [], onnx.shape_inference.infer_shapes

    def recorded(model):
        sizes.append(model.ByteSize())
        return infer(model)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", recorded)
    model = build("yolov7", size=(64, 64))
    read_structure(model)
    assert max(sizes) < model.ByteSize() / 2


def test_facts_of_our_operators() -> None:
    found = structure("yolov7-w6", size=(128, 128))
    assert {node.facts["step"] for node in only(found, "Slice")} == {(2.0, 2.0)}
    (first, *_) = only(found, "Conv")
    assert first.facts["kernel"] == (3.0, 3.0)
    assert first.facts["channels"] == (12,)
    assert first.facts["pad"] == (1.0,) * 4
    assert first.facts["pad_1x1"] == ()
    heads = only(found, "Conv")[-1]
    assert heads.facts["pad_1x1"] == (0.0,) * 4
    resize = only(found, "Resize")[0].facts
    assert (resize["axes"], resize["scale"], resize["uneven"]) == ((2.0,), (2.0, 2.0), (1.0,))
    assert (resize["mode"], resize["coordinates"], resize["rounding"]) == (
        ("nearest",),
        ("asymmetric",),
        ("floor",),
    )
    assert {max(node.facts["kernel"]) for node in only(found, "MaxPool")} == {5.0}
    assert found.input == {"side": (128.0,), "batch": (1.0,)}
    tiny = structure("yolov7-tiny")
    assert only(tiny, "LeakyRelu")[0].facts["slope"] == (0.1,)
    assert only(tiny, "MaxPool")[0].facts["gap"] == (0.0, 0.0)
    halves = only(structure("yolov7-tiny", ["resize-per-axis"]), "Resize")[0].facts
    assert (halves["axes"], halves["uneven"]) == ((1.0,), (2.0,))


def test_uint8_inputs_and_dynamic_batches() -> None:
    assert structure("yolov7-tiny", input="uint8", size=(64, 96)).input["side"] == (96.0,)
    dynamic = structure("yolov7-tiny", batch=None)
    assert "batch" not in dynamic.input
    assert "batch" not in only(dynamic, "Conv")[0].facts
    assert only(dynamic, "Conv")[0].facts["kernel"] == (3.0, 3.0)


def test_quantised_graphs() -> None:
    graph = made(build("yolov7-tiny", rewrites=["leaky-max"], size=(64, 128)), "u8s8")
    found = read_structure(graph)
    # The last ones before the heads, which stay in float, have no scale at the output.
    assert {node.facts["scales"] for node in only(found, "Max")} == {(1,), ()}
    assert only(found, "Conv")[0].facts["channels"] == (3,)
    assert only(found, "Conv")[0].facts["constants"] == (2,)
    float_graph = structure("yolov7-tiny", ["leaky-max"], size=(64, 128))
    assert [n.products for n in only(found, "Conv")] == [
        n.products for n in only(float_graph, "Conv")
    ]
    # Another scale at one input of a Max is found.
    tensor = only(found, "Max")[0].reads[1]
    pair = next(node for node in graph.graph.node if tensor in node.output)
    graph.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "other"))
    pair.input[1] = "other"
    assert only(read_structure(graph), "Max")[0].facts["scales"] == (2,)


def stranger(*nodes, shape=(1, 3, 8, 8)):
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_model(
        helper.make_graph(list(nodes), "g", [image], [out]),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("maker", 1)],
    )


def test_operators_of_other_domains() -> None:
    found = read_structure(stranger(helper.make_node("Fused", ["x"], ["y"], domain="maker")))
    assert [node.op for node in found.nodes] == ["maker.Fused"]
    assert found.nodes[0].name == "y"


def test_facts_that_cannot_be_read() -> None:
    """A kernel that follows from a weight of unknown shape, and computed steps."""
    graph = stranger(
        helper.make_node("Shape", ["x"], ["w"]),
        helper.make_node("Slice", ["x", "w", "w", "w", "w"], ["a"]),
        helper.make_node("MaxPool", ["a"], ["y"], kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
    )
    slicing, pool = read_structure(graph).nodes[1:]
    assert "step" not in slicing.facts
    assert "pad" not in pool.facts
    assert pool.facts["kernel"] == (2.0, 2.0)


def test_files_that_are_no_onnx_graph(tmp_path) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(ArtifactError, match="cannot read"):
        load_structure(path)
    path.write_bytes(b"no model")
    with pytest.raises(ArtifactError, match="is not an ONNX model"):
        load_structure(path)
    path.write_bytes(b"")
    with pytest.raises(ArtifactError, match="has no input"):
        load_structure(path)
    with pytest.raises(ArtifactError, match="the audit reads ONNX graphs"):
        load_structure(tmp_path / "a.engine")


def test_graphs_that_are_damaged(tmp_path) -> None:
    """Random bytes in a graph give an audit or an error of ours."""
    source = build("yolov7-tiny", size=(64, 64))
    del source.graph.initializer[8:]
    data = source.SerializeToString()
    rng, path = np.random.default_rng(0), tmp_path / "a.onnx"
    for _ in range(60):
        changed = bytearray(data)
        for place in rng.integers(0, len(changed), 4):
            changed[place] = rng.integers(0, 256)
        path.write_bytes(changed)
        try:
            load_structure(path)
        except ArtifactError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("name", [b"Relu", b"y", b"x"])
def test_names_that_are_no_utf8(name, tmp_path) -> None:
    path = tmp_path / "a.onnx"
    data = stranger(helper.make_node("Relu", ["x"], ["y"])).SerializeToString()
    path.write_bytes(data.replace(name, b"\xff" * len(name)))
    with pytest.raises(ArtifactError, match="not valid UTF-8"):
        load_structure(path)


def test_a_graph_without_an_opset() -> None:
    graph = stranger(helper.make_node("Relu", ["x"], ["y"]))
    del graph.opset_import[:]
    with pytest.raises(ExportError, match="shapes of the graph cannot be inferred"):
        read_structure(graph)
