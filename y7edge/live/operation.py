"""What an operator sees of ``y7edge live``: its health, signs of life for systemd, warnings."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from y7edge import __version__
from y7edge.detect.health import Health, SourceHealth
from y7edge.detect.streaming import Stream
from y7edge.live.notify import Notifier
from y7edge.live.reload import Reloader
from y7edge.text import one_line, printable

_TICK_S = 1.0
_STATUS_S = 10.0  # between two texts for `systemctl status`
_MINUTE_S = 60.0  # over which the rate of results is compared
_SLOW, _FAST = 0.5, 0.75  # of the best rate: below it is slow, above it is not any more
_DROPPED = 0.9  # of the frames of a minute
_log = logging.getLogger(__name__)


@dataclass
class _Speed:
    """The results of a source, minute by minute."""

    before: SourceHealth | None = None  # at the start of the minute
    best: float = 0.0
    slow: bool = False
    drops: bool = False

    def check(self, source: SourceHealth, seconds: float) -> None:
        """Warn once if there are much fewer results than before, or than frames."""
        before, self.before = self.before, source
        if before is None or not (before.state == source.state == "running"):
            return  # the sources' own warnings say why
        self._check_rate(source, (source.results - before.results) / seconds)
        frames, dropped = source.frames - before.frames, source.dropped - before.dropped
        if not self.drops and dropped > _DROPPED * frames:
            self.drops = True
            _log.warning(
                "%s: %d of %d frames were dropped in the last minute: the model is much slower "
                "than the camera; a lower rate of the camera saves work",
                *(source.name, dropped, frames),
            )
        self.drops = self.drops and dropped > _FAST * frames

    def _check_rate(self, source: SourceHealth, rate: float) -> None:
        if not self.slow and rate < _SLOW * self.best:
            self.slow = True
            _log.warning(
                "%s: %.3g results per second in the last minute, %.3g at best: see temperature, "
                "power mode, and the exposure of the camera",
                *(source.name, rate, self.best),
            )
        elif self.slow and rate > _FAST * self.best:
            self.slow = False
            _log.info("%s: %.3g results per second again", source.name, rate)
        self.best = max(self.best, rate)


class Operation:
    """Watches a stream for an operator.

    Args:
        stream: what is watched.
        silence: seconds without a result, after which a source is not healthy.
        reloader: which loads the model again.
        notifier: of the service manager.
        more: returns further entries for ``report``.
    """

    def __init__(
        self,
        stream: Stream,
        silence: float,
        reloader: Reloader,
        notifier: Notifier,
        more: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self._stream, self._silence = stream, silence
        self._reloader, self._notifier, self._more = reloader, notifier, more
        self._next = self._next_status = 0.0
        self._minute = time.monotonic()
        self._speeds = {name: _Speed() for name in stream.names}
        self._ill_since: float | None = None
        # Three signs of life in the time that systemd allows.
        self._interval = min(_TICK_S, (notifier.watchdog or _TICK_S) / 3)

    def report(self) -> dict[str, Any]:
        """Return what ``GET /health`` answers; may be called by any thread."""
        outcome = self._reloader.outcome
        ago = round(time.monotonic() - outcome.at, 1) if outcome.count else None
        reload = {"state": outcome.state, "message": outcome.message}
        return {
            **self._stream.health(self._silence).to_dict(),
            "reload": {**reload, "seconds": ago, "count": outcome.count},
            **self._more(),
            "version": __version__,
        }

    def tick(self) -> None:
        """Do what is due; call it often, in one thread."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._interval
        health = self._stream.health(self._silence)
        self._notify(health, now)
        self._log_changes(health, now)
        if now - self._minute >= _MINUTE_S:
            for source in health.sources:
                self._speeds[source.name].check(source, now - self._minute)
            self._minute = now

    def _notify(self, health: Health, now: float) -> None:
        if any(source.results for source in health.sources):
            self._notifier.ready()
        if any(one.seconds is not None and one.seconds <= self._silence for one in health.sources):
            self._notifier.alive()
        if now >= self._next_status and self._notifier.is_used:
            self._next_status = now + _STATUS_S
            self._notifier.status(self._text(health))

    def _text(self, health: Health) -> str:
        outcome = self._reloader.outcome
        rates = ", ".join(f"{one.name}: {one.rate:.1f}/s" for one in health.sources)
        parts = [
            health.status,
            *health.faults,
            *([f"reload failed: {outcome.message}"] if outcome.state == "failed" else []),
            f"{health.model['name']} ({health.model['model_id']})",
            rates,
        ]
        return printable("; ".join(parts))

    def _log_changes(self, health: Health, now: float) -> None:
        """Log when the program begins to fail, and when it is well again."""
        if health.status == "failing" and self._ill_since is None:
            self._ill_since = now
            _log.warning("not healthy: %s", one_line("; ".join(health.faults)))
        elif health.ok and self._ill_since is not None:
            _log.info("healthy again after %.0f s", now - self._ill_since)
            self._ill_since = None
