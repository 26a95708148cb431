"""Write the files of a run atomically.

During the run, these are the best and the last checkpoint, ``results.csv``, TensorBoard events and
some training batches. At the end, plots, images with detections and a report follow.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from y7edge import __version__
from y7edge.data.dataset import Dataset
from y7edge.errors import TrainingError
from y7edge.evaluation.evaluate import Metrics, collect, metrics_of
from y7edge.evaluation.report import save
from y7edge.files import is_file, reason, writing
from y7edge.models import weights
from y7edge.nn.build import Model, from_checkpoint, to_checkpoint
from y7edge.text import one_line
from y7edge.train.output import folder as files
from y7edge.train.output import report
from y7edge.train.output.batch_files import write_batch
from y7edge.train.output.results import (
    DRAWN,
    TAGS,
    EpochRow,
    TrainResult,
    Written,
    write_csv,
    write_png,
)
from y7edge.train.run.validate import Validation
from y7edge.train.settings import configfile
from y7edge.train.settings.config import TrainConfig

*_EARLY, _CLOSED = DRAWN
_log = logging.getLogger(__name__)
# Packages that influence results. Only one of the two builds of OpenCV is installed.
_PACKAGES = (
    *("torch", "lightning-fabric", "numpy", "opencv-python", "opencv-python-headless"),
    *("faster-coco-eval", "safetensors"),
)


def fitness(row: EpochRow) -> float:
    """Return the score of an epoch that selects the best checkpoint (``weighted``).

    Raises:
        ValueError: the epoch was not evaluated.
    """
    if row.map50 is None or row.map50_95 is None:
        raise ValueError(f"epoch {row.epoch} was not evaluated")
    return weighted(row.map50, row.map50_95)


def weighted(map50: float, map50_95: float) -> float:
    """Return 0.1 * mAP@0.5 + 0.9 * mAP@0.5:0.95, as published."""
    return 0.1 * map50 + 0.9 * map50_95


class RunWriter:
    """Write the files of one run."""

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        data: Dataset,
        *,
        origin: str,
        nominal: int,
        notes: Sequence[str] = (),
    ) -> None:
        """Write ``config.yaml`` into an existing folder.

        ``origin`` describes the initial weights in a line. ``nominal`` is the number of images per
        optimizer step. ``notes`` are remarks for the report.
        """
        self.folder = folder
        self.rows: list[EpochRow] = []
        self.best: EpochRow | None = None  # with the highest fitness; the first of equal ones
        self._config, self._data = config, data
        self._conf: float | None = None  # confidence threshold of the last evaluated epoch
        self._drawn: list[str] = []  # file names of batches
        self._notes = tuple(notes)
        self._events: Path | None = None  # file of TensorBoard events
        self._without: set[str] = set()  # optional files that could not be written
        cuda = torch.cuda.is_available()
        processor = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} threads"
        self._meta = {
            "imgsz": config.imgsz,
            "data": {
                **{"path": str(data.source), "digest": data.digest},
                **({"levels": list(data.levels)} if data.levels else {}),
            },
            "config": {**config.to_dict(), "nominal_batch": nominal},
            "provenance": f"y7edge {__version__}, {origin}",
            "licence": config.licence,
            "versions": _versions(),
            "machine": f"{platform.machine()}, {platform.system()}, {processor}",
        }
        with writing("the settings of the run", folder / files.CONFIG):
            configfile.write(config, folder / files.CONFIG)

    def add(self, row: EpochRow, model: Model, metrics: Metrics | None = None) -> bool:
        """Record an epoch, save its averaged ``model``, and return whether this epoch is the best.

        The model is saved as the last checkpoint. If the epoch is the best so far, the model is
        also saved as the best checkpoint. ``metrics`` are the scores of the epoch; None if it was
        not evaluated.
        """
        if metrics is not None:
            row, self._conf = row.evaluated(metrics), metrics.conf
        self.rows.append(row)
        better = row.map50 is not None and (self.best is None or fitness(row) > fitness(self.best))
        if better:
            self.best = row
        self.save(model, files.LAST)
        if better:
            self.save(model, files.BEST)
        with writing("the table of the run", self.folder / files.RESULTS):
            write_csv(self.rows, self.folder / files.RESULTS)
        if files.EVENTS not in self._without:
            with self._optional(files.EVENTS):
                self._add_events(row)
        return better

    def save(self, model: Model, name: str, *, notes: Mapping[str, Any] | None = None) -> Path:
        """Save a model with metadata of the run, extended by ``notes``.

        The metadata include the last row's scores and the last confidence threshold.
        """
        last: Sequence[EpochRow] = self.rows[-1:]
        meta = {
            **self._meta,
            "epoch": last[0].epoch if last else 0,
            "metrics": asdict(last[0]) if last else {},
            "thresholds": {} if self._conf is None else {"conf": self._conf},
            **(notes or {}),
        }
        path = self.folder / name
        weights.save(to_checkpoint(model, self._data.names, meta), path)
        return path

    def batch(self, images: Tensor, targets: Tensor, *, closed: bool = False) -> None:
        """Draw a training batch if it is one of the first three, or the first without mosaic.

        ``images`` are uint8 (B, 3, H, W) RGB on any device; ``targets`` are float32 (n, 6): image
        index in the batch, class, normalized cx, cy, w, h. ``closed``: mosaic and mixing are off.
        """
        left = [name for name in ([_CLOSED] if closed else _EARLY) if name not in self._drawn]
        if not left or files.BATCHES in self._without:
            return
        path = self.folder / files.BATCHES / left[0]
        with self._optional(files.BATCHES):
            write_batch(images.cpu().numpy(), targets.cpu().numpy(), self._data.names, path)
            self._drawn.append(left[0])

    @contextmanager
    def _optional(self, name: str) -> Iterator[None]:
        """Log errors of writing an optional file as a warning; do not write the file again."""
        try:
            yield
        except Exception as error:
            self._without.add(name)
            path = self.folder / name
            _log.warning("%s", one_line(f"{path}: no longer written: {reason(error)}"))

    def finish(self, validation: Validation, model: Model) -> None:
        """Evaluate the best checkpoint on the device of ``model``; write plots and the report.

        Raises:
            DataError: an image cannot be read or written.
        """
        assert self.best is not None, "no epoch was evaluated"
        write_png(self.rows, self.folder / files.CURVES)
        checkpoint = weights.load(self.folder / files.BEST)
        best = from_checkpoint(checkpoint).to(model.head.anchors.device).eval()
        conf = checkpoint.meta.get("thresholds", {}).get("conf")
        names = self._data.names
        with validation.detector(best, conf=conf) as detector:
            tables = collect(detector.detect_for_evaluation, validation.samples, names)
            metrics = metrics_of(tables, names)
            ids = self._data.category_ids.get(self._config.val_split, ())
            saved = save(
                *(self.folder, tables, metrics, validation.samples, names, detector),
                category_ids=ids,
            )
        drawn = self.folder / files.BATCHES
        summary = report.Summary(
            config=self._config,
            data=self._data,
            spec=best.spec,
            meta=self._meta,
            rows=self.rows,
            best=self.best,
            metrics=metrics,
            saved=saved,
            curves=self.folder / files.CURVES,
            batches=[path for name in self._drawn if self._has(path := drawn / name)],
            settings=(self.folder / files.CONFIG).read_text(encoding="utf-8"),
            notes=self._notes,
        )
        report.write(summary, self.folder / files.REPORT)

    def _has(self, path: Path) -> bool:
        """Return whether a file exists inside the folder of the run, after resolving links."""
        return is_file(path) and path.resolve().is_relative_to(self.folder.resolve())

    def result(self) -> TrainResult:
        """Return paths and scores of the finished run.

        Raises:
            TrainingError: no epoch was evaluated.
        """
        if self.best is None:
            raise TrainingError(f"{self.folder}: the run ended before any epoch was evaluated")
        return TrainResult(
            folder=self.folder,
            best=self.folder / files.BEST,
            last=self.folder / files.LAST,
            metrics=self.best,
            epochs=len(self.rows),
            seconds_per_epoch=sum(row.seconds for row in self.rows) / len(self.rows),
            stopped_early=len(self.rows) < self._config.epochs,
        )

    def state(self) -> Written:
        """Return the results so far, from which ``restore`` continues."""
        return Written(tuple(self.rows), self._conf, tuple(self._drawn))

    def restore(self, state: Written) -> None:
        """Restore a ``state``; the next call of ``add`` rewrites the files."""
        self.rows, self._conf, self._drawn = list(state.rows), state.conf, list(state.batches)
        evaluated = [row for row in self.rows if row.map50 is not None]
        self.best = max(evaluated, key=fitness, default=None)  # the first of several equal

    def _add_events(self, row: EpochRow) -> None:
        """Add an epoch to the TensorBoard events; steps are epochs.

        torch's SummaryWriter is not used: on a full disk its thread ends with a traceback.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        now, step, new = time.time(), row.epoch, []
        if self._events is None:
            name = f"events.out.tfevents.{int(now):010d}.{platform.node()}.{os.getpid()}"
            self._events = self.folder / files.EVENTS / name
            self._events.parent.mkdir(exist_ok=True)
            start = SessionLog(status=SessionLog.START)
            # The second event makes TensorBoard drop epochs logged after the last saved state.
            new = [Event(file_version="brain.Event:2"), Event(step=step, session_log=start)]
        scores = [
            Summary.Value(tag=TAGS[name], simple_value=value)
            for name, value in asdict(row).items()
            if name in TAGS and value is not None
        ]
        with self._events.open("ab") as stream:
            for event in (*new, Event(step=step, summary=Summary(value=scores))):
                event.wall_time = now
                RecordWriter(stream).write(event.SerializeToString())


def _versions() -> dict[str, str]:
    found = {"y7edge": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # the other OpenCV, or a build under another name
            continue
    return found
