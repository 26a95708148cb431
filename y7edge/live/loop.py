"""Detect in frames of live sources, and pass the results on: the loop behind ``y7edge live``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from y7edge.artifact.manifest import Manifest
from y7edge.detect.detections import Detections
from y7edge.detect.streaming import Stream
from y7edge.errors import ConfigError
from y7edge.frames import Frame
from y7edge.text import printable

FLOOR = 0.05
"""Confidence that the model is opened with, so that the threshold can be changed later."""

Sink = Callable[[str, Frame, Detections, Detections], object]
"""Receives the name of a source, a frame, its detections above the threshold, and all of them."""


def opening_conf(conf: float | None) -> float:
    """Return the confidence to open a model with, if the user asks for ``conf``."""
    return FLOOR if conf is None else min(conf, FLOOR)


class Threshold:
    """The confidence threshold, which viewers can change while the program runs.

    Detections filtered by it are those of a Detector that was opened with it, because NMS keeps the
    best boxes first: a box never depends on boxes with lower scores.

    Args:
        value: the confidence at the start.
        floor: the lowest possible value.

    Raises:
        ConfigError: the value is not a number from the floor to 1.
    """

    def __init__(self, value: float, floor: float) -> None:
        self.floor = floor
        self.value = self._checked(value)
        self._is_set = False

    @classmethod
    def of(cls, manifest: Manifest, conf: float | None) -> Threshold:
        """Return the threshold of a model that was opened with ``opening_conf(conf)``.

        Raises:
            ConfigError: the model has no boxes of such a low confidence.
        """
        value, floor = manifest.thresholds.conf if conf is None else conf, opening_conf(conf)
        in_graph = manifest.outputs[0].role == "detections"
        if in_graph and "conf" not in manifest.threshold_inputs:
            floor = max(floor, manifest.thresholds.conf)
            if value < floor:
                raise ConfigError(
                    f"conf is {value:g}, but NMS is part of the graph of {manifest.model}, which "
                    f"keeps only boxes above {floor:g}: use an artifact with outputs heads"
                )
        elif value < floor:
            raise ConfigError(
                f"the default confidence of {manifest.model} is {value:g}, expected at least "
                f"{floor:g}: choose one with --conf"
            )
        return cls(value, floor)

    def set(self, value: object) -> None:
        """Change the threshold.

        Raises:
            ConfigError: the value is not a number from the floor to 1.
        """
        self.value = self._checked(value)
        self._is_set = True

    def adopt(self, other: Threshold) -> None:
        """Take the value and the floor of another model's; keep a value that a viewer has set."""
        self.floor = other.floor
        self.value = max(self.value, other.floor) if self._is_set else other.value

    def _checked(self, value: object) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not self.floor <= value <= 1:  # type: ignore[operator]
            raise ConfigError(
                f"the confidence is {str(value)[:40]}, expected a number from {self.floor:g} to 1"
            )
        return float(value)  # type: ignore[arg-type]


class Loop:
    """Run in a thread of its own until the sources end, so that a stalled camera blocks nothing.

    Args:
        stream: the open stream of a Detector.
        threshold: the confidence threshold; it may change at any time.
        track: takes the name of a source and detections, and returns them with tracker ids; None:
            do not track.

    Attributes:
        sinks: receive each result, in this order; to be filled before the start.
    """

    def __init__(
        self,
        stream: Stream,
        threshold: Threshold,
        track: Callable[[str, Detections], Detections] | None = None,
    ) -> None:
        self.threshold = threshold
        self._stream, self._track = stream, track
        self.sinks: list[Sink] = []
        self._newest: dict[str, Detections | None] = dict.fromkeys(stream.names)
        # A daemon: an engine that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="y7edge live", daemon=True)
        self._error: BaseException | None = None
        self._done = threading.Event()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the sources."""
        return tuple(self._newest)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait for the end of all sources, for at most ``seconds``; return whether they ended.

        Raises:
            Y7EdgeError: the sources, the engine or a sink failed.
            OSError: standard output is closed.
        """
        if self._done.wait(seconds) and self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._done.is_set()

    def stop(self, seconds: float = 6.0) -> bool:
        """Close the stream, and wait for the thread; return whether it has ended.

        An engine cannot be interrupted: if a call takes longer than ``seconds``, the thread stays.
        """
        self._stream.close()
        return not self._thread.is_alive() or self._done.wait(seconds)

    def _run(self) -> None:
        try:
            for frame, found in self._stream:
                self._pass_on(frame, found)
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def _pass_on(self, frame: Frame, found: Detections) -> None:
        name = self._stream.current or ""
        chosen = found.filter(confidence=self.threshold.value)
        if self._track is not None:
            chosen = self._track(name, chosen)
        self._newest[name] = chosen
        for sink in self.sinks:
            sink(name, frame, chosen, found)

    def facts(self) -> list[dict[str, Any]]:
        """Return the state of each source as values for JSON.

        Returns:
            Per source "name", "state", "problem", "rate" (results per second), "silent" (seconds
            since the newest result, if that is unusually long, or None), "results", "frames",
            "dropped", "reconnects", "age" (``Ages.summary()`` in milliseconds, or None),
            "objects" (number of detections by class id in the newest result), "named" (the same by
            class name) and "model_id" (of the model that has found them, or None).
        """
        ages = self._stream.ages
        rows = []
        for name, status in self._stream.status.items():
            pace, newest = self._stream.pace[name], self._newest[name]
            objects = _objects(newest)
            age = ages[name].summary() if name in ages else None
            rows.append(
                {
                    "name": name,
                    "state": status.state,
                    "problem": status.problem and printable(status.problem),
                    "rate": round(pace.rate(), 2),
                    "silent": pace.silent(),
                    "stated_rate": status.rate,
                    "results": pace.count,
                    "frames": status.frames,
                    "dropped": status.dropped,
                    "reconnects": status.reconnects,
                    "age": age if age and age["count"] else None,
                    "objects": objects,
                    "named": {} if newest is None else _named(objects, newest.names),
                    "model_id": None if newest is None else newest.model_id,
                }
            )
        return rows

    def summary(self) -> list[str]:
        """Return one line about each source, for the end of the program."""
        lines = []
        for row in self.facts():
            parts = [
                f"{row['results']} of {row['frames']} frames, {row['dropped']} dropped",
                f"{self._stream.pace[row['name']].mean_rate():.1f} frames/s",
                *([_age_line(row["age"])] if row["age"] else []),
                f"{row['reconnects']} reconnect{'s' * (row['reconnects'] != 1)}",
                *([f"last fault: {row['problem']}"] if row["problem"] else []),
            ]
            lines.append(f"{row['name']}: {', '.join(parts)}")
        return lines


def _age_line(age: dict[str, Any]) -> str:
    values = "/".join(f"{age[f'{name}_ms']:.0f}" for name in ("p50", "p95", "p99", "max"))
    return f"frame age {values} ms (p50/p95/p99/max)"


def _objects(found: Detections | None) -> dict[int, int]:
    ids, counts = np.unique([] if found is None else found.class_id, return_counts=True)
    return {int(kind): int(count) for kind, count in zip(ids, counts, strict=True)}


def _named(objects: Mapping[int, int], names: Sequence[str]) -> dict[str, int]:
    named: dict[str, int] = {}
    for kind, count in objects.items():
        named[names[kind]] = named.get(names[kind], 0) + count
    return named
