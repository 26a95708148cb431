"""One training run: its parts, and the loop over epochs and batches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from y7edge.errors import ConfigError, TrainingError, Y7EdgeError
from y7edge.evaluation.evaluate import Metrics
from y7edge.train.averaging.average import Average, average_for
from y7edge.train.averaging.statistics import whole_pictures
from y7edge.train.loading.dataset import batches
from y7edge.train.loading.memory import Item
from y7edge.train.loading.sampling import image_weights
from y7edge.train.loss.loss import TrainingLoss
from y7edge.train.output import bad_batch
from y7edge.train.output import folder as files
from y7edge.train.output.results import EpochRow
from y7edge.train.output.writer import RunWriter
from y7edge.train.run import state
from y7edge.train.run.distributed import Ranks, open_fabric
from y7edge.train.run.interrupts import Interrupts
from y7edge.train.run.optim import build_optimizer, scaled_weight_decay
from y7edge.train.run.progress import Progress, Quiet, Status, Stopwatch, peak_memory_mb
from y7edge.train.run.resume import (
    Live,
    Position,
    capture,
    check,
    identity,
    require_finite,
    restore,
)
from y7edge.train.run.schedule import Schedule, nominal_batch, warmup_iterations
from y7edge.train.run.steps import Steps, varied_sides
from y7edge.train.run.timing import Timing
from y7edge.train.run.validate import Validation
from y7edge.train.settings.config import TrainConfig
from y7edge.train.setup.prepare import Pictures, make_loader, make_model, read_data, to_device
from y7edge.train.setup.start import Start, start_again

# Reading the loss makes the CPU wait for a GPU; a bar that moves every few iterations is enough.
_READ_EVERY = 10


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run gave; ``best`` and ``last`` are checkpoints of the averaged weights."""

    folder: Path
    best: Path
    last: Path
    metrics: EpochRow  # of the best epoch
    epochs: int  # finished
    seconds_per_epoch: float  # their mean, without validation
    stopped_early: bool  # patience ended


class Trainer:
    """One run as one of its processes sees it.

    Attributes:
        steps: what happens to each batch; holds model, optimiser and average.
        plan: which pictures make up which batch.
        batches: iterations per epoch.
        writer: writes the files; None on all ranks but the first.
        position: how far the run has come.
    """

    def __init__(
        self,
        config: TrainConfig,
        progress: Progress | None = None,
        *,
        fabric: Any = None,
        ranks: Ranks | None = None,
        folder: Path | None = None,
        kept: state.State | None = None,
        timing: Timing | None = None,
    ) -> None:
        """Make everything that the run needs; of all that can be wrong, find out now.

        Args:
            config: what to train on what.
            progress: told how it goes; None shows nothing.
            fabric: Lightning Fabric, launched; None opens one for a single process.
            ranks: the processes of the run; None: this one alone.
            folder: of a run that is resumed; None makes the one that the configuration names.
            kept: where to go on with a run that is resumed; None begins one.
            timing: told which part of the work begins and ends.

        Raises:
            ConfigError, DataError, CheckpointError, DeviceError: see :func:`loop.train`.
        """
        self.config, self.progress = config, progress or Quiet()
        self.fabric: Any = fabric or open_fabric(config)
        self.ranks = ranks or Ranks()
        device, recipe, say = self.fabric.device, config.hyper, self.progress.say
        with self.ranks.together():
            pictures = read_data(config)
            if kept is None:
                start = make_model(config, pictures)
            else:
                start = start_again(config, pictures.data.names, kept.facts["start"])
            for note in start.notes:
                say(note)
            spec = start.model.spec
            self.shown, self.plan, self.loader = make_loader(
                config, pictures, spec, self.ranks, device
            )
            self.batches = len(self.plan)
            self.validation = (
                Validation(pictures.judged, pictures.data.names, config.imgsz)
                if self.ranks.first
                else None
            )
        nominal = recipe.nominal_batch or nominal_batch(
            len(pictures.train), config.epochs, config.batch
        )
        warmup = warmup_iterations(self.batches, config.epochs, recipe)
        self.steps = self._make_steps(
            to_device(start, device),
            Schedule(recipe, config.epochs, self.batches, config.batch, nominal, warmup),
            timing,
        )
        self.sides = (
            varied_sides(config.imgsz, spec.max_stride, config.seed) if config.multi_scale else None
        )
        self.weigh = (
            (lambda found: image_weights(pictures.train, spec.nc, found))
            if config.image_weights
            else None
        )
        if self.weigh:
            self.plan.set_weights(self.weigh(None))
        self.identity = identity(config, pictures.data.digest, self.ranks.world, device)
        self.writer = self._make_writer(folder, pictures, start, nominal)
        self.folder = cast(Path, self.ranks.from_first(self.writer and self.writer.folder))
        self.position = Position()
        self.interrupts = Interrupts()
        self._unread: list[Tensor] = []  # loss parts of batches since the last reading
        self._whole = True  # the state is that between two batches
        self._clock = self._next_save = 0.0
        self.watch = Stopwatch(self.steps.schedule.iterations)
        say(self._introduction(pictures, start.origin))
        self._start = start.facts()
        if kept is not None:
            self._restore(kept)

    def _introduction(self, pictures: Pictures, origin: str) -> str:
        config, schedule, world = self.config, self.steps.schedule, self.ranks.world
        return (
            f"{self.steps.model.spec.name}, {len(pictures.data.names)} classes, {origin}: "
            f"{len(pictures.train)} pictures to train on, {len(pictures.judged)} to judge by, "
            f"{config.epochs} epochs at {config.imgsz} px, batch {config.batch}, a step every "
            f"{schedule.nominal} pictures, warm-up over {schedule.warmup} iterations, on "
            f"{f'{world} x ' if world > 1 else ''}{self.fabric.device}; {self.folder}"
        )

    def _make_writer(
        self,
        folder: Path | None,
        pictures: Pictures,
        start: Start,
        nominal: int,
    ) -> RunWriter | None:
        """What writes the run's files; the first process alone has it."""
        with self.ranks.together():
            if not self.ranks.first:
                return None
            folder = folder or files.claim(self.config.out)
            data = pictures.data
            return RunWriter(
                folder,
                self.config,
                data,
                origin=start.origin,
                nominal=nominal,
                notes=start.notes,
            )

    def _make_steps(self, model: Any, schedule: Schedule, timing: Timing | None) -> Steps:
        config, recipe = self.config, self.config.hyper
        decay = scaled_weight_decay(recipe.weight_decay, config.batch, schedule.nominal)
        anchors = model.head.anchors
        loss = TrainingLoss(model.spec, anchors, recipe, config.imgsz, config.assigner, self.ranks)
        optimizer = build_optimizer(model, recipe, decay)
        average = average_for(recipe, model, config.epochs)
        if config.sync_bn and self.ranks.world > 1:
            if self.fabric.device.type != "cuda":
                raise ConfigError("sync_bn needs GPUs: leave it out on a CPU")
            # After optimiser and average, which tell BatchNorms by their class.
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return Steps(
            self.fabric,
            model,
            optimizer,
            loss=loss,
            schedule=schedule,
            average=average,
            clip_norm=recipe.clip_norm,
            compiled=config.compile,
            timing=timing,
        )

    @property
    def average(self) -> Average:
        """The average of the weights: what is judged, saved and used."""
        return self.steps.average

    @property
    def iteration(self) -> int:
        """Number of the next batch in the whole run, from 0."""
        return (self.position.epoch - 1) * self.batches + self.position.batch

    def _restore(self, kept: state.State) -> None:
        """Go on where a state was taken, which has to be on the same data."""
        with self.ranks.together():
            check(kept, self.identity, str(self.config.data), self.progress.say)
        live = self._live()
        restore(live, kept)
        self.position = live.position
        self.progress.say(f"resumed at {state.position(kept)}")

    # --- the loop ---------------------------------------------------------------------------------

    def run(self) -> TrainResult:
        """Train to the last epoch, or until patience ends."""
        self.watch = Stopwatch(self.steps.schedule.iterations, done=self.iteration)
        with self.interrupts:
            try:
                if self.iteration == 0:
                    self._save()
                while not self._is_over():
                    self.train_epoch()
                    self._judge()
            except (KeyboardInterrupt, Y7EdgeError, OSError) as error:
                self._keep_what_is_whole(error)
                raise
        try:
            return self._finish()
        except (KeyboardInterrupt, Y7EdgeError, OSError):
            self.progress.say(
                "all epochs are done and their weights kept; for curves, pictures and report go on "
                f"with y7edge train --resume {self.folder}"
            )
            raise

    def train_epoch(self) -> None:
        """Learn from the batches that are left of the epoch at work."""
        for _ in self.learn_epoch():
            self.report()
            if self._is_save_due():
                self._save()
        self._read()

    def learn_epoch(self) -> Iterator[int]:
        """The same batch by batch, without reports and states; gives their pictures' number."""
        self.steps.train()
        self.plan.set_epoch(self.position.epoch, self.position.batch)
        self._clock = time.perf_counter()
        stream = batches(self.loader)
        while (batch := self._next(stream)) is not None:
            with self._breaking():
                self._learn(*batch)
            self._count_time()
            yield len(batch[0])

    def _next(self, stream: Iterator[Item]) -> Item | None:
        """The next batch; here, between two batches, all ranks stop if one of them has to."""
        with self.steps.timing.part("data", host=True), self.ranks.together():
            self.interrupts.check()
            return next(stream, None)

    def _learn(self, images: Tensor, targets: Tensor) -> None:
        """One batch: uint8 (B, 3, H, W) RGB and targets (n, 6)."""
        position = self.position
        side = self.sides(position.epoch, position.batch) if self.sides else None
        if self.writer:
            self.writer.batch(images, targets, closed=self._is_closed(position.epoch))
        parts = self.steps(self.iteration, images, targets, side)
        self._unread.append(torch.stack((parts.box, parts.obj, parts.cls)))
        position.batch += 1

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.position.seconds += now - self._clock
        self._clock = now

    def _judge(self) -> None:
        """Judge, save and report the finished epoch, and go on to the next."""
        position, config = self.position, self.config
        if not position.closed:
            with self._breaking():
                self.average.end_epoch(self.steps.model, position.epoch, self._pictures)
                position.closed = True
        metrics: Metrics | None = None
        last = position.epoch == config.epochs
        if last or position.epoch % config.validation_interval == 0:
            with self.ranks.together():
                if self.validation:
                    with self.interrupts.free():
                        metrics = self.validation(self.average.model)
            self._weigh_pictures(metrics)
        row = self._row()
        with self._breaking(), self.ranks.together():
            if self.writer:
                self.writer.add(row, self.average.model, metrics)
        self.position = Position(position.epoch + 1)
        if self.writer:
            self.progress.epoch(self.writer.rows[-1])
        self._save()

    def _finish(self) -> TrainResult:
        """Draw curves and pictures, and sum up."""
        result: TrainResult | None = None
        with self.ranks.together():
            if self.writer and self.validation:
                self.writer.finish(self.validation, self.average.model)
                result = self._result(self.writer)
                state.mark_finished(self.folder, self.identity, len(self.writer.rows))
        whole = self.ranks.from_first(result)
        if whole is None:
            raise TrainingError(f"{self.folder}: the first process gave no result")
        return whole

    def _result(self, writer: RunWriter) -> TrainResult:
        folder, rows, best = self.folder, writer.rows, writer.best
        if best is None:
            raise TrainingError(f"{folder}: the run ended before any epoch was judged")
        return TrainResult(
            folder=folder,
            best=folder / files.BEST,
            last=folder / files.LAST,
            metrics=best,
            epochs=len(rows),
            seconds_per_epoch=sum(row.seconds for row in rows) / len(rows),
            stopped_early=len(rows) < self.config.epochs,
        )

    # --- when to do what --------------------------------------------------------------------------

    def _is_over(self) -> bool:
        """Whether the last epoch is done, or the last that was judged ends the ``patience``."""
        patience, over = self.config.patience, self.position.epoch > self.config.epochs
        if self.writer and not over and patience and (best := self.writer.best):
            # Epochs that nobody has judged may be better, and before its average begins a run has
            # not shown what it is for: neither tries anybody's patience.
            judged = [row.epoch for row in self.writer.rows if row.map50 is not None]
            begun = (epoch for epoch in judged if epoch >= self.average.begins)
            over = judged[-1] - max(best.epoch, next(begun, judged[-1])) >= patience
            if over:
                self.progress.say(f"no better fitness since epoch {best.epoch}: stopped")
        return self.ranks.from_first(over)

    def _is_closed(self, epoch: int) -> bool:
        return self.shown.close_at is not None and epoch >= self.shown.close_at

    def _is_read_now(self) -> bool:
        every = 1 if self.fabric.device.type == "cpu" else _READ_EVERY
        return (self.position.batch - 1) % every == 0

    def _is_save_due(self) -> bool:
        due = self.ranks.first and time.monotonic() >= self._next_save
        return bool(self.ranks.largest(int(due)))

    # --- losses -----------------------------------------------------------------------------------

    def _read(self) -> None:
        """Add the loss parts that were not read yet to the sums of the epoch.

        Raises:
            TrainingError: one of them isn't finite.
        """
        if not self._unread:
            return
        parts = self.ranks.sum(torch.stack(self._unread)) / self.ranks.world
        first = self.position.batch - len(self._unread)
        self._unread.clear()
        for batch, values in enumerate(parts.tolist(), start=first):
            # One by one and in double precision: the same sums, whenever they are read.
            sums = [old + new for old, new in zip(self.position.sums, values, strict=True)]
            self.position.sums = sums
            if not all(abs(value) < float("inf") for value in values):
                self._refuse(batch, values)

    def _refuse(self, batch: int, values: list[float]) -> None:
        """Stop for a loss that is no number, with the batch written down."""
        self._whole = False
        epoch = self.position.epoch
        box, obj, cls = values
        reason = (
            f"the loss is no longer a number in epoch {epoch}, batch {batch + 1} "
            f"(box {box:.3g}, obj {obj:.3g}, cls {cls:.3g})"
        )
        with self.ranks.together():
            if self.ranks.first:
                bad_batch.write_batch(
                    self.folder, self.shown, self.plan, epoch=epoch, batch=batch, reason=reason
                )
        raise TrainingError(
            f"{reason}: lower lr0, lengthen the warm-up or train in 32-true; the batch is in "
            f"{self.folder / bad_batch.NAME}, the last whole state in {self.folder}"
        )

    def report(self) -> None:
        """Tell the progress where the epoch stands, if it is time to look at the losses."""
        if not self._is_read_now():
            return
        self._read()
        position = self.position
        box, obj, cls = (value / position.batch for value in position.sums)
        self.progress.step(
            Status(
                epoch=position.epoch,
                epochs=self.config.epochs,
                iteration=position.batch,
                batches=self.batches,
                box=box,
                obj=obj,
                cls=cls,
                lr=self.steps.lr,
                memory_mb=peak_memory_mb(self.fabric.device),
                eta_seconds=self.watch.left(self.iteration),
            )
        )

    def _row(self) -> EpochRow:
        position = self.position
        box, obj, cls = (value / self.batches for value in position.sums)
        lr = self.steps.schedule.at(position.epoch * self.batches - 1).lr[1]
        memory = peak_memory_mb(self.fabric.device)
        return EpochRow(position.epoch, box, obj, cls, lr, position.seconds, memory)

    # --- the state --------------------------------------------------------------------------------

    @contextmanager
    def _breaking(self) -> Iterator[None]:
        """A block at whose end, and only there, the state is whole again."""
        self._whole = False
        yield
        self._whole = True

    def _live(self) -> Live:
        return Live(self.ranks, self.steps, self.plan, self.writer, self.position, self._start)

    def _save(self) -> None:
        """Keep the state of the run. All ranks come here together."""
        self._read()
        with self._breaking():
            with self.ranks.together():
                require_finite(self.steps.model)
            kept = capture(self._live(), self.identity)
            with self.ranks.together():
                if self.ranks.first:
                    state.save(kept, self.folder)
        self._next_save = time.monotonic() + 60 * self.config.checkpoint_minutes

    def _keep_what_is_whole(self, error: BaseException) -> None:
        """Save what there is when a run ends before its time, and say how to go on."""
        how = f"go on with y7edge train --resume {self.folder}"
        if not self._whole:
            if not isinstance(error, TrainingError):  # which says itself what is left
                self.progress.say(f"stopped inside of a batch; the last whole state is kept: {how}")
            return
        self._save()
        if self.writer:
            self.writer.save(self.average.model, files.LAST, notes={"interrupted": True})
        what = "interrupted" if isinstance(error, KeyboardInterrupt) else "stopped by an error"
        self.progress.say(f"{what}; the state so far is in {self.folder / state.STATE}: {how}")

    # --- side by side -----------------------------------------------------------------------------

    def _pictures(self) -> Iterator[Tensor]:
        """Training pictures as the network will be judged by; on every rank the same."""
        workers = self.loader.num_workers
        for images in whole_pictures(self.shown, self.config.batch, workers):
            yield self.steps.prepared(images)

    def _weigh_pictures(self, metrics: Metrics | None) -> None:
        """Have pictures with badly detected classes drawn more often from the next epoch on."""
        if self.weigh is None:
            return
        weights = None
        if metrics is not None:
            found = [one.ap50_95 for one in metrics.per_class]
            weights = self.weigh(np.array([np.nan if ap is None else ap for ap in found]))
        self.plan.set_weights(self.ranks.from_first(weights))
