"""Run one iteration: move a batch to the device, forward, loss, backward, optimizer step."""

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

_SIZES = 0x512E  # part of the seed, so that sizes are independent of augmentation


class Steps:
    """Train on batches.

    ``forward`` is ``model`` as wrapped by Fabric and a compiler. ``clip_norm`` limits the norm of
    the gradient of an optimizer step; 0: no limit.
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
        """Train on one batch of this process; ``iteration`` counts from 0 over the run.

        ``images`` are uint8 (B, 3, H, W) RGB, resized to longer side ``side`` unless None;
        ``targets`` float32 (n, 6): image, class, normalized cx, cy, w, h.
        """
        step = self.schedule.at(iteration)
        apply(step, self.optimizer)
        due = self.accumulator.due(step.accumulate, last=iteration + 1 == self.schedule.iterations)
        # Gradients are exchanged only when they are used.
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
                    # A non-finite norm leads to a non-finite loss, which ends the run.
                    norm = {"max_norm": self.clip_norm, "error_if_nonfinite": False}
                    self.fabric.clip_gradients(self.forward, self.optimizer, **norm)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                self.average.update(self.model)
        return parts

    def train(self) -> None:
        """Switch to training mode, except for frozen rows."""
        self.forward.train()
        freeze.apply(self.model)

    @property
    def lr(self) -> float:
        """Learning rate of the convolution weights at the last iteration."""
        return float(self.optimizer.param_groups[1]["lr"])

    def to_input(self, images: Tensor, side: int | None = None) -> Tensor:
        """Convert bytes (B, 3, H, W) to floats from 0 to 1 on the device."""
        images = images.to(self.fabric.device, non_blocking=True)
        images = images.contiguous(memory_format=torch.channels_last).float().div_(255)
        if side is None:
            return images
        return resized(images, side, self.model.spec.max_stride)


def resized(images: Tensor, side: int, stride: int) -> Tensor:
    """Resize float images (B, 3, H, W) to longer side ``side``, in multiples of ``stride``."""
    height, width = images.shape[-2:]
    fraction = side / max(height, width)
    size = [max(2, -(-round(x * fraction) // stride)) * stride for x in (height, width)]
    if size == [height, width]:
        return images
    return functional.interpolate(images, size, mode="bilinear", align_corners=False)


def random_side(imgsz: int, stride: int, seed: int, epoch: int, batch: int) -> int:
    """Draw the input side of a batch in multi-scale training, the same on every process.

    Uniform over multiples of ``stride`` from half of ``imgsz`` to 1.5 times, but at least two
    cells, which BatchNorm needs.
    """
    low, high = max(-(-imgsz // (2 * stride)), 2), 3 * imgsz // (2 * stride)
    rng = np.random.default_rng((seed, epoch, batch, _SIZES))
    return stride * int(rng.integers(low, high + 1))


def scaler_of(fabric: Any) -> Any:
    """Return the gradient scaler of fp16, else None."""
    return getattr(fabric.strategy.precision, "scaler", None)
