"""Run one iteration: move a batch to the device, forward, loss, backward, optimizer step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from y7edge.nn.build import Model
from y7edge.train.augment.on_device import apply_appearance
from y7edge.train.averaging.average import Average
from y7edge.train.loss.loss import LossParts, TrainingLoss
from y7edge.train.run.optim import Accumulator, apply
from y7edge.train.run.schedule import Schedule
from y7edge.train.run.timing import Timing
from y7edge.train.setup import freeze

_SIZES = 0x512E  # part of the seed, so that input sizes do not depend on augmentation


class Steps:
    """Callable that trains a model on one batch per call.

    ``clip_norm`` is the maximum norm of the gradient in an optimizer step; 0: no limit. If
    ``compiled``, the model runs under ``torch.compile``. The attribute ``forward`` is the model as
    wrapped by Fabric and ``torch.compile``.
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
        module: Any = torch.compile(model) if compiled else model
        self.forward, self.optimizer = fabric.setup(module, optimizer)

    def __call__(
        self, iteration: int, images: Tensor, targets: Tensor, side: int | None = None
    ) -> LossParts:
        """Train on one batch of this process, and return its losses.

        ``iteration`` counts from 0 over the run. ``images`` are uint8 (B, 3, H, W) RGB;
        ``to_input`` resizes them to ``side``. ``targets`` are float32 (n, 6): image index in
        the batch, class, normalized cx, cy, w, h.
        """
        step = self.schedule.at(iteration)
        apply(step, self.optimizer)
        due = self.accumulator.due(step.accumulate, last=iteration + 1 == self.schedule.iterations)
        # Average gradients over the ranks only if the optimizer steps after this pass.
        with self.fabric.no_backward_sync(self.forward, enabled=not due):
            with self.timing.part("forward"):
                images = self.to_input(images, side)
                targets = targets.to(self.fabric.device, non_blocking=True)
                heads = self.forward(images)
            with self.timing.part("loss"):
                parts = self.loss(heads, targets)
            with self.timing.part("backward"):
                self.fabric.backward(parts.total)
        if due:
            with self.timing.part("optimizer"):
                if self.clip_norm:
                    # A non-finite gradient makes the next loss non-finite, which ends the run.
                    norm = {"max_norm": self.clip_norm, "error_if_nonfinite": False}
                    self.fabric.clip_gradients(self.forward, self.optimizer, **norm)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                self.average.update(self.model)
        return parts

    def train(self) -> None:
        """Switch the model to training mode, except for frozen rows."""
        self.forward.train()
        freeze.apply(self.model)

    @property
    def lr(self) -> float:
        """Learning rate of the convolution weights at the last iteration."""
        return float(self.optimizer.param_groups[1]["lr"])

    def prepared(self, images: Tensor, appearance: Tensor | None = None) -> Tensor:
        """Return uint8 images with the appearance that the loader left to the device, if any."""
        if appearance is None:
            return images
        with self.timing.part("forward"):
            images = images.to(self.fabric.device, non_blocking=True)
            return apply_appearance(images, appearance)

    def to_input(self, images: Tensor, side: int | None = None) -> Tensor:
        """Move uint8 images (B, 3, H, W) to the device, as float32 in 0..1.

        Their longer side becomes ``side`` pixels; None: no resizing.
        """
        images = images.to(self.fabric.device, non_blocking=True)
        images = images.contiguous(memory_format=torch.channels_last).float().div_(255)
        if side is None:
            return images
        return resized(images, side, self.model.spec.max_stride)


def resized(images: Tensor, side: int, stride: int) -> Tensor:
    """Resize float images (B, 3, H, W), so that the longer side is ``side`` pixels.

    Both sides are rounded up to multiples of ``stride``, to at least two of them.
    """
    height, width = images.shape[-2:]
    fraction = side / max(height, width)
    size = [max(2, -(-round(x * fraction) // stride)) * stride for x in (height, width)]
    if size == [height, width]:
        return images
    return functional.interpolate(images, size, mode="bilinear", align_corners=False)


def random_side(imgsz: int, stride: int, seed: int, epoch: int, batch: int) -> int:
    """Draw the input side of a batch for multi-scale training, in pixels; equal on all ranks.

    The side is a multiple of ``stride``, uniformly drawn from ``0.5 * imgsz`` to ``1.5 * imgsz``.
    It is at least ``2 * stride``, since BatchNorm needs more than one cell.
    """
    low, high = max(-(-imgsz // (2 * stride)), 2), 3 * imgsz // (2 * stride)
    rng = np.random.default_rng((seed, epoch, batch, _SIZES))
    return stride * int(rng.integers(low, high + 1))


def scaler_of(fabric: Any) -> Any:
    """Return the gradient scaler of fp16; None for other precisions."""
    return getattr(fabric.strategy.precision, "scaler", None)
