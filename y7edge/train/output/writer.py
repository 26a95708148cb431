"""What a run leaves in its folder, each file whole or not at all.

While it runs: best and last checkpoint, ``results.csv``, TensorBoard events and some batches as
the network saw them. At the end: curves, pictures and a page about it all.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from y7edge import __version__
from y7edge.data.dataset import Dataset
from y7edge.evaluation.evaluate import Metrics, collect, judge
from y7edge.evaluation.report import save
from y7edge.models import weights
from y7edge.nn.build import Model, from_checkpoint, to_checkpoint
from y7edge.train.output import folder as files
from y7edge.train.output import repeat, report
from y7edge.train.output.batch_images import write_batch
from y7edge.train.output.board import Board
from y7edge.train.output.report import Story
from y7edge.train.output.results import EpochRow, write_csv, write_png
from y7edge.train.run.validate import Validation
from y7edge.train.settings import configfile
from y7edge.train.settings.config import TrainConfig

_EARLY = 3  # batches that are drawn at the beginning
_JPG = ".jpg"


def fitness(row: EpochRow) -> float:
    """What the best checkpoint is chosen by, see :func:`weighted`.

    Raises:
        ValueError: the epoch was not judged.
    """
    if row.map50 is None or row.map50_95 is None:
        raise ValueError(f"epoch {row.epoch} was not judged")
    return weighted(row.map50, row.map50_95)


def weighted(map50: float, map50_95: float) -> float:
    """One figure from two: 0.1 mAP@0.5 + 0.9 mAP@0.5:0.95, as published."""
    return 0.1 * map50 + 0.9 * map50_95


class Keeper:
    """Writes the files of one run, each atomically.

    Attributes:
        rows: the finished epochs.
        best: the judged epoch of highest fitness so far; the earliest of equals.
    """

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
        """Write down what is known before the first epoch.

        Args:
            folder: of the run; it exists.
            config: what is trained on what.
            data: the data set.
            origin: where the weights began, in words.
            nominal: pictures for an optimiser step.
            notes: remarks for the page.

        Raises:
            RuntimeMissing: tensorboard is not installed.
        """
        self.folder = folder
        self.rows: list[EpochRow] = []
        self.best: EpochRow | None = None
        self._config, self._data = config, data
        self._origin, self._nominal = origin, nominal
        self._conf: float | None = None  # of the last epoch that was judged
        self._drawn: list[str] = []  # batches, by the names of their files
        self._notes = tuple(notes)
        self._board = Board(folder)
        self._names = data.names
        self._meta = {
            "imgsz": config.imgsz,
            "data": {"path": str(data.source), "digest": data.digest},
            "config": {**config.to_dict(), "nominal_batch": nominal},
            "provenance": f"y7edge {__version__}, {origin}",
            "licence": config.licence,
            "versions": {
                "y7edge": __version__,
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "numpy": np.__version__,
            },
        }
        configfile.write(config, folder / files.CONFIG)
        repeat.write(config, data, folder / files.REPEAT)

    def add(self, row: EpochRow, model: Model, metrics: Metrics | None = None) -> bool:
        """Keep a finished epoch; whether it is the best so far.

        Args:
            row: its figures.
            model: the average of the weights; saved as last, and as best if it is.
            metrics: the evaluation of ``model``, if the epoch was judged; the row gets its figures.
        """
        if metrics is not None:
            row, self._conf = row.judged(metrics), metrics.conf
        self.rows.append(row)
        better = row.map50 is not None and (self.best is None or fitness(row) > fitness(self.best))
        if better:
            self.best = row
        self.save(model, files.LAST)
        if better:
            self.save(model, files.BEST)
        write_csv(self.rows, self.folder / files.RESULTS)
        self._board.add(row)
        return better

    def save(self, model: Model, name: str, *, notes: Mapping[str, Any] | None = None) -> Path:
        """Save a model under a file name, with the run's facts and the last row's figures.

        Its confidence threshold is that of the last epoch that was judged.
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
        weights.save(to_checkpoint(model, self._names, meta), path)
        return path

    def batch(self, images: Tensor, targets: Tensor, *, closed: bool = False) -> None:
        """Draw a batch as the network sees it: the first three, and the first of the last epochs.

        Call it for every batch, or only for those: the rest are passed over.

        Args:
            images: uint8 (B, 3, H, W) RGB, on any device.
            targets: float32 (n, 6): image, class, centre x, centre y, width, height in shares.
            closed: mosaic and mixing are off by now.

        Raises:
            DataError: a picture cannot be written.
        """
        early = sum(not name.startswith("closed") for name in self._drawn)
        if (closed and f"closed{_JPG}" in self._drawn) or (not closed and early == _EARLY):
            return
        name = f"closed{_JPG}" if closed else f"{early:03d}{_JPG}"
        path = self.folder / files.BATCHES / name
        write_batch(images.cpu().numpy(), targets.cpu().numpy(), self._names, path)
        self._drawn.append(name)

    def finish(self, validation: Validation, model: Model) -> None:
        """Judge the best checkpoint once more, and draw and write all that is about the whole run.

        Args:
            validation: what the run was judged by.
            model: any model on the device to judge on; it is not changed.

        Raises:
            DataError: a picture cannot be read or written.
            ValueError: no epoch was judged.
        """
        if self.best is None:
            raise ValueError("no epoch was judged")
        self.draw_curves()
        checkpoint = weights.load(self.folder / files.BEST)
        best = from_checkpoint(checkpoint).to(model.head.anchors.device).eval()
        conf = checkpoint.meta.get("thresholds", {}).get("conf")
        with validation.detector(best, conf=conf) as detector:
            tables = collect(detector.detect_for_evaluation, validation.samples, self._names)
            metrics = judge(tables, self._names)
            saved = save(self.folder, tables, metrics, validation.samples, self._names, detector)
        story = Story(
            config=self._config,
            data=self._data,
            spec=best.spec,
            origin=self._origin,
            rows=self.rows,
            best=self.best,
            metrics=metrics,
            saved=saved,
            curves=self.folder / files.CURVES,
            batches=[self.folder / files.BATCHES / name for name in self._drawn],
            settings=(self.folder / files.CONFIG).read_text(encoding="utf-8"),
            repeat=(self.folder / files.REPEAT).read_text(encoding="utf-8"),
            nominal=self._nominal,
            notes=self._notes,
        )
        report.write(story, self.folder / files.REPORT)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same files, as JSON-able values."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "best": None if self.best is None else asdict(self.best),
            "conf": self._conf,
            "batches": list(self._drawn),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken; files are those of that moment after the next epoch."""
        self.rows = [EpochRow(**row) for row in state["rows"]]
        self.best = None if state["best"] is None else EpochRow(**state["best"])
        self._conf = state["conf"]
        self._drawn = list(state["batches"])

    def draw_curves(self) -> None:
        """Draw ``results.png``; done at the end, as it takes longer than the other files."""
        if self.rows:
            write_png(self.rows, self.folder / files.CURVES)
