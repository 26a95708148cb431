"""TensorBoard events of a run: losses, learning rate and figures of each epoch.

Records are appended and the file closed after each epoch: no thread, nothing lost when a run is
killed. A resumed run writes a new file that begins by taking back what the killed one wrote
beyond the epoch that was resumed from.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from y7edge.errors import RuntimeMissing
from y7edge.train.output.results import EpochRow

FOLDER = "tensorboard"

_GROUPS = {
    "loss": ("box", "obj", "cls"),
    "quality": ("map50", "map50_95", "map75", "map_small", "map_medium", "map_large", "ar300"),
    "at_best_f1": ("precision", "recall", "f1", "conf"),
    "run": ("lr", "seconds", "memory_mb"),
}
TAGS = {name: f"{group}/{name}" for group, names in _GROUPS.items() for name in names}
"""Under which tag a column of ``results.csv`` is shown."""


class Board:
    """Appends epochs to the event file of a run; steps are epochs."""

    def __init__(self, folder: Path) -> None:
        """Nothing is written before the first epoch.

        Args:
            folder: of the run; events go into ``tensorboard`` within.

        Raises:
            RuntimeMissing: tensorboard is not installed.
        """
        try:
            import tensorboard.compat.proto.event_pb2  # noqa: F401
        except ImportError as error:
            raise RuntimeMissing(
                'training needs tensorboard: pip install "y7edge[train]"'
            ) from error
        self._folder = folder / FOLDER
        # TensorBoard reads a folder's files in the order of their names.
        number = len(list(self._folder.glob("events.out.tfevents.*")))
        self._path = self._folder / f"events.out.tfevents.{number:010d}.y7edge"

    def add(self, row: EpochRow) -> None:
        """Write one epoch; figures that were not measured are left out."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=TAGS[name], simple_value=value)
            for name, value in asdict(row).items()
            if name in TAGS and value is not None and math.isfinite(value)
        ]
        event = Event(step=row.epoch, wall_time=time.time(), summary=Summary(value=values))
        self._append(*self._opening(row.epoch), event)

    def _opening(self, step: int) -> list[Any]:
        """The first records of a new file; none if there is one already."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        if self._path.exists():
            return []
        now = time.time()
        start = SessionLog(status=SessionLog.START)
        return [
            Event(wall_time=now, file_version="brain.Event:2"),
            Event(wall_time=now, step=step, session_log=start),
        ]

    def _append(self, *events: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as stream:
            writer = RecordWriter(stream)
            for event in events:
                writer.write(event.SerializeToString())
