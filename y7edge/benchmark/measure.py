"""How long a picture takes, measured so that the figure can be repeated.

Model and end-to-end are told apart, as percentiles after a warm-up, together with what they depend
on: device, threads, versions, digest of the model. Pictures per second are given by a ``Report``
only, and there is none without these.

``y7edge.benchmark.hotpath`` measures the code around the engine against its budget.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from y7edge import __version__
from y7edge.benchmark.hotpath import (
    BUDGET,
    FRAME_HW,
    FRAMES,
    Gate,
    measure_gate,
    opencv_threads,
    pictures,
)
from y7edge.detect.detector import Detector
from y7edge.errors import ConfigError, GateError

_LEAST_RUNS = 20


@dataclass(frozen=True)
class Report:
    """Latency of one model on one machine. Milliseconds are {"p50", "p95", "p99"}.

    Raises:
        ConfigError: something that the figures depend on is not stated.
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
        unstated = [name for name in needed if not getattr(self, name)]
        if unstated:
            raise ConfigError(f"no rate is given without {', '.join(unstated)}: state it too")
        rates = {
            stage: round(1000 / times["p50"], 2)
            for stage, times in (("model", self.model_ms), ("end_to_end", self.end_to_end_ms))
            if times["p50"] > 0
        }
        object.__setattr__(self, "pictures_per_second", rates)

    def require_budget(self) -> None:
        """Raise GateError if the gate was measured and a figure is beyond its budget."""
        if self.gate is not None and not self.gate.passed:
            raise GateError(
                f"{self.artifact}: {'; '.join(self.gate.beyond())} "
                "(1 unit = one cv2.resize of the same picture; a tenth more is allowed)"
            )

    def __str__(self) -> str:
        stages = ("model_ms", "pre_ms", "post_ms", "end_to_end_ms")
        lines = [
            f"{self.artifact}: {self.model} {self.precision} {self.imgsz[0]}x{self.imgsz[1]}, "
            f"digest {self.model_digest[:16]}",
            f"{self.device} ({self.machine}), threads {self.threads}, "
            + ", ".join(f"{name} {version}" for name, version in self.versions.items()),
            f"{self.runs} runs after {self.warmup} to warm up, {FRAMES} pictures of "
            f"{self.frame_hw[1]}x{self.frame_hw[0]} in turn, peak memory {self.peak_memory_mb} MB",
            *(
                f"  {stage:<14}"
                + "".join(f"  {name} {ms:8.2f}" for name, ms in getattr(self, stage).items())
                for stage in stages
            ),
            "  pictures per second at p50: "
            + ", ".join(f"{rate} {stage}" for stage, rate in self.pictures_per_second.items()),
        ]
        if self.gate is not None:
            costs = [f"{k} {getattr(self.gate, k):.2f} (budget {v})" for k, v in BUDGET.items()]
            lines.append(f"  in units of one cv2.resize: {', '.join(costs)}")
        return "\n".join(lines)


def benchmark(
    source: Path | str | Detector,
    *,
    threads: int | None = None,
    backend: str = "auto",
    device: str = "auto",
    warmup: int = 5,
    runs: int = 100,
    seconds: float = 20.0,
    gate: bool = False,
) -> Report:
    """Measure a model stage by stage on synthetic pictures.

    Args:
        source: what a ``Detector`` takes, or one that is open (and stays so).
        threads: of the engine and of OpenCV; None: their own choice.
        backend: a runtime's name, or "auto".
        device: of the engine.
        warmup: calls before the first that counts.
        runs: calls that count.
        seconds: after which it stops, but not before 20 calls.
        gate: measure the code around the engine too (``Report.gate``). It never raises: call
            ``Report.require_budget``, so that the report is there before the verdict.
    """
    if warmup < 1 or runs < 1:
        raise ConfigError(f"warmup is {warmup} and runs is {runs}, expected 1 or more")
    opened = isinstance(source, Detector)
    detector = (
        source
        if isinstance(source, Detector)
        else Detector(source, backend, device, threads=threads)
    )
    try:
        with opencv_threads(threads):
            stages = _measure(detector, warmup, runs, seconds)
        return Report(
            artifact=detector.manifest.model if opened else str(source),
            threads=threads or f"the engine's own choice of {os.cpu_count()}",
            warmup=warmup,
            runs=len(stages["model_ms"]),
            model_ms=percentiles(stages["model_ms"]),
            pre_ms=percentiles(stages["pre_ms"]),
            post_ms=percentiles(stages["post_ms"]),
            end_to_end_ms=percentiles(stages["end_to_end_ms"]),
            **_circumstances(detector),
            peak_memory_mb=_peak_memory_mb(),
            gate=measure_gate(detector.manifest) if gate else None,
        )
    finally:
        if not opened:
            detector.close()


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99."""
    values = np.percentile(np.asarray(milliseconds), [50, 95, 99])
    return {f"p{p}": round(float(v), 4) for p, v in zip((50, 95, 99), values, strict=True)}


def _measure(detector: Detector, warmup: int, runs: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of every counted call, by stage."""
    frames = pictures()
    for index in range(warmup):
        detector(frames[index % FRAMES])
    stages: dict[str, list[float]] = {
        key: [] for key in ("model_ms", "pre_ms", "post_ms", "end_to_end_ms")
    }
    begun = time.perf_counter()
    for index in range(runs):
        if index >= _LEAST_RUNS and time.perf_counter() - begun > seconds:
            break
        started = time.perf_counter_ns()
        timing = detector(frames[index % FRAMES]).timing
        stages["end_to_end_ms"].append((time.perf_counter_ns() - started) / 1e6)
        if timing is not None:
            stages["model_ms"].append(timing.infer)
            stages["pre_ms"].append(timing.pre)
            stages["post_ms"].append(timing.post)
    return stages


def _circumstances(detector: Detector) -> dict[str, Any]:
    """What the figures depend on."""
    manifest, info = detector.manifest, detector.info
    return {
        "model": manifest.model,
        "model_digest": manifest.payload_digest,
        "precision": manifest.precision,
        "imgsz": (manifest.input.height, manifest.input.width),
        "device": info["device"],
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "frame_hw": FRAME_HW,
        "versions": {
            **info["versions"],
            "y7edge": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
        },
    }


def _peak_memory_mb() -> float | None:
    """Most memory that this process has had, in MB; None where the system does not say."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)
