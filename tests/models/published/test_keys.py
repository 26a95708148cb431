"""Translate published keys of every variant and form; other keys are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models.published.published_files import to_deploy
from y7edge.errors import CheckpointError, ConfigError
from y7edge.models import names, registry
from y7edge.models.published.keys import published_key
from y7edge.models.published.official import convert
from y7edge.models.shapes import weight_shapes
from y7edge.nn import create

REFERENCE = Path(__file__).parents[2] / "reference"
TABLE = json.loads((REFERENCE / "table.json").read_text())
GOLDEN = [name for name in names() if (REFERENCE / f"golden/model_{name}.json").exists()]
HEADS = {  # row of the head: training form, deploy form
    "yolov7-tiny": (77, 77),
    "yolov7-tiny-silu": (77, 77),
    "yolov7": (105, 105),
    "yolov7x": (121, 121),
    "yolov7-w6": (122, 118),
    "yolov7-e6": (144, 140),
    "yolov7-d6": (166, 162),
    "yolov7-e6e": (265, 261),
}


def golden(name):
    """The published state dict's keys, with arrays that have a shape but no memory."""
    rows = json.loads((REFERENCE / f"golden/model_{name}.json").read_text())["state_dict"]
    return {key: np.broadcast_to(np.zeros((), dtype), shape) for key, shape, dtype, *_ in rows}


@pytest.mark.parametrize("name", GOLDEN)
def test_training_form(name):
    state = golden(name)
    converted = convert(state, name)
    shapes = weight_shapes(registry.get(name))
    assert list(converted) == list(shapes)
    assert all(converted[key] is state[published_key(key)] for key in shapes)
    dropped = set(state) - {published_key(key) for key in shapes}
    assert dropped == {f"model.{HEADS[name][0]}.anchor_grid"}


@pytest.mark.parametrize("name", GOLDEN)
def test_deploy_form(name):
    state = to_deploy(golden(name), *HEADS[name])
    assert len(state) == TABLE[name]["deploy_unfused"]["state_dict_keys"]
    converted = convert(state, name)
    assert {key: value.shape for key, value in converted.items()} == weight_shapes(
        registry.get(name, form="deploy")
    )


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("form", ["training", "deploy"])
def test_number_and_rows_of_the_published_keys(name, form):
    spec = registry.get(name, form=form)
    keys = {published_key(key) for key in weight_shapes(spec)}
    entry = {"training": "training", "deploy": "deploy_unfused"}[form]
    assert len(keys) == TABLE[name][entry]["state_dict_keys"] - 1  # anchor_grid
    assert spec.head.index == HEADS[name][form == "deploy"]


def test_repconv_members():
    keys = list(convert(golden("yolov7"), "yolov7"))
    assert "rows.102.dense.conv.weight" in keys
    assert "rows.104.pointwise.bn.running_var" in keys
    assert published_key("rows.9.identity.weight") == "model.9.rbr_identity.weight"


@pytest.mark.parametrize("form", ["training", "deploy"])
def test_torch_tensors_load_strictly(form):
    torch.manual_seed(1)
    spec = registry.get("yolov7-tiny-silu", nc=7, form=form)
    state = {
        published_key(key): torch.zeros((), dtype=torch.int64) if not shape else torch.rand(shape)
        for key, shape in weight_shapes(spec).items()
    }
    converted = convert(state, spec.name)
    module = create(spec.name, nc=7, form=form)
    module.load_state_dict(converted, strict=True)
    assert torch.equal(module.state_dict()["rows.77.lead.1.bias"], state["model.77.m.1.bias"])


def test_missing_counters_become_zero_of_the_same_library():
    state = {k: v for k, v in golden("yolov7-tiny").items() if "num_batches" not in k}
    counter = convert(state, "yolov7-tiny")["rows.0.bn.num_batches_tracked"]
    assert isinstance(counter, np.ndarray) and counter.dtype == np.int64 and counter == 0
    tensors = {key: torch.zeros(value.shape) for key, value in state.items()}
    counter = convert(tensors, "yolov7-tiny")["rows.0.bn.num_batches_tracked"]
    assert counter.dtype == torch.int64 and counter.shape == () and counter == 0


def without(pattern):
    return lambda state: {k: v for k, v in state.items() if not re.search(pattern, k)}


def renamed(pattern, replacement):
    return lambda state: {re.sub(pattern, replacement, k): v for k, v in state.items()}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (without(r"^model\.4\.conv"), r"missing model\.4\.conv\.weight; expected 343"),
        (without(r"77\.anchors"), r"missing model\.77\.anchors"),
        (lambda s: {**s, "model.8.w": s["model.0.bn.bias"]}, r"unexpected model\.8\.w"),
        (lambda s: {**s, "model.4.conv.weight": np.zeros((1, 1, 1, 1))}, "other widths"),
        (lambda s: {**s, "model.4.conv.weight": 3.0}, "has shape None"),
        (lambda s: {**s, "model.77.m.0.weight": np.zeros((256, 128, 1, 1))}, "256 outputs"),
        (lambda s: {**s, "model.77.m.0.weight": np.zeros((15, 128, 1, 1))}, "15 outputs"),
        (renamed(r"^model\.", ""), "0 detection heads"),
        (renamed(r"model\.77", "model.78"), "a training head in row 78"),
        (renamed(r"model\.77\.im", "model.77.m_kpt"), r"missing model\.77\.im\.0\.implicit"),
        (lambda s: {**renamed(r"\.77\.", ".90.")(s), "model.90.m_kpt.0.bias": 0}, "a pose model"),
        (lambda s: {**s, "model.0.conv.bias": np.zeros(32)}, "already folded weights"),
        (lambda s: {**s, "model.5.rbr_reparam.bias": np.zeros(32)}, "already folded weights"),
        (lambda s: {}, "0 detection heads"),
    ],
)  # fmt: skip
def test_other_weights_are_refused(change, match):
    with pytest.raises(CheckpointError, match=match):
        convert(change(golden("yolov7-tiny")), "yolov7-tiny")


def test_name_must_match_the_keys():
    state = golden("yolov7")
    with pytest.raises(CheckpointError, match="weights of yolov7 in training form, not of yolov7x"):
        convert(state, "yolov7x")
    with pytest.raises(ConfigError, match="unknown model"):
        convert(state, "yolov8")


def test_any_number_of_classes():
    spec = registry.get("yolov7-tiny", nc=1)
    state = {published_key(k): np.zeros(s) for k, s in weight_shapes(spec).items()}
    assert convert(state, "yolov7-tiny")["rows.77.mul.2"].shape == (1, 18, 1, 1)
