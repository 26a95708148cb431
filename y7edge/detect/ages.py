"""Statistics of a stream: the ages of its frames, and how often there are results."""

from __future__ import annotations

import math
import time
from collections import deque

import numpy as np

WINDOW = 8192  # ages that are kept, 64 KB: 4.5 minutes of 30 frames/s
_RATE_SECONDS = 2.0  # over which the rate of results is measured
_SILENT_SECONDS = 3.0
_MAX_TIMES = 1024


class Ages:
    """The newest ages of frames, in constant memory.

    One thread adds ages; others may call ``summary``.

    Args:
        window: number of ages that are kept.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self._ms = np.zeros(window)
        self._count = 0

    def __len__(self) -> int:
        """The number of ages that were added."""
        return self._count

    def __repr__(self) -> str:
        """Return the statistics as text."""
        values = (f"{name}={value:.4g}" for name, value in self.summary().items())
        return f"Ages({', '.join(values)})"

    def add(self, age_ns: int) -> None:
        """Add the age of a frame in nanoseconds."""
        self._ms[self._count % len(self._ms)] = age_ns / 1e6
        self._count += 1

    def summary(self) -> dict[str, float]:
        """Return statistics of the kept ages in milliseconds.

        Returns:
            "count", the number of all ages that were added, and "p50_ms", "p95_ms", "p99_ms" and
            "max_ms" of those that are kept. Only "count" if there are none.
        """
        count = self._count
        if not count:
            return {"count": 0.0}
        kept = self._ms[:count].copy()
        p50, p95, p99 = np.percentile(kept, (50, 95, 99)).tolist()
        return {
            "count": float(count),
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
            "max_ms": float(kept.max()),
        }


class Pace:
    """When the results of a source came, in constant memory.

    One thread adds results; others may read.

    Attributes:
        count: number of results.
    """

    def __init__(self) -> None:
        self.count = 0
        self._first = self._last = 0.0
        self._times: deque[float] = deque(maxlen=_MAX_TIMES)

    def add(self) -> None:
        """Add a result, which is there now."""
        now = time.monotonic()
        self._first = self._first if self.count else now
        self.count, self._last = self.count + 1, now
        self._times.append(now)

    def seconds(self) -> float | None:
        """Return the seconds since the newest result; None: there was none."""
        return time.monotonic() - self._last if self.count else None

    def rate(self) -> float:
        """Return results per second, over the last seconds, or two results of a slow model."""
        now, times = time.monotonic(), list(self._times)
        recent = [at for at in times if now - at <= _RATE_SECONDS]
        recent = recent if len(recent) > 1 else times[-2:]
        return (len(recent) - 1) / (now - recent[0]) if len(recent) > 1 and now > recent[0] else 0.0

    def silent(self) -> float | None:
        """Return seconds since the newest result, if it is much longer than between the last two.

        An engine that hangs is noticed by this, while its cameras run.
        """
        times = list(self._times)[-2:]
        usual = times[-1] - times[0] if len(times) > 1 else math.inf
        seconds = time.monotonic() - self._last
        return round(seconds, 1) if seconds > max(_SILENT_SECONDS, 3 * usual) else None

    def mean_rate(self) -> float:
        """Return results per second from the first to the newest one."""
        seconds = self._last - self._first
        return (self.count - 1) / seconds if seconds > 0 else 0.0
