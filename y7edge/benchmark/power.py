"""Measure the power of a Jetson while a model runs, and the energy of one frame."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from y7edge.errors import ConfigError
from y7edge.tegrastats import Monitor, Sample

_SETTLE_SECONDS = 1.0  # of warm-up, until the clocks have adapted
_START_SECONDS = 5.0  # for tegrastats to print its first line
_SECONDS = 5.0
_MIN_SAMPLES = 20  # to run for, at the asked interval
INTERVALS_MS = (20, 1000)
"""Smallest and largest interval of tegrastats in milliseconds."""


@dataclass(frozen=True)
class Power:
    """Mean power and energy per frame of the whole board, its idle power included.

    The energy is the mean of ``rail`` times the time per frame: 1 mW x 1 ms = 1 uJ. Frames are
    detected one after the other, without pauses.

    Attributes:
        rail: the rail that supplies the board, or a sum such as "VDD_GPU_SOC + VDD_CPU_CV + ...".
        mean_mw: mean power of ``rail``.
        frame_ms: time per frame, from start to end of the measurement divided by ``frames``.
        mj_per_frame: energy per frame in mJ.
        rails_mw: mean power of each rail.
        temperatures: degrees Celsius by sensor, (first, highest).
        clocks_mhz: (lowest, highest) of "cpu", "gpu" and "emc" (memory) where they are stated.
        samples: number of lines of tegrastats.
        interval_ms: asked interval of the lines.
        frames: number of frames.
        seconds: length of the measurement.
    """

    rail: str
    mean_mw: float
    frame_ms: float
    mj_per_frame: float
    rails_mw: Mapping[str, float]
    temperatures: Mapping[str, tuple[float, float]]
    clocks_mhz: Mapping[str, tuple[int, int]]
    samples: int
    interval_ms: int
    frames: int
    seconds: float

    def lines(self) -> list[str]:
        """Return the measurement as lines of text."""
        hottest = max(self.temperatures.items(), key=lambda found: found[1][1], default=None)
        parts = [f"{name} {low} to {high} MHz" for name, (low, high) in self.clocks_mhz.items()]
        if hottest:
            parts.append(f"{hottest[0]} {hottest[1][0]:.1f} to {hottest[1][1]:.1f} C")
        return [
            f"  power: {self.mj_per_frame:.1f} mJ per frame ({self.mean_mw:.0f} mW of {self.rail} "
            f"x {self.frame_ms:.2f} ms; {self.samples} samples, {self.frames} frames)",
            *([f"  during this: {', '.join(parts)}"] if parts else []),
        ]


@dataclass(frozen=True)
class Measured:
    """The result of ``measure_power``: the power, or why it was not measured."""

    power: Power | None = None
    problem: str | None = field(default=None)


def measure_power(run: Callable[[int], object], interval_ms: int) -> Measured:
    """Run frames one after the other while tegrastats runs; return power and energy per frame.

    After a warm-up of one second, or until the first line of tegrastats, frames run for 5 seconds,
    or for 20 intervals if that is longer.

    Args:
        run: detects in one frame; called with 0, 1, 2 and so on.
        interval_ms: time between two lines of tegrastats in milliseconds, in ``INTERVALS_MS``.

    Raises:
        ConfigError: the interval is out of range.
    """
    least, most = INTERVALS_MS
    if not least <= interval_ms <= most:
        raise ConfigError(f"the interval is {interval_ms} ms, expected {least} to {most}")
    seconds = max(_SECONDS, _MIN_SAMPLES * interval_ms / 1e3)
    frames, begin, end = 0, 0.0, 0.0
    with Monitor(interval_ms) as monitor:
        warm = _warm_up(run, monitor)
        if monitor.running() and monitor.samples(0.0, time.monotonic()):
            frames, begin, end = _frames(run, warm, seconds)
    samples = monitor.samples(begin, end)
    if monitor.failure or not samples:
        return Measured(problem=monitor.failure or "tegrastats stopped printing")
    return _power(samples, interval_ms, frames, end - begin)


def _warm_up(run: Callable[[int], object], monitor: Monitor) -> int:
    """Run frames until clocks have settled and tegrastats has printed; return their number."""
    count, begin = 0, time.monotonic()
    while monitor.running():
        now = time.monotonic()
        has_begun = now - begin >= _SETTLE_SECONDS and monitor.samples(begin, now)
        if has_begun or now - begin >= _START_SECONDS:
            break
        run(count)
        count += 1
    return count


def _frames(run: Callable[[int], object], first: int, seconds: float) -> tuple[int, float, float]:
    """Run frames for at least ``seconds``; return their number, begin and end."""
    count, begin = 0, time.monotonic()
    while True:
        run(first + count)
        count, now = count + 1, time.monotonic()
        if now - begin >= seconds:
            return count, begin, now


def _power(samples: Sequence[Sample], interval_ms: int, frames: int, seconds: float) -> Measured:
    rails = {
        name: _mean(sample.rails[name].now for sample in samples)
        for name in samples[0].rails
        if all(name in sample.rails for sample in samples)
    }
    total = samples[0].total_rails()
    if not total or any(sample.total_rails() != total for sample in samples):
        listed = ", ".join(rails) or "none"
        return Measured(problem=f"no rail of the whole board is known among those found: {listed}")
    mean = sum(rails[name] for name in total)
    if mean <= 0:
        return Measured(problem=f"{' + '.join(total)} is {mean:.0f} mW, expected more than 0")
    frame_ms = 1e3 * seconds / frames
    return Measured(
        Power(
            rail=" + ".join(total),
            mean_mw=round(mean, 1),
            frame_ms=round(frame_ms, 4),
            mj_per_frame=round(mean * frame_ms / 1e3, 3),
            rails_mw={name: round(power, 1) for name, power in rails.items()},
            temperatures=_temperatures(samples),
            clocks_mhz=_clocks(samples),
            samples=len(samples),
            interval_ms=interval_ms,
            frames=frames,
            seconds=round(seconds, 3),
        )
    )


def _temperatures(samples: Sequence[Sample]) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for sample in samples:
        for name, degrees in sample.temperatures.items():
            first, highest = found.get(name, (degrees, degrees))
            found[name] = first, max(highest, degrees)
    return found


def _clocks(samples: Sequence[Sample]) -> dict[str, tuple[int, int]]:
    stated = {
        "cpu": [core.mhz for sample in samples for core in sample.cpu if core],
        "gpu": [mhz for sample in samples for mhz in sample.gpu_mhz],
        "emc": [sample.emc_mhz for sample in samples],
    }
    known = {name: [mhz for mhz in listed if mhz is not None] for name, listed in stated.items()}
    return {name: (min(listed), max(listed)) for name, listed in known.items() if listed}


def _mean(values: Iterable[int]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
