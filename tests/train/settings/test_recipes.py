"""Recipes: the published values, sources, ranges, and changes under published names."""

from __future__ import annotations

from dataclasses import replace

import pytest

from y7edge.errors import ConfigError
from y7edge.models import registry
from y7edge.train.augment.settings import Augmentation
from y7edge.train.settings.config import TrainConfig
from y7edge.train.settings.ranges import ranges
from y7edge.train.settings.recipe import Recipe, keys
from y7edge.train.settings.recipes import (
    FINETUNE_CHANGES,
    P5,
    P6,
    RECIPES,
    SMALL_DATA_CHANGES,
    TINY,
    named_for,
)

# Where the published files differ; columns: p5, p6, tiny, custom.
FINETUNE, SMALL_DATA = (RECIPES[name].recipe for name in ("finetune", "small-data"))
DIFFERING = """
lrf       0.1   0.2   0.01  0.1
cls       0.3   0.3   0.5   0.3
obj       0.7   0.7   1.0   0.7
translate 0.2   0.2   0.1   0.2
scale     0.9   0.9   0.5   0.5
mixup     0.15  0.15  0.05  0.0
paste_in  0.15  0.15  0.05  0.0
"""


@pytest.mark.parametrize(
    ("recipe", "column"), [(P5, 1), (P6, 2), (TINY, 3), (FINETUNE, 4)], ids=["p5", "p6", "t", "c"]
)
def test_published_files_differ_as_listed(recipe, column):
    flat = recipe.to_dict()
    for line in DIFFERING.split("\n")[1:-1]:
        words = line.split()
        assert flat[words[0]] == float(words[column]), words[0]


def test_published_files_agree_elsewhere():
    differing = {line.split()[0] for line in DIFFERING.split("\n")[1:-1]}
    for recipe in (P6, TINY):
        theirs, ours = recipe.to_dict(), P5.to_dict()
        assert {k for k in ours if ours[k] != theirs[k]} <= differing
    assert (P5.lr0, P5.momentum, P5.weight_decay, P5.box) == (0.01, 0.937, 0.0005, 0.05)
    assert (P5.warmup_epochs, P5.warmup_momentum, P5.warmup_bias_lr) == (3.0, 0.8, 0.1)
    assert (P5.cls_pw, P5.obj_pw, P5.anchor_t, P5.fl_gamma) == (1.0, 1.0, 4.0, 0.0)
    assert (P5.ema_decay, P5.ema_tau, P5.average, P5.close_mosaic) == (0.9999, 2000.0, "ema", 0)
    augmentation = P5.augmentation
    assert (augmentation.hsv_h, augmentation.hsv_s, augmentation.hsv_v, augmentation.fliplr) == (
        0.015,
        0.7,
        0.4,
        0.5,
    )
    assert (augmentation.mosaic, augmentation.mosaic9, augmentation.copy_paste) == (1.0, 0.2, 0.0)


def test_defaults_are_p5():
    assert Recipe() == P5


@pytest.mark.parametrize(
    ("recipe", "changes", "base"),
    [(FINETUNE, FINETUNE_CHANGES, P5), (SMALL_DATA, SMALL_DATA_CHANGES, TINY)],
    ids=["finetune", "small-data"],
)
def test_derived_recipes_differ_in_what_they_list(recipe, changes, base):
    flat, theirs = recipe.to_dict(), base.to_dict()
    custom = {"scale", "mixup", "paste_in"} if recipe is FINETUNE else set()
    assert {k for k in flat if flat[k] != theirs[k]} - custom == set(changes)
    assert all(flat[key] == value for key, (value, _) in changes.items())


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_has_its_source(name):
    named = RECIPES[name]
    assert named.name == name
    assert set(named.sources) == set(named.recipe.to_dict()) == set(keys())
    assert all(
        source.startswith(("published: ", "ours: ", "measured: ", "SWA (arXiv"))
        for source in named.sources.values()
    )


@pytest.mark.parametrize("model", [*registry.names(), "yolov7-w6-relu", "yolov7-tiny-hardswish"])
def test_each_family_has_its_recipe(model):
    spec = registry.get(model)
    recipe = TINY if "tiny" in model else P6 if spec.max_stride == 64 else P5
    assert named_for(model).recipe is recipe
    assert named_for(spec).recipe is recipe
    assert TrainConfig(data="d", model="yolov7", spec=spec).hyper == recipe


def test_changes_under_published_names():
    changed = TINY.changed({"lr0": "2e-2", "mosaic": 0, "nominal_batch": "8", "average": "swa"})
    augmentation = replace(TINY.augmentation, mosaic=0.0)
    assert changed == replace(
        TINY, lr0=0.02, nominal_batch=8, average="swa", augmentation=augmentation
    )
    assert type(changed.nominal_batch) is int
    for nothing in (None, "null", "None"):
        assert changed.changed({"nominal_batch": nothing}).nominal_batch is None
    assert TINY.changed({"average": None}).average == "none"
    assert TINY.changed(P6.to_dict()) == P6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 1}, "unknown key 'lr', did you mean 'lr0' or 'lrf'"),
        ({"Mixup_": 1}, "did you mean 'mixup'"),
        ({"learningrate": 1}, "unknown key 'learningrate'; known are lr0, lrf, "),
        ({3: 1}, "unknown key 3; known"),
        ({"lr0": "fast"}, "lr0 must be a number, not 'fast'"),
        ({"lr0": True}, "lr0 must be a number, not True"),
        ({"lr0": [1]}, r"lr0 must be a number, not \[1\]"),
        ({"mosaic": None}, "mosaic must be a number, not None"),
        ({"lr0": "nan"}, "lr0 must be a finite number, not nan"),
        ({"lr0": 10**400}, "lr0 must be a finite number, not a number with hundreds of digits"),
        ({"nominal_batch": "inf"}, "nominal_batch must be a finite number, not inf"),
        ({"lr0": 0}, "lr0 must be a positive number, not 0"),
        ({"momentum": 1}, "momentum must be above 0 and below 1, not 1"),
        ({"anchor_t": 1}, "anchor_t must be above 1, not 1"),
        ({"label_smoothing": 1}, "label_smoothing must be from 0 to below 1, not 1"),
        (
            {"nominal_batch": 0},
            "nominal_batch must be a whole number from 1 to 65536, or null, not 0",
        ),
        ({"nominal_batch": 10**30}, "nominal_batch must be a whole number from 1 to 65536"),
        ({"close_mosaic": 1.5}, r"close_mosaic must be a whole number from 0, not 1\.5"),
        ({"mosaic": 2}, "mosaic must be a number from 0 to 1, not 2"),
        ({"average": "mean"}, "average must be one of ema, swa, none, not 'mean'"),
    ],
)
def test_invalid_changes(changes, message):
    with pytest.raises(ConfigError, match=message):
        TINY.changed(changes)


@pytest.mark.parametrize("name", ranges(Recipe))
def test_all_numbers_are_checked(name):
    for wrong in ("1", True, -1, float("nan"), 10**400):
        with pytest.raises(ConfigError, match=name):
            Recipe(**{name: wrong})


def test_changed_values_have_the_source_of_the_change():
    named = RECIPES["tiny"].changed({"lr0": 0.02}, "me")
    assert (named.sources["lr0"], named.recipe.lr0) == ("me", 0.02)
    assert named.sources["lrf"] == "published: file tiny"


def test_rect_uses_closed_augmentation():
    config = TrainConfig(data="d", rect=True)
    assert config.hyper.augmentation == TINY.augmentation.closed()
    assert isinstance(config.hyper.augmentation, Augmentation)
