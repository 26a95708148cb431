"""Averages of the weights over a run: evaluated, saved and used instead of the last ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from y7edge.nn.build import Model
from y7edge.train.averaging.statistics import normalizers, reestimate
from y7edge.train.run.schedule import swa_begins
from y7edge.train.settings.recipe import Recipe

Batches = Callable[[], Iterable[Tensor]]


class Average:
    """The trained weights themselves, copied at the end of each epoch.

    Attributes:
        model: the average, in float32 and in ``eval()``; it shares no memory with the trained one.
        updates: how many optimiser steps it has seen.
        begins: first epoch (from 1) at whose end ``model`` is the average that the run is for.
    """

    begins = 1

    def __init__(self, model: Model) -> None:
        self.model: Model = copy.deepcopy(model).float().eval().requires_grad_(False)
        self.updates = 0

    def update(self, model: Model) -> None:
        """Take in the trained model after an optimiser step."""
        self.updates += 1

    @torch.no_grad()
    def end_epoch(self, model: Model, epoch: int, images: Batches) -> None:
        """Get ``self.model`` ready to be evaluated, at the end of an epoch.

        Args:
            model: the trained one.
            epoch: that is finished, from 1.
            images: makes an iterator over training images as they are evaluated, float
                (B, 3, S, S) from 0 to 1 on the model's device, for statistics of BatchNorm.
        """
        self.model.load_state_dict(model.state_dict())

    def state(self) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-able facts from which :meth:`load` restores it bit by bit."""
        return self.model.state_dict(), {"updates": self.updates}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.model.load_state_dict(tensors)
        self.updates = int(facts["updates"])


class ModelEma(Average):
    """Exponential moving average of all floating state: parameters, BatchNorm statistics, anchors.

    The decay grows with the number of updates, d(u) = limit * (1 - exp(-u / tau)), so that the
    random start is forgotten (YOLOv7's published training: limit 0.9999, tau 2000). Integer buffers
    (BatchNorm's counters) keep their initial values, as published.
    """

    def __init__(self, model: Model, *, decay: float = 0.9999, tau: float = 2000.0) -> None:
        super().__init__(model)
        self._limit, self._tau = decay, tau

    def decay(self, updates: int) -> float:
        """Fraction of the old average that is kept at an update (counted from 1)."""
        return self._limit * (1 - math.exp(-updates / self._tau))

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """Move the average towards the trained model."""
        self.updates += 1
        new = model.state_dict()
        floating = {k: v for k, v in self.model.state_dict().items() if v.is_floating_point()}
        torch._foreach_lerp_(
            list(floating.values()),
            [new[key].to(value.dtype) for key, value in floating.items()],
            1 - self.decay(self.updates),
        )

    def end_epoch(self, model: Model, epoch: int, images: Batches) -> None:
        """Do nothing: the average can be evaluated after every update."""


class Swa(ModelEma):
    """Stochastic weight averaging: the equal mean of the weights at the ends of the last epochs.

    "Averaging Weights Leads to Wider Optima and Better Generalization" (arXiv 1803.05407): one
    contribution per epoch, as there, since weights of neighbouring steps are nearly the same and
    would only make the mean of one place more exact; the learning rate stays where it is when the
    averaging begins (:meth:`y7edge.train.run.schedule.Schedule.at`), so that the epochs end in
    places that are worth averaging. No model of the run ever had the mean weights, so no running
    statistics fit them: those of BatchNorm are estimated again before it is evaluated. Until it
    begins, the moving average is evaluated and saved.

    Attributes:
        count: epochs in the mean.
    """

    def __init__(self, model: Model, *, begins: int, decay: float, tau: float) -> None:
        """Wait for epoch ``begins``, from 1; ``decay`` and ``tau`` are the moving average's."""
        super().__init__(model, decay=decay, tau=tau)
        self.begins, self.count = begins, 0
        self._ended = 0  # epochs

    def update(self, model: Model) -> None:
        """Move the moving average, as long as it is of use."""
        if self._ended + 1 < self.begins:
            super().update(model)
        else:
            self.updates += 1

    @torch.no_grad()
    def end_epoch(self, model: Model, epoch: int, images: Batches) -> None:
        """Take the weights into the mean, and estimate its statistics anew.

        The BatchNorms of frozen rows, which the trained model keeps in ``eval()``, keep theirs.
        """
        self._ended = epoch
        if epoch < self.begins:
            return
        self.count += 1
        new = model.state_dict()
        for name, mean in self.model.state_dict().items():
            if self.count == 1:
                mean.copy_(new[name])
            elif mean.is_floating_point():
                mean.lerp_(new[name].to(mean.dtype), 1 / self.count)
        live = [name for name, layer in model.named_modules() if layer.training]
        reestimate(self.model, images(), names=normalizers(self.model) & set(live))

    def state(self) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        """The mean, or what stands in for it, and the counts."""
        facts = {"updates": self.updates, "count": self.count, "ended": self._ended}
        return self.model.state_dict(), facts

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        super().load(tensors, facts)
        self.count, self._ended = int(facts["count"]), int(facts["ended"])


def average_for(recipe: Recipe, model: Model, epochs: int = 1) -> Average:
    """The average that a recipe asks for, starting at ``model``.

    Args:
        recipe: names it.
        model: the one to be trained, before its BatchNorms become synchronised ones, of another
            class.
        epochs: of the whole run.
    """
    if recipe.average == "none":
        return Average(model)
    decay, tau = recipe.ema_decay, recipe.ema_tau
    if recipe.average == "ema":
        return ModelEma(model, decay=decay, tau=tau)
    return Swa(model, begins=swa_begins(recipe, epochs), decay=decay, tau=tau)
