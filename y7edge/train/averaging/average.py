"""Average the weights during training; the averages are evaluated and saved."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from y7edge.errors import CheckpointError
from y7edge.nn.build import Model
from y7edge.train.averaging.statistics import normalizers, reestimate
from y7edge.train.run.schedule import swa_begins
from y7edge.train.settings.recipe import Recipe

Batches = Callable[[], Iterable[Tensor]]


@dataclass(frozen=True)
class Counts:
    """Counters of an average, saved with the state of a run."""

    updates: int = 0  # optimizer steps
    count: int = 0  # epochs in the mean of the weights
    ended: int = 0  # number of finished epochs

    def __post_init__(self) -> None:
        if not all(0 <= value < 2**53 for value in (self.updates, self.count, self.ended)):
            raise CheckpointError(f"expected counters of 0 or more, found {self}")


class Average:
    """No average: a copy of the trained weights, updated at the end of each epoch.

    ``model`` is the copy, float32 and in ``eval()``. Subclasses store an average in ``model``.
    """

    begins = 1  # `model` has the average of the class from the end of this epoch on

    def __init__(self, model: Model) -> None:
        self.model: Model = copy.deepcopy(model).float().eval().requires_grad_(False)
        self.updates, self.count, self._ended = 0, 0, 0  # see `Counts`

    def update(self, model: Model) -> None:
        """Update the average after an optimizer step."""
        self.updates += 1

    @torch.no_grad()
    def end_epoch(self, model: Model, epoch: int, images: Batches) -> None:
        """Prepare ``self.model`` for evaluation after an epoch (from 1).

        ``images`` returns batches of letterboxed training images for BatchNorm statistics: float
        (B, 3, size, size) from 0 to 1, on the model's device.
        """
        self.model.load_state_dict(model.state_dict())

    def state(self) -> tuple[Mapping[str, Tensor], Counts]:
        """Return the tensors and counters that ``load`` restores."""
        return self.model.state_dict(), Counts(self.updates, self.count, self._ended)

    def load(self, tensors: Mapping[str, Tensor], counts: Counts) -> None:
        """Restore what ``state`` returned."""
        self.model.load_state_dict(tensors)
        self.updates, self.count, self._ended = counts.updates, counts.count, counts.ended


class ModelEma(Average):
    """Exponential moving average of parameters, BatchNorm statistics and anchors.

    After u updates, the decay is ``decay`` * (1 - exp(-u / ``tau``)). It is small at first, so that
    the initial random weights have little influence. The defaults are those of the published
    training of YOLOv7. As published, integer buffers keep their initial values.
    """

    def __init__(self, model: Model, *, decay: float = 0.9999, tau: float = 2000.0) -> None:
        super().__init__(model)
        self._limit, self._tau = decay, tau

    def decay(self, updates: int) -> float:
        """Return the weight of the old average in update number ``updates`` (from 1)."""
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
    """Stochastic weight averaging: the mean of the weights after each of the last epochs.

    "Averaging Weights Leads to Wider Optima and Better Generalization" (arXiv 1803.05407). The
    learning rate is constant once averaging begins (``y7edge.train.run.schedule.Schedule.at``).
    Before the mean is evaluated, its BatchNorm statistics are estimated. Before epoch ``begins``
    (from 1), the exponential moving average is evaluated and saved.
    """

    def __init__(self, model: Model, *, begins: int, decay: float, tau: float) -> None:
        super().__init__(model, decay=decay, tau=tau)
        self.begins = begins

    def update(self, model: Model) -> None:
        """Update the moving average in epochs before ``begins``."""
        if self._ended + 1 < self.begins:
            super().update(model)
        else:
            self.updates += 1

    @torch.no_grad()
    def end_epoch(self, model: Model, epoch: int, images: Batches) -> None:
        """Add the weights to the mean, and estimate its BatchNorm statistics.

        BatchNorms in ``eval()``, which are those of frozen rows, keep their statistics.
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
        trained = [name for name, layer in model.named_modules() if layer.training]
        reestimate(self.model, images(), names=normalizers(self.model) & set(trained))


def average_for(recipe: Recipe, model: Model, epochs: int = 1) -> Average:
    """Create the average that a recipe selects, initialized with the weights of ``model``.

    Call this before BatchNorms are converted to SyncBatchNorm, which is a different class.
    """
    if recipe.average == "none":
        return Average(model)
    decay, tau = recipe.ema_decay, recipe.ema_tau
    if recipe.average == "ema":
        return ModelEma(model, decay=decay, tau=tau)
    return Swa(model, begins=swa_begins(recipe, epochs), decay=decay, tau=tau)
