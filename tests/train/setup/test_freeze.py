"""Frozen rows: selection, and no changes in training."""

from __future__ import annotations

import pytest
import torch

from y7edge.errors import ConfigError
from y7edge.models import registry
from y7edge.models.scaling import scale
from y7edge.nn.build import Model
from y7edge.train.run.optim import build_optimizer, parameter_groups
from y7edge.train.settings.recipes import TINY
from y7edge.train.setup import freeze


def small():
    torch.manual_seed(0)
    return Model(scale(registry.get("yolov7-tiny", nc=2), width=0.125))


@pytest.mark.parametrize(
    ("texts", "rows"),
    [
        (["3"], (0, 1, 2)),
        (["0"], ()),
        (["3", "5"], (3, 5)),
        (["3,5"], (3, 5)),
        (["5", "3", "5"], (3, 5)),
        (["2-4"], (2, 3, 4)),
        (["2-4", "1"], (1, 2, 3, 4)),
        (["Backbone"], tuple(range(29))),
        (["backbone", "77"], (*range(29), 77)),
        ([], ()),
    ],
)
def test_freeze_texts(texts, rows):
    assert freeze.parse(texts, registry.get("yolov7-tiny")) == rows


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["all"], "freeze takes a number of rows .* not 'all'"),
        (["-3"], "not '-3'"),
        (["1.5"], "not '1.5'"),
        (["5-3"], "not '5-3'"),
        ([" , "], "found none"),
        (["3", "78"], "yolov7-tiny has the rows 0 to 77, not 78"),
        (["79"], "yolov7-tiny has the rows 0 to 77, not 78"),
    ],
)
def test_invalid_rows(texts, message):
    with pytest.raises(ConfigError, match=message):
        freeze.parse(texts, registry.get("yolov7-tiny"))


@pytest.mark.parametrize(
    ("name", "last"),
    [
        # The row in front of the published pooling pyramids.
        ("yolov7-tiny", 28),
        ("yolov7", 50),
        ("yolov7x", 58),
        ("yolov7-w6", 46),
        ("yolov7-e6", 56),
        ("yolov7-d6", 66),
        ("yolov7-e6e", 111),
    ],
)
def test_backbone_ends_in_front_of_the_pyramid(name, last):
    spec = registry.get(name)
    assert freeze.backbone(spec) == tuple(range(last + 1))
    following = {row.block for row in spec.rows[last + 1 : last + 10]}
    assert following & {"sppcspc", "maxpool"}


def test_frozen_rows_do_not_change_in_training():
    model = small()
    freeze.freeze_rows(model, (0, 1, 5))
    optimizer = build_optimizer(model, TINY, weight_decay=0.1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(2):
        model.train()
        freeze.apply(model)
        sum(head.square().mean() for head in model(torch.rand(2, 3, 64, 64))).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = model.state_dict()
    moved = {k.split(".")[1] for k in after if not torch.equal(after[k], before[k])}
    assert not moved & {"0", "1", "5"}
    assert {"2", "3", "4", "7", "77"} <= moved


def test_frozen_parameters_are_in_no_group():
    model = small()
    everything = sum(len(group) for group in parameter_groups(model))
    freeze.freeze_rows(model, (0,))
    groups = parameter_groups(model)
    assert everything - sum(len(group) for group in groups) == 3  # weight, gamma, beta
    assert all(p.requires_grad for group in groups for p in group)


def test_entirely_frozen_model_is_refused():
    model = small()
    freeze.freeze_rows(model, range(len(model.rows)))
    with pytest.raises(ConfigError, match="every row is frozen"):
        build_optimizer(model, TINY, weight_decay=0.0)
