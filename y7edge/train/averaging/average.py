"""Averages of the weights over a run: what is judged, saved and used in place of the last ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from y7edge.nn.build import Model
from y7edge.train.averaging.ema import ModelEma
from y7edge.train.averaging.statistics import normalizers, reestimate
from y7edge.train.run.schedule import swa_begins
from y7edge.train.settings.recipe import Recipe

Pictures = Callable[[], Iterable[Tensor]]


class Average(Protocol):
    """What the loop asks of an average.

    Attributes:
        model: the average, in float32 and in ``eval()``; it shares no memory with the trained one.
        updates: how many optimiser steps it has seen.
        begins: first epoch (from 1) at whose end ``model`` is the average that the run is for.
    """

    model: Model
    updates: int
    begins: int

    def update(self, model: Model) -> None:
        """Take in the trained model after an optimiser step."""

    def end_epoch(self, model: Model, epoch: int, pictures: Pictures) -> None:
        """Make ``model`` fit to be judged, at the end of an epoch (counted from 1).

        Args:
            model: the trained one.
            epoch: that is finished.
            pictures: makes an iterator over training pictures as they will be judged, float
                (B, 3, S, S) from 0 to 1 on the model's device, for statistics of BatchNorm.
        """

    def state(self) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-able facts from which :meth:`load` restores it bit by bit."""

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave."""


def average_for(recipe: Recipe, model: Model, epochs: int = 1) -> Average:
    """The average that a recipe asks for, starting at ``model``.

    Args:
        recipe: names it.
        model: the one to be trained; its BatchNorms are told by their class, so before a
            conversion to synchronised ones.
        epochs: of the whole run.
    """
    if recipe.average == "none":
        return NoAverage(model)
    ema = ModelEma(model, decay=recipe.ema_decay, tau=recipe.ema_tau)
    return Swa(ema, begins=swa_begins(recipe, epochs)) if recipe.average == "swa" else ema


class Swa:
    """Stochastic weight averaging: the equal mean of the weights at the ends of the last epochs.

    "Averaging Weights Leads to Wider Optima and Better Generalization" (arXiv 1803.05407): one
    contribution per epoch, as there, since weights of neighbouring steps are nearly the same and
    would only make the mean of one place more exact; the learning rate stays where it is when the
    averaging begins (:meth:`y7edge.train.run.schedule.Schedule.at`), so that the epochs end in
    places that are worth averaging. No model of the run ever had the mean weights, so no running
    statistics fit them: those of BatchNorm are estimated anew before it is judged. Until it begins,
    the moving average is what is judged and saved.

    Attributes:
        model: the moving average until averaging begins, then the mean.
        updates: optimiser steps seen.
        count: epochs in the mean.
        begins: the first epoch that counts.
    """

    def __init__(self, ema: ModelEma[Model], *, begins: int) -> None:
        """Wait for epoch ``begins``, from 1."""
        self.model: Model = ema.model
        self.updates, self.count = 0, 0
        self._ema, self.begins = ema, begins
        self._ended = 0  # epochs

    def update(self, model: Model) -> None:
        """Move the moving average, as long as it is of use."""
        self.updates += 1
        if self._ended + 1 < self.begins:
            self._ema.update(model)

    @torch.no_grad()
    def end_epoch(self, model: Model, epoch: int, pictures: Pictures) -> None:
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
        reestimate(self.model, pictures(), names=normalizers(self.model) & set(live))

    def state(self) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        """The mean, or what stands in for it, and the counts."""
        facts = {"updates": self.updates, "count": self.count, "ended": self._ended}
        return self.model.state_dict(), facts

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        self._ema.load(tensors, facts)
        self.updates, self.count = int(facts["updates"]), int(facts["count"])
        self._ended = int(facts["ended"])


class NoAverage:
    """The trained weights themselves, copied at the end of each epoch."""

    begins = 1

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
