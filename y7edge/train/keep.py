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
from y7edge.evaluate import Metrics
from y7edge.models import weights
from y7edge.nn.build import Model, to_checkpoint
from y7edge.train import folder as files
from y7edge.train.config import TrainConfig
from y7edge.train.results import EpochRow, write_csv, write_png
from y7edge.train.validate import Validation


def fitness(row: EpochRow) -> float:
    """What the best checkpoint is chosen by: 0.1 mAP@0.5 + 0.9 mAP@0.5:0.95, as published.

    Raises:
        ValueError: the epoch was not judged.
    """
    if row.map50 is None or row.map50_95 is None:
        raise ValueError(f"epoch {row.epoch} was not judged")
    return 0.1 * row.map50 + 0.9 * row.map50_95


class Keeper:
    """Writes the files of one run, each atomically.

    Attributes:
        rows: the finished epochs.
        best: the judged epoch of highest fitness so far; the earliest of equals.
    """

    def __init__(
        self, folder: Path, config: TrainConfig, data: Dataset, *, origin: str, nominal: int
    ) -> None:
        self.folder = folder
        self.rows: list[EpochRow] = []
        self.best: EpochRow | None = None
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

    def note(self, line: str) -> None:
        """Keep a remark about the run for its page."""

    def add(self, row: EpochRow, model: Model, metrics: Metrics | None = None) -> bool:
        """Keep a finished epoch; whether it is the best so far.

        Args:
            row: its figures.
            model: the moving average; saved as last, and as best if it is.
            metrics: the evaluation of ``model``, if the epoch was judged; the row gets its figures.
        """
        if metrics is not None:
            row = row.judged(metrics)
        self.rows.append(row)
        better = row.map50 is not None and (self.best is None or fitness(row) > fitness(self.best))
        if better:
            self.best = row
        self.save(model, files.LAST)
        if better:
            self.save(model, files.BEST)
        write_csv(self.rows, self.folder / files.RESULTS)
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
        """

    def finish(self, validation: Validation, model: Model) -> None:
        """Judge the best checkpoint once more, and draw and write all that is about the whole run.

        Args:
            validation: what the run was judged by.
            model: the moving average; tells the device to judge on.
        """
        self.draw_curves()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same files, as JSON-able values."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "best": None if self.best is None else asdict(self.best),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken; files are those of that moment after the next epoch."""
        self.rows = [EpochRow(**row) for row in state["rows"]]
        self.best = None if state["best"] is None else EpochRow(**state["best"])

    def draw_curves(self) -> None:
        """Draw ``results.png``; done at the end, as it takes longer than the other files."""
        if self.rows:
            write_png(self.rows, self.folder / files.CURVES)
