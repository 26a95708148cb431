"""SWA against explicit means, and in interrupted runs."""

import copy

import pytest
import torch

from y7edge.data.synthetic import scenes
from y7edge.models import registry, weights
from y7edge.models.scaling import scale
from y7edge.nn.build import Model
from y7edge.train.averaging.average import Average, ModelEma, average_for
from y7edge.train.averaging.statistics import reestimate
from y7edge.train.run import state
from y7edge.train.run.loop import resume, train
from y7edge.train.run.progress import Progress
from y7edge.train.run.schedule import Schedule, swa_begins
from y7edge.train.settings.config import TINY, TrainConfig
from y7edge.train.setup.freeze import freeze_rows

SPEC = scale(registry.get("yolov7-tiny", nc=2), width=0.125)
SWA = TINY.changed({"average": "swa", "swa_start": 0.5})


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model(SPEC).train()


def images():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, 3, 64, 64, generator=generator) for _ in range(2)]


def wander(model, epoch):
    """Change all weights and statistics."""
    generator = torch.Generator().manual_seed(int(2 * epoch))
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value += 0.1 * torch.rand(value.shape, generator=generator)


def through(average, model, epochs, each=lambda epoch: None):
    """Epochs of two optimiser steps; the parameters at the end of each."""
    ends = []
    for epoch in epochs:
        for step in (0, 0.5):
            wander(model, epoch + step)
            average.update(model)
        average.end_epoch(model, epoch, images)
        ends.append({name: value.clone() for name, value in model.named_parameters()})
        each(epoch)
    return ends


@pytest.mark.parametrize(
    ("fraction", "epochs", "first"),
    [(0.75, 300, 226), (0.75, 4, 4), (0.5, 5, 3), (0.0, 3, 1), (0.99, 3, 3), (0.75, 1, 1)],
)
def test_averaging_begins_after_its_fraction_of_the_run(fraction, epochs, first):
    assert swa_begins(TINY.changed({"swa_start": fraction}), epochs) == first


def test_swa_averages_the_last_epochs(model):
    average = average_for(SWA, model, 6)  # averages 4, 5 and 6
    ends = through(average, model, range(1, 7))
    assert (average.count, average.updates) == (3, 12)
    assert not average.model.training
    for name, value in average.model.named_parameters():
        wanted = torch.stack([end[name] for end in ends[3:]]).double().mean(0)
        assert torch.allclose(value.double(), wanted, rtol=1e-6, atol=1e-7), name


def test_statistics_are_those_of_the_mean_weights(model):
    average = average_for(SWA, model, 2)
    through(average, model, (1, 2))
    expected = copy.deepcopy(average.model)
    for name, value in expected.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.fill_(7.0)
    reestimate(expected, images())
    found = average.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())
    assert not torch.allclose(found["rows.0.bn.running_mean"], model.rows[0].bn.running_mean)


def test_frozen_rows_keep_their_statistics(model):
    freeze_rows(model, (0,))
    average = average_for(SWA, model, 1)
    average.end_epoch(model, 1, images)
    assert torch.equal(average.model.rows[0].bn.running_var, model.rows[0].bn.running_var)
    assert not torch.equal(average.model.rows[1].bn.running_var, model.rows[1].bn.running_var)


def test_moving_average_is_evaluated_until_averaging_begins(model):
    average, ema = average_for(SWA, model, 4), ModelEma(model, tau=TINY.ema_tau)
    for epoch in (1, 2):
        through(average, model, (epoch,))
    other = Model(SPEC).train()
    other.load_state_dict(ema.model.state_dict())
    through(ema, other, (1, 2))
    expected = ema.model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in average.model.state_dict().items())


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_state_restores_swa_bit_by_bit(model, cut):
    first = average_for(SWA, model, 4)
    kept = {}

    def keep(epoch):
        if epoch == cut:
            tensors, facts = first.state()
            kept.update(facts=facts, tensors={k: v.clone() for k, v in tensors.items()})
            kept["model"] = copy.deepcopy(model)

    through(first, model, range(1, 5), keep)
    second = average_for(SWA, Model(SPEC), 4)
    second.load(kept["tensors"], kept["facts"])
    through(second, kept["model"], range(cut + 1, 5))
    assert second.count == first.count == 2
    expected = first.model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in second.model.state_dict().items())


def test_learning_rate_is_constant_once_averaging_begins():
    swa, falling = (
        [Schedule(recipe, 8, 10, 16, 16, 0).at(10 * epoch).lr[1] for epoch in range(8)]
        for recipe in (SWA, TINY)
    )
    assert swa[:5] == falling[:5]  # epoch 5 is the first that is averaged
    assert swa[5:] == [falling[4]] * 3
    assert falling[5] < falling[4]


def test_recipe_selects_the_average(model):
    assert isinstance(average_for(TINY, model, 3), ModelEma)
    assert isinstance(average_for(TINY.changed({"average": "none"}), model, 3), Average)


class StopAt(Progress):
    """Press Ctrl-C after a certain batch."""

    def __init__(self, epoch, batch) -> None:
        self.at = (epoch, batch)

    def step(self, status):
        if (status.epoch, status.iteration) == self.at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return scenes.generate(tmp_path_factory.mktemp("data"), train=6, val=2, size=(96, 96))


def config(data, out):
    return TrainConfig(
        data=data,
        width=0.125,
        imgsz=64,
        epochs=4,
        batch=2,
        nominal_batch=4,
        val_every=4,
        workers=0,
        recipe=SWA,
        out=out,
        device="cpu",  # also on a machine with a GPU
    )


def test_resumed_swa_run_equals_an_uninterrupted_one(data, tmp_path):
    expected = train(config(data, tmp_path / "whole"))
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config(data, out), progress=StopAt(4, 2))
    assert state.read(out / state.STATE).facts.average.count == 1
    resume(out)
    found = weights.load(out / "last.safetensors")
    assert found.digest == weights.load(expected.last).digest
