"""The ONNX graph: equal to the torch model, with the documented names and shapes."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from y7edge.errors import ExportError
from y7edge.export.folding import fold_checkpoint
from y7edge.export.graph import build as written
from y7edge.export.graph.build import build_graph
from y7edge.models import registry
from y7edge.models.scaling import scale
from y7edge.models.shapes import weight_shapes
from y7edge.nn.build import from_checkpoint
from y7edge.nn.random_weights import random_weights

NAMES = registry.names()
SIZE = (128, 192)  # height, width: two by three cells at the coarsest stride


@cache
def narrow(name, nc=3, width=0.125):
    """A variant with an eighth of its channels, random weights, and its folded form."""
    checkpoint = random_weights(scale(registry.get(name, nc=nc), width=width))
    return checkpoint, fold_checkpoint(checkpoint)


def build(name, *, nc=3, **options):
    height, width = options.pop("size", SIZE)
    return build_graph(narrow(name, nc)[1], height=height, width=width, **options)


def run(model, images):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": images}), strict=True))


def random_images(batch, size=SIZE):
    return np.random.default_rng(0).random((batch, 3, *size), dtype=np.float32)


def reference(name, images, nc=3):
    """Heads as the convolution leaves them, and decoded rows, of the unfolded torch model."""
    model = from_checkpoint(narrow(name, nc)[0])
    with torch.inference_mode():
        raws = model(torch.from_numpy(images))
        decoded = model.decode(raws).numpy()
    heads = [r.permute(0, 1, 4, 2, 3).flatten(1, 2).numpy() for r in raws]
    return heads, decoded


def assert_close(actual, expected, tolerance=1e-4):
    """Largest deviation within ``tolerance`` of the largest magnitude."""
    assert actual.shape == expected.shape
    deviation = np.abs(actual.astype(np.float64) - expected).max() / np.abs(expected).max()
    assert deviation <= tolerance


@pytest.mark.parametrize("name", [*NAMES, "yolov7-tiny-relu", "yolov7-hardswish"])
def test_heads_equal_the_training_model(name):
    images = random_images(2)
    heads, _ = reference(name, images)
    outputs = run(build(name, batch=2), images)
    assert list(outputs) == [f"head{level}" for level in range(len(heads))]
    for actual, expected in zip(outputs.values(), heads, strict=True):
        assert actual.dtype == np.float32
        assert_close(actual, expected)


@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7-w6"])
def test_decoded_equals_the_models_own_decode(name):
    images = random_images(2)
    _, decoded = reference(name, images)
    outputs = run(build(name, outputs="decoded", batch=2), images)
    assert list(outputs) == ["boxes", "scores"]
    np.testing.assert_allclose(outputs["boxes"], decoded[..., :4], rtol=1e-3, atol=0.02)
    np.testing.assert_allclose(outputs["scores"], decoded[..., 4:5] * decoded[..., 5:], atol=1e-3)


def test_one_class_scores_are_the_objectness_alone():
    images = random_images(1)
    _, decoded = reference("yolov7-tiny", images, nc=1)
    scores = run(build("yolov7-tiny", nc=1, outputs="decoded"), images)["scores"]
    np.testing.assert_allclose(scores, decoded[..., 4:5], atol=1e-3)


@pytest.mark.parametrize("outputs", ["heads", "decoded"])
@pytest.mark.parametrize("batch", [1, 3])
def test_dynamic_batch(outputs, batch):
    images = random_images(batch)
    model = build("yolov7-tiny", outputs=outputs, batch=None)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    fixed = run(build("yolov7-tiny", outputs=outputs, batch=batch), images)
    for name, values in run(model, images).items():
        np.testing.assert_array_equal(values, fixed[name])


@pytest.mark.parametrize("size", [(32, 32), (384, 640), (96, 32)], ids=str)
def test_any_multiple_of_the_largest_stride(size):
    heads, _ = reference("yolov7-tiny", random_images(1, size))
    outputs = run(build("yolov7-tiny", size=size), random_images(1, size))
    for actual, expected in zip(outputs.values(), heads, strict=True):
        assert_close(actual, expected)


def test_declared_shapes_are_correct():
    for outputs in ("heads", "decoded"):
        model = build("yolov7-e6e", outputs=outputs)
        results = run(model, random_images(1))
        for value in model.graph.output:
            declared = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
            assert declared == results[value.name].shape


# --- sigmoids, bytes ---------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_heads_sigmoid_has_one_sigmoid_behind_each_head(precision):
    model = build("yolov7-w6", outputs="heads-sigmoid", precision=precision)
    for value in model.graph.output:
        (last,) = (node for node in model.graph.node if value.name in node.output)
        assert last.op_type == "Sigmoid"
        readers = [node.name for node in model.graph.node if last.input[0] in node.input]
        assert readers == [last.name]
        (conv,) = (node for node in model.graph.node if last.input[0] in node.output)
        assert conv.op_type == "Conv"
        assert last.name == conv.name.replace("/Conv", "/Sigmoid")
    logits = run(build("yolov7-w6", precision=precision), random_images(1))
    for name, found in run(model, random_images(1)).items():
        assert found.dtype == logits[name].dtype
        expected = 1 / (1 + np.exp(-logits[name].astype(np.float64)))
        assert np.abs(found - expected).max() < (1e-5 if precision == "fp32" else 1e-3)


def random_pixels(batch, size=SIZE):
    return np.random.default_rng(0).integers(0, 256, (batch, *size, 3), dtype=np.uint8)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7-w6"])
def test_uint8_input_is_scaled_as_by_the_detector(name, precision):
    pixels = random_pixels(2)
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / np.float32(255)
    model = build(name, input="uint8", precision=precision, batch=None)
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["batch", *SIZE, 3]
    expected = run(build(name, precision=precision, batch=None), planes)
    for output, found in run(model, pixels).items():
        np.testing.assert_array_equal(found, expected[output])


# --- float16 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7-w6"])
def test_fp16_is_float16_between_a_float32_input_and_native_heads(name):
    model = build(name, precision="fp16")
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert {v.type.tensor_type.elem_type for v in model.graph.output} == {TensorProto.FLOAT16}
    weights = [t for t in model.graph.initializer if t.name.startswith("rows.")]
    assert {t.data_type for t in weights} == {TensorProto.FLOAT16}
    heads, _ = reference(name, random_images(1))
    for actual, expected in zip(run(model, random_images(1)).values(), heads, strict=True):
        assert_close(actual, expected, 5e-2)


def test_fp16_graph_decodes_in_float32():
    # Beyond 2048 px float16 has no odd numbers, beyond 4096 only every fourth; centres must be as
    # fine there as anywhere. What remains is the rounding of the logits.
    size = (32, 5120)
    images = random_images(1, size)
    _, expected = reference("yolov7-tiny", images)
    model = build("yolov7-tiny", precision="fp16", size=size, outputs="decoded")
    decoded = run(model, images)
    assert decoded["boxes"].dtype == decoded["scores"].dtype == np.float32
    far = expected[..., 0] > 4096
    error = np.abs(decoded["boxes"][..., 0] - expected[..., 0])[far]
    assert far.sum() > 1000
    assert np.median(error) < 0.02

    inferred = onnx.shape_inference.infer_shapes(model)
    kinds = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    behind = [n for n in model.graph.node if "/decode/" in n.name and n.output[0] in kinds]
    assert len(behind) > 30
    assert {kinds[node.output[0]] for node in behind} == {TensorProto.FLOAT}


# --- names, bytes --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_nodes_and_tensors_are_named_after_rows(name):
    spec = narrow(name)[1].spec
    model = build(name, outputs="decoded", precision="fp16")
    names = [node.name for node in model.graph.node]
    tensors = {output for node in model.graph.node for output in node.output}
    assert len(set(names)) == len(names)
    assert {written.row_tensor(row.index) for row in spec.rows[:-1]} <= tensors
    rows = [int(re.match(r"/row(\d+)/", n)[1]) for n in names if n != "/images/Cast"]
    assert rows == sorted(rows)
    assert set(rows) == {row.index for row in spec.rows}
    weights = {t.name for t in model.graph.initializer if t.name.startswith("rows.")}
    assert weights == {key for key in weight_shapes(spec) if not key.endswith("anchors")}


def test_names_in_the_documentation():
    spec = narrow("yolov7")[1].spec
    row = next(r.index for r in spec.rows if r.block == "sppcspc")
    nodes = {node.name: node for node in build("yolov7").graph.node}
    conv = nodes[f"/row{row}/cv1/Conv"]
    assert list(conv.input[1:]) == [f"rows.{row}.cv1.conv.{part}" for part in ("weight", "bias")]
    assert nodes[f"/row{row}/cv7/Mul"].output[0] == f"/row{row}"
    assert nodes[f"/row{spec.head.index}/lead/0/Conv"].output[0] == "head0"


@pytest.mark.parametrize("name", NAMES)
def test_operations_are_those_of_the_rows(name):
    spec = narrow(name)[1].spec
    found = Counter(node.op_type for node in build(name).graph.node)
    blocks = Counter(row.block for row in spec.rows)
    assert found["Add"] == blocks["sum"]
    assert found["Resize"] == blocks["upsample"]
    assert found["MaxPool"] == blocks["maxpool"] + blocks["downc"] + 3 * blocks["sppcspc"]
    assert {size for size, step in _pools(name) if step == 1} == {5}  # 9 and 13 as 5 in series
    activations = found["LeakyRelu"] if spec.activation == "leaky_relu" else found["Sigmoid"]
    assert found["Conv"] == activations + spec.levels
    assert not found["BatchNormalization"]
    assert blocks["sum"] == (11 if name == "yolov7-e6e" else 0)


def _pools(name):
    for node in build(name).graph.node:
        if node.op_type == "MaxPool":
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            yield attributes["kernel_shape"][0], attributes["strides"][0]


def test_same_input_same_bytes():
    for outputs in ("heads", "decoded", "nms"):
        first, second = (build("yolov7-w6", outputs=outputs, batch=None) for _ in range(2))
        assert first.SerializeToString() == second.SerializeToString()
        assert first.SerializeToString(deterministic=True) == second.SerializeToString()


def test_versions_and_no_metadata():
    model = build("yolov7-tiny")
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)
    assert len(model.opset_import) == 1
    assert model.producer_name == "y7edge"
    assert not model.metadata_props
    assert not model.doc_string + model.graph.doc_string
    assert not any(node.doc_string for node in model.graph.node)


def test_weights_are_those_of_the_checkpoint():
    folded = narrow("yolov7-tiny")[1]
    tensors = {t.name: t for t in build("yolov7-tiny").graph.initializer}
    for key, array in folded.arrays.items():
        if not key.endswith("anchors"):
            np.testing.assert_array_equal(numpy_helper.to_array(tensors[key]), array)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": "boxes"}, "'boxes', expected heads or heads-sigmoid or decoded or nms"),
        ({"input": "int8"}, "'int8', expected float32 or uint8"),
        ({"precision": "int8"}, "'int8', expected fp32 or fp16"),
        ({"rewrites": ["pool5"]}, "'pool5', expected pool3x3 or reorg-conv6"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ExportError, match=message):
        build("yolov7-tiny", **options)


def test_unfolded_checkpoint_is_refused():
    with pytest.raises(ExportError, match="folded"):
        build_graph(narrow("yolov7-tiny")[0], height=64, width=64)


@pytest.mark.parametrize(
    ("value", "precision"), [(1e5, "fp16"), (np.nan, "fp32"), (np.inf, "fp32")]
)
def test_weights_beyond_the_precision_are_refused_by_name(value, precision):
    folded = narrow("yolov7-tiny")[1]
    bias = folded.arrays["rows.3.conv.bias"].copy()
    bias[0] = value
    broken = replace(folded, arrays={**folded.arrays, "rows.3.conv.bias": bias})
    with pytest.raises(ExportError, match=r"rows\.3\.conv\.bias"):
        build_graph(broken, height=64, width=64, precision=precision)


def test_graph_that_the_checker_refuses_is_an_export_error():
    folded = narrow("yolov7-tiny")[1]
    key = f"rows.{folded.spec.head.index}.lead.0.weight"
    wrong = folded.arrays[key][:-1]  # a head of one channel less than its declared output
    broken = replace(folded, arrays={**folded.arrays, key: wrong})
    with pytest.raises(ExportError, match="not valid ONNX"):
        build_graph(broken, height=64, width=64)
