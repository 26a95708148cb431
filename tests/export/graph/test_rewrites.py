"""Rewrites: the same function, other nodes, still named after rows, and left by onnx-simplifier."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
from onnx import helper, numpy_helper

from tests.export.graph.test_build import build, narrow, random_images, run
from y7edge.errors import ConfigError
from y7edge.export.graph.rewrites import (
    REORG_PARTS,
    REWRITES,
    choose,
    lacking,
    merged_reorg,
    recorded,
)
from y7edge.export.graph.simplify import simplify
from y7edge.models import registry
from y7edge.models.shapes import weight_shapes

ODD = {"yolov7-tiny": (160, 224), "yolov7": (96, 160), "yolov7-w6": (192, 320)}
"""Input sizes with an odd number of rows and columns at the coarsest level, and not square."""

EXACT = [
    ("yolov7-tiny", "pool3x3"),
    ("yolov7", "pool3x3"),
    ("yolov7-tiny", "resize-per-axis"),
    ("yolov7-w6", "resize-per-axis"),
    ("yolov7-tiny", "leaky-max"),
]
MERGED = [("yolov7-w6", "reorg-conv6", 6), ("yolov7-w6", "reorg-conv7", 7)]


@cache
def usual(name, **options):
    return run(build(name, size=ODD[name], **options), random_images(1, ODD[name]))


def attributes(model, op):
    return [
        {a.name: helper.get_attribute_value(a) for a in node.attribute}
        for node in model.graph.node
        if node.op_type == op
    ]


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for output, values in expected.items():
        np.testing.assert_array_equal(found[output], values)


@pytest.mark.parametrize(("name", "rewrite"), EXACT)
def test_maxima_and_copies_are_equal_to_the_bit(name, rewrite):
    model = build(name, size=ODD[name], rewrites=[rewrite])
    assert len(model.graph.node) > len(build(name).graph.node)
    assert_equal(run(model, random_images(1, ODD[name])), usual(name))


@pytest.mark.parametrize(("name", "rewrite", "size"), MERGED)
def test_merged_convolution_is_equal_within_rounding(name, rewrite, size):
    model = build(name, size=ODD[name], rewrites=[rewrite])
    assert not Counter(node.op_type for node in model.graph.node)["Slice"]
    first = attributes(model, "Conv")[0]
    assert (first["kernel_shape"], first["strides"]) == ([size] * 2, [2, 2])
    found = run(model, random_images(1, ODD[name]))
    for output, expected in usual(name).items():
        deviation = np.abs(found[output] - expected).max() / np.abs(expected).max()
        assert deviation < 4e-6


@pytest.mark.parametrize("size", [6, 7])
def test_merged_kernel_sums_the_same_products(size):
    """Compare with space-to-depth and a 3x3 convolution, both written as loops, in float64."""
    rng = np.random.default_rng(0)
    image, weight = rng.normal(size=(2, 10, 14)), rng.normal(size=(5, 8, 3, 3))
    parts = [image[:, y::2, x::2] for y, x in REORG_PARTS]
    expected = convolve(np.concatenate(parts), weight, stride=1)
    found = convolve(image, merged_reorg(weight, size), stride=2)
    assert expected.shape == (5, 5, 7)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def convolve(image, weight, stride):
    size = weight.shape[-1]
    pad = (size - 1) // 2
    padded = np.pad(image, [(0, 0), (pad, pad), (pad, pad)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return np.einsum("cyxij,ocij->oyx", windows[:, ::stride, ::stride], weight)


def test_each_rewrite_leaves_only_operations_that_were_asked_for():
    tiny = build("yolov7-tiny", rewrites=["pool3x3", "leaky-max", "resize-per-axis"])
    pools = {(a["kernel_shape"][0], a["strides"][0]) for a in attributes(tiny, "MaxPool")}
    assert pools == {(3, 1), (2, 2)}
    count = Counter(node.op_type for node in tiny.graph.node)
    assert (count["LeakyRelu"], count["Max"], count["Mul"]) == (0, 55, 55)
    scales = {t.name: numpy_helper.to_array(t).tolist() for t in tiny.graph.initializer}
    resized = [scales[node.input[2]] for node in tiny.graph.node if node.op_type == "Resize"]
    assert resized == [[1, 1, 2, 1], [1, 1, 1, 2]] * 2


@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7-w6"])
def test_nodes_are_still_named_after_rows(name):
    spec = narrow(name)[1].spec
    rewrites = choose(spec, [], [n for n in REWRITES if n != "reorg-conv6"])
    model = build(name, rewrites=rewrites)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    rows = {int(re.match(r"/row(\d+)/", n)[1]) for n in names}
    merged = {row.index for row in spec.rows if row.block == "reorg"}
    assert rows == {row.index for row in spec.rows} - merged
    weights = {t.name for t in model.graph.initializer if t.name.startswith("rows.")}
    assert weights == {key for key in weight_shapes(spec) if not key.endswith("anchors")}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("name", "rewrites"),
    [
        ("yolov7-tiny", ("pool3x3", "leaky-max", "resize-per-axis")),
        ("yolov7-w6", ("pool3x3", "reorg-conv6", "resize-per-axis")),
        ("yolov7-w6", ("reorg-conv7",)),
    ],
)
def test_simplifier_leaves_them(name, rewrites, precision):
    model = build(name, rewrites=rewrites, precision=precision)
    simplified, note = simplify(model)
    assert note.startswith("simplified")
    count, left = (Counter(n.op_type for n in m.graph.node) for m in (model, simplified))
    assert left == count
    for op in ("Conv", "MaxPool"):
        assert attributes(simplified, op) == attributes(model, op)


def test_silu_by_tanh():
    size = ODD["yolov7"]
    model = build("yolov7", size=size, rewrites=["silu-tanh"])
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["Tanh"] == operators["Add"] and not operators["Sigmoid"]
    expected, found = usual("yolov7"), run(model, random_images(1, size))
    for output, values in expected.items():
        assert np.abs(found[output] - values).max() <= 1e-4 * np.abs(values).max()


@pytest.mark.parametrize("rewrite", ["leaky-max", "pool3x3"])
def test_fp16_graph(rewrite):
    found = run(build("yolov7-tiny", rewrites=[rewrite], precision="fp16"), random_images(1))
    expected = run(build("yolov7-tiny", precision="fp16"), random_images(1))
    for output, values in expected.items():
        assert found[output].dtype == np.float16
        wide = values.astype(np.float32)
        assert np.abs(found[output] - wide).max() <= 2e-2 * np.abs(wide).max()


# --- which ---------------------------------------------------------------------------------------


def spec_of(name):
    return registry.get(name, form="deploy")


def test_rewrites_are_in_one_order_and_once():
    names = ["leaky-max", "pool3x3", "leaky-max"]
    assert choose(spec_of("yolov7-tiny"), names, ["pool3x3"]) == ("pool3x3", "leaky-max")
    assert choose(spec_of("yolov7-tiny"), (), ()) == ()


@pytest.mark.parametrize(
    ("name", "asked", "problem"),
    [
        ("yolov7-tiny", ["pool5"], r"no rewrite 'pool5'; choose from pool3x3, reorg-conv6"),
        ("yolov7", ["reorg-conv6"], "does not apply: yolov7 has no space-to-depth before a 3x3"),
        ("yolov7-tiny", ["reorg-conv7"], "yolov7-tiny has no space-to-depth"),
        ("yolov7", ["leaky-max"], "rewrite leaky-max does not apply: yolov7 has no LeakyReLU"),
        ("yolov7-tiny", ["silu-tanh"], "rewrite silu-tanh does not apply: yolov7-tiny has no SiLU"),
        ("yolov7-w6", ["reorg-conv6", "reorg-conv7"], "change the same part: give one"),
    ],
)
def test_rewrites_that_do_not_fit_are_refused(name, asked, problem):
    with pytest.raises(ConfigError, match=problem):
        choose(spec_of(name), asked, ())


def test_defaults_that_do_not_apply_are_left_out():
    everything = ["reorg-conv7", "leaky-max", "pool3x3"]
    assert choose(spec_of("yolov7"), (), everything) == ("pool3x3",)
    assert choose(spec_of("yolov7-w6"), (), everything) == ("pool3x3", "reorg-conv7")


def test_the_users_choice_replaces_a_default_of_the_same_part():
    assert choose(spec_of("yolov7-w6"), ["reorg-conv6"], ["reorg-conv7"]) == ("reorg-conv6",)


def test_every_variant_has_a_rewrite_for_each_of_its_parts():
    found = {name: choose(spec_of(name), (), list(REWRITES)) for name in registry.names()}
    assert found["yolov7-tiny"] == ("pool3x3", "leaky-max", "resize-per-axis")
    silu = ("pool3x3", "silu-tanh", "resize-per-axis")
    assert found["yolov7-tiny-silu"] == found["yolov7x"] == silu
    for name in ("yolov7-w6", "yolov7-e6", "yolov7-d6", "yolov7-e6e"):
        assert found[name] == ("pool3x3", "reorg-conv6", "silu-tanh", "resize-per-axis")


def test_the_record_in_the_manifest_is_read_back():
    tools = {"onnx": "1", **recorded(("pool3x3", "leaky-max"))}
    assert lacking(tools, ("leaky-max", "resize-per-axis", "pool3x3")) == ["resize-per-axis"]
    assert recorded(()) == {}
    assert lacking({}, ("pool3x3",)) == ["pool3x3"]
