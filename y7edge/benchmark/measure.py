"""Measure a model's latency, and report percentiles with the conditions of the measurement."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from y7edge import __version__, jetson
from y7edge.benchmark.hotpath import (
    FRAME_HW,
    FRAMES,
    Gate,
    images,
    measure_gate,
    measure_overhead,
    opencv_threads,
    with_model,
)
from y7edge.benchmark.power import Measured, Power, measure_power
from y7edge.detect.detections import Timing
from y7edge.detect.detector import Detector
from y7edge.errors import ConfigError, GateError
from y7edge.machine import processor_features, processor_model, resident_memory, usable_cores

T = TypeVar("T")

_STAGES = ("model_ms", "pre_ms", "post_ms", "end_to_end_ms")
_MIN_RUNS = 20
_MAX_SECONDS = 20.0  # for each model: limit of the warm-up, and of the runs beyond _MIN_RUNS


@dataclass(frozen=True)
class Report:
    """Latency of one model on one machine, in milliseconds by percentile ("p50", "p95", "p99").

    ``bare_ms`` is the latency of the engine's own API. ``overhead`` is the time of
    ``Session.infer`` divided by that of the engine's API: the median over pairs of calls on the
    same input. Both are None if the runtime has no function for calls of the engine's API.
    ``jetson`` describes the board, None if it is not a Jetson; ``power_problem`` says why its power
    was not measured.

    Raises:
        ConfigError: a condition of the measurement, such as the device, is empty, or a percentile
            is missing.
    """

    artifact: str
    model: str
    model_digest: str
    precision: str
    imgsz: tuple[int, int]
    device: str
    machine: str
    processor: str
    features: tuple[str, ...]
    cores: int
    threads: int | str
    versions: Mapping[str, str]
    warmup: int
    runs: int
    frame_hw: tuple[int, int]
    model_ms: Mapping[str, float]
    pre_ms: Mapping[str, float]
    post_ms: Mapping[str, float]
    end_to_end_ms: Mapping[str, float]
    peak_memory_mb: float | None
    bare_ms: Mapping[str, float] | None = None
    overhead: float | None = None
    startup_ms: float | None = None
    memory_mb: float | None = None
    gate: Gate | None = None
    jetson: jetson.Jetson | None = None
    power: Power | None = None
    power_problem: str | None = None
    pictures_per_second: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        needed = (
            "model_digest",
            "device",
            "machine",
            "processor",
            "threads",
            "versions",
            "warmup",
            "runs",
        )
        unstated = [name for name in needed if not getattr(self, name)]
        unstated += [
            f"{name}.{percentile}"
            for name in ("model_ms", "end_to_end_ms")
            for percentile in ("p50", "p95", "p99")
            if percentile not in getattr(self, name)
        ]
        if unstated:
            raise ConfigError(f"a report of latency needs a value for {', '.join(unstated)}")
        rates = {
            stage: round(1000 / times["p50"], 2)
            for stage, times in (("model", self.model_ms), ("end_to_end", self.end_to_end_ms))
            if times["p50"] > 0
        }
        object.__setattr__(self, "pictures_per_second", rates)

    def require_budget(self) -> None:
        """Raise GateError if the gate was measured and a stage exceeds its budget."""
        if self.gate is not None and (beyond := self.gate.beyond()):
            raise GateError(f"{self.artifact}: {'; '.join(beyond)}")

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        lines = [
            f"{self.artifact}: {self.model} {self.precision} {self.imgsz[0]}x{self.imgsz[1]}, "
            f"digest {self.model_digest[:16]}",
            f"{self.device} ({self.processor}, {self.machine}, {self.cores} usable cores), "
            f"threads {self.threads}, "
            + ", ".join(f"{name} {version}" for name, version in self.versions.items()),
            f"{self.runs} runs after {self.warmup} warm-up runs, {FRAMES} images of "
            f"{self.frame_hw[1]}x{self.frame_hw[0]} in turn, peak memory {self.peak_memory_mb} MB",
            *(
                f"  {stage:<14}"
                + "".join(f"  {name} {ms:8.2f}" for name, ms in getattr(self, stage).items())
                for stage in (*_STAGES, *(["bare_ms"] if self.bare_ms else []))
            ),
            *([f"  model / engine's own API: {self.overhead:.3f}"] if self.overhead else []),
            *([f"  opening and first call: {self.startup_ms} ms"] if self.startup_ms else []),
            *([f"  memory of opening: {self.memory_mb} MB"] if self.memory_mb else []),
            "  images per second at p50: "
            + ", ".join(f"{rate} {stage}" for stage, rate in self.pictures_per_second.items()),
            *([f"  {self.jetson.title()}; {self.jetson.settings()}"] if self.jetson else []),
            *(self.power.lines() if self.power else []),
            *([f"  power: not measured: {self.power_problem}"] if self.power_problem else []),
        ]
        if (gate := self.gate) is not None:
            costs = [f"{k} {getattr(gate, k):.2f} (budget {v})" for k, v in gate.budget.items()]
            lines.append(f"  in units of one cv2.resize: {', '.join(costs)}")
            if gate.model is not None:
                limit = gate.model_limit
                lines.append(f"  least model / engine's own API: {gate.model:.3f} (limit {limit})")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())


@dataclass(frozen=True)
class OpenedDetector:
    """An open detector, and the time and memory that its opening took.

    Attributes:
        detector: the detector.
        artifact: name of the model in the report.
        threads: threads of OpenCV and the engine; None: the default of each.
        startup_ms: time of opening and of the first call; None: not measured.
        memory_mb: memory that opening and the first call added to the process; None: unknown.
    """

    detector: Detector
    artifact: str
    threads: int | None = None
    startup_ms: float | None = None
    memory_mb: float | None = None


def open_measured(
    opener: Callable[[], Detector], artifact: str, threads: int | None = None
) -> OpenedDetector:
    """Open a detector, run it once, and measure the time and the memory that this takes.

    Memory is the growth of the resident set. It is too small if freed memory is used again, and
    includes the engine's library if this is the engine's first model in the process.
    """
    before, started = resident_memory(), time.perf_counter()
    detector = opener()
    try:
        with opencv_threads(threads):
            detector(images()[0])
    except BaseException:
        detector.close()
        raise
    startup_ms, after = 1e3 * (time.perf_counter() - started), resident_memory()
    grown = None if before is None or after is None else round((after - before) / 2**20, 1)
    return OpenedDetector(detector, artifact, threads, round(startup_ms, 2), grown)


def compare_files(
    paths: Sequence[Path], *, threads: int | None = None, runs: int = 100
) -> list[Report]:
    """Open artifacts, measure them in turn (see ``compare``), and close them."""
    with ExitStack() as stack:
        opened = []
        for path in paths:
            one = open_measured(partial(Detector, path, threads=threads), path.name, threads)
            stack.callback(one.detector.close)
            opened.append(one)
        return compare(opened, runs=runs)


def benchmark(
    detector: Detector,
    artifact: str,
    *,
    threads: int | None = None,
    warmup: int = 5,
    runs: int = 100,
    gate: bool = False,
) -> Report:
    """Measure one open detector; see ``compare``."""
    return compare(
        [OpenedDetector(detector, artifact, threads)], warmup=warmup, runs=runs, gate=gate
    )[0]


def compare(
    opened: Sequence[OpenedDetector],
    *,
    warmup: int = 5,
    runs: int = 100,
    gate: bool = False,
    power_ms: int | None = None,
) -> list[Report]:
    """Measure the latency of detectors by stage on synthetic images, in turn.

    In each round, every detector runs once, so that other programs affect all alike. After each
    detector, its session and the engine's own API run once on the same input array, in alternating
    order. Warm-up and measurement end early after 20 seconds times the number of detectors, but the
    measurement not before 20 rounds.

    Args:
        opened: the detectors to measure; they stay open.
        warmup: number of rounds before the measurement.
        runs: number of measured rounds.
        gate: also measure the code around the engine, for ``Report.require_budget``.
        power_ms: on a Jetson, then also run each detector alone, and measure power and energy per
            frame with a sample every ``power_ms`` milliseconds (`y7edge.benchmark.power`).

    Raises:
        ConfigError: ``warmup`` or ``runs`` is less than 1, or ``power_ms`` is out of range.
    """
    if warmup < 1 or runs < 1:
        raise ConfigError(f"warmup is {warmup} and runs is {runs}, expected 1 or more for both")
    board = jetson.find()
    turns = [_Turn(one) for one in opened]
    warmup = _rounds(turns, warmup, 1)
    for turn in turns:
        turn.forget()
    _rounds(turns, runs, _MIN_RUNS)
    measured = [turn.power(power_ms) if board and power_ms else Measured() for turn in turns]
    return [
        _report(turn, warmup, gate, board, power)
        for turn, power in zip(turns, measured, strict=True)
    ]


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """Return the percentiles p50, p95 and p99."""
    values = np.percentile(np.asarray(milliseconds), [50, 95, 99])
    return {f"p{p}": round(float(v), 4) for p, v in zip((50, 95, 99), values, strict=True)}


class _Turn:
    """The measured calls of one detector.

    Attributes:
        opened: the detector.
        stages: milliseconds of each call, by stage; "bare_ms" is the engine's own API.
        overhead: for each round, the time of ``Session.infer`` relative to the engine's own API.
    """

    def __init__(self, opened: OpenedDetector) -> None:
        self.opened = opened
        image, session = opened.detector.manifest.input, opened.detector.session
        self._frames, self._session = images(), session
        shape = [size if isinstance(size, int) else 1 for size in image.shape]
        values = 255 * np.random.default_rng(0).random(shape, np.float32)
        values = values * np.float32(image.scale) + np.float32(image.zero_point)
        self._feeds = {image.name: values.astype(image.dtype)}
        self._bare = session.bare(self._feeds)
        self.forget()

    def forget(self) -> None:
        """Drop the measurements so far."""
        self.stages: dict[str, list[float]] = {stage: [] for stage in (*_STAGES, "bare_ms")}
        self.overhead: list[float] = []

    def run(self, index: int) -> None:
        """Run the detector once, then its session and the engine's own API."""
        frame = self._frames[index % FRAMES]
        with opencv_threads(self.opened.threads):
            whole, found = _timed(lambda: self.opened.detector(frame))
        timing = found.timing or Timing()
        for stage, ms in zip(_STAGES, (timing.infer, timing.pre, timing.post, whole), strict=True):
            self.stages[stage].append(ms)
        if (bare := self._bare) is None:
            return
        if index % 2:
            ours, _ = _timed(lambda: self._session.infer(self._feeds))
            engine, _ = _timed(bare)
        else:
            engine, _ = _timed(bare)
            ours, _ = _timed(lambda: self._session.infer(self._feeds))
        self.stages["bare_ms"].append(engine)
        self.overhead.append(ours / engine)

    def gate(self) -> Gate:
        """Measure the code around the engine, and ``Session.infer`` beside the engine's own API."""
        found, session = measure_gate(self.opened.detector.manifest), self._session
        if (bare := self._bare) is None:
            return found
        ratio, engine_ms = measure_overhead(
            lambda: session.infer(self._feeds), bare, threads=session.threads
        )
        return with_model(found, ratio, engine_ms)

    def power(self, interval_ms: int) -> Measured:
        """Run the detector alone, and measure the power of the board (Jetson)."""
        with opencv_threads(self.opened.threads):
            return measure_power(
                lambda index: self.opened.detector(self._frames[index % FRAMES]), interval_ms
            )


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    """Return the milliseconds of a call, and its result."""
    started = time.perf_counter_ns()
    result = call()
    return (time.perf_counter_ns() - started) / 1e6, result


def _rounds(turns: Sequence[_Turn], count: int, at_least: int) -> int:
    """Run ``count`` rounds, or at least ``at_least`` until the time limit; return their number."""
    end = time.perf_counter() + _MAX_SECONDS * len(turns)
    for index in range(count):
        if index >= at_least and time.perf_counter() > end:
            return index
        for turn in turns:
            turn.run(index)
    return count


def _report(
    turn: _Turn, warmup: int, gate: bool, board: jetson.Jetson | None, measured: Measured
) -> Report:
    opened, stages = turn.opened, turn.stages
    manifest, info = opened.detector.manifest, opened.detector.info
    return Report(
        artifact=opened.artifact,
        model=manifest.model,
        model_digest=manifest.payload_digest,
        precision=manifest.precision,
        imgsz=(manifest.input.height, manifest.input.width),
        device=info["device"],
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        processor=processor_model(),
        features=processor_features(),
        cores=usable_cores(),
        threads=opened.threads or info["threads"] or "not known",
        versions={
            **info["versions"],
            "y7edge": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
        },
        warmup=warmup,
        runs=len(stages["model_ms"]),
        frame_hw=FRAME_HW,
        **{stage: percentiles(stages[stage]) for stage in _STAGES},
        bare_ms=percentiles(stages["bare_ms"]) if stages["bare_ms"] else None,
        overhead=round(float(np.median(turn.overhead)), 4) if turn.overhead else None,
        startup_ms=opened.startup_ms,
        memory_mb=opened.memory_mb,
        peak_memory_mb=_peak_memory_mb(),
        gate=turn.gate() if gate else None,
        jetson=board,
        power=measured.power,
        power_problem=measured.problem,
    )


def _peak_memory_mb() -> float | None:
    """Return the peak memory of this process in MB; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)
