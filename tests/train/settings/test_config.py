"""A run's configuration: fields, ranges and contradictions."""

from __future__ import annotations

import json

import pytest

from y7edge.errors import ConfigError
from y7edge.models import registry
from y7edge.train.settings.config import TrainConfig
from y7edge.train.settings.recipes import TINY


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "data: expected a path"),
        ({"weights": 3}, "weights: expected a path .*found 3"),
        ({"model": 7}, "model: expected text, found 7"),
        ({"rect": 1}, "rect: expected true or false, found 1"),
        ({"compile": "no"}, "compile: expected true or false, found 'no'"),
        ({"devices": 0}, "devices must be a whole number from 1, not 0"),
        ({"nodes": True}, "nodes: expected a whole number, found True"),
        ({"profile": -1}, "profile must be a whole number from 0, not -1"),
        ({"nominal_batch": 0}, "nominal_batch must be a whole number from 1, not 0"),
        ({"checkpoint_minutes": 0}, "checkpoint_minutes must be a positive number, not 0"),
        ({"width": "1"}, "width: expected a finite number, found '1'"),
        ({"assigner": "best"}, "assigner must be one of auto, coarse-to-fine, .* not 'best'"),
        ({"cache": "tape"}, "cache must be one of auto, ram, disk, none, not 'tape'"),
        ({"freeze": [1]}, r"freeze must be a tuple of row indices from 0, not \[1\]"),
        ({"freeze": (-1,)}, r"freeze must be .* not \(-1,\)"),
        ({"batch": 6, "devices": 2, "nodes": 2}, r"of 4 \(the number of devices\), not 6: use 8"),
        ({"rect": True, "image_weights": True}, "rect and image_weights "),
        (
            {"device": "cuda:1", "devices": 2},
            "'cuda:1' is a single device, .* 2: use 'cuda'",
        ),
    ],
)
def test_invalid_configurations(changes, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**{"data": "d", **changes})


def test_devices_share_the_batch():
    assert TrainConfig(data="d", batch=8, devices=2, nodes=2).batch == 8


def test_nominal_batch_overrides_the_recipes():
    recipe = TINY.changed({"nominal_batch": 8})
    assert TrainConfig(data="d", recipe=recipe).hyper.nominal_batch == 8
    assert TrainConfig(data="d", recipe=recipe, nominal_batch=4).hyper.nominal_batch == 4


def test_rect_turns_off_mosaic_and_mixing():
    augmentation = TrainConfig(data="d", model="yolov7", rect=True).hyper.augmentation
    assert (
        augmentation.mosaic,
        augmentation.mixup,
        augmentation.copy_paste,
        augmentation.paste_in,
    ) == (0, 0, 0, 0)
    assert augmentation.scale == 0.9
    assert TrainConfig(data="d", model="yolov7").hyper.augmentation.mixup == 0.15


def test_to_dict_has_json_values():
    config = TrainConfig(data="d", spec=registry.get("yolov7-tiny"), freeze=(1, 2))
    values = json.loads(json.dumps(config.to_dict()))
    assert values["spec"]["name"] == "yolov7-tiny"
    assert values["freeze"] == [1, 2]
    assert values["recipe"]["lr0"] == 0.01
