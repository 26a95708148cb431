"""The training loop.

    result = train(TrainConfig(data="data.yaml", model="yolov7-tiny", imgsz=320, epochs=60))
    result.best                                     # runs/train/best.safetensors

Pictures as bytes to the device, forward, assignment, loss, backward; an optimiser step after every
nominal batch; a moving average of the weights, which is what is judged, saved and used. The recipe
is that of YOLOv7 (arXiv 2207.02696) with the departures that ``config.py`` names.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from y7edge.data.dataset import load
from y7edge.errors import DataError, TrainingError
from y7edge.train import folder as files
from y7edge.train.assign import SimOTA
from y7edge.train.config import TrainConfig
from y7edge.train.dataset import EpochSampler, TrainingSet, batches, loader
from y7edge.train.ema import ModelEma
from y7edge.train.keep import Keeper
from y7edge.train.loss import DetectionLoss, LossGains, LossParts, scale_gains
from y7edge.train.optim import Accumulator, apply, build_optimizer, scaled_weight_decay
from y7edge.train.pictures import write_predictions
from y7edge.train.progress import Progress, Quiet, Status, Stopwatch, peak_memory_mb
from y7edge.train.results import EpochRow
from y7edge.train.schedule import Schedule, nominal_batch, warmup_iterations
from y7edge.train.start import check_packages, loading_workers, open_fabric, start_model
from y7edge.train.validate import Validation, require_labels

# Reading the loss makes the CPU wait for a GPU; a bar that moves every few iterations is enough.
_READ_EVERY = 10


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run gave; ``best`` and ``last`` are checkpoints of the moving average."""

    folder: Path
    best: Path
    last: Path
    metrics: EpochRow  # of the best epoch
    epochs: int  # finished
    seconds_per_epoch: float  # their mean, without validation
    stopped_early: bool  # patience ended


def train(config: TrainConfig, *, progress: Progress | None = None) -> TrainResult:
    """Train a model and keep its best and last state in the run's folder.

    Args:
        config: what to train on what.
        progress: told how it goes; None shows nothing (``progress.for_terminal()`` does).

    Returns:
        Paths and figures of the run.

    Raises:
        ConfigError: a setting that cannot be, or a folder that holds a run already.
        DataError: data that cannot be read, or a split without pictures.
        CheckpointError: weights to start from that don't fit.
        DeviceError: no such device.
        RuntimeMissing: a package is not installed.
        TrainingError: the loss is no longer a number.
        KeyboardInterrupt: as it came, after the last state was saved.
    """
    check_packages()
    files.check_free(config.out)
    progress = progress or Quiet()
    try:
        return Trainer(config, progress).run()
    finally:
        progress.close()


class Trainer:
    """One run: everything that it needs, made from its configuration, and the loop over it."""

    def __init__(self, config: TrainConfig, progress: Progress) -> None:
        self.config, self.progress, recipe = config, progress, config.hyper
        torch.manual_seed(config.seed)
        self.fabric = open_fabric(config.device, config.precision)
        # A test split with a fault, or of 20,000 pictures, is of no concern here.
        data = load(config.data, splits=tuple({config.train_split: 0, config.val_split: 0}))
        pictures, judged = data.split(config.train_split), data.split(config.val_split)
        require_labels(pictures, "train on")
        model, origin = start_model(config, len(data.names))
        # Channels-last maps: 1.4 times faster on a CPU, and the layout that tensor cores want.
        model = model.to(self.fabric.device).train()
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        nominal = config.nominal_batch or nominal_batch(len(pictures), config.epochs, config.batch)
        decay = scaled_weight_decay(recipe.weight_decay, config.batch, nominal)
        self.ema = ModelEma(model, decay=recipe.ema_decay, tau=recipe.ema_tau)
        self.model, self.optimizer = self.fabric.setup(model, build_optimizer(model, recipe, decay))
        self.accumulator = Accumulator()

        spec = model.spec
        gains = LossGains(recipe.box, recipe.obj, recipe.cls)
        gains = scale_gains(gains, levels=spec.levels, nc=spec.nc, imgsz=config.imgsz)
        self.anchors = model.head.anchors
        self.assign = SimOTA(anchor_t=recipe.anchor_t)
        self.loss = DetectionLoss(spec.nc, self.anchors, gains)

        workers = loading_workers(config.workers, self.fabric.device)
        shown = TrainingSet(pictures, config.imgsz, recipe.augmentation, seed=config.seed)
        self.loader = loader(shown, config.batch, workers=workers)
        self.batches = len(self.loader)
        self.watch = Stopwatch(config.epochs * self.batches)
        warmup = warmup_iterations(self.batches, config.epochs, recipe)
        self.schedule = Schedule(recipe, config.epochs, self.batches, config.batch, nominal, warmup)
        self.validation = Validation(judged, data.names, config.imgsz)
        folder = files.claim(config.out)
        self.keeper = Keeper(folder, config, data, origin=origin, nominal=nominal)
        progress.say(
            f"{spec.name}, {len(data.names)} classes, {origin}: {len(pictures)} pictures to train "
            f"on, {len(judged)} to judge by, {config.epochs} epochs at {config.imgsz} px, batch "
            f"{config.batch}, a step every {nominal} pictures, warm-up over {warmup} iterations, "
            f"on {self.fabric.device}; {folder}"
        )

    def run(self) -> TrainResult:
        """Train to the last epoch, or until patience ends."""
        stopped = False
        try:
            for epoch in range(1, self.config.epochs + 1):
                row = self._train_epoch(epoch)
                if epoch % self.config.validation_interval == 0 or epoch == self.config.epochs:
                    metrics = self.validation(self.ema.model)
                    row = replace(row, map50=metrics.map50, map50_95=metrics.map50_95)
                self.keeper.add(row, self.ema.model)
                self.progress.epoch(row)
                stopped = self._is_out_of_patience(epoch)
                if stopped:
                    break
        except (KeyboardInterrupt, DataError):
            path = self.keeper.save(self.ema.model, files.LAST, notes={"interrupted": True})
            self.progress.say(f"interrupted; the state so far is in {path}")
            raise
        return self._finish(stopped)

    def _train_epoch(self, epoch: int) -> EpochRow:
        """One pass over the training pictures."""
        start = time.perf_counter()
        self.model.train()
        cast(EpochSampler, self.loader.sampler).set_epoch(epoch)
        sums = torch.zeros(3, device=self.fabric.device)
        lr = 0.0
        for index, (images, targets) in enumerate(batches(self.loader)):
            iteration = (epoch - 1) * self.batches + index
            step = self.schedule.at(iteration)
            apply(step, self.optimizer)
            lr = step.lr[1]
            parts = self._backward(images, targets)
            sums += torch.stack((parts.box, parts.obj, parts.cls))
            last = iteration + 1 == self.config.epochs * self.batches
            if self.accumulator.due(step.accumulate, last=last):
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                self.ema.update(self.model.module)
            if index % _READ_EVERY == 0 or self.fabric.device.type == "cpu":
                self._report(epoch, index + 1, sums, lr)
        box, obj, cls = self._checked(epoch, sums / self.batches)
        seconds = time.perf_counter() - start
        return EpochRow(epoch, box, obj, cls, lr, seconds, peak_memory_mb(self.fabric.device))

    def _backward(self, images: Tensor, targets: Tensor) -> LossParts:
        """Add the gradients of one batch: uint8 (B, 3, S, S) RGB and targets (n, 6)."""
        device = self.fabric.device
        images = images.to(device, non_blocking=True).float().div_(255)
        targets = targets.to(device, non_blocking=True)
        heads = self.model(images.contiguous(memory_format=torch.channels_last))
        parts = self.loss(heads, targets, self.assign(heads, targets, self.anchors))
        self.fabric.backward(parts.total)
        return parts

    def _report(self, epoch: int, done: int, sums: Tensor, lr: float) -> None:
        """Tell the progress where the epoch stands."""
        box, obj, cls = self._checked(epoch, sums / done)
        self.progress.step(
            Status(
                epoch=epoch,
                epochs=self.config.epochs,
                iteration=done,
                batches=self.batches,
                box=box,
                obj=obj,
                cls=cls,
                lr=lr,
                memory_mb=peak_memory_mb(self.fabric.device),
                eta_seconds=self.watch.left((epoch - 1) * self.batches + done),
            )
        )

    def _checked(self, epoch: int, means: Tensor) -> list[float]:
        """The loss parts as numbers.

        Raises:
            TrainingError: one of them isn't finite; nothing of this epoch is saved.
        """
        if not bool(means.isfinite().all()):
            box, obj, cls = means.tolist()
            raise TrainingError(
                f"the loss is no longer a number in epoch {epoch} (box {box:.3g}, obj {obj:.3g}, "
                f"cls {cls:.3g}): lower lr0, lengthen the warm-up or train in 32-true; the state "
                f"of the last finished epoch is in {self.keeper.folder}"
            )
        return cast("list[float]", means.tolist())

    def _is_out_of_patience(self, epoch: int) -> bool:
        """Whether the best epoch lies ``patience`` epochs or more behind."""
        best, patience = self.keeper.best, self.config.patience
        if not patience or best is None or epoch - best.epoch < patience:
            return False
        self.progress.say(f"no better fitness since epoch {best.epoch}: stopped")
        return True

    def _finish(self, stopped: bool) -> TrainResult:
        """Draw curves and pictures, and sum up."""
        folder, rows, best = self.keeper.folder, self.keeper.rows, self.keeper.best
        if best is None:
            raise TrainingError(f"{folder}: the run ended before any epoch was judged")
        self.keeper.draw_curves()
        write_predictions(self.validation, self.ema.model, folder / files.PICTURES)
        return TrainResult(
            folder=folder,
            best=folder / files.BEST,
            last=folder / files.LAST,
            metrics=best,
            epochs=len(rows),
            seconds_per_epoch=sum(row.seconds for row in rows) / len(rows),
            stopped_early=stopped,
        )
