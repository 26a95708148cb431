"""Compute learning rate, momentum and accumulation as pure functions of the iteration.

The learning rate follows a cosine from ``lr0`` to ``lr0 * lrf``, updated once per epoch. Before, in
a linear warm-up, the rate of the biases falls from a high value and the others rise from zero
(YOLOv7's published schedule). With SWA the rate is constant once averaging begins. An *iteration*
is a forward and backward pass of one batch; an optimizer *step* follows every ``accumulate``
iterations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from y7edge.train.settings.config import Recipe

PUBLISHED_NOMINAL_BATCH = 64
SMALLEST_NOMINAL_BATCH = 16  # in short runs
ENOUGH_STEPS = 4000  # two time constants of the published moving average


def nominal_batch(images: int, epochs: int, batch: int) -> int:
    """Return the images per optimizer step for the length of a run.

    It is the largest of 64 (published), 32 and 16 that allows ``ENOUGH_STEPS``, but not less than
    the batch, up to 64. With 64, a run of 60 epochs on 205 images has only 190 steps, too few to
    train a model (published implementation: mAP@0.5 0.812, against 0.877 with 16).
    """
    nominal = PUBLISHED_NOMINAL_BATCH
    while nominal > SMALLEST_NOMINAL_BATCH and images * epochs < ENOUGH_STEPS * nominal:
        nominal //= 2
    return max(nominal, min(batch, PUBLISHED_NOMINAL_BATCH))


def accumulation(batch: int, nominal: int) -> int:
    """Return the iterations per optimizer step of about ``nominal`` images."""
    return max(round(nominal / batch), 1)


def warmup_iterations(batches: int, epochs: int, recipe: Recipe) -> int:
    """Return the length of the warm-up: ``warmup_epochs``, limited to a fraction of the run.

    The published minimum of 1000 iterations exceeds a whole run on a small set.
    """
    return round(min(recipe.warmup_epochs * batches, recipe.warmup_share * batches * epochs))


def cosine(epoch: int, epochs: int, lrf: float) -> float:
    """Return the fraction of ``lr0`` in an epoch: 1 in epoch 0, ``lrf`` in ``epochs``."""
    return (1 - math.cos(math.pi * epoch / epochs)) / 2 * (lrf - 1) + 1


def swa_begins(recipe: Recipe, epochs: int) -> int:
    """Return the first epoch, from 1, whose weights SWA averages; at most the last.

    From there on the learning rate is constant (arXiv 1803.05407), so that the weights differ.
    """
    return min(int(recipe.swa_start * epochs), epochs - 1) + 1


@dataclass(frozen=True, slots=True)
class Step:
    """Settings of the optimizer at one iteration."""

    lr: tuple[float, float, float]  # of the groups: undecayed weights, decayed weights, biases
    momentum: float
    accumulate: int  # iterations per optimizer step


@dataclass(frozen=True, slots=True)
class Schedule:
    """The schedule of a run."""

    recipe: Recipe
    epochs: int
    batches: int  # iterations per epoch
    batch: int  # images per iteration
    nominal: int  # images per optimizer step
    warmup: int  # iterations, including the last

    @property
    def iterations(self) -> int:
        """Iterations of the run."""
        return self.epochs * self.batches

    def at(self, iteration: int) -> Step:
        """Return the settings of an iteration, counted from 0 over the run."""
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
            # As published, rounded from the exact ratio rather than from `full`.
            accumulate=max(1, round(_between(1, self.nominal / self.batch, way))),
        )


def _between(start: float, end: float, way: float) -> float:
    return start + (end - start) * way
