"""SGD with Nesterov momentum and gradient accumulation, as in YOLOv7's published training.

Parameters are in three groups. BatchNorm weights and implicit knowledge have no weight decay.
Convolution weights have weight decay. Biases have no weight decay, and their learning rate starts
high in the warm-up.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from y7edge.errors import ConfigError
from y7edge.train.run.schedule import Step, accumulation
from y7edge.train.settings.recipe import Recipe


class ParameterGroups(NamedTuple):
    """The trained parameters of a model in three groups, each in the order of the state dict."""

    undecayed: tuple[nn.Parameter, ...]  # BatchNorm weights, implicit knowledge
    decayed: tuple[nn.Parameter, ...]  # convolution weights, also those of the head
    biases: tuple[nn.Parameter, ...]  # of BatchNorms and of the head


def parameter_groups(model: nn.Module) -> ParameterGroups:
    """Sort the trainable parameters of a model into the three groups."""
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
    """Multiply ``weight_decay`` by (actual images per optimizer step) / ``nominal``.

    The loss is summed over the images, so gradients grow with their number.
    """
    return weight_decay * batch * accumulation(batch, nominal) / nominal


def build_optimizer(
    model: nn.Module, recipe: Recipe, weight_decay: float, *, scaled: bool = False
) -> torch.optim.SGD:
    """Create SGD with the three groups; ``apply`` sets learning rates and momentum.

    ``scaled``: whether a gradient scaler calls it. If that skips the first step, because a gradient
    is infinite, torch's fused SGD (2.11, 2.13) continues from momenta that were never initialized.
    Also, gradients cannot be clipped if the fused SGD removes their scale.

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
        fused=not scaled and all(p.device.type in ("cpu", "cuda") for p in model.parameters()),
    )


def apply(step: Step, optimizer: torch.optim.Optimizer) -> None:
    """Set the learning rates and the momentum of the optimizer to those of ``step``."""
    for group, lr in zip(optimizer.param_groups, step.lr, strict=True):
        group["lr"] = lr
        group["momentum"] = step.momentum


class Accumulator:
    """Counter of accumulated batches, which decides when the optimizer steps.

    Accumulation continues across epochs; the published training instead discards the gradients
    that are left at the end of an epoch.
    """

    def __init__(self) -> None:
        self.gathered = 0  # backward passes since the last step

    def due(self, accumulate: int, *, last: bool = False) -> bool:
        """Count a backward pass; return whether the optimizer should step now.

        ``accumulate`` is the number of passes per step. ``last`` forces a step: set it for the
        last pass of the run.
        """
        self.gathered += 1
        if self.gathered < accumulate and not last:
            return False
        self.gathered = 0
        return True
