"""What ``y7edge live`` saves: videos with boxes, frames for replay, frames to be labelled."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from y7edge.detect.detections import Detections
from y7edge.frames import Frame
from y7edge.live.frame_recorder import FrameRecorder
from y7edge.live.hard import HardFrames
from y7edge.live.recording import Recorder, safe_name


class Outputs(AbstractContextManager["Outputs"]):
    """Write the results of all sources in background threads; a slow disk delays no detection.

    If a disk is full or fails, the detection goes on: ``problems`` says what is not saved any more,
    and the end of the ``with`` statement raises the error.

    Args:
        sources: names of the sources.
        names: class names of the model.
        save: folder for videos with boxes and their detections; None: do not save them.
        record: folder for frames; with several sources, each has a folder in it.
        save_hard: folder for frames that the model is unsure about.

    Raises:
        ConfigError: a folder has other content.
        OutputError: a folder cannot be written to.
    """

    def __init__(
        self,
        sources: Sequence[str],
        names: Sequence[str],
        save: Path | None = None,
        record: Path | None = None,
        save_hard: Path | None = None,
    ) -> None:
        self._save, self._save_hard = save, save_hard
        self._videos: dict[str, Recorder] = {}
        self._frames: dict[str, FrameRecorder] = {}
        self._hard: HardFrames | None = None
        with ExitStack() as stack:
            for name in sources:
                if save is not None:
                    self._videos[name] = stack.enter_context(Recorder(save, name))
                if record is not None:
                    folder = record if len(sources) == 1 else record / safe_name(name)
                    self._frames[name] = stack.enter_context(FrameRecorder(folder))
            if save_hard is not None:
                self._hard = stack.enter_context(HardFrames(save_hard, names))
            self._stack = stack.pop_all()

    def add(self, name: str, frame: Frame, found: Detections, every: Detections) -> None:
        """Save a result: ``found`` above the threshold, ``every`` detection above the floor."""
        if name in self._videos:
            self._videos[name].add(frame, None, found)
        if name in self._frames:
            self._frames[name].add(frame)
        if self._hard is not None:
            self._hard.add(frame, every)

    def problems(self) -> list[str]:
        """Return what is not saved any more, and why."""
        found = [one.status.problem for one in self._videos.values()]
        found += [one.problem for one in self._frames.values()]
        found += [self._hard.problem] if self._hard is not None else []
        return [problem for problem in found if problem is not None]

    def summary(self) -> list[str]:
        """Return what was saved, one line for each kind; call it after the end."""
        lines = []
        for name, video in self._videos.items():
            status = video.status
            lines.append(
                f"{name}: {status.frames} frames in {status.segments} "
                f"video{'s' * (status.segments != 1)} in {self._save}, {status.dropped} dropped; "
                f"{status.records} records, {status.lost} lost"
            )
        for name, frames in self._frames.items():
            after = f" after the {frames.earlier} of before" if frames.earlier else ""
            lines.append(
                f"{name}: {frames.frames} frames recorded{after}, {frames.dropped} dropped: "
                f"replay://{frames.folder}"
            )
        if self._hard is not None:
            lines.append(
                f"{len(self._hard)} frames to be labelled: correct {self._save_hard}/labels, then "
                f"y7edge train --data {self._save_hard}/data.yaml"
            )
        return lines

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
