"""SGD with Nesterov momentum over the published parameter groups, and gradient accumulation.

The groups of YOLOv7's published training: BatchNorm weights and implicit tensors, without weight
decay; convolution weights, with weight decay; and biases, without it, which start the warm-up from
a high learning rate.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from y7edge.errors import ConfigError
from y7edge.train.run.schedule import Step, accumulation
from y7edge.train.settings.recipe import Recipe


class ParameterGroups(NamedTuple):
    """The trained parameters of a model, each in one group, in the order of the state dict."""

    undecayed: tuple[nn.Parameter, ...]  # BatchNorm weights, implicit add and multiply
    decayed: tuple[nn.Parameter, ...]  # convolution weights, the heads' included
    biases: tuple[nn.Parameter, ...]  # of BatchNorms and heads


def parameter_groups(model: nn.Module) -> ParameterGroups:
    """Sort a model's trained parameters into groups.

    A ``weight`` is decayed unless it belongs to a BatchNorm; implicit tensors are not decayed.
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
    """Scale weight decay to the images of a step, since the loss is a sum over them."""
    return weight_decay * batch * accumulation(batch, nominal) / nominal


def build_optimizer(model: nn.Module, recipe: Recipe, weight_decay: float) -> torch.optim.SGD:
    """Create SGD over the model's groups; :func:`apply` sets learning rates and momentum.

    Raises:
        ConfigError: every parameter is frozen.
    """
    groups = parameter_groups(model)
    if not any(groups):
        raise ConfigError("every row is frozen: freeze fewer rows")
    return torch.optim.SGD(
        [
            {"params": list(parameters), "weight_decay": decay}
            for parameters, decay in zip(groups, (0.0, weight_decay, 0.0), strict=True)
        ],
        lr=recipe.lr0,
        momentum=recipe.momentum,
        nesterov=True,
        fused=all(p.device.type in ("cpu", "cuda") for p in model.parameters()),
    )


def apply(step: Step, optimizer: torch.optim.Optimizer) -> None:
    """Set learning rates and momentum of one iteration."""
    for group, lr in zip(optimizer.param_groups, step.lr, strict=True):
        group["lr"] = lr
        group["momentum"] = step.momentum


class Accumulator:
    """Decide after which iterations the optimizer steps.

    Gradients accumulated at the end of an epoch are used in the next step (the published training
    discards them). The run ends with a step.
    """

    def __init__(self) -> None:
        self.gathered = 0  # backward passes since the last step

    def due(self, accumulate: int, *, last: bool = False) -> bool:
        """Count a backward pass; return whether the optimizer should step now.

        ``last`` marks the last pass of the run, which always steps.
        """
        self.gathered += 1
        if self.gathered < accumulate and not last:
            return False
        self.gathered = 0
        return True
