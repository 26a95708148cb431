"""Learning rate, warm-up and accumulation against the published implementation's numbers."""

import json
from pathlib import Path

import pytest

from y7edge.errors import ConfigError
from y7edge.train.run.schedule import (
    Schedule,
    accumulation,
    cosine,
    nominal_batch,
    warmup_iterations,
)
from y7edge.train.settings.config import P5, TINY, Recipe, TrainConfig

GOLDEN = json.loads(
    (Path(__file__).parents[2] / "reference/golden/train.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("row", GOLDEN["lr_lambda"]["rows"], ids=lambda row: f"lrf={row['lrf']}")
def test_cosine_equals_the_published_factors(row):
    found = [cosine(epoch, row["epochs"], row["lrf"]) for epoch in row["at_epoch"]]
    assert found == pytest.approx(row["cosine"], rel=1e-12)
    assert cosine(300, 300, row["lrf"]) == pytest.approx(row["cosine_at_epochs_300"], rel=1e-12)


@pytest.mark.parametrize(
    "row",
    GOLDEN["warmup"]["rows"],
    ids=lambda row: f"batch{row['total_batch']}-iteration{row['ni']}",
)
def test_every_iteration_equals_the_published_warmup(row):
    # The golden run has the published warm-up length, nominal batch and p5 recipe of 300 epochs.
    schedule = Schedule(
        P5, 300, row["batches_per_epoch"], row["total_batch"], nominal=64, warmup=row["nw"]
    )
    step = schedule.at(row["ni"])
    assert step.lr == pytest.approx(row["lr"], rel=1e-9, abs=1e-15)
    assert step.momentum == pytest.approx(row["momentum"], rel=1e-12)
    assert step.accumulate == row["accumulate"]


@pytest.mark.parametrize(
    ("batches", "epochs", "expected"),
    [
        pytest.param(7393, 300, 3 * 7393, id="COCO: three epochs, as published"),
        pytest.param(13, 60, 39, id="205 images: three epochs, not 1000 iterations"),
        pytest.param(13, 10, 13, id="short run: a tenth of it"),
        pytest.param(2, 1, 0, id="nothing to warm up"),
    ],
)
def test_warmup_is_a_fraction_of_the_run(batches, epochs, expected):
    assert warmup_iterations(batches, epochs, TINY) == expected


@pytest.mark.parametrize(
    ("images", "epochs", "batch", "expected"),
    [
        pytest.param(118_287, 300, 16, 64, id="COCO: the published one"),
        pytest.param(118_287, 300, 128, 64, id="a large batch is not the nominal one"),
        pytest.param(205, 60, 16, 16, id="205 images"),
        pytest.param(205, 60, 8, 16, id="small batches are gathered"),
        pytest.param(205, 60, 32, 32, id="a batch is not split"),
        pytest.param(1000, 150, 16, 32, id="between"),
    ],
)
def test_nominal_batch_follows_the_length_of_the_run(images, epochs, batch, expected):
    assert nominal_batch(images, epochs, batch) == expected


def test_after_the_warmup_the_groups_share_one_learning_rate():
    schedule = Schedule(TINY, epochs=60, batches=13, batch=16, nominal=16, warmup=39)
    assert len(set(schedule.at(40).lr)) == 1
    assert schedule.at(40).momentum == TINY.momentum
    assert schedule.at(60 * 13 - 1).lr[0] == pytest.approx(0.01 * cosine(59, 60, 0.01))


def test_a_run_without_warmup_starts_at_the_full_learning_rate():
    schedule = Schedule(TINY, epochs=2, batches=1, batch=4, nominal=16, warmup=0)
    assert schedule.at(0).lr == (0.01, 0.01, 0.01)
    assert schedule.at(0).accumulate == accumulation(4, 16) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr0": 0.0}, "lr0 must be a positive number, not 0.0"),
        ({"warmup_share": 1.5}, "warmup_share must be a number from 0 to 1, not 1.5"),
        ({"lr0": float("inf")}, "lr0 must be a positive number, not inf"),
        ({"ema_decay": 1.0}, "ema_decay must be from 0 to below 1, not 1.0"),
    ],
)
def test_invalid_recipes_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Recipe(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number from 1, not 0"),
        ({"batch": 1.5}, "batch: expected a whole number, found 1.5"),
        ({"patience": -1}, "patience must be a whole number from 0, not -1"),
        ({"width": 0.0}, "width must be a positive number, not 0.0"),
        ({"seed": 2**63}, r"seed must be a whole number from 0, below 2\*\*63"),
        ({"precision": "fp8"}, "precision must be one of auto, 32-true"),
    ],
)
def test_invalid_configs_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(data="data.yaml", **changes)


def test_each_family_has_its_published_recipe():
    assert TrainConfig(data="d", model="yolov7-tiny-silu").hyper == TINY
    assert TrainConfig(data="d", model="yolov7x").hyper == P5
    assert (P5.lrf, P5.obj, P5.cls) == (0.1, 0.7, 0.3)
    assert (TINY.lrf, TINY.obj, TINY.cls) == (0.01, 1.0, 0.5)


@pytest.mark.parametrize(("epochs", "every"), [(1, 1), (10, 1), (60, 3), (300, 15)])
def test_validation_is_spread_over_the_run(epochs, every):
    assert TrainConfig(data="d", epochs=epochs).validation_interval == every
