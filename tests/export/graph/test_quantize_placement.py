"""Where QDQ graphs are quantised: the rules, read off the written graphs."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from onnx import numpy_helper

from tests.export.graph.test_build import NAMES, build, narrow
from y7edge.errors import ExportError
from y7edge.export.graph.quantize import PROFILES, placement_of, quantize
from y7edge.export.graph.quantize_placement import Wiring, _Groups
from y7edge.export.graph.rewrites import REWRITES, choose
from y7edge.export.graph.simplify import simplify

ACTIVATIONS = (["LeakyRelu"], ["Sigmoid", "Mul"], ["Relu"], ["HardSwish"])
FUSED = ["u8s8-fused", "s8s8"]
SEPARATE = ["u8s8", "u16s8"]
PASSING = {"MaxPool", "Resize", "Slice"}


class Written:
    """A QDQ graph, with a range of its own for each group of tensors."""

    def __init__(self, model, profile, kept=None):
        self.source = Wiring(model)
        self.kept = self.source.heads() if kept is None else kept
        placement = placement_of(model, PROFILES[profile], self.kept)
        groups = dict.fromkeys(placement.group.values())
        ranges = {group: (-1.0, 1.0 + i) for i, group in enumerate(groups)}
        self.model = quantize(model, placement, ranges, PROFILES[profile])
        self.wiring = Wiring(self.model)
        arrays = self.model.graph.initializer
        self.arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in arrays}

    def nodes(self, *ops):
        return [node for node in self.wiring.nodes if node.op_type in ops]

    def integer(self):
        return [c for c in self.wiring.convolutions if c.name not in self.kept]

    def readers(self, tensor):
        return self.wiring.readers.get(tensor, [])

    def read_by(self, tensor):
        return [node.op_type for node in self.readers(tensor)]

    def written_by(self, tensor):
        return self.wiring.producer[tensor].op_type if tensor in self.wiring.producer else None

    def before(self, tensor):
        """Scale of the DequantizeLinear that writes a tensor."""
        node = self.wiring.producer[tensor]
        assert node.op_type == "DequantizeLinear", tensor
        return float(self.arrays[node.input[1]])

    def behind(self, tensor):
        """Scale of the QuantizeLinear that reads a tensor; nothing else reads it."""
        (node,) = self.readers(tensor)
        assert node.op_type == "QuantizeLinear", tensor
        return float(self.arrays[node.input[1]])


@cache
def written(name, profile, kept=None, **options):
    return Written(build(name, **options), profile, kept)


OTHERS = ("yolov7-tiny-relu", "yolov7-tiny-hardswish")
USUAL = ("yolov7-tiny", "yolov7-tiny-silu", "yolov7-w6", "yolov7-e6e", *OTHERS)


def everywhere(profiles):
    """All variants; those with the same operators as another one are slow tests."""
    names = (*NAMES, *OTHERS)
    marks = {name: () if name in USUAL else pytest.mark.slow for name in names}
    return [pytest.param(n, p, marks=marks[n]) for n in names for p in profiles]


@pytest.mark.parametrize(("name", "profile"), everywhere(PROFILES))
def test_each_quantised_tensor_has_one_pair(name, profile):
    graph = written(name, profile)
    quantised = graph.nodes("QuantizeLinear")
    assert len({node.input[0] for node in quantised}) == len(quantised)
    for node in quantised:
        (other,) = graph.readers(node.output[0])
        assert other.op_type == "DequantizeLinear"
        assert list(other.input[1:]) == list(node.input[1:])
        assert graph.written_by(node.input[0]) != "DequantizeLinear"
        assert "QuantizeLinear" not in graph.read_by(other.output[0])


@pytest.mark.parametrize(("name", "profile"), everywhere(PROFILES))
def test_each_convolution_but_the_heads_reads_quantised_tensors(name, profile):
    graph = written(name, profile)
    heads = len(graph.source.outputs)
    assert len(graph.integer()) == len(graph.wiring.convolutions) - heads
    for node in graph.integer():
        assert graph.written_by(node.input[0]) == "DequantizeLinear"
        weight = graph.wiring.producer[node.input[1]]
        assert graph.arrays[weight.input[0]].dtype == np.int8
        assert graph.arrays[weight.input[1]].shape == (len(graph.arrays[weight.input[0]]),)
        bias = graph.written_by(node.input[2])
        assert bias == ("DequantizeLinear" if PROFILES[profile].int32_bias else None)


@pytest.mark.parametrize(("name", "profile"), everywhere(FUSED))
def test_fused_profiles_have_no_pair_between_convolution_and_activation(name, profile):
    graph = written(name, profile)
    for node in graph.integer():
        assert graph.read_by(node.output[0]) in ACTIVATIONS
    for node in graph.nodes("Sigmoid"):
        assert graph.read_by(node.output[0]) == ["Mul"]


@pytest.mark.parametrize(("name", "profile"), everywhere(SEPARATE))
def test_other_profiles_quantise_each_input_and_output_of_an_operator(name, profile):
    graph = written(name, profile)
    last = {c.input[0] for c in graph.wiring.convolutions if c.name in graph.kept}
    for node in graph.integer():  # only a ReLU is one operator with its convolution
        expected = "Relu" if name.endswith("-relu") else "QuantizeLinear"
        assert graph.read_by(node.output[0]) == [expected]
    for node in graph.nodes("Relu"):  # also before a convolution in float
        assert graph.read_by(node.output[0]) == ["QuantizeLinear"]
    for node in graph.nodes("LeakyRelu", "HardSwish", "Sigmoid", "Mul", "Add"):
        ends = last | {m.output[0] for m in graph.nodes("Sigmoid") if _feeds(graph, m, last)}
        if node.output[0] in ends:
            continue  # before a convolution in float
        assert {graph.written_by(name) for name in node.input} == {"DequantizeLinear"}
        assert graph.read_by(node.output[0]) == ["QuantizeLinear"]


def _feeds(graph, sigmoid, last):
    (reader,) = graph.readers(sigmoid.output[0])
    return reader.output[0] in last


@pytest.mark.parametrize(("name", "profile"), everywhere(PROFILES))
def test_operators_that_select_values_keep_the_scale(name, profile):
    graph = written(name, profile)
    nodes = graph.nodes(*PASSING)
    assert {node.op_type for node in nodes} >= {"MaxPool", "Resize"}
    for node in nodes:
        assert graph.before(node.input[0]) == graph.behind(node.output[0])


@pytest.mark.parametrize(("name", "profile"), everywhere(PROFILES))
def test_concatenations_and_additions_share_a_scale_where_the_profile_says_so(name, profile):
    graph = written(name, profile)
    distinct = []
    for node in graph.nodes("Concat", "Add"):
        scales = {*map(graph.before, node.input), graph.behind(node.output[0])}
        distinct.append(len(scales))
    if PROFILES[profile].shared:
        assert set(distinct) == {1}
    else:
        assert min(distinct) > 1


def test_the_usual_variants_have_all_operators():
    assert [n for n in USUAL if written(n, "u8s8").nodes("Add")] == ["yolov7-e6e"]
    assert [n for n in USUAL if written(n, "u8s8").nodes("Slice")] == ["yolov7-w6", "yolov7-e6e"]


@pytest.mark.parametrize("profile", PROFILES)
def test_heads_stay_in_float_unless_asked(profile):
    graph = written("yolov7-tiny", profile)
    for name in graph.source.outputs:
        convolution = graph.wiring.producer[name]
        assert convolution.op_type == "Conv"
        assert graph.written_by(convolution.input[0]) == "LeakyRelu"
    graph = written("yolov7-tiny", profile, kept=())
    for name in graph.source.outputs:
        fused = PROFILES[profile].fused
        assert graph.written_by(name) == ("Conv" if fused else "DequantizeLinear")
        assert not graph.readers(name)


@pytest.mark.parametrize("profile", PROFILES)
def test_sigmoid_behind_the_heads(profile):
    graph = written("yolov7-tiny", profile, kept=(), outputs="heads-sigmoid")
    for name in graph.source.outputs:
        sigmoid = graph.wiring.producer[name]
        assert sigmoid.op_type == "Sigmoid"
        before = graph.written_by(sigmoid.input[0])
        assert before == ("Conv" if PROFILES[profile].fused else "DequantizeLinear")
    graph = written("yolov7-tiny", profile, outputs="heads-sigmoid")
    for name in graph.source.outputs:
        assert graph.written_by(graph.wiring.producer[name].input[0]) == "Conv"


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7-tiny-silu"])
def test_layer_in_float_within_the_network(name, profile):
    (kept,) = (c.name for c in Wiring(build(name)).convolutions if c.name == "/row4/Conv")
    graph = written(name, profile, kept=(kept,))
    (node,) = (c for c in graph.wiring.convolutions if c.name == kept)
    assert node.input[1] in graph.wiring.constants
    assert graph.written_by(node.input[0]) == "DequantizeLinear"  # others read it too
    assert "QuantizeLinear" not in graph.read_by(node.output[0])
    assert graph.read_by("/row4") == ["QuantizeLinear"]  # a Concat reads it


def test_only_layers_in_float_around_a_tensor_leave_it_in_float():
    names = ("/row0/Conv", "/row1/Conv")
    for profile in PROFILES:
        graph = written("yolov7-tiny", profile, kept=names)
        assert graph.read_by("images") == ["Conv"]
        assert graph.read_by("/row0") == ["Conv"]
        assert graph.read_by("/row1") == ["QuantizeLinear"]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("rewrite", [n for n in REWRITES if not n.startswith("reorg")])
def test_rewrites_of_tiny(rewrite, profile):
    graph = written("yolov7-tiny", profile, rewrites=(rewrite,))
    for node in graph.nodes(*PASSING):
        assert graph.before(node.input[0]) == graph.behind(node.output[0])
    for node in graph.nodes("Max"):
        convolution = graph.wiring.producer.get(node.input[0])
        if PROFILES[profile].fused or convolution.name in graph.kept:
            assert graph.read_by(convolution.output[0]) == ["Mul", "Max"]
        elif graph.read_by(node.output[0]) == [
            "QuantizeLinear"
        ]:  # one scale, as in TensorFlow Lite
            scales = {*map(graph.before, node.input), graph.behind(node.output[0])}
            assert len(scales) == 1


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("rewrite", ["reorg-conv6", "reorg-conv7"])
def test_merged_space_to_depth(rewrite, profile):
    graph = written("yolov7-w6", profile, rewrites=(rewrite,))
    first = graph.integer()[0]
    assert graph.wiring.producer[first.input[0]].input[0] == "images/quantized"


@pytest.mark.parametrize("profile", PROFILES)
def test_images_of_bytes_are_quantised_after_the_division(profile):
    graph = written("yolov7-w6", profile, input="uint8")
    assert graph.read_by("images") == ["Transpose"]
    assert graph.read_by("/images/Div") == ["QuantizeLinear"]
    assert [n.op_type for n in graph.nodes("Slice")] == ["Slice"] * 4


@pytest.mark.parametrize(
    "name", ["yolov7-tiny", pytest.param("yolov7-e6e", marks=pytest.mark.slow)]
)
def test_simplified_graphs_have_the_same_placement(name):
    model = build(name)
    simplified, note = simplify(model)
    assert note.startswith("simplified")
    for profile in PROFILES.values():
        expected = placement_of(model, profile)
        found = placement_of(simplified, profile)
        assert found.integer == expected.integer
        assert set(found.group) <= set(expected.group)  # chained Concats are merged


def test_activation_of_a_convolution():
    for name, rewrites, expected in (
        ("yolov7-tiny", (), ["LeakyRelu"]),
        ("yolov7-tiny", ("leaky-max",), ["Mul", "Max"]),
        ("yolov7-tiny-silu", (), ["Sigmoid", "Mul"]),
        ("yolov7-tiny-relu", (), ["Relu"]),
        ("yolov7-tiny-hardswish", (), ["HardSwish"]),
    ):
        wiring = Wiring(build(name, rewrites=rewrites))
        nodes, end = wiring.activation(wiring.convolutions[0])
        assert [node.op_type for node in nodes] == expected
        assert end == "/row0"
        head = next(c for c in wiring.convolutions if c.name == wiring.heads()[0])
        assert wiring.activation(head) == ([], "head0")


def test_unknown_layer():
    with pytest.raises(ExportError, match="'/row999/Conv' is not a convolution"):
        placement_of(build("yolov7-tiny"), PROFILES["u8s8"], ["/row999/Conv"])


@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7-e6e"])
def test_all_rewrites_at_once(name):
    rewrites = tuple(choose(narrow(name)[1].spec, [], list(REWRITES)))
    graph = written(name, "s8s8", rewrites=rewrites)
    assert len(graph.integer()) == len(graph.wiring.convolutions) - len(graph.source.outputs)
    assert len({graph.before(node.input[0]) for node in graph.nodes("Resize")}) == 2 + (
        "e6" in name
    )


def test_groups_of_many_tensors_in_any_order():
    """Joined from the last to the first; without shortcuts this would take hours."""
    names = [str(index) for index in range(200_000)]
    groups = _Groups(names)
    for pair in reversed(list(pairwise(names))):
        groups.join(pair)
    assert set(groups.names().values()) == {"0"}
