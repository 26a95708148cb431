"""The loop over epochs and batches of one training run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from y7edge.errors import TrainingError, Y7EdgeError
from y7edge.evaluation.evaluate import Metrics
from y7edge.train.loading.memory import Item
from y7edge.train.loading.workers import batches
from y7edge.train.output import bad_batch
from y7edge.train.output import folder as files
from y7edge.train.output.results import EpochRow, TrainResult
from y7edge.train.run import state
from y7edge.train.run.interrupts import Interrupts
from y7edge.train.run.progress import Progress, Status, Stopwatch, peak_memory_mb
from y7edge.train.run.resume import Position, capture, check, identity, require_finite, restore
from y7edge.train.run.steps import varied_side
from y7edge.train.setup.parts import Parts

# Reading the loss makes the CPU wait for a GPU; a bar that moves every few iterations is enough.
_READ_EVERY = 10


class Trainer:
    """Trains with the parts of a run, as one of its processes.

    Attributes:
        parts: what the run is made of.
        progress: displays the run.
        position: how far the run has come.
    """

    def __init__(
        self, parts: Parts, progress: Progress | None = None, kept: state.State | None = None
    ) -> None:
        """Begin a run, or resume it.

        Args:
            parts: what the run is made of.
            progress: displays the run; None shows nothing.
            kept: the state to resume; None begins a run.

        Raises:
            ConfigError, DataError: the state is that of other settings or other data.
        """
        self.parts, self.progress = parts, progress or Progress()
        self.position = Position()
        if kept is not None:
            say = self.progress.say
            with parts.ranks.together():
                check(kept, identity(parts), str(parts.config.data), say)
            self.position = restore(parts, kept)
            say(f"resumed at {state.position(kept)}")
        self._watch = Stopwatch(parts.steps.schedule.iterations, done=self.iteration)
        self._interrupts = Interrupts()
        self._unread: list[Tensor] = []  # loss parts of batches since the last reading
        self._whole = True  # the state is that between two batches
        self._clock = self._next_save = 0.0

    @property
    def iteration(self) -> int:
        """Number of the next batch in the whole run, from 0."""
        return (self.position.epoch - 1) * len(self.parts.plan) + self.position.batch

    # --- the loop ---------------------------------------------------------------------------------

    def run(self) -> TrainResult:
        """Train to the last epoch, or until patience ends."""
        with self._interrupts:
            try:
                if self.iteration == 0:
                    self._save()
                while not self._is_over():
                    self.train_epoch()
                    self._end_epoch()
            except (KeyboardInterrupt, Y7EdgeError, OSError) as error:
                self._keep_what_is_whole(error)
                raise
            finally:
                if self.parts.writer:
                    self.parts.writer.close()
        try:
            return self._finish()
        except (KeyboardInterrupt, Y7EdgeError, OSError):
            self.progress.say(
                "all epochs are done and their weights saved; for curves, images and report resume "
                f"with y7edge train --resume {self.parts.folder}"
            )
            raise

    def train_epoch(self) -> None:
        """Train on the batches that are left of the current epoch."""
        for _ in self.learn_epoch():
            self.report()
            due = self.parts.ranks.first and time.monotonic() >= self._next_save
            if self.parts.ranks.largest(int(due)):
                self._save()
        self._read()

    def learn_epoch(self) -> Iterator[int]:
        """The same batch by batch, without reports and states; yields their numbers of images."""
        self.parts.steps.train()
        self.parts.plan.set_epoch(self.position.epoch, self.position.batch)
        self._clock = time.perf_counter()
        stream = batches(self.parts.loader)
        while (batch := self._next(stream)) is not None:
            with self._breaking():
                self._learn(*batch)
            now = time.perf_counter()
            self.position.seconds += now - self._clock
            self._clock = now
            yield len(batch[0])

    def _next(self, stream: Iterator[Item]) -> Item | None:
        """The next batch; here, between two batches, all ranks stop if one of them has to."""
        parts = self.parts
        with parts.steps.timing.part("data", host=True), parts.ranks.together():
            self._interrupts.check()
            return next(stream, None)

    def _learn(self, images: Tensor, targets: Tensor) -> None:
        """One batch: uint8 (B, 3, H, W) RGB and targets (n, 6)."""
        position, config, steps = self.position, self.parts.config, self.parts.steps
        side = None
        if config.multi_scale:
            stride = steps.model.spec.max_stride
            side = varied_side(config.imgsz, stride, config.seed, position.epoch, position.batch)
        if self.parts.writer:
            close_at = self.parts.shown.close_at
            closed = close_at is not None and position.epoch >= close_at
            self.parts.writer.batch(images, targets, closed=closed)
        loss = steps(self.iteration, images, targets, side)
        self._unread.append(torch.stack((loss.box, loss.obj, loss.cls)))
        position.batch += 1

    def _end_epoch(self) -> None:
        """Evaluate, save and report the finished epoch, and move on to the next."""
        position, parts = self.position, self.parts
        average = parts.steps.average
        if not position.closed:
            with self._breaking():
                average.end_epoch(parts.steps.model, position.epoch, parts.whole_images)
                position.closed = True
        metrics: Metrics | None = None
        last = position.epoch == parts.config.epochs
        if last or position.epoch % parts.config.validation_interval == 0:
            with parts.ranks.together():
                if parts.validation:
                    with self._interrupts.free():
                        metrics = parts.validation(average.model)
            parts.weigh_images(metrics)
        row = self._row()
        with self._breaking(), parts.ranks.together():
            if parts.writer:
                parts.writer.add(row, average.model, metrics)
        self.position = Position(position.epoch + 1)
        if parts.writer:
            self.progress.epoch(parts.writer.rows[-1])
        self._save()

    def _finish(self) -> TrainResult:
        """Write the report, and sum up."""
        parts, result = self.parts, None
        with parts.ranks.together():
            if (writer := parts.writer) and parts.validation:
                if parts.config.report:
                    writer.finish(parts.validation, parts.steps.average.model)
                result = writer.result()
                state.mark_finished(parts.folder, identity(parts), len(writer.rows))
        result = parts.ranks.from_first(result)
        if result is None:
            raise TrainingError(f"{parts.folder}: the first process gave no result")
        return result

    def _is_over(self) -> bool:
        """Whether the last epoch is done, or the last evaluated one ends the ``patience``."""
        config, writer = self.parts.config, self.parts.writer
        over = self.position.epoch > config.epochs
        if writer and not over and config.patience and (best := writer.best):
            # Patience counts only evaluated epochs, once averaging has begun.
            evaluated = [row.epoch for row in writer.rows if row.map50 is not None]
            begun = (epoch for epoch in evaluated if epoch >= self.parts.steps.average.begins)
            since = max(best.epoch, next(begun, evaluated[-1]))
            over = evaluated[-1] - since >= config.patience
            if over:
                self.progress.say(f"no better fitness since epoch {best.epoch}: stopped")
        return self.parts.ranks.from_first(over)

    # --- losses -----------------------------------------------------------------------------------

    def report(self) -> None:
        """Report where the epoch stands, if it is time to look at the losses."""
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
        """Add the loss parts that were not read yet to the sums of the epoch.

        Raises:
            TrainingError: one of them isn't finite.
        """
        if not self._unread:
            return
        losses = self.parts.ranks.sum(torch.stack(self._unread)) / self.parts.ranks.world
        first = self.position.batch - len(self._unread)
        self._unread.clear()
        for batch, values in enumerate(losses.tolist(), start=first):
            # One by one and in double precision: the same sums, whenever they are read.
            sums = [old + new for old, new in zip(self.position.sums, values, strict=True)]
            self.position.sums = sums
            if not all(abs(value) < float("inf") for value in values):
                self._refuse(batch, values)

    def _refuse(self, batch: int, values: list[float]) -> None:
        """Stop for a loss that is not finite, and dump its batch."""
        self._whole = False
        parts, epoch = self.parts, self.position.epoch
        box, obj, cls = values
        reason = (
            f"the loss is no longer a number in epoch {epoch}, batch {batch + 1} "
            f"(box {box:.3g}, obj {obj:.3g}, cls {cls:.3g})"
        )
        with parts.ranks.together():
            if parts.ranks.first:
                bad_batch.write_batch(
                    parts.folder, parts.shown, parts.plan, epoch=epoch, batch=batch, reason=reason
                )
        raise TrainingError(
            f"{reason}: lower lr0, lengthen the warm-up or train in 32-true; the batch is in "
            f"{parts.folder / bad_batch.NAME}, the last whole state in {parts.folder}"
        )

    # --- the state --------------------------------------------------------------------------------

    @contextmanager
    def _breaking(self) -> Iterator[None]:
        """A block at whose end, and only there, the state is whole again."""
        self._whole = False
        yield
        self._whole = True

    def _save(self) -> None:
        """Save the state of the run. All ranks come here together."""
        self._read()
        parts = self.parts
        with self._breaking():
            with parts.ranks.together():
                require_finite(parts.steps.model)
            kept = capture(parts, self.position)
            with parts.ranks.together():
                if parts.ranks.first:
                    state.save(kept, parts.folder)
        self._next_save = time.monotonic() + 60 * parts.config.checkpoint_minutes

    def _keep_what_is_whole(self, error: BaseException) -> None:
        """Save what there is when a run ends before its time, and say how to resume it."""
        folder = self.parts.folder
        how = f"resume with y7edge train --resume {folder}"
        if not self._whole:
            if not isinstance(error, TrainingError):  # whose message says what is left
                self.progress.say(f"stopped inside of a batch; the last whole state is kept: {how}")
            return
        self._save()
        if self.parts.writer:
            average = self.parts.steps.average.model
            self.parts.writer.save(average, files.LAST, notes={"interrupted": True})
        what = "interrupted" if isinstance(error, KeyboardInterrupt) else "stopped by an error"
        self.progress.say(f"{what}; the state so far is in {folder / files.STATE}: {how}")
