"""Statistics of frame ages: the time from the capture of a frame to its result."""

from __future__ import annotations

import numpy as np

WINDOW = 8192  # ages that are kept, 64 KB: 4.5 minutes of 30 frames/s


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
