"""Reproducible latency of a model, as percentiles after a warm-up, with what the figures depend on.

``y7edge.benchmark.hotpath`` measures the code around the engine against its budget.
"""

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
    BUDGET,
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
_MAX_SECONDS = 20.0  # stop after these, once _MIN_RUNS are counted; so long also to warm up


@dataclass(frozen=True)
class Report:
    """Latency of one model on one machine. Milliseconds are {"p50", "p95", "p99"}.

    Raises:
        ConfigError: a field that the figures depend on is empty.
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
            raise ConfigError(f"no rate is given without {', '.join(unstated)}: state it too")
        rates = {
            stage: round(1000 / times["p50"], 2)
            for stage, times in (("model", self.model_ms), ("end_to_end", self.end_to_end_ms))
            if times["p50"] > 0
        }
        object.__setattr__(self, "pictures_per_second", rates)

    def require_budget(self) -> None:
        """Raise GateError if the gate was measured and a figure is beyond its budget."""
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
            f"{self.runs} runs after {self.warmup} to warm up, {FRAMES} images of "
            f"{self.frame_hw[1]}x{self.frame_hw[0]} in turn, peak memory {self.peak_memory_mb} MB",
            *(
                f"  {stage:<14}"
                + "".join(f"  {name} {ms:8.2f}" for name, ms in getattr(self, stage).items())
                for stage in _STAGES
            ),
            "  images per second at p50: "
            + ", ".join(f"{rate} {stage}" for stage, rate in self.pictures_per_second.items()),
        ]
        if self.gate is not None:
            costs = [f"{k} {getattr(self.gate, k):.2f} (budget {v})" for k, v in BUDGET.items()]
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
    """Measure a model by stage on synthetic images, for at most 20 seconds after 20 calls.

    No more calls to warm up are begun after another 20 seconds.

    ``artifact`` is the model's name in the report; ``threads`` those of OpenCV and of the detector;
    ``warmup`` calls precede the ``runs`` that count. ``gate`` measures the code around the engine
    too: call ``Report.require_budget`` for a verdict.

    Raises:
        ConfigError: ``warmup`` or ``runs`` is less than 1.
    """
    if warmup < 1 or runs < 1:
        raise ConfigError(f"warmup is {warmup} and runs is {runs}, expected 1 or more")
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
    """Return p50, p95 and p99."""
    values = np.percentile(np.asarray(milliseconds), [50, 95, 99])
    return {f"p{p}": round(float(v), 4) for p, v in zip((50, 95, 99), values, strict=True)}


def _measure(detector: Detector, warmup: int, runs: int) -> tuple[int, dict[str, list[float]]]:
    """Return the count of calls to warm up, and milliseconds of every counted call by stage."""
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
    """Return the peak memory of this process in MB; None where unknown."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)
