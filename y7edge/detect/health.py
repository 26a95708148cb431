"""The health of a stream, for a program that runs for months."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from y7edge.detect.ages import Ages, Pace
from y7edge.detect.model import OpenModel
from y7edge.sources.base import Status

SILENCE_S = 10.0
"""Seconds without a result of a source, after which it is not healthy."""
_ENDED = ("failed", "closed")


@dataclass(frozen=True)
class SourceHealth:
    """What is known of one source.

    Attributes:
        name: of the source.
        state: of the source, see ``Status``.
        fault: why it is not healthy, in one line; None: it is.
        problem: the last fault of the source, which may be over; None: there was none.
        rate: results per second now.
        seconds: since the newest result; None: there was none yet.
        results: number of results.
        frames: frames that the source made, whether they were used or dropped.
        dropped: frames that were dropped, because a newer one was there.
        reconnects: how often the source was opened again after a fault.
        age: percentiles of the ages of frames, ``Ages.summary()``.
    """

    name: str
    state: str
    fault: str | None
    problem: str | None
    rate: float
    seconds: float | None
    results: int
    frames: int
    dropped: int
    reconnects: int
    age: Mapping[str, float]

    @classmethod
    def of(cls, name: str, status: Status, pace: Pace, ages: Ages, silence: float) -> SourceHealth:
        """Return the health of a source, whose newest result may be ``silence`` seconds old."""
        seconds = pace.seconds()
        why = f": {status.problem}" if status.problem and status.state != "running" else ""
        fault = None
        if status.state in _ENDED:
            fault = f"{name} is {status.state}{why}"
        elif status.state != "ended" and seconds is None:
            fault = f"{name}: no result yet{why}"
        elif status.state != "ended" and seconds is not None and seconds > silence:
            fault = f"{name}: no result for {seconds:.0f} s{why}"
        return cls(
            name,
            status.state,
            fault,
            status.problem,
            round(pace.rate(), 2),
            None if seconds is None else round(seconds, 2),
            pace.count,
            status.frames,
            status.dropped,
            status.reconnects,
            ages.summary(),
        )


@dataclass(frozen=True)
class Health:
    """Whether detection continues, and what is known of the model and of each source.

    Attributes:
        status: "ok"; "starting": the stream is younger than ``silence``, and all that is wrong is
            that a source had no result yet; else "failing".
        faults: why the status is not "ok", one line each.
        model: "name", "model_id", "digest" (SHA-256 of the payload), "precision", "device",
            "since" (when it was opened, UTC) and "seconds" (since then).
        sources: what is known of each source.
    """

    status: str
    faults: tuple[str, ...]
    model: Mapping[str, Any]
    sources: tuple[SourceHealth, ...]

    @classmethod
    def of(
        cls,
        model: OpenModel,
        sources: tuple[SourceHealth, ...],
        *,
        young: bool,
        error: str | None = None,
    ) -> Health:
        """Return a stream's health; ``young``: it has just been opened; ``error``: why it ended."""
        unhealthy = [one for one in sources if one.fault is not None]
        faults = tuple(filter(None, [error, *(one.fault for one in unhealthy)]))
        ended = any(one.state in _ENDED for one in unhealthy)
        waits = young and not error and not ended and all(one.seconds is None for one in unhealthy)
        status = "ok" if not faults else "starting" if waits else "failing"
        seconds = time.monotonic() - model.opened
        since = datetime.now(timezone.utc) - timedelta(seconds=seconds)  # by the clock of now
        about = {
            "name": model.manifest.model,
            "model_id": model.model_id,
            "digest": model.manifest.payload_digest,
            "precision": model.manifest.precision,
            "device": model.session.device,
            "since": since.isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
        }
        return cls(status, faults, about, sources)

    @property
    def ok(self) -> bool:
        """Whether detection continues in every source."""
        return self.status == "ok"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)
