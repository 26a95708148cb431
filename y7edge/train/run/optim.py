"""SGD with Nesterov momentum over the published parameter groups, and gradient accumulation.

Three groups (YOLOv7's published training): batch-norm weights and implicit tensors, which are not
decayed; convolution weights, which are; and biases, which are not decayed and start the warm-up
from a high learning rate.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from y7edge.errors import ConfigError
from y7edge.train.run.schedule import Step, accumulation
from y7edge.train.settings.recipe import Recipe


class ParameterGroups(NamedTuple):
    """The trained parameters of a model, each in one group, in the order of the state dict."""

    undecayed: tuple[nn.Parameter, ...]  # batch-norm weights, implicit add and multiply
    decayed: tuple[nn.Parameter, ...]  # convolution weights, the heads' included
    biases: tuple[nn.Parameter, ...]  # of batch norms and heads


def parameter_groups(model: nn.Module) -> ParameterGroups:
    """Sort a model's parameters by what they are, not by what they are called.

    A ``weight`` is decayed unless it belongs to a batch norm; what is neither weight nor bias (the
    implicit tensors of the head) is not decayed. Frozen parameters are in no group.
    """
    undecayed, decayed, biases = [], [], []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if name == "bias":
                biases.append(parameter)
            elif name == "weight" and not isinstance(module, nn.BatchNorm2d):
                decayed.append(parameter)
            else:
                undecayed.append(parameter)
    return ParameterGroups(tuple(undecayed), tuple(decayed), tuple(biases))


def scaled_weight_decay(weight_decay: float, batch: int, nominal: int) -> float:
    """Weight decay scaled to the images of a step, as the loss is a sum over them."""
    return weight_decay * batch * accumulation(batch, nominal) / nominal


def build_optimizer(model: nn.Module, recipe: Recipe, weight_decay: float) -> torch.optim.SGD:
    """SGD over the model's three groups; learning rates and momentum are set by :func:`apply`.

    Raises:
        ConfigError: every parameter is frozen.
    """
    groups = parameter_groups(model)
    if not any(groups):
        raise ConfigError("every row is frozen, nothing is left to train: freeze fewer rows")
    return torch.optim.SGD(
        [
            {"params": list(parameters), "weight_decay": decay}
            for parameters, decay in zip(groups, (0.0, weight_decay, 0.0), strict=True)
        ],
        lr=recipe.lr0,
        momentum=recipe.momentum,
        nesterov=True,
        # One kernel for all tensors of a group instead of three for each.
        fused=_can_fuse(model.parameters()),
    )


def apply(step: Step, optimizer: torch.optim.Optimizer) -> None:
    """Set learning rates and momentum of one iteration."""
    for group, lr in zip(optimizer.param_groups, step.lr, strict=True):
        group["lr"] = lr
        group["momentum"] = step.momentum


class Accumulator:
    """Says after which iterations the optimiser steps.

    Gradients left at the end of an epoch are used by the next step (the published training discards
    them), and those at the end of the run by a last one.

    Attributes:
        gathered: backward passes since the last step.
    """

    def __init__(self) -> None:
        self.gathered = 0

    def due(self, accumulate: int, *, last: bool = False) -> bool:
        """Count one backward pass; whether to step now. ``last``: the run ends here."""
        self.gathered += 1
        if self.gathered < accumulate and not last:
            return False
        self.gathered = 0
        return True


def _can_fuse(parameters: Iterable[nn.Parameter]) -> bool:
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
