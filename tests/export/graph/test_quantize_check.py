"""QDQ graphs that were changed by hand: each fault is found and named."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.export.graph.test_build import build, random_images
from y7edge.export.graph.quantize import PROFILES, placement_of, quantize, ranges_of
from y7edge.export.graph.quantize_check import violations
from y7edge.export.graph.quantize_placement import Wiring
from y7edge.export.graph.quantize_ranges import Histogram

SIZE = (64, 128)


def made(model, profile, kept=None):
    """A QDQ graph with invented ranges; without ``kept``, the heads stay in float."""
    profile = PROFILES[profile]
    placement = placement_of(model, profile, Wiring(model).heads() if kept is None else kept)
    known = {tensor: Histogram(-1, 2 + i) for i, tensor in enumerate(placement.group)}
    ranges = ranges_of(model, placement, profile, known, "minmax")
    return quantize(model, placement, ranges, profile)


@cache
def _written(name, profile):
    return made(build(name, size=SIZE), profile)


def written(profile, name="yolov7-tiny-silu"):
    """A copy of a graph, to be changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(_written(name, profile))
    return copy


def found(model, profile):
    return violations(model, PROFILES[profile])


def node(model, op, **where):
    """The first node of this type; ``reads`` or ``writes`` names a tensor."""
    reads, writes = where.get("reads"), where.get("writes")
    return next(
        n
        for n in model.graph.node
        if n.op_type == op
        and (reads is None or reads in n.input)
        and (writes is None or writes in n.output)
    )


def own(model, name, change):
    """Give a pair constants of its own, changed by a function of (scale, zero point)."""
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    pair = [node(model, "QuantizeLinear", writes=f"{name}/quantized")]
    pair.append(node(model, "DequantizeLinear", reads=f"{name}/quantized"))
    changed = change(arrays[pair[0].input[1]], arrays[pair[0].input[2]])
    for part, values in zip(("scale", "zero_point"), changed, strict=True):
        tensor = numpy_helper.from_array(np.asarray(values), f"{name}/own/{part}")
        model.graph.initializer.append(tensor)
    for n in pair:
        n.input[1:3] = [f"{name}/own/scale", f"{name}/own/zero_point"]


def add_pair(model, tensor, like):
    """Quantise a tensor with the numbers of another one; its readers read the result."""
    how = list(node(model, "QuantizeLinear", writes=f"{like}/quantized").input[1:3])
    position = 1 + next(i for i, n in enumerate(model.graph.node) if tensor in n.output)
    readers = [n for n in model.graph.node if tensor in n.input]
    new = [
        helper.make_node("QuantizeLinear", [tensor, *how], [f"{tensor}/q"], name=f"{tensor}/q"),
        helper.make_node("DequantizeLinear", [f"{tensor}/q", *how], [f"{tensor}/d"], name="d"),
    ]
    for reader in readers:
        reader.input[:] = [f"{tensor}/d" if name == tensor else name for name in reader.input]
    for offset, n in enumerate(new):
        model.graph.node.insert(position + offset, n)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    "name",
    [
        *("yolov7-tiny", "yolov7-tiny-silu", "yolov7-tiny-relu", "yolov7-tiny-hardswish"),
        pytest.param("yolov7-e6e", marks=pytest.mark.slow),
    ],
)
def test_written_graphs_have_no_violation(name, profile):
    assert found(_written(name, profile), profile) == []
    others = [p for p in PROFILES if p != profile]
    if name.endswith("-relu"):  # which is fused in both
        others = [p for p in others if {p, profile} != {"u8s8", "u8s8-fused"}]
    assert all(found(_written(name, profile), other) for other in others)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    "options",
    [
        {"input": "uint8"},
        {"batch": None},
        {"outputs": "heads-sigmoid"},
        {"rewrites": ("leaky-max", "pool3x3", "resize-per-axis")},
    ],
)
def test_options_of_graphs(options, profile):
    model = build("yolov7-tiny", size=SIZE, **options)
    some = [node.name for node in Wiring(model).convolutions[2:9]]
    for kept in (None, (), some):
        assert found(made(model, profile, kept), profile) == []


@pytest.mark.parametrize("profile", PROFILES)
def test_scale_of_a_concatenation_is_off_by_two(profile):
    """By any of its tensors where they share one; elsewhere by its output."""
    model = written(profile)
    concat = next(n for n in model.graph.node if n.op_type == "Concat")
    name = concat.output[0]
    if PROFILES[profile].shared:
        name = concat.input[0].removesuffix("/dequantized")
    for factor in (0.5, 2):
        model = written(profile)
        own(model, name, lambda scale, zero, f=factor: (scale * np.float32(f), zero))
        problem, *_ = found(model, profile)  # biases of its readers follow
        assert name in problem
        assert ("must have one scale" if PROFILES[profile].shared else "expected") in problem


@pytest.mark.parametrize("profile", PROFILES)
def test_scale_behind_a_pooling(profile):
    model = written(profile, "yolov7-tiny")
    pool = next(n for n in model.graph.node if n.op_type == "MaxPool")
    own(model, pool.output[0], lambda scale, zero: (scale * np.float32(1.01), zero))
    (problem,) = found(model, profile)
    assert "must have one scale" in problem


@pytest.mark.parametrize("profile", PROFILES)
def test_sigmoid_is_quantised_twice(profile):
    model = written(profile)
    sigmoid = node(model, "Sigmoid").output[0]
    if PROFILES[profile].fused:
        add_pair(model, sigmoid, like="/row0")
        problem = f"{sigmoid} is quantised, but is between a convolution and its activation"
    else:
        add_pair(model, f"{sigmoid}/dequantized", like=sigmoid)
        problem = f"{sigmoid} is quantised twice"
    assert found(model, profile) == [problem]


@pytest.mark.parametrize("profile", ["u8s8", "u16s8"])
def test_scale_of_a_sigmoid(profile):
    model = written(profile)
    name = node(model, "Sigmoid").output[0]
    own(model, name, lambda scale, zero: (scale * np.float32(2), zero))
    (problem,) = found(model, profile)
    assert problem.startswith(f"{name} has the scale and zero point")


@pytest.mark.parametrize("profile", ["u8s8-fused", "s8s8"])
def test_pair_between_convolution_and_activation(profile):
    model = written(profile)
    add_pair(model, "/row0/Conv", like="/row0")
    expected = "/row0/Conv is quantised, but is between a convolution and its activation"
    assert expected in found(model, profile)


@pytest.mark.parametrize("profile", PROFILES)
def test_pair_behind_a_head_in_float(profile):
    model = written(profile)
    head = node(model, "Conv", writes="head0")
    head.output[0] = "head0/float"
    how = node(model, "QuantizeLinear", writes="/row0/quantized").input[1:3]
    pair = ("QuantizeLinear", "head0/float", "head0/q"), ("DequantizeLinear", "head0/q", "head0")
    for op, source, target in pair:
        model.graph.node.append(helper.make_node(op, [source, *how], [target], name=target))
    assert found(model, profile) == [
        "head0 is quantised, but is an output that no convolution in integers writes"
    ]


@pytest.mark.parametrize("profile", PROFILES)
def test_missing_pair(profile):
    model = written(profile)
    for one in [n for n in model.graph.node if "/row1/quantized" in (*n.input, *n.output)]:
        model.graph.node.remove(one)
    for n in model.graph.node:
        n.input[:] = ["/row1" if x == "/row1/dequantized" else x for x in n.input]
    assert found(model, profile)[0] == "/row1 is not quantised"


@pytest.mark.parametrize("profile", PROFILES)
def test_decoded_boxes_are_quantised(profile):
    """A graph of another program: the rows are joined, scaled and quantised."""
    model = written(profile)
    how = node(model, "QuantizeLinear", writes="/row0/quantized").input[1:3]
    make = helper.make_node
    model.graph.node.extend(
        [
            make("Exp", ["head0"], ["sizes"], name="sizes"),
            make("QuantizeLinear", ["sizes", *how], ["sizes/q"], name="sizes/q"),
            make("DequantizeLinear", ["sizes/q", *how], ["boxes"], name="boxes/d"),
        ]
    )
    boxes = onnx.ValueInfoProto()
    boxes.CopyFrom(model.graph.output[0])
    boxes.name = "boxes"
    model.graph.output.append(boxes)
    (problem,) = found(model, profile)
    assert problem.startswith("boxes is quantised, but is an output")


def replaced(model, name, change):
    """Change the values of an initializer."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(
        numpy_helper.from_array(np.asarray(change(numpy_helper.to_array(tensor))), name)
    )


WEIGHT = "rows.1.conv.weight"
FAULTS = [
    ("u8s8", "/row1/scale", lambda x: -x, "/row1 has the scale -"),
    ("u8s8", "/row1/scale", lambda x: x * np.float32(np.nan), "/row1 has the scale nan"),
    ("u8s8", "/row1/zero_point", lambda x: x.astype(np.int8), "int8, expected uint8"),
    ("s8s8", "/row1/zero_point", lambda x: x + np.int8(3), "has the zero point 3, expected 0"),
    ("u8s8", f"{WEIGHT}/zero_point", lambda x: x + np.int8(1), "zero point other than 0"),
    ("u8s8", f"{WEIGHT}/scale", lambda x: -x, "scale that is not a positive number"),
    ("u8s8", "rows.1.conv.bias/scale", lambda x: x * np.float32(1.01), "has other scales than"),
    ("u8s8", "images/scale", lambda x: x * np.float32(255), "images has the scale and zero point"),
]


@pytest.mark.parametrize(("profile", "name", "change", "expected"), FAULTS)
def test_numbers(profile, name, change, expected):
    model = written(profile)
    replaced(model, name, change)
    problems = found(model, profile)
    assert any(expected in problem for problem in problems), problems


@pytest.mark.parametrize("profile", PROFILES)
def test_weights_with_a_single_scale(profile):
    model = written(profile)
    for part in ("scale", "zero_point"):
        replaced(model, f"{WEIGHT}/{part}", lambda x: x.max())
    dequantize = node(model, "DequantizeLinear", writes=f"{WEIGHT}/dequantized")
    del dequantize.attribute[:]
    (problem, *_) = found(model, profile)
    assert problem.startswith("the weights of /row1/Conv have 1 scales, expected ")


def test_bias_of_another_kind():
    model = written("u8s8")
    convolution = node(model, "Conv", reads="rows.1.conv.bias/dequantized")
    values = np.zeros(8, np.float32)
    model.graph.initializer.append(numpy_helper.from_array(values, "bias"))
    convolution.input[2] = "bias"
    assert "bias of /row1/Conv is not quantised to int32" in found(model, "u8s8")[0]
    model = written("s8s8")
    convolution = node(model, "Conv", reads="rows.1.conv.bias")
    quantised = numpy_helper.from_array(np.zeros(8, np.int32), "bias")
    scale = numpy_helper.from_array(np.float32(1), "bias/scale")
    zero = numpy_helper.from_array(np.int32(0), "bias/zero")
    model.graph.initializer.extend([quantised, scale, zero])
    pair = helper.make_node("DequantizeLinear", ["bias", "bias/scale", "bias/zero"], ["bias/d"])
    model.graph.node.insert(0, pair)
    convolution.input[2] = "bias/d"
    assert found(model, "s8s8") == ["the bias of /row1/Conv is quantised, expected float32"]


def test_graphs_without_constants_and_pairs():
    model = written("u8s8")
    quantize = node(model, "QuantizeLinear", writes="/row1/quantized")
    del quantize.input[2:]
    assert any("no constant scale and zero point" in p for p in found(model, "u8s8"))
    model = written("u8s8")
    pair = node(model, "DequantizeLinear", reads="/row1/quantized")
    pair.input[1:3] = ["/row0/scale", "/row0/zero_point"]
    assert "/row1/quantized is dequantised with another scale or zero point" in found(model, "u8s8")
    float_graph = build("yolov7-tiny", size=SIZE)
    assert found(float_graph, "u8s8") == ["no convolution has quantised weights"]
    model = written("u8s8")
    model.graph.node[5].input[0] = "nowhere"
    assert found(model, "u8s8")[0].startswith("the graph is not valid ONNX")


def test_graphs_that_no_program_writes():
    """Each of these passes the first checks of onnx, or makes onnx itself fail."""
    model = written("u8s8")
    model.graph.initializer[0].data_type = 99
    assert found(model, "u8s8")[0].startswith("the graph is not valid ONNX: Invalid tensor data")
    model = written("u8s8")
    tensor = next(t for t in model.graph.initializer if t.name == "/row1/scale")
    tensor.dims[:] = [0, 1 << 40]  # no values, so that the size fits
    tensor.raw_data = b""
    assert len(found(model, "u8s8")) >= 1
    for domain in ("com.microsoft", "unknown"):
        model = written("u8s8")
        convolution = node(model, "Conv")
        convolution.domain = domain
        del convolution.input[1:]
        assert found(model, "u8s8") == ["the graph has operators that are not those of ONNX"]
    model = written("u8s8")
    body = [helper.make_node("Identity", ["x"], ["y"])]
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("", "Conv", ["x"], ["y"], body, opset))
    assert found(model, "u8s8") == ["the graph has operators that are not those of ONNX"]
    model = written("s8s8")
    constant = numpy_helper.from_array(np.ones((1, 3, *SIZE), np.float32), "pixels")
    model.graph.initializer.append(constant)
    node(model, "Conv").input[0] = "pixels"
    assert found(model, "s8s8") == ["/row0/Conv reads a constant, expected a tensor"]


def test_weights_in_other_files_are_not_read():
    model = written("u8s8")
    tensor = next(t for t in model.graph.initializer if t.name == "/row1/scale")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    (problem,) = found(model, "u8s8")
    assert "other files" in problem or "not valid ONNX" in problem


def test_graph_of_onnx_runtimes_quantiser(tmp_path):
    """It has other rules: the differences are named, and nothing fails."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        images = iter([{"images": random_images(1, SIZE)}])

        def get_next(self):
            return next(self.images, None)

    onnx.save(build("yolov7-tiny", size=SIZE), tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "int8.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
    )
    problems = found(onnx.load(tmp_path / "int8.onnx"), "u8s8")
    assert problems
    assert all("\n" not in problem for problem in problems)
