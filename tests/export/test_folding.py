"""Folding: golden operations, comparison with torch, and whole models."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.nn import golden as recipes
from y7edge.export import folding
from y7edge.models import registry
from y7edge.models.checkpoint import Checkpoint, default_names
from y7edge.models.published import official
from y7edge.models.scaling import scale
from y7edge.models.shapes import weight_shapes
from y7edge.nn.build import Model, from_checkpoint, to_checkpoint
from y7edge.nn.random_weights import random_weights

REFERENCE = Path(__file__).parents[1] / "reference"
OPS = json.loads((REFERENCE / "golden" / "ops.json").read_text())
ARRAYS = np.load(REFERENCE / "golden" / "ops.npz")
TABLE = json.loads((REFERENCE / "table.json").read_text())
NAMES = registry.names()
PARTS = ("weight", "bias", "running_mean", "running_var")


def golden(prefix):
    """The arrays of one case, by the rest of their names."""
    return {k.removeprefix(f"{prefix}/"): ARRAYS[k] for k in ARRAYS.files if k.startswith(prefix)}


def golden_norm(case, name):
    return folding.BatchNorm(*(case[f"in/{name}.{part}"] for part in PARTS))


def silu(x):
    return x / (1.0 + np.exp(-x))


def convolve(x, conv, **options):
    """``conv`` on ``x`` by torch, in double."""
    tensors = (torch.from_numpy(np.asarray(a, np.float64)) for a in (x, conv.weight, conv.bias))
    return F.conv2d(*tensors, **options).numpy()


@pytest.mark.parametrize("entry", OPS["bn_fold"], ids=lambda entry: entry["name"])
def test_batch_norm_matches_golden(entry):
    case = golden(entry["npz_prefix"])
    folded = folding.fold_conv_bn(case["in/conv.weight"], golden_norm(case, "bn"))
    np.testing.assert_allclose(folded.weight, case["fused_weight"], atol=1e-6)
    np.testing.assert_allclose(folded.bias, case["fused_bias"], atol=1e-6)
    y = convolve(
        case["x"], folded, stride=entry["stride"], padding=entry["k"] // 2, groups=entry["groups"]
    )
    np.testing.assert_allclose(silu(y), case["y_before"], atol=2e-6)


@pytest.mark.parametrize("entry", OPS["rep_fold"], ids=lambda entry: entry["name"])
def test_repconv_matches_golden(entry):
    case = golden(entry["npz_prefix"])
    identity = golden_norm(case, "rbr_identity") if entry["has_identity"] else None
    folded = folding.fold_repconv(
        (case["in/rbr_dense.0.weight"], golden_norm(case, "rbr_dense.1")),
        (case["in/rbr_1x1.0.weight"], golden_norm(case, "rbr_1x1.1")),
        identity,
    )
    # equiv_*, not fused_*: the published fold is wrong for grouped_identity.
    np.testing.assert_allclose(folded.weight, case["equiv_weight"], atol=1e-6)
    np.testing.assert_allclose(folded.bias, case["equiv_bias"], atol=1e-6)
    y = convolve(case["x"], folded, stride=entry["stride"], padding=1, groups=entry["groups"])
    np.testing.assert_allclose(silu(y), case["y_before"], atol=5e-6)


@pytest.mark.parametrize("level", range(OPS["implicit_fold"]["levels"]))
def test_implicit_matches_golden(level):
    case = golden(f"implicit/{level}")
    folded = folding.fold_implicit(case["weight"], case["bias"], case["ia"], case["im"])
    np.testing.assert_allclose(folded.weight, case["fused_weight"], atol=1e-6)
    np.testing.assert_allclose(folded.bias, case["fused_bias"], atol=2e-6)
    y = convolve(case["x"], folded)
    batch, _, height, width = y.shape
    raw = y.reshape(batch, OPS["implicit_fold"]["na"], -1, height, width).transpose(0, 1, 3, 4, 2)
    np.testing.assert_allclose(raw, case["raw_before"], atol=5e-6)


def random_norm(rng, channels):
    return folding.BatchNorm(
        rng.normal(1, 0.5, channels),
        rng.normal(0, 0.5, channels),
        rng.normal(0, 0.5, channels),
        rng.uniform(0.01, 3, channels),
    )


def batch_norm(y, norm):
    """The definition, on (B, C, H, W)."""
    weight, bias, mean, var = (part[None, :, None, None] for part in norm)
    return (y - mean) / np.sqrt(var + 1e-3) * weight + bias


shapes = st.fixed_dictionaries(
    {
        "groups": st.sampled_from([1, 2, 3]),
        "cin": st.integers(1, 4),
        "cout": st.integers(1, 4),
        "stride": st.sampled_from([1, 2]),
        "size": st.tuples(st.integers(1, 7), st.integers(1, 7)),
        "seed": st.integers(0, 2**32 - 1),
    }
)


@settings(max_examples=40, deadline=None)
@given(case=shapes, kernel=st.sampled_from([1, 3, 5]))
def test_batch_norm_is_exact_for_any_shape(case, kernel):
    rng = np.random.default_rng(case["seed"])
    groups, cin, cout = case["groups"], case["cin"], case["cout"] * case["groups"]
    weight = rng.normal(size=(cout, cin, kernel, kernel))
    norm = random_norm(rng, cout)
    x = rng.normal(size=(2, cin * groups, *case["size"]))
    options = {"stride": case["stride"], "padding": kernel // 2, "groups": groups}
    plain = folding.Convolution(weight, np.zeros(cout))
    expected = batch_norm(convolve(x, plain, **options), norm)
    folded = folding.fold_conv_bn(weight, norm)
    np.testing.assert_allclose(convolve(x, folded, **options), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(case=shapes, with_identity=st.booleans())
def test_repconv_is_exact_for_any_shape(case, with_identity):
    rng = np.random.default_rng(case["seed"])
    groups = case["groups"]
    stride = 1 if with_identity else case["stride"]
    cin = case["cin"]
    channels = (cin if with_identity else case["cout"]) * groups
    dense, pointwise = (rng.normal(size=(channels, cin, k, k)) for k in (3, 1))
    norms = [random_norm(rng, channels) for _ in range(3)]
    x = rng.normal(size=(2, cin * groups, *case["size"]))
    none = np.zeros(channels)
    options = {"stride": stride, "groups": groups}
    expected = batch_norm(
        convolve(x, folding.Convolution(dense, none), padding=1, **options), norms[0]
    )
    expected += batch_norm(convolve(x, folding.Convolution(pointwise, none), **options), norms[1])
    if with_identity:
        expected += batch_norm(x, norms[2])
    folded = folding.fold_repconv(
        (dense, norms[0]),
        (pointwise, norms[1]),
        norms[2] if with_identity else None,
    )
    actual = convolve(x, folded, padding=1, **options)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(cin=st.integers(1, 9), nc=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_implicit_is_exact_for_any_shape(cin, nc, seed):
    rng = np.random.default_rng(seed)
    cout = 3 * (5 + nc)
    weight, bias = rng.normal(size=(cout, cin, 1, 1)), rng.normal(size=cout)
    add, multiply = rng.normal(size=(1, cin, 1, 1)), rng.normal(1, 0.5, size=(1, cout, 1, 1))
    x = rng.normal(size=(2, cin, 3, 5))
    expected = multiply * convolve(x + add, folding.Convolution(weight, bias))
    folded = folding.fold_implicit(weight, bias, add, multiply)
    np.testing.assert_allclose(convolve(x, folded), expected, rtol=1e-9, atol=1e-9)


def test_array_functions_return_float64_and_keep_inputs():
    case = golden("repfold/identity")
    before = {key: value.copy() for key, value in case.items()}
    folded = folding.fold_repconv(
        (case["in/rbr_dense.0.weight"], golden_norm(case, "rbr_dense.1")),
        (case["in/rbr_1x1.0.weight"], golden_norm(case, "rbr_1x1.1")),
        golden_norm(case, "rbr_identity"),
    )
    assert folded.weight.dtype == folded.bias.dtype == np.float64
    for key, value in before.items():
        np.testing.assert_array_equal(case[key], value)


# --- whole models --------------------------------------------------------------------------------


@cache
def golden_checkpoint(name):
    """A published variant with the golden weights: real BatchNorm statistics, implicit values."""
    arrays = official.convert(recipes.state_dict(recipes.description(name)), name)
    return Checkpoint(registry.get(name), arrays, default_names(80))


@cache
def narrow(name, nc=2):
    return random_weights(scale(registry.get(name, nc=nc), width=0.125))


def images(side, batch=1):
    return np.random.default_rng(0).random((batch, 3, side, side + side // 2), dtype=np.float32)


def zeros(spec):
    """A checkpoint of arrays that take no memory."""
    shapes = weight_shapes(spec).items()
    arrays = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes}
    return Checkpoint(spec, arrays, default_names(spec.nc))


@pytest.mark.parametrize("name", NAMES)
def test_inventory_of_every_variant(name):
    spec = registry.get(name)
    before, after = (folding.inventory(zeros(s)) for s in (spec, registry.folded(spec)))
    assert before["parameters"] == TABLE[name]["training"]["parameters"]
    assert before["convolutions"] == TABLE[name]["training"]["conv2d_modules"]
    assert before["batch_norms"] == TABLE[name]["training"]["batchnorm2d_modules"]
    assert before["implicit"] == 2 * spec.levels
    assert before["auxiliary"] == len(spec.aux_inputs)
    assert before["parallel_branches"] == (6 if name == "yolov7" else 0)
    assert after["parameters"] == TABLE[name]["deploy_fused"]["parameters"]
    assert after["convolutions"] == TABLE[name]["deploy_fused"]["conv2d_modules"]
    assert not any(after[k] for k in ("batch_norms", "parallel_branches", "implicit", "auxiliary"))


@pytest.mark.parametrize("name", NAMES)
def test_folded_model_equals_the_unfolded_one(name):
    source = narrow(name)
    before = {key: array.copy() for key, array in source.arrays.items()}
    report = folding.deviation(source, images(128), double=True, by_layer=True)
    assert report.passed
    assert report.deviation <= 1e-9
    assert list(report.layers) == list(registry.kept_rows(source.spec))
    assert max(report.layers.values()) <= 1e-9
    for key, array in before.items():
        np.testing.assert_array_equal(source.arrays[key], array)


@pytest.mark.parametrize("name", NAMES)
def test_folded_model_has_no_parts_to_fold(name):
    source = narrow(name)
    folded = folding.fold_checkpoint(source)
    assert folding.inventory(folded) == folding.inventory(zeros(registry.folded(source.spec)))
    assert list(folded.arrays) == list(weight_shapes(folded.spec))
    assert {array.dtype for array in folded.arrays.values()} == {np.dtype(np.float32)}
    module = from_checkpoint(folded)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in module.modules())
    assert folded.meta["folded_from"] == {"digest": source.digest, "form": "training"}
    assert folded.names == source.names


@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7"])
def test_golden_weights_fold_within_rounding(name):
    source = golden_checkpoint(name)
    size = 2 * source.spec.max_stride
    single = folding.deviation(source, images(size))
    assert single.dtype == "float32"
    assert 0 < single.deviation <= 1e-4
    double = folding.deviation(source, images(size), double=True)
    assert double.dtype == "float64"
    assert double.deviation <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NAMES if n != "yolov7-e6e"])
def test_all_golden_weights_fold_within_rounding(name):
    source = golden_checkpoint(name)
    size = 2 * source.spec.max_stride
    assert folding.deviation(source, images(size), by_layer=True).passed
    assert folding.deviation(source, images(size), double=True, by_layer=True).passed


def test_folded_model_gives_the_golden_outputs():
    model = from_checkpoint(folding.fold_checkpoint(golden_checkpoint("yolov7")))
    description, outputs = recipes.description("yolov7"), recipes.outputs("yolov7")
    x = recipes.image(description["input_key"], (1, 3, 128, 128))
    with torch.inference_mode():
        raws = model(torch.from_numpy(x))
    for level, raw in enumerate(raws):
        np.testing.assert_allclose(raw.numpy(), outputs[f"raw{level}"], atol=5e-4)


def test_deploy_form_folds_to_the_same_weights_as_training_form():
    source = narrow("yolov7-w6")
    plain = registry.deploy(source.spec)
    head, moved = source.spec.head.index, plain.head.index
    assert moved == head - 4
    folded = folding.fold_checkpoint(source)
    arrays = {key: source.arrays[key] for key in weight_shapes(plain) if key in source.arrays}
    for key in weight_shapes(plain):  # the deploy head: implicit knowledge in, BatchNorm still out
        if key.startswith(f"rows.{moved}."):
            arrays[key] = folded.arrays[key]
    again = folding.fold_checkpoint(replace(source, spec=plain, arrays=arrays))
    assert again.spec == folded.spec
    for key, array in folded.arrays.items():
        np.testing.assert_array_equal(again.arrays[key], array)


def test_auxiliary_rows_in_between_move_the_later_rows_up():
    # Published models have them at the end; the mapping must not depend on it.
    spec = narrow("yolov7-w6").spec
    first = spec.aux_inputs[0]
    rows = [row for row in spec.rows if row.index != first]
    at = spec.rows[first].inputs[0] + 1
    rows.insert(at, spec.rows[first])
    position = {row.index: new for new, row in enumerate(rows)} | {-1: -1}
    moved = replace(
        spec,
        rows=tuple(
            replace(row, index=new, inputs=tuple(position[i] for i in row.inputs))
            for new, row in enumerate(rows)
        ),
    )
    assert position[spec.lead_inputs[0]] == spec.lead_inputs[0] + 1
    assert folding.deviation(random_weights(moved), images(128), double=True).passed


# --- folding twice -------------------------------------------------------------------------------


def test_folding_twice_is_logged_and_changes_nothing(caplog):
    folded = folding.fold_checkpoint(narrow("yolov7-tiny"))
    with caplog.at_level(logging.WARNING):
        again = folding.fold_checkpoint(folded)
    assert again is folded
    assert "already folded" in caplog.text
    report = folding.deviation(folded, images(64))
    assert report.deviation == 0


def test_folding_a_module_gives_a_new_one_each_time(caplog):
    source = from_checkpoint(narrow("yolov7"))
    before = {key: value.clone() for key, value in source.state_dict().items()}
    first = folding.fold(source)
    assert not caplog.text
    second = folding.fold(first)
    assert "already folded" in caplog.text
    assert isinstance(first, Model)
    assert len({id(source), id(first), id(second)}) == 3
    assert first.spec.form == second.spec.form == "folded"
    assert not first.training
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value)
        assert second.state_dict()[key].data_ptr() != value.data_ptr()
    for key, value in source.state_dict().items():
        assert torch.equal(before[key], value)
    x = torch.from_numpy(images(64))
    with torch.inference_mode():
        for a, b in zip(source(x), first(x), strict=True):
            assert (a - b).abs().max() <= 1e-4 * a.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_fold_keeps_the_modules_dtype(dtype):
    source = from_checkpoint(narrow("yolov7-tiny")).to(dtype)
    folded = folding.fold(source)
    assert {p.dtype for p in folded.parameters()} == {dtype}
    assert to_checkpoint(folded).form == "folded"


def test_one_class_folds():
    assert folding.deviation(narrow("yolov7-tiny", nc=1), images(64), double=True).passed


def test_identity_branch_of_a_model_folds():
    spec = scale(registry.get("yolov7", nc=2), width=0.125)
    rows = [replace(r, out=spec.rows[r.inputs[0]].out, identity=True)
            if r.block == "repconv" else r for r in spec.rows]  # fmt: skip
    source = random_weights(replace(spec, rows=tuple(rows)))
    assert folding.inventory(source)["parallel_branches"] == 9
    assert folding.deviation(source, images(64), double=True).passed


def test_wrong_fold_fails(monkeypatch):
    original = folding.fold_implicit
    monkeypatch.setattr(
        folding, "fold_implicit", lambda w, b, add, mul: original(w, b, 1.001 * add, mul)
    )
    report = folding.deviation(narrow("yolov7-tiny"), images(64), double=True)
    assert not report.passed


def test_nan_deviation_fails():
    report = folding.FoldReport("float32", (0.0, float("nan")), {})
    assert not report.passed
