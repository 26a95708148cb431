"""Train the weights of a quantised graph to give the tensors of the float graph.

The loss is the mean squared error of the outputs of the rows, relative to their variance, plus that
of the sigmoids of the heads, from which boxes and scores are decoded. It needs no labels. The best
weights are those with the highest mAP of the quantised graph, or those with the smallest loss
if there are no labels. Before the first iteration, the graph is evaluated too, so that the result
is never worse than the graph at the start.
"""

from __future__ import annotations

import csv
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from y7edge.artifact.manifest import InputInfo
from y7edge.data.images import read_image
from y7edge.detect.preprocess import Preprocessor
from y7edge.errors import CheckpointError, TrainingError, Y7EdgeError
from y7edge.evaluation.evaluate import Metrics
from y7edge.files import atomic_write, writing
from y7edge.models.spec import Anchors
from y7edge.nn.quantized import QuantizedGraph
from y7edge.train.output import folder as files
from y7edge.train.output.writer import weighted
from y7edge.train.run import state
from y7edge.train.run.interrupts import Interrupts
from y7edge.train.run.progress import Progress, Stopwatch, clock
from y7edge.train.run.resume import check
from y7edge.train.run.state import Began, Facts, Identity, Position, State
from y7edge.train.settings.qat import ROUNDS, QatConfig

_FREE = {"checkpoint", "data", "out", "device", "checkpoint_minutes"}  # may change in a resumed run


@dataclass(frozen=True)
class Round:
    """Results after a part of the iterations; the first row is before the training."""

    part: int  # from 0
    iterations: int  # so far
    loss: float  # on fixed images
    lr: float
    seconds: float  # of training so far, without evaluation
    map50: float | None = None  # of the quantised graph; None without labels
    map50_95: float | None = None
    float_map50_95: float | None = None  # of the same weights in the float graph

    @property
    def score(self) -> float:
        """The number that selects the best weights."""
        if self.map50 is None or self.map50_95 is None:
            return -self.loss
        return weighted(self.map50, self.map50_95)

    def __str__(self) -> str:
        quality = ""
        if self.map50 is not None:
            quality = (
                f"  mAP50 {self.map50:.4f}  mAP50-95 {self.map50_95:.4f}"
                f"  in float {self.float_map50_95:.4f}"
            )
        return f"after {self.iterations} iterations: loss {self.loss:.5f}{quality}"


class Batches:
    """Letterboxed images, some of them mirrored, as a function of the iteration."""

    def __init__(self, paths: Sequence[Path], image: InputInfo, batch: int, seed: int) -> None:
        self._paths, self._image, self._batch, self._seed = tuple(paths), image, batch, seed
        self._preprocess = Preprocessor(image)

    def __call__(self, iteration: int) -> Tensor:
        """Return the images of an iteration, (B, 3, H, W) float32, RGB, 0 to 1."""
        count, first = len(self._paths), iteration * self._batch
        mirrored = np.random.default_rng((self._seed, 1, iteration)).random(self._batch) < 0.5
        chosen = []
        for place in range(first, first + self._batch):
            order = np.random.default_rng((self._seed, 0, place // count)).permutation(count)
            chosen.append(order[place % count])
        return self._read(chosen, mirrored.tolist())

    def fixed(self, count: int) -> Tensor:
        """Return the first images, not mirrored, (count, 3, H, W)."""
        count = min(count, len(self._paths))
        return self._read(list(range(count)), [False] * count)

    def _read(self, indices: Sequence[int], mirrored: Sequence[bool]) -> Tensor:
        shape = (len(indices), *self._preprocess.tensor.shape[1:])
        batch = np.empty(shape, np.float32)
        for index, mirror, out in zip(indices, mirrored, batch, strict=True):
            image = read_image(self._paths[index], self._image.levels)
            self._preprocess(image[:, ::-1] if mirror else image, out=out)
        return torch.from_numpy(batch)


@dataclass(frozen=True)
class Task:
    """What to train, and with which images.

    Attributes:
        student: The quantised graph; its weights are trained.
        plain: The float graph with the same weights.
        teacher: The float graph with the weights at the start.
        observed: Names of the tensors that both graphs have, and that are compared.
        batches: The images.
        digest: Digest of images and labels.
        checkpoint: Digest of the float checkpoint.
        anchors: Anchors of the model, in pixels.
        evaluate: Returns the metrics of a graph; None: there are no labels.
        save: Writes the student's weights to a file of the run's folder; its other arguments are
            the last row and the first one.
    """

    student: QuantizedGraph
    plain: QuantizedGraph
    teacher: QuantizedGraph
    observed: tuple[str, ...]
    batches: Batches
    digest: str
    checkpoint: str
    anchors: Anchors
    evaluate: Callable[[QuantizedGraph], Metrics] | None
    save: Callable[[str, Round, Round], None]


class Distillation:
    """Training loop of a quantised graph."""

    FIXED = 32
    """Number of images for the loss in the table."""

    def __init__(
        self,
        task: Task,
        config: QatConfig,
        folder: Path,
        device: torch.device,
        progress: Progress,
        saved: State | None = None,
    ) -> None:
        """Begin a run, or resume it from the state ``saved``.

        Raises:
            ConfigError, DataError: settings or images have changed since the state was saved.
            CheckpointError: the state does not fit the run.
        """
        self._task, self._config, self._folder, self._progress = task, config, folder, progress
        self._device = device
        self._student, self._teacher = task.student.to(device), task.teacher.to(device)
        groups = (list(self._student.weights), list(self._student.factors))
        self._optimizer = torch.optim.Adam([{"params": group} for group in groups if group])
        self._interrupts = Interrupts()
        self.rows: list[Round] = []
        self._done, self._seconds, self._next_save = 0, 0.0, 0.0
        self._consistent = True
        if saved is not None:
            check(saved.facts.identity, self._identity(), str(config.data), progress.log)
            self._restore(saved)
            progress.log(f"resumed after {self._done} iterations")

    @property
    def best(self) -> Round:
        """The row of the best weights; the first of equal ones."""
        return max(self.rows, key=lambda row: row.score)

    def run(self) -> None:
        """Train until the last iteration.

        Raises:
            TrainingError: the loss is not finite, or a file cannot be written.
            KeyboardInterrupt: Ctrl-C or SIGTERM stopped the run; its state was saved.
        """
        with self._interrupts:
            try:
                if not self.rows:
                    self._save()
                    self._end_part(0)
                watch = Stopwatch(self._config.iterations, self._done)
                for part in range(len(self.rows) - 1, ROUNDS):
                    self._train_part(part, watch)
                    self._end_part(part + 1)
            except (KeyboardInterrupt, Y7EdgeError, OSError) as error:
                self._save_on_exit(error)
                raise
        state.mark_finished(self._folder, self._identity(), ROUNDS)

    def _train_part(self, part: int, watch: Stopwatch) -> None:
        """Train on the remaining iterations of a part, counted from 0."""
        rates = self._config.learning_rates(part)
        for group, rate in zip(self._optimizer.param_groups, rates, strict=False):
            group["lr"] = rate
        self._next_save = time.monotonic() + 60 * self._config.checkpoint_minutes
        while self._done < self._config.ends(part + 1):
            self._interrupts.check()
            begin = time.perf_counter()
            images = self._task.batches(self._done).to(self._device)
            self._consistent = False
            loss = self._learn(images)
            self._done += 1
            self._seconds += time.perf_counter() - begin
            self._consistent = True
            left = clock(watch.left(self._done))
            self._progress.advance(
                "iteration", self._done, self._config.iterations, f"loss {loss:.5f}  left {left}"
            )
            if time.monotonic() >= self._next_save:
                self._save()

    def _learn(self, images: Tensor) -> float:
        """Make one step of the optimizer; return the loss."""
        loss = self._loss(images)
        value = self._finite(float(loss.detach()))
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return value

    def _loss(self, images: Tensor) -> Tensor:
        """Return the mean error of the rows plus that of the heads."""
        rows = self._task.observed
        with torch.no_grad():
            expected = self._teacher(images, rows)
        found = self._student(images, rows)
        heads = [name for name in expected if name not in rows]
        inner = [_error(found[name], expected[name]) for name in rows]
        outer = [_error(found[name].sigmoid(), expected[name].sigmoid()) for name in heads]
        return torch.stack(inner).mean() + torch.stack(outer).mean()

    def _finite(self, loss: float) -> float:
        if np.isfinite(loss):
            return loss
        raise TrainingError(
            f"the loss is not finite after {self._done} iterations: lower the learning rates; the "
            f"last complete state is in {self._folder}"
        )

    def _end_part(self, part: int) -> None:
        """Evaluate the student, and save it after ``part`` parts."""
        with self._interrupts.immediate():
            row = self._evaluated(part)
        self.rows.append(row)
        self._progress.log(str(row))
        if self.best is row:
            self._task.save(files.BEST, row, self.rows[0])
        self._task.save(files.LAST, row, self.rows[0])
        with writing("the table of the run", self._folder / files.RESULTS):
            _write_csv(self.rows, self._folder / files.RESULTS)
        self._save()

    def _evaluated(self, part: int) -> Round:
        fixed = torch.split(self._task.batches.fixed(self.FIXED), self._config.batch)
        with torch.no_grad():
            losses = [float(self._loss(x.to(self._device))) * len(x) for x in fixed]
        loss = self._finite(sum(losses) / sum(map(len, fixed)))
        lr, _ = self._config.learning_rates(max(0, part - 1))
        row = Round(part, self._done, loss, lr, self._seconds)
        if self._task.evaluate is None:
            return row
        floats = self._task.plain if part else self._task.teacher
        found, plain = map(self._task.evaluate, (self._student, floats))
        return replace(
            row,
            map50=float(found.map50),
            map50_95=float(found.map50_95),
            float_map50_95=float(plain.map50_95),
        )

    def _identity(self) -> Identity:
        settings = {k: v for k, v in self._config.to_dict().items() if k not in _FREE}
        settings["checkpoint"] = self._task.checkpoint  # its path may change
        return Identity(
            settings=settings,
            data=self._task.digest,
            torch=str(torch.__version__),
            threads=torch.get_num_threads(),
            processes=1,
            device=self._device.type,
            machine=platform.machine(),
        )

    def _capture(self) -> State:
        part = max(0, len(self.rows) - 1)
        position = Position(part + 1, self._done - self._config.ends(part), seconds=self._seconds)
        began = Began("", (), self._task.anchors)
        captured = State(Facts(position, self._identity(), began=began))
        captured.put("model", dict(self._student.named_parameters()))
        for index, values in self._optimizer.state_dict()["state"].items():
            captured.put(f"optimizer.{index}", values)
        rows = [[np.nan if v is None else v for v in astuple(row)] for row in self.rows]
        table = torch.tensor(rows, dtype=torch.float64).reshape(-1, len(fields(Round)))
        captured.put("run", {"rows": table})
        return captured

    def _restore(self, saved: State) -> None:
        """Restore a state.

        Raises:
            CheckpointError: an array is missing, not finite, or has another shape or dtype.
        """
        position, rows = saved.facts.position, saved.take("run").get("rows")
        width = len(fields(Round))
        if rows is None or rows.ndim != 2 or rows.shape[1] != width or rows.dtype != torch.float64:
            raise CheckpointError(f"{self._folder}: a state has no table of results")
        done = self._config.ends(position.epoch - 1) + position.batch
        fits = max(1, len(rows)) == position.epoch <= ROUNDS + 1
        if not fits or done > self._config.iterations:
            raise CheckpointError(f"{self._folder}: a state does not fit the run: {position}")
        model = self._fitting(saved.take("model"), dict(self._student.named_parameters()), "model")
        with torch.no_grad():
            for name, parameter in self._student.named_parameters():
                parameter.copy_(model[name])
        if done:
            self._restore_optimizer(saved)
        self._done, self._seconds = done, position.seconds
        self.rows = [_row(values) for values in rows.tolist()]

    def _restore_optimizer(self, saved: State) -> None:
        step = torch.zeros(())
        values = {}
        groups = self._optimizer.param_groups
        for index, parameter in enumerate(p for group in groups for p in group["params"]):
            like = {"step": step, "exp_avg": parameter, "exp_avg_sq": parameter}
            where = f"optimizer.{index}"
            values[index] = self._fitting(saved.take(where), like, where)
        kept = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": values, "param_groups": kept})

    def _fitting(
        self, found: Mapping[str, Tensor], like: Mapping[str, Any], where: str
    ) -> dict[str, Tensor]:
        """Return arrays of a state if they have the names, shapes and dtypes of ``like``."""
        for name, value in like.items():
            array = found.get(name)
            fits = array is not None and array.shape == value.shape and array.dtype == value.dtype
            if not fits or not bool(torch.isfinite(found[name]).all()):
                raise CheckpointError(
                    f"{self._folder}: a state does not fit the run: {where}.{name} is missing, not "
                    f"finite, or not {value.dtype!s} {tuple(value.shape)}"
                )
        return dict(found)

    def _save(self) -> None:
        state.save(self._capture(), self._folder)
        self._next_save = time.monotonic() + 60 * self._config.checkpoint_minutes

    def _save_on_exit(self, error: BaseException) -> None:
        """Save the state when a run ends early, and log how to resume."""
        how = f"resume with y7edge train --resume {self._folder}"
        if not self._consistent:
            if not isinstance(error, TrainingError):
                self._progress.log(f"stopped; the last complete state is kept: {how}")
            return
        self._save()
        what = "interrupted" if isinstance(error, KeyboardInterrupt) else "stopped by an error"
        self._progress.log(f"{what}; the state so far is in {self._folder / files.STATE}: {how}")


def _error(found: Tensor, expected: Tensor) -> Tensor:
    """Return the mean squared error, relative to the variance of ``expected``."""
    return (found - expected).square().mean() / expected.var().clamp_min(1e-6)


def _row(values: Sequence[float]) -> Round:
    part, iterations, loss, lr, seconds, *scores = values
    known = [None if np.isnan(score) else score for score in scores]
    return Round(int(part), int(iterations), loss, lr, seconds, *known)


def _write_csv(rows: Sequence[Round], path: Path) -> None:
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow([field.name for field in fields(Round)])
        for row in rows:
            cells = ["" if v is None else f"{v:.6g}" for v in astuple(row)[2:]]
            writer.writerow([row.part, row.iterations, *cells])
