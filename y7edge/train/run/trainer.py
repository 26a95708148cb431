"""Train over epochs and batches, evaluate, and save the state of the run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor

from y7edge.errors import TrainingError, Y7EdgeError
from y7edge.evaluation.evaluate import Metrics
from y7edge.files import reason
from y7edge.train.loading.memory import Item
from y7edge.train.loading.workers import batches
from y7edge.train.output import folder as files
from y7edge.train.output.batch_files import BAD_BATCH, write_bad_batch
from y7edge.train.output.results import EpochRow, TrainResult
from y7edge.train.output.writer import RunWriter
from y7edge.train.run import state
from y7edge.train.run.interrupts import Interrupts
from y7edge.train.run.progress import Progress, Status, Stopwatch, peak_memory_mb
from y7edge.train.run.resume import (
    capture,
    check,
    identity,
    require_finite,
    require_fitting,
    restore,
)
from y7edge.train.run.state import Position
from y7edge.train.run.steps import random_side
from y7edge.train.run.validate import Validation
from y7edge.train.setup.parts import Parts

_READ_EVERY = 10  # iterations; reading the loss waits for the GPU


class Trainer:
    """Training loop of one process of a run."""

    def __init__(
        self, parts: Parts, progress: Progress | None = None, saved: state.State | None = None
    ) -> None:
        """Begin a run, or resume it from the state ``saved``.

        Raises:
            ConfigError, DataError: settings or data have changed since the state was saved.
            CheckpointError: the state does not fit the run.
        """
        self.parts, self.progress = parts, progress or Progress()
        self.position = Position()
        if saved is not None:
            log = self.progress.log
            with parts.ranks.together():
                check(saved.facts.identity, identity(parts), str(parts.config.data), log)
                require_fitting(parts, saved)
            self.position = restore(parts, saved)
            log(f"resumed at {self.position}")
        self._watch = Stopwatch(parts.steps.schedule.iterations, done=self.iteration)
        self._interrupts = Interrupts()
        self._unread: list[Tensor] = []  # loss parts not yet read from the device
        self._consistent = True  # False while the state changes
        self._clock = self._next_save = 0.0

    @property
    def iteration(self) -> int:
        """Number of the next iteration in the run, counted from 0."""
        return (self.position.epoch - 1) * len(self.parts.plan) + self.position.batch

    def run(self) -> TrainResult:
        """Train until the last epoch or until ``patience`` stops the run; write the report."""
        with self._interrupts:
            try:
                if self.iteration == 0:
                    self._save()
                while not self._is_over():
                    self.train_epoch()
                    self._end_epoch()
            except (KeyboardInterrupt, Y7EdgeError, OSError) as error:
                self._save_on_exit(error)
                raise
        return self._finish()

    def train_epoch(self) -> None:
        """Train on the remaining batches of the epoch; display progress and save the state."""
        for _ in self.learn_epoch():
            self.report()
            due = self.parts.ranks.first and time.monotonic() >= self._next_save
            if self.parts.ranks.largest(int(due)):
                self._save()
        self._read()

    def learn_epoch(self) -> Iterator[int]:
        """Train on the remaining batches of the epoch; yield the number of images in each."""
        self.parts.steps.train()
        self.parts.plan.set_epoch(self.position.epoch, self.position.batch)
        self._clock = time.perf_counter()
        stream = batches(self.parts.loader)
        while (batch := self._next(stream)) is not None:
            with self._updating():
                self._learn(*batch)
            now = time.perf_counter()
            self.position.seconds += now - self._clock
            self._clock = now
            yield len(batch[0])

    def _next(self, stream: Iterator[Item]) -> Item | None:
        """Return the next batch, or None; a signal or error on one rank is raised on all ranks."""
        parts = self.parts
        with parts.steps.timing.part("data", host=True), parts.ranks.together():
            self._interrupts.check()
            return next(stream, None)

    def _learn(self, images: Tensor, targets: Tensor, appearance: Tensor | None = None) -> None:
        """Train on a batch: images uint8 (B, 3, H, W) RGB, targets float32 (n, 6).

        ``appearance``: colour jitter and mirror that are left to the device (`loader`).
        """
        position, config, steps = self.position, self.parts.config, self.parts.steps
        side = None
        if config.multi_scale:
            stride = steps.model.spec.max_stride
            side = random_side(config.imgsz, stride, config.seed, position.epoch, position.batch)
        images = steps.prepared(images, appearance)
        if self.parts.writer:
            closed = self.parts.train_set.closed(position.epoch)
            self.parts.writer.batch(images, targets, closed=closed)
        loss = steps(self.iteration, images, targets, side)
        self._unread.append(torch.stack((loss.box, loss.obj, loss.cls)))
        position.batch += 1

    def _end_epoch(self) -> None:
        """Evaluate, save and display the finished epoch; move the position to the next one."""
        position, parts = self.position, self.parts
        average = parts.steps.average
        if not position.closed:
            with self._updating():
                average.end_epoch(parts.steps.model, position.epoch, parts.letterboxed_images)
                position.closed = True
        metrics: Metrics | None = None
        last = position.epoch == parts.config.epochs
        if last or position.epoch % parts.config.validation_interval == 0:
            with parts.ranks.together():
                if parts.validation:
                    with self._interrupts.immediate():
                        metrics = parts.validation(average.model)
            parts.update_image_weights(metrics)
        row = self._row()
        with self._updating(), parts.ranks.together():
            if parts.writer:
                parts.writer.add(row, average.model, metrics)
        self.position = Position(position.epoch + 1)
        if parts.writer:
            left = self._watch.left(self.iteration)
            self.progress.epoch(parts.writer.rows[-1], parts.config.epochs, left)
        self._save()

    def _finish(self) -> TrainResult:
        """Write the report, and return the result."""
        parts, result = self.parts, None
        with parts.ranks.together():
            if (writer := parts.writer) and parts.validation:
                result = writer.result()
                self._report(writer, parts.validation, len(writer.rows))
        return cast(TrainResult, parts.ranks.from_first(result))

    def _report(self, writer: RunWriter, validation: Validation, epochs: int) -> None:
        """Write the report, and mark the run as finished; errors are logged, not raised."""
        parts, folder = self.parts, self.parts.folder
        try:
            if parts.config.report:
                writer.finish(validation, parts.steps.average.model)
            state.mark_finished(folder, identity(parts), epochs)
        except (Exception, KeyboardInterrupt) as error:
            what = files.REPORT if parts.config.report else files.STATE
            self.progress.log(
                f"warning: {folder}: {what} cannot be written: {reason(error)}; all epochs are "
                "done and their weights saved; to write it, resume with y7edge train --resume "
                f"{folder}"
            )
            if isinstance(error, KeyboardInterrupt):
                raise

    def _is_over(self) -> bool:
        """Return whether all epochs are done, or ``patience`` epochs passed without improvement."""
        config, writer = self.parts.config, self.parts.writer
        over = self.position.epoch > config.epochs
        if writer and not over and config.patience and (best := writer.best):
            # Patience counts only evaluated epochs, once averaging has begun.
            evaluated = [row.epoch for row in writer.rows if row.map50 is not None]
            begun = (epoch for epoch in evaluated if epoch >= self.parts.steps.average.begins)
            since = max(best.epoch, next(begun, evaluated[-1]))
            over = evaluated[-1] - since >= config.patience
            if over:
                self.progress.log(f"stopped: no better fitness since epoch {best.epoch}")
        return self.parts.ranks.from_first(over)

    def report(self) -> None:
        """Display the progress within the epoch."""
        position, device = self.position, self.parts.fabric.device
        if (position.batch - 1) % (1 if device.type == "cpu" else _READ_EVERY):
            return
        self._read()
        box, obj, cls = (value / position.batch for value in position.sums)
        self.progress.step(
            Status(
                epoch=position.epoch,
                epochs=self.parts.config.epochs,
                iteration=position.batch,
                batches=len(self.parts.plan),
                box=box,
                obj=obj,
                cls=cls,
                lr=self.parts.steps.lr,
                memory_mb=peak_memory_mb(device),
                eta_seconds=self._watch.left(self.iteration),
            )
        )

    def _row(self) -> EpochRow:
        position, count = self.position, len(self.parts.plan)
        box, obj, cls = (value / count for value in position.sums)
        lr = self.parts.steps.schedule.at(position.epoch * count - 1).lr[1]
        memory = peak_memory_mb(self.parts.fabric.device)
        return EpochRow(position.epoch, box, obj, cls, lr, position.seconds, memory)

    def _read(self) -> None:
        """Read new loss parts from the device, and add them to the sums of the epoch.

        Raises:
            TrainingError: a loss is not finite.
        """
        if not self._unread:
            return
        losses = self.parts.ranks.sum(torch.stack(self._unread)) / self.parts.ranks.world
        first = self.position.batch - len(self._unread)
        self._unread.clear()
        for batch, values in enumerate(losses.tolist(), start=first):
            # Added one by one in double precision: sums do not depend on how often this is called.
            pairs = zip(self.position.sums, values, strict=True)
            self.position.sums = tuple(old + new for old, new in pairs)
            if not all(abs(value) < float("inf") for value in values):
                self._refuse(batch, values)

    def _refuse(self, batch: int, values: list[float]) -> None:
        """Save the batch that has a non-finite loss, and raise TrainingError."""
        self._consistent = False
        parts, epoch = self.parts, self.position.epoch
        box, obj, cls = values
        reason = (
            f"the loss is not finite in epoch {epoch}, batch {batch + 1} "
            f"(box {box:.3g}, obj {obj:.3g}, cls {cls:.3g})"
        )
        with parts.ranks.together():
            if parts.ranks.first:
                place = (parts.folder, parts.train_set, parts.plan)
                write_bad_batch(*place, epoch=epoch, batch=batch, reason=reason)
        raise TrainingError(
            f"{reason}: lower lr0, lengthen the warm-up or use --precision fp32; the batch is in "
            f"{parts.folder / BAD_BATCH}, the last complete state in {parts.folder}"
        )

    @contextmanager
    def _updating(self) -> Iterator[None]:
        """Mark the state as inconsistent in this context, and after it if an error is raised."""
        self._consistent = False
        yield
        self._consistent = True

    def _save(self) -> None:
        """Save the state of the run; call it on all ranks."""
        self._read()
        parts = self.parts
        with self._updating():
            with parts.ranks.together():
                require_finite(parts.steps.model)
            captured = capture(parts, self.position)
            with parts.ranks.together():
                if parts.ranks.first:
                    state.save(captured, parts.folder)
        self._next_save = time.monotonic() + 60 * parts.config.checkpoint_minutes

    def _save_on_exit(self, error: BaseException) -> None:
        """Save the state when a run ends early, and log how to resume."""
        folder = self.parts.folder
        how = f"resume with y7edge train --resume {folder}"
        if not self._consistent:
            if not isinstance(error, TrainingError):  # its message already says how to resume
                self.progress.log(f"stopped inside a batch; the last complete state is kept: {how}")
            return
        self._save()
        if self.parts.writer:
            average = self.parts.steps.average.model
            self.parts.writer.save(average, files.LAST, notes={"interrupted": True})
        what = "interrupted" if isinstance(error, KeyboardInterrupt) else "stopped by an error"
        self.progress.log(f"{what}; the state so far is in {folder / files.STATE}: {how}")
