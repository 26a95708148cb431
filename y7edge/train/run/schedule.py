"""Compute learning rate, momentum and accumulation as pure functions of the iteration.

An *iteration* is a forward and backward pass of one batch. An optimizer *step* follows every
``accumulate`` iterations.

The learning rate follows a cosine from ``lr0`` to ``lr0 * lrf``, updated once per epoch. During the
linear warm-up at the start of a run, the rate of the biases falls from a high value to the cosine,
and the other rates rise from zero to the cosine. This is YOLOv7's published schedule. With SWA, the
rate is constant once averaging has begun.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from y7edge.train.settings.config import Recipe

PUBLISHED_NOMINAL_BATCH = 64
SMALLEST_NOMINAL_BATCH = 16  # in short runs
ENOUGH_STEPS = 4000  # optimizer steps: two time constants of the published moving average


def nominal_batch(images: int, epochs: int, batch: int) -> int:
    """Return the images per optimizer step: 64 as published, fewer in short runs.

    The result is the largest of 64, 32 and 16 with which the run has ``ENOUGH_STEPS`` steps, else
    16. If ``batch`` is larger, the result is ``batch``, at most 64. Example: with 64, a run of 60
    epochs on 205 images has only 190 steps, and the published implementation reaches mAP@0.5 0.812;
    with 16 it reaches 0.877.
    """
    nominal = PUBLISHED_NOMINAL_BATCH
    while nominal > SMALLEST_NOMINAL_BATCH and images * epochs < ENOUGH_STEPS * nominal:
        nominal //= 2
    return max(nominal, min(batch, PUBLISHED_NOMINAL_BATCH))


def accumulation(batch: int, nominal: int) -> int:
    """Return the batches to accumulate for an optimizer step of about ``nominal`` images."""
    return max(round(nominal / batch), 1)


def warmup_iterations(batches: int, epochs: int, recipe: Recipe) -> int:
    """Return the iterations of the warm-up: ``warmup_epochs``, limited to a fraction of the run.

    ``batches`` are the iterations per epoch. The published minimum of 1000 iterations is not used,
    since it exceeds a whole run on a small data set.
    """
    return round(min(recipe.warmup_epochs * batches, recipe.warmup_share * batches * epochs))


def cosine(epoch: int, epochs: int, lrf: float) -> float:
    """Return the factor of ``lr0`` in an epoch: 1 at epoch 0, ``lrf`` at epoch ``epochs``."""
    return (1 - math.cos(math.pi * epoch / epochs)) / 2 * (lrf - 1) + 1


def swa_begins(recipe: Recipe, epochs: int) -> int:
    """Return the first epoch (counted from 1) whose weights SWA averages; at most the last epoch.

    From this epoch on, the learning rate is constant (arXiv 1803.05407), so that the averaged
    weights differ from each other.
    """
    return min(int(recipe.swa_start * epochs), epochs - 1) + 1


@dataclass(frozen=True, slots=True)
class Step:
    """Settings of the optimizer at one iteration."""

    lr: tuple[float, float, float]  # by group: undecayed weights, decayed weights, biases
    momentum: float
    accumulate: int  # iterations per optimizer step


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rate schedule of a run."""

    recipe: Recipe
    epochs: int
    batches: int  # iterations per epoch
    batch: int  # images per iteration
    nominal: int  # images per optimizer step
    warmup: int  # last iteration of the warm-up; 0: no warm-up

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
            # As published: interpolate to the exact ratio and round afterwards.
            accumulate=max(1, round(_between(1, self.nominal / self.batch, way))),
        )


def _between(start: float, end: float, way: float) -> float:
    return start + (end - start) * way
