"""Learning rate, momentum and accumulation at every iteration, as pure functions of its number.

Cosine from ``lr0`` to ``lr0 * lrf``, stepped once per epoch; a linear warm-up in front of it, in
which the biases come down from a high learning rate while everything else comes up from zero
(YOLOv7's published schedule). Under SWA the cosine stops where the averaging begins. An *iteration*
is one forward and backward pass of one batch; an optimiser *step* follows after ``accumulate`` of
them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from y7edge.train.settings.config import Recipe

# The published nominal batch, and how far it may fall in a short run.
PUBLISHED_NOMINAL_BATCH = 64
SMALLEST_NOMINAL_BATCH = 16
# Two time constants (2000 updates) of the published moving average: with fewer optimiser steps the
# run ends before that average has formed.
ENOUGH_STEPS = 4000


def nominal_batch(pictures: int, epochs: int, batch: int) -> int:
    """Images per optimiser step for the length of a run.

    The largest of 64 (published), 32 and 16 that leaves ``ENOUGH_STEPS``, and at least the batch up
    to 64. With 64, 205 images and 60 epochs make 190 steps, and the model stays half trained
    (published implementation: mAP@0.5 0.812, against 0.877 with 16).
    """
    nominal = PUBLISHED_NOMINAL_BATCH
    while nominal > SMALLEST_NOMINAL_BATCH and pictures * epochs < ENOUGH_STEPS * nominal:
        nominal //= 2
    return max(nominal, min(batch, PUBLISHED_NOMINAL_BATCH))


def accumulation(batch: int, nominal: int) -> int:
    """Iterations per optimiser step, so that a step sees about ``nominal`` pictures."""
    return max(round(nominal / batch), 1)


def warmup_iterations(batches: int, epochs: int, recipe: Recipe) -> int:
    """Length of the warm-up: ``warmup_epochs``, but no more than ``warmup_share`` of the run.

    The published minimum of 1000 iterations is longer than a whole run on a small set.
    """
    return round(min(recipe.warmup_epochs * batches, recipe.warmup_share * batches * epochs))


def cosine(epoch: int, epochs: int, lrf: float) -> float:
    """Share of ``lr0`` in an epoch: 1 at the first, ``lrf`` at ``epoch == epochs``."""
    return (1 - math.cos(math.pi * epoch / epochs)) / 2 * (lrf - 1) + 1


def swa_begins(recipe: Recipe, epochs: int) -> int:
    """The first epoch, from 1, whose weights SWA averages; at least the last one is.

    From here on the learning rate is constant (arXiv 1803.05407), so that the weights differ.
    """
    return min(int(recipe.swa_start * epochs), epochs - 1) + 1


@dataclass(frozen=True, slots=True)
class Step:
    """What the optimiser is set to at one iteration."""

    lr: tuple[float, float, float]  # of the groups: undecayed weights, decayed weights, biases
    momentum: float
    accumulate: int  # iterations per optimiser step, at this point of the run


@dataclass(frozen=True, slots=True)
class Schedule:
    """The whole run's schedule; :meth:`at` gives the values of one iteration."""

    recipe: Recipe
    epochs: int
    batches: int  # iterations per epoch
    batch: int  # pictures per iteration
    nominal: int  # pictures per optimiser step
    warmup: int  # iterations, the last one included

    @property
    def iterations(self) -> int:
        """Of the whole run."""
        return self.epochs * self.batches

    def at(self, iteration: int) -> Step:
        """Values for an iteration counted from 0 over the whole run."""
        recipe, epoch = self.recipe, iteration // self.batches
        if recipe.average == "swa":
            epoch = min(epoch, swa_begins(recipe, self.epochs) - 1)
        lr = recipe.lr0 * cosine(epoch, self.epochs, recipe.lrf)
        full = accumulation(self.batch, self.nominal)
        if iteration > self.warmup or self.warmup == 0:
            return Step((lr, lr, lr), recipe.momentum, full)
        way = iteration / self.warmup
        return Step(
            lr=(way * lr, way * lr, _between(recipe.warmup_bias_lr, lr, way)),
            momentum=_between(recipe.warmup_momentum, recipe.momentum, way),
            # Rounded from the exact ratio, not from `full`, as published.
            accumulate=max(1, round(_between(1, self.nominal / self.batch, way))),
        )


def _between(start: float, end: float, way: float) -> float:
    return start + (end - start) * way
