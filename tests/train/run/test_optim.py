"""Parameter groups, weight decay and accumulation against the published implementation."""

import json
from pathlib import Path

import pytest
import torch

from y7edge.train.run.optim import (
    Accumulator,
    apply,
    build_optimizer,
    parameter_groups,
    scaled_weight_decay,
)
from y7edge.train.run.schedule import Step, accumulation
from y7edge.train.settings.config import P5

GOLDEN = json.loads(
    (Path(__file__).parents[2] / "reference/golden/train.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize(
    "row", GOLDEN["weight_decay_scaling"], ids=lambda row: f"batch{row['total_batch']}"
)
def test_weight_decay_follows_the_images_of_a_step(row):
    batch = row["total_batch"]
    assert accumulation(batch, 64) == row["accumulate"]
    assert scaled_weight_decay(0.0005, batch, 64) == pytest.approx(row["weight_decay"], rel=1e-12)


@pytest.mark.parametrize("name", GOLDEN["optimizer_groups"]["by_model"])
def test_groups_of_every_variant_are_the_published_ones(name):
    from y7edge.nn import create

    with torch.device("meta"):  # counts need no memory
        model = create(name)
    groups = parameter_groups(model)
    golden = GOLDEN["optimizer_groups"]["by_model"][name]
    for key, group in zip(("pg0", "pg1", "pg2"), groups, strict=True):
        assert len(group) == golden[key]["tensors"]
        assert sum(p.numel() for p in group) == golden[key]["elements"]
    assert sum(len(group) for group in groups) == len(list(model.parameters()))


class Small(torch.nn.Module):
    """One parameter of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 1)
        self.bn = torch.nn.BatchNorm2d(2)
        self.add = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(1))])


def test_parameters_are_grouped_by_kind():
    model = Small()
    groups = parameter_groups(model)
    assert [id(p) for p in groups.decayed] == [id(model.conv.weight)]
    assert {id(p) for p in groups.biases} == {id(model.conv.bias), id(model.bn.bias)}
    assert {id(p) for p in groups.undecayed} == {id(model.bn.weight), id(model.add[0])}


def test_only_convolution_weights_are_decayed():
    model = Small()
    optimizer = build_optimizer(model, P5, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    apply(Step(lr=(0.1, 0.1, 0.1), momentum=0.0, accumulate=1), optimizer)
    optimizer.step()
    after = dict(model.named_parameters())
    assert torch.allclose(after["conv.weight"], before["conv.weight"] * (1 - 0.1 * 0.5))
    for name in ("conv.bias", "bn.weight", "bn.bias", "add.0"):
        assert torch.equal(after[name], before[name])


def test_step_is_nesterov():
    weight = torch.nn.Conv2d(1, 1, 1, bias=False)
    optimizer = build_optimizer(weight, P5, weight_decay=0.0)
    start = float(weight.weight.detach())
    velocity = 0.0
    for gradient, lr, momentum in ((1.0, 0.1, 0.8), (2.0, 0.2, 0.9), (-1.0, 0.3, 0.5)):
        weight.weight.grad = torch.full_like(weight.weight, gradient)
        apply(Step(lr=(9.0, lr, 9.0), momentum=momentum, accumulate=1), optimizer)
        optimizer.step()
        # Nesterov as torch has it: v <- m v + g, step along g + m v; the first v is g itself.
        velocity = momentum * velocity + gradient
        start -= lr * (gradient + momentum * velocity)
    assert float(weight.weight.detach()) == pytest.approx(start, rel=1e-5)


def test_gradients_left_at_the_end_of_an_epoch_are_kept():
    accumulator = Accumulator()
    # Two epochs of 5 iterations, a step every 3: the second epoch's first step follows its first.
    stepped = [accumulator.due(3, last=i == 9) for i in range(10)]
    assert [i for i, due in enumerate(stepped) if due] == [2, 5, 8, 9]
