"""Averages of the weights over a run: what is judged, saved and used in place of the last ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from y7edge.errors import ConfigError
from y7edge.nn.build import Model
from y7edge.train.ema import ModelEma
from y7edge.train.recipe import Recipe

Pictures = Callable[[], Iterable[Tensor]]


class Average(Protocol):
    """What the loop asks of an average.

    Attributes:
        model: the average, in float32 and in ``eval()``; it shares no memory with the trained one.
        updates: how many optimiser steps it has seen.
    """

    model: Model
    updates: int

    def update(self, model: Model) -> None:
        """Take in the trained model after an optimiser step."""

    def end_epoch(self, model: Model, epoch: int, pictures: Pictures) -> None:
        """Make ``model`` fit to be judged, at the end of an epoch (counted from 1).

        Args:
            model: the trained one.
            epoch: that is finished.
            pictures: makes an iterator over training batches as the model sees them, float
                (B, 3, S, S) from 0 to 1 on its device, for statistics of BatchNorm.
        """

    def state(self) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-able facts from which :meth:`load` restores it bit by bit."""

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave."""


def average_for(recipe: Recipe, model: Model) -> Average:
    """The average that a recipe asks for, starting at ``model``.

    Raises:
        ConfigError: this version has no such average.
    """
    if recipe.average == "ema":
        return ModelEma(model, decay=recipe.ema_decay, tau=recipe.ema_tau)
    if recipe.average == "none":
        return NoAverage(model)
    raise ConfigError(f"average {recipe.average!r} is not in this version: take ema or none")


class NoAverage:
    """The trained weights themselves, copied at the end of each epoch."""

    def __init__(self, model: Model) -> None:
        self.model: Model = copy.deepcopy(model).float().eval().requires_grad_(False)
        self.updates = 0

    def update(self, model: Model) -> None:
        """Count the step."""
        self.updates += 1

    @torch.no_grad()
    def end_epoch(self, model: Model, epoch: int, pictures: Pictures) -> None:
        """Copy all weights and statistics."""
        self.model.load_state_dict(model.state_dict())

    def state(self) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        """The copy and the count."""
        return self.model.state_dict(), {"updates": self.updates}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        self.model.load_state_dict(tensors)
        self.updates = int(facts["updates"])
