"""``y7edge train --profile N``: measure where an iteration spends its time.

The run is set up as for training, in a temporary folder. After a few warm-up iterations, N
iterations are measured. For comparison, forward and backward pass are then measured alone, on one
batch that is already on the device.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from y7edge.errors import ConfigError
from y7edge.files import temporary_folder
from y7edge.train.run.distributed import open_fabric
from y7edge.train.run.progress import Progress, peak_memory_mb
from y7edge.train.run.state import Position
from y7edge.train.run.timing import PartTimes
from y7edge.train.run.trainer import Trainer
from y7edge.train.settings.config import TrainConfig
from y7edge.train.setup.parts import build, check_packages

WARM_UP = 4  # iterations that allocate memory, choose kernels and start workers
PARTS = ("data", "forward", "loss", "backward", "optimizer")


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured speed of training; times are means over the iterations, in milliseconds."""

    device: str
    batch: int  # images per iteration
    imgsz: int
    workers: int
    iterations: int
    images_per_second: float
    iteration_ms: float
    data_ms: float  # waiting for the loader
    forward_ms: float  # including the copy of the batch to the device
    loss_ms: float  # including the assignment of targets
    backward_ms: float
    optimizer_ms: float  # including weight averaging; averaged also over iterations without a step
    rest_ms: float  # everything else
    memory_mb: float  # peak memory of the GPU, or of the process on a CPU
    network_images_per_second: float  # forward and backward alone, on a fixed batch

    @property
    def data_share(self) -> float:
        """Fraction of an iteration spent waiting for data."""
        return self.data_ms / self.iteration_ms

    @property
    def loss_share(self) -> float:
        """Fraction of an iteration spent on assignment and loss, not counting ``data_ms``."""
        return self.loss_ms / (self.iteration_ms - self.data_ms)

    def to_dict(self) -> dict[str, Any]:
        """Return all values and fractions, for JSON."""
        return {**asdict(self), "data_share": self.data_share, "loss_share": self.loss_share}

    def lines(self) -> list[str]:
        """Format the measurements as lines of text."""
        rows = [
            f"{name.removesuffix('_ms'):<10}{value:>10.2f} ms{value / self.iteration_ms:>8.1%}"
            for name, value in asdict(self).items()
            if name.endswith("_ms")
        ]
        return [
            f"{self.iterations} iterations of {self.batch} images at {self.imgsz} px on "
            f"{self.device}, {self.workers} loading workers",
            *rows,
            f"{self.images_per_second:.1f} images/s; forward and backward alone "
            f"{self.network_images_per_second:.1f}; peak memory {self.memory_mb:.0f} MB; loss and "
            f"assignment {self.loss_share:.1%} of the iteration without waiting for data",
        ]


def profile(config: TrainConfig, *, progress: Progress | None = None) -> Profile:
    """Measure ``config.profile`` iterations of a run on one device.

    Raises:
        ConfigError: ``config`` has several devices, or ``config.profile`` is 0.
        Y7EdgeError: any error of ``loop.train``.
    """
    if config.devices * config.nodes > 1 or config.profile < 1:
        raise ConfigError(
            f"--profile: expected 1 or more iterations on one device, found {config.profile} "
            f"iterations on {config.devices * config.nodes} devices"
        )
    check_packages()
    fabric = open_fabric(config)
    device = fabric.device
    times = PartTimes(device)
    with temporary_folder() as folder:
        config = replace(config, out=folder / "run")
        progress = progress or Progress()
        parts = build(config, log=progress.log, fabric=fabric, timing=times)
        trainer = Trainer(parts, progress)
        seconds = _timed(trainer, times, config.profile)
        spent = {f"{name}_ms": 1e3 * seconds[name] / config.profile for name in PARTS}
        whole = 1e3 * seconds["whole"] / config.profile
        return Profile(
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
            batch=config.batch,
            imgsz=config.imgsz,
            workers=parts.loader.num_workers,
            iterations=config.profile,
            images_per_second=seconds["images"] / seconds["whole"],
            iteration_ms=whole,
            rest_ms=whole - sum(spent.values()),
            memory_mb=peak_memory_mb(device),
            network_images_per_second=_network_alone(trainer, times, min(config.profile, 20)),
            **spent,
        )


def _timed(trainer: Trainer, times: PartTimes, iterations: int) -> dict[str, float]:
    """Return the seconds by part, the total seconds ``whole`` and the number of ``images``."""
    batches, images, begin = _endless(trainer), 0, 0.0
    for number, count in enumerate(batches):
        if number < WARM_UP:
            times.collect()
            begin = time.perf_counter()
            continue
        images += count
        trainer.report()
        if number + 1 == WARM_UP + iterations:
            break
    seconds = times.collect()
    return {"optimizer": 0.0, **seconds, "whole": time.perf_counter() - begin, "images": images}


def _endless(trainer: Trainer) -> Iterator[int]:
    """Train on an endless stream of batches; yield the number of images in each."""
    while True:
        yield from trainer.learn_epoch()
        trainer.position = Position(trainer.position.epoch + 1)


def _network_alone(trainer: Trainer, times: PartTimes, iterations: int) -> float:
    """Measure forward and backward pass on one batch on the device, in images per second."""
    steps = trainer.parts.steps
    images = steps.to_input(next(iter(trainer.parts.loader))[0])
    for _ in range(2):
        _forward_backward(trainer, images)
    times.wait()
    begin = time.perf_counter()
    for _ in range(iterations):
        _forward_backward(trainer, images)
    times.wait()
    return len(images) * iterations / (time.perf_counter() - begin)


def _forward_backward(trainer: Trainer, images: Tensor) -> None:
    heads = trainer.parts.steps.forward(images)
    trainer.parts.fabric.backward(sum(head.float().mean() for head in heads))
