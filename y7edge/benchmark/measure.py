"""Measure a model's latency, and report percentiles with the conditions of the measurement."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from y7edge import __version__
from y7edge.benchmark.hotpath import (
    FRAME_HW,
    FRAMES,
    Gate,
    images,
    measure_gate,
    opencv_threads,
)
from y7edge.detect.detector import Detector
from y7edge.errors import ConfigError, GateError

_STAGES = ("model_ms", "pre_ms", "post_ms", "end_to_end_ms")
_MIN_RUNS = 20
_MAX_SECONDS = 20.0  # limit of the warm-up, and of the measurement after _MIN_RUNS calls


@dataclass(frozen=True)
class Report:
    """Latency of one model on one machine, in milliseconds by percentile ("p50", "p95", "p99").

    Raises:
        ConfigError: a condition of the measurement, such as the device, is empty.
    """

    artifact: str
    model: str
    model_digest: str
    precision: str
    imgsz: tuple[int, int]
    device: str
    machine: str
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
    gate: Gate | None = None
    pictures_per_second: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        needed = ("model_digest", "device", "machine", "threads", "versions", "warmup", "runs")
        if unstated := [name for name in needed if not getattr(self, name)]:
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
            raise GateError(
                f"{self.artifact}: {'; '.join(beyond)} "
                "(1 unit = one cv2.resize of the same image; a tenth more is allowed)"
            )

    def __str__(self) -> str:
        lines = [
            f"{self.artifact}: {self.model} {self.precision} {self.imgsz[0]}x{self.imgsz[1]}, "
            f"digest {self.model_digest[:16]}",
            f"{self.device} ({self.machine}), threads {self.threads}, "
            + ", ".join(f"{name} {version}" for name, version in self.versions.items()),
            f"{self.runs} runs after {self.warmup} warm-up runs, {FRAMES} images of "
            f"{self.frame_hw[1]}x{self.frame_hw[0]} in turn, peak memory {self.peak_memory_mb} MB",
            *(
                f"  {stage:<14}"
                + "".join(f"  {name} {ms:8.2f}" for name, ms in getattr(self, stage).items())
                for stage in _STAGES
            ),
            "  images per second at p50: "
            + ", ".join(f"{rate} {stage}" for stage, rate in self.pictures_per_second.items()),
        ]
        if (gate := self.gate) is not None:
            costs = [f"{k} {getattr(gate, k):.2f} (budget {v})" for k, v in gate.budget.items()]
            lines.append(f"  in units of one cv2.resize: {', '.join(costs)}")
        return "\n".join(lines)


def benchmark(
    detector: Detector,
    artifact: str,
    *,
    threads: int | None = None,
    warmup: int = 5,
    runs: int = 100,
    gate: bool = False,
) -> Report:
    """Measure a detector's latency by stage on synthetic images.

    The warm-up ends after 20 seconds, and so does the measurement if it has at least 20 calls.

    Args:
        detector: the detector to measure; it stays open.
        artifact: the model's name in the report.
        threads: threads of OpenCV; the detector should be opened with the same number.
        warmup: number of calls before the measurement.
        runs: number of measured calls.
        gate: also measure the code around the engine, for ``Report.require_budget``.

    Raises:
        ConfigError: ``warmup`` or ``runs`` is less than 1.
    """
    if warmup < 1 or runs < 1:
        raise ConfigError(f"warmup is {warmup} and runs is {runs}, expected 1 or more for both")
    with opencv_threads(threads):
        warmup, stages = _measure(detector, warmup, runs)
    manifest, info = detector.manifest, detector.info
    return Report(
        artifact=artifact,
        model=manifest.model,
        model_digest=manifest.payload_digest,
        precision=manifest.precision,
        imgsz=(manifest.input.height, manifest.input.width),
        device=info["device"],
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        threads=threads or f"the engine's own choice of {os.cpu_count()}",
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
        **{stage: percentiles(times) for stage, times in stages.items()},
        peak_memory_mb=_peak_memory_mb(),
        gate=measure_gate(manifest) if gate else None,
    )


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """Return the percentiles p50, p95 and p99."""
    values = np.percentile(np.asarray(milliseconds), [50, 95, 99])
    return {f"p{p}": round(float(v), 4) for p, v in zip((50, 95, 99), values, strict=True)}


def _measure(detector: Detector, warmup: int, runs: int) -> tuple[int, dict[str, list[float]]]:
    """Return the number of warm-up calls, and the milliseconds of all measured calls by stage."""
    frames, begun = images(), time.perf_counter()
    for index in range(warmup):
        detector(frames[index % FRAMES])
        if time.perf_counter() - begun > _MAX_SECONDS:
            warmup = index + 1
            break
    stages: dict[str, list[float]] = {stage: [] for stage in _STAGES}
    begun = time.perf_counter()
    for index in range(runs):
        if index >= _MIN_RUNS and time.perf_counter() - begun > _MAX_SECONDS:
            break
        started = time.perf_counter_ns()
        timing = detector(frames[index % FRAMES]).timing
        whole = (time.perf_counter_ns() - started) / 1e6
        if timing is not None:
            times = (timing.infer, timing.pre, timing.post, whole)
            for stage, milliseconds in zip(_STAGES, times, strict=True):
                stages[stage].append(milliseconds)
    return warmup, stages


def _peak_memory_mb() -> float | None:
    """Return the peak memory of this process in MB; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)
