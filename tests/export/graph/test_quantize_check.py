"""QDQ graphs that were changed by hand: each fault is found and named."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.export.graph.test_build import build, random_images
from y7edge.export.graph.quantize import PROFILES
from y7edge.export.graph.quantize_check import violations
from y7edge.export.quantization import Quantizer


@cache
def quantizer(name="yolov7-tiny-silu", profile="u8s8", **options):
    return Quantizer(build(name, size=(64, 96), **options), [random_images(1, (64, 96))], profile)


@cache
def _written(name, profile):
    return quantizer(name, profile).quantized()


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
    position, source = next(
        (i + 1, n) for i, n in enumerate(model.graph.node) if tensor in n.output
    )
    assert source
    readers = [n for n in model.graph.node if tensor in n.input]
    new = [
        helper.make_node("QuantizeLinear", [tensor, *how], [f"{tensor}/q"], name=f"{tensor}/q"),
        helper.make_node("DequantizeLinear", [f"{tensor}/q", *how], [f"{tensor}/d"], name="d"),
    ]
    for reader in readers:
        reader.input[:] = [f"{tensor}/d" if name == tensor else name for name in reader.input]
    for offset, n in enumerate(new):
        model.graph.node.insert(position + offset, n)


def test_scale_of_one_input_of_a_concat():
    model = written("s8s8")
    concat = next(n for n in model.graph.node if n.op_type == "Concat")
    name = concat.input[0].removesuffix("/dequantized")
    own(model, name, lambda scale, zero: (scale * np.float32(2), zero))
    (problem,) = found(model, "s8s8")
    assert name in problem
    assert "must have one scale" in problem


@pytest.mark.parametrize("profile", ["u8s8", "s8s8", "u16s8"])
def test_scale_behind_a_pooling(profile):
    model = written(profile, "yolov7-tiny")
    pool = next(n for n in model.graph.node if n.op_type == "MaxPool")
    own(model, pool.output[0], lambda scale, zero: (scale * np.float32(1.01), zero))
    (problem,) = found(model, profile)
    assert "must have one scale" in problem
