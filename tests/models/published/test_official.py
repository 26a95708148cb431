"""Published files in both containers: weights, settings, names and anchors are read."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from tests.models.published import published_files as published
from y7edge.errors import CheckpointError
from y7edge.models import registry, weights
from y7edge.models.published import official
from y7edge.models.published.keys import published_key
from y7edge.nn import create, from_checkpoint

TINY = registry.get("yolov7-tiny", nc=2)
BOTH = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


def tiny(seed=0, spec=TINY, names=None, **layout):
    tensors = published.values(spec, seed)
    return published.Layout(spec, **layout).model(tensors, names), tensors


def assert_holds(checkpoint, tensors):
    """Assert that all weights are equal, in float32."""
    for key, array in checkpoint.arrays.items():
        written = tensors[published_key(key)].numpy()
        counter = key.endswith("num_batches_tracked")
        assert array.dtype == (np.int64 if counter else np.float32)
        assert np.array_equal(array, written.astype(array.dtype)), key


@BOTH
@pytest.mark.parametrize("form", ["training", "deploy"])
def test_stripped_file(tmp_path, legacy, form):
    spec = registry.get("yolov7-tiny", nc=2, form=form)
    model, tensors = tiny(spec=spec, names=["nut", "washer"])
    path = published.write(tmp_path / "best.pt", published.stripped(model), legacy=legacy)
    checkpoint = official.load(path)
    assert checkpoint.spec == spec
    assert checkpoint.form == form
    assert checkpoint.names == ("nut", "washer")
    assert checkpoint.meta["best_fitness"] == 0.5
    assert checkpoint.meta["epoch"] == -1
    assert checkpoint.meta["provenance"]["entry"] == "model"
    assert_holds(checkpoint, tensors)


@BOTH
def test_ema_weights_are_used_if_present(tmp_path, legacy):
    (model, _), (ema, averaged) = tiny(seed=1), tiny(seed=2)
    value = published.while_training(model, ema)
    path = published.write(tmp_path / "last.pt", value, legacy=legacy)
    checkpoint = official.load(path)
    assert_holds(checkpoint, averaged)
    assert checkpoint.meta["provenance"]["entry"] == "ema"
    assert checkpoint.meta["best_fitness"] == 0.625
    assert checkpoint.meta["epoch"] == 7
    assert checkpoint.spec.anchors == TINY.anchors


@BOTH
@pytest.mark.parametrize("protocol", [2, 4])
def test_bare_float32_model(tmp_path, legacy, protocol):
    model, tensors = tiny()
    path = published.write(tmp_path / "init.pt", model.float(), legacy=legacy, protocol=protocol)
    checkpoint = official.load(path)
    assert checkpoint.meta["provenance"]["entry"] == "bare model"
    assert_holds(checkpoint, tensors)


@BOTH
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "as model"])
def test_state_dict(tmp_path, legacy, inside):
    model, tensors = tiny()
    state = model.state_dict()
    assert isinstance(state, OrderedDict) and hasattr(state, "_metadata")
    value = {"model": state} if inside else state
    checkpoint = official.load(published.write(tmp_path / "state.pt", value, legacy=legacy))
    assert checkpoint.spec.name == "yolov7-tiny"
    assert checkpoint.names == ("0", "1")
    assert_holds(checkpoint, tensors)


@pytest.mark.parametrize(("name", "form"), [("yolov7", "training"), ("yolov7-w6", "deploy")])
def test_other_variants(tmp_path, name, form):
    spec = registry.get(name, nc=1, form=form)
    model, tensors = tiny(spec=spec)
    checkpoint = official.load(published.write(tmp_path / "m.pt", published.stripped(model)))
    assert checkpoint.spec == spec
    assert_holds(checkpoint, tensors)


def test_published_file_round_trip(tmp_path):
    torch.manual_seed(0)
    module = create("yolov7-tiny", nc=2)
    state = module.state_dict()
    tensors = {published_key(key): value for key, value in state.items()}
    tensors["model.77.anchor_grid"] = published.values(TINY)["model.77.anchor_grid"].float()
    model = published.Layout(TINY).model(tensors)
    checkpoint = weights.load(published.write(tmp_path / "m.pt", model))
    assert list(checkpoint.arrays) == list(state)
    again = from_checkpoint(checkpoint).state_dict()
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_loaded_file_can_be_saved(tmp_path):
    model, _ = tiny()
    checkpoint = official.load(published.write(tmp_path / "m.pt", published.stripped(model)))
    weights.save(checkpoint, tmp_path / "m.safetensors")
    assert weights.load(tmp_path / "m.safetensors").digest == checkpoint.digest


def test_nothing_is_imported(tmp_path):
    model, _ = tiny()
    path = published.write(tmp_path / "m.pt", published.stripped(model))
    code = (
        "import sys; sys.modules['torch'] = None; from y7edge.models import official;"
        f"assert len(official.load({str(path)!r}).arrays) == 343;"
        "assert not {'models', 'onnx', 'cv2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Settings that are not in the keys.


def test_synchronised_batchnorm(tmp_path):
    model, tensors = tiny(norm="SyncBatchNorm")
    checkpoint = official.load(published.write(tmp_path / "m.pt", published.stripped(model)))
    assert_holds(checkpoint, tensors)


@pytest.mark.parametrize("norm", ["BatchNorm2d", "SyncBatchNorm"])
def test_another_eps_is_refused(tmp_path, norm):
    model, _ = tiny(norm=norm, eps=1e-5)
    path = published.write(tmp_path / "m.pt", published.stripped(model))
    with pytest.raises(CheckpointError, match=r"'model\.0\.bn' has eps 1e-05, expected 0\.001"):
        official.load(path)


@pytest.mark.parametrize(
    ("activation", "name"),
    [(nn.SiLU(), "yolov7-tiny-silu"), (nn.LeakyReLU(0.1), "yolov7-tiny")],
    ids=["silu", "leaky"],
)
def test_activation_distinguishes_the_tiny_variants(tmp_path, activation, name):
    layout = published.Layout(TINY)
    layout.activation = activation
    model = layout.model(published.values(TINY))
    checkpoint = official.load(published.write(tmp_path / "m.pt", model))
    assert checkpoint.spec == registry.get(name, nc=2)


@pytest.mark.parametrize(
    ("activation", "match"),
    [
        (nn.Hardswish(), "activations Hardswish, expected only LeakyReLU or SiLU"),
        (nn.LeakyReLU(0.01), "negative_slope 0.01, expected 0.1"),
    ],
    ids=["hardswish", "slope"],
)
def test_other_activations_are_refused(tmp_path, activation, match):
    layout = published.Layout(TINY)
    layout.activation = activation
    path = published.write(tmp_path / "m.pt", layout.model(published.values(TINY)))
    with pytest.raises(CheckpointError, match=match):
        official.load(path)


def test_anchors_come_from_the_file(tmp_path):
    """Auto-anchor changes them; half precision holds 11 bits."""
    model, _ = tiny()
    head = model.model[77]
    head.anchors.mul_(1.5)
    head.anchor_grid.mul_(1.5)
    checkpoint = official.load(published.write(tmp_path / "m.pt", model))
    wanted = np.array(TINY.anchors) * 1.5
    assert np.allclose(checkpoint.spec.anchors, wanted, rtol=2**-11)
    strides = np.array([8, 16, 32])[:, None, None]
    assert np.array_equal(checkpoint.arrays["rows.77.anchors"] * strides, checkpoint.spec.anchors)


def test_different_anchor_grid_is_refused(tmp_path):
    model, _ = tiny()
    model.model[77].anchor_grid.mul_(1.5)
    path = published.write(tmp_path / "m.pt", model)
    with pytest.raises(CheckpointError, match=r"anchor_grid .* and anchors .* differ"):
        official.load(path)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["nut", "screw"], ("nut", "screw")),
        ({1: "screw", 0: "nut"}, ("nut", "screw")),
        ([7, False], ("7", "False")),
        ([], ("0", "1")),
    ],
)
def test_class_names(tmp_path, names, expected):
    model, _ = tiny(names=names)
    assert official.load(published.write(tmp_path / "m.pt", model)).names == expected


@pytest.mark.parametrize("names", [["nut"], {0: "nut", 5: "screw"}, "ab", [["a"], ["b"]]])
def test_class_names_that_do_not_fit_are_refused(tmp_path, names):
    model, _ = tiny(names=names)
    path = published.write(tmp_path / "m.pt", model)
    with pytest.raises(CheckpointError, match="class names"):
        official.load(path)


# Files that are not a detection model.


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ({"epoch": 3, "weights": None}, r"found the entries \['epoch', 'weights'\]"),
        ({"model": None, "ema": None}, "no model"),
        ([torch.zeros(2)], "found a list"),
        ({}, "no model"),
        ({"model.0.weight": torch.zeros(2), "b": 3}, "no model"),
        (nn.Sequential(nn.Conv2d(3, 8, 3)), "0 detection heads"),
    ],
)
def test_file_without_a_model_is_refused(tmp_path, value, match):
    path = published.write(tmp_path / "m.pt", value)
    with pytest.raises(CheckpointError, match=match):
        official.load(path)


def test_members_that_are_not_modules_are_refused(tmp_path):
    model, _ = tiny()
    model.model[3]._modules["bn"] = "text"
    path = published.write(tmp_path / "m.pt", model)
    with pytest.raises(CheckpointError, match=r"'model\.3\.bn' is not a module"):
        official.load(path)


def test_recursive_modules_are_refused(tmp_path):
    model, _ = tiny()
    model._modules["again"] = model
    path = published.write(tmp_path / "m.pt", model)
    with pytest.raises(CheckpointError, match="nested deeper than 16"):
        official.load(path)


def test_non_finite_values_are_refused(tmp_path):
    model, _ = tiny()
    model.model[0].bn.running_var = torch.full((32,), torch.inf).half()
    path = published.write(tmp_path / "m.pt", model)
    with pytest.raises(CheckpointError, match=r"rows\.0\.bn\.running_var contains NaN or infinity"):
        official.load(path)
