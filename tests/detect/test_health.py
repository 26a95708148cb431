"""``Stream.health``: when a source is not well."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from tests.detect.test_detector import detector_over, frame_with
from y7edge.detect.ages import Ages, Pace
from y7edge.detect.health import SourceHealth
from y7edge.errors import DeviceError
from y7edge.sources.base import Status

FRAME = frame_with((32, 64))


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = SimpleNamespace(seconds=100.0)
    for module in ("ages", "health", "streaming"):
        real = SimpleNamespace(
            monotonic=lambda: now.seconds, monotonic_ns=lambda: int(now.seconds * 1e9)
        )
        monkeypatch.setattr(f"y7edge.detect.{module}.time", real)
    return now


@pytest.mark.parametrize(
    ("state", "seconds", "fault"),
    [
        ("running", 10.0, None),
        ("running", 10.1, "cam: no result for 10 s"),
        ("running", None, "cam: no result yet"),
        ("stalled", 11.0, "cam: no result for 11 s: unplugged"),
        ("reconnecting", 3.0, None),
        ("failed", 0.1, "cam is failed: unplugged"),
        ("closed", 0.1, "cam is closed: unplugged"),
        ("ended", 500.0, None),
        ("ended", None, None),
    ],
)
def test_a_source(clock, state, seconds, fault):
    pace = Pace()
    if seconds is not None:
        pace.add()
        clock.seconds += seconds
    status = Status(state, "y7edge", "", frames=9, dropped=4, reconnects=2, problem="unplugged")
    found = SourceHealth.of("cam", status, pace, Ages(), 10.0)
    assert (found.fault, found.seconds) == (fault, seconds)
    assert (found.frames, found.dropped, found.reconnects) == (9, 4, 2)


def test_a_stream(clock):
    detector, _ = detector_over()
    stream = detector.stream(iter([FRAME] * 3))
    health = stream.health()
    assert (health.status, health.ok) == ("starting", False)
    assert health.faults == ("images: no result yet",)
    clock.seconds += 11
    assert stream.health().status == "failing"
    next(stream)
    health = stream.health()
    assert (health.status, health.faults, health.ok) == ("ok", (), True)
    assert health.model["model_id"] == "ab" * 8
    assert health.model["digest"] == "ab" * 32
    assert health.sources[0].results == 1
    json.dumps(health.to_dict(), allow_nan=False)
    clock.seconds += 9
    assert stream.health().ok
    assert not stream.health(silence=8).ok
    clock.seconds += 2
    assert stream.health().faults == ("images: no result for 11 s",)
    next(stream)
    assert stream.health().ok


def test_a_detection_that_fails(clock):
    detector, session = detector_over()
    stream = detector.stream(iter([FRAME] * 3))
    next(stream)
    session.fail = True
    with pytest.raises(DeviceError):
        next(stream)
    health = stream.health()
    assert health.status == "failing"
    assert "the engine failed" in health.faults[0]
