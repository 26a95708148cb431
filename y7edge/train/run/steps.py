"""One iteration: a batch to the device, forward, assignment and loss, backward, optimiser step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from y7edge.nn.build import Model
from y7edge.train.averaging.average import Average
from y7edge.train.loss.loss import LossParts, TrainingLoss
from y7edge.train.run.optim import Accumulator, apply
from y7edge.train.run.schedule import Schedule
from y7edge.train.run.timing import Timing
from y7edge.train.setup import freeze

# Keeps these draws apart from those of the images, which start from (seed, epoch, ...) too.
_SIZES = 0x512E


class Steps:
    """What happens to each batch.

    Attributes:
        model: the module itself ...
        forward: ... and what Fabric and a compiler wrapped around it.
        average: takes in the model after every optimiser step.
        optimizer: as Fabric gave it.
        accumulator: counts the batches whose gradients wait for the next optimiser step.
        clip_norm: largest norm that the gradient of an optimiser step may have; 0: any.
    """

    def __init__(
        self,
        fabric: Any,
        model: Model,
        optimizer: torch.optim.Optimizer,
        *,
        loss: TrainingLoss,
        schedule: Schedule,
        average: Average,
        clip_norm: float = 0.0,
        compiled: bool = False,
        timing: Timing | None = None,
    ) -> None:
        self.fabric, self.model = fabric, model
        self.loss, self.schedule, self.average = loss, schedule, average
        self.clip_norm = clip_norm
        self.accumulator = Accumulator()
        self.timing = timing or Timing()
        wanted: Any = torch.compile(model) if compiled else model
        self.forward, self.optimizer = fabric.setup(wanted, optimizer)

    def __call__(
        self, iteration: int, images: Tensor, targets: Tensor, side: int | None = None
    ) -> LossParts:
        """Learn from one batch.

        Args:
            iteration: number in the whole run, from 0.
            images: uint8 (B, 3, H, W), RGB, of this process.
            targets: float32 (n, 6): image, class, normalized cx, cy, w, h.
            side: longer side to resize the images to; None leaves them as they are.
        """
        step = self.schedule.at(iteration)
        apply(step, self.optimizer)
        due = self.accumulator.due(step.accumulate, last=iteration + 1 == self.schedule.iterations)
        # Gradients cross from process to process only when they are used.
        with self.fabric.no_backward_sync(self.forward, enabled=not due):
            with self.timing.part("forward"):
                images = self.prepared(images, side)
                targets = targets.to(self.fabric.device, non_blocking=True)
                heads = self.forward(images)
            with self.timing.part("loss"):
                parts = self.loss(heads, targets)
            with self.timing.part("backward"):
                self.fabric.backward(parts.total)
        if due:
            with self.timing.part("optimizer"):
                if self.clip_norm:
                    # One that is not finite makes a loss that is not, which ends the run.
                    self.fabric.clip_gradients(
                        self.forward,
                        self.optimizer,
                        max_norm=self.clip_norm,
                        error_if_nonfinite=False,
                    )
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                self.average.update(self.model)
        return parts

    def train(self) -> None:
        """Into training mode; frozen rows stay out of it."""
        self.forward.train()
        freeze.apply(self.model)

    @property
    def lr(self) -> float:
        """Learning rate of the convolution weights at the last iteration."""
        return float(self.optimizer.param_groups[1]["lr"])

    def prepared(self, images: Tensor, side: int | None = None) -> Tensor:
        """Convert bytes (B, 3, H, W) to the network's input: floats from 0 to 1 on the device."""
        images = images.to(self.fabric.device, non_blocking=True)
        images = images.contiguous(memory_format=torch.channels_last).float().div_(255)
        if side is None:
            return images
        return resized(images, side, self.model.spec.max_stride)


def resized(images: Tensor, side: int, stride: int) -> Tensor:
    """Float images (B, 3, H, W) with their longer side ``side``; both multiples of ``stride``."""
    height, width = images.shape[-2:]
    share = side / max(height, width)
    wanted = [max(2, -(-round(x * share) // stride)) * stride for x in (height, width)]
    if wanted == [height, width]:
        return images
    return functional.interpolate(images, wanted, mode="bilinear", align_corners=False)


def varied_side(imgsz: int, stride: int, seed: int, epoch: int, batch: int) -> int:
    """The input side of a batch in multi-scale training, the same on every process.

    Any multiple of the largest stride from half of ``imgsz`` to one and a half, all equally likely;
    never a single cell, of which BatchNorm has no statistics.
    """
    low, high = max(-(-imgsz // (2 * stride)), 2), 3 * imgsz // (2 * stride)
    rng = np.random.default_rng((seed, epoch, batch, _SIZES))
    return stride * int(rng.integers(low, high + 1))


def scaler_of(fabric: Any) -> Any:
    """The gradient scaler under fp16, else None."""
    return getattr(fabric.strategy.precision, "scaler", None)
