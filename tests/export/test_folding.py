"""Folding against the golden operations, against torch, and on whole models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from y7edge.export import folding

REFERENCE = Path(__file__).parents[1] / "reference"
OPS = json.loads((REFERENCE / "golden" / "ops.json").read_text())
ARRAYS = np.load(REFERENCE / "golden" / "ops.npz")
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
        groups=entry["groups"],
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
@given(case=shapes, kernel=st.sampled_from([1, 3, 5]), with_bias=st.booleans())
def test_batch_norm_is_exact_for_any_shape(case, kernel, with_bias):
    rng = np.random.default_rng(case["seed"])
    groups, cin, cout = case["groups"], case["cin"], case["cout"] * case["groups"]
    weight = rng.normal(size=(cout, cin, kernel, kernel))
    bias = rng.normal(size=cout)
    norm = random_norm(rng, cout)
    x = rng.normal(size=(2, cin * groups, *case["size"]))
    options = {"stride": case["stride"], "padding": kernel // 2, "groups": groups}
    own = bias if with_bias else np.zeros(cout)
    expected = batch_norm(convolve(x, folding.Convolution(weight, own), **options), norm)
    folded = folding.fold_conv_bn(weight, norm, bias if with_bias else None)
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
        groups=groups,
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


def test_array_functions_leave_their_input_alone_and_give_float64():
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
