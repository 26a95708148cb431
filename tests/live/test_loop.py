"""The threshold that can be changed, and the loop over the results of a stream."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tests.fake_model import FakeSession, make_manifest
from tests.live.conftest import NAMES, make_result
from y7edge import Detector
from y7edge.artifact.manifest import Thresholds
from y7edge.data.synthetic.scenes import scene
from y7edge.detect.ages import Ages, Pace
from y7edge.errors import ConfigError, OutputError
from y7edge.live.loop import FLOOR, Loop, Threshold, opening_conf
from y7edge.sources.base import Status

WAIT = 30


@pytest.mark.parametrize("conf", [0.05, 0.25, 0.5, 0.9])
def test_filtered_detections_are_those_of_a_detector_with_this_threshold(demo_model, conf):
    images = [scene(seed, (240, 320)).image for seed in range(4)]
    with (
        Detector(demo_model, conf=opening_conf(conf)) as low,
        Detector(demo_model, conf=conf) as own,
    ):
        threshold = Threshold.of(low.manifest, conf)
        count = 0
        for image in images:
            found, expected = low(image).filter(confidence=threshold.value), own(image)
            assert np.array_equal(found.xyxy, expected.xyxy)
            assert np.array_equal(found.confidence, expected.confidence)
            assert np.array_equal(found.class_id, expected.class_id)
            count += len(found)
    assert count > 0


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 0.04, 1.01, 10**400, "0.5", None, True, [0.5], {}]
)
def test_values_that_are_no_threshold(value):
    threshold = Threshold(0.25, FLOOR)
    with pytest.raises(ConfigError, match=r"expected a number from 0\.05 to 1"):
        threshold.set(value)
    assert threshold.value == 0.25


def test_thresholds_of_models():
    manifest = make_manifest()
    default = manifest.thresholds.conf
    assert (Threshold.of(manifest, None).value, Threshold.of(manifest, None).floor) == (
        default,
        0.05,
    )
    low = Threshold.of(manifest, 0.01)
    assert (low.value, low.floor, opening_conf(0.01)) == (0.01, 0.01, 0.01)
    unusual = replace(manifest, thresholds=Thresholds(conf=0.001))
    with pytest.raises(ConfigError, match="choose one with --conf"):
        Threshold.of(unusual, None)


def test_the_threshold_of_another_model_is_adopted_unless_a_viewer_has_set_one():
    threshold = Threshold(0.25, 0.05)
    threshold.adopt(Threshold(0.4, 0.3))
    assert (threshold.value, threshold.floor) == (0.4, 0.3)
    threshold.set(0.5)
    threshold.adopt(Threshold(0.25, 0.05))
    assert (threshold.value, threshold.floor) == (0.5, 0.05)
    threshold.adopt(Threshold(0.7, 0.6))
    assert threshold.value == 0.6


def test_nms_in_the_graph_limits_the_threshold():
    manifest = SimpleNamespace(
        model="m",
        thresholds=Thresholds(conf=0.25),
        outputs=[SimpleNamespace(role="detections")],
        threshold_inputs=(),
    )
    assert Threshold.of(manifest, None).floor == 0.25
    with pytest.raises(ConfigError, match="NMS is part of the graph"):
        Threshold.of(manifest, 0.1)
    manifest.threshold_inputs = ("conf",)
    assert Threshold.of(manifest, 0.1).floor == FLOOR


class Results:
    """A stream of given results, which then waits until it is closed, or ends."""

    def __init__(self, results, ends=True, names=("cam",)):
        self.results, self.ends, self.closed = list(results), ends, threading.Event()
        self.names, self.current = names, None
        self.ages = {name: Ages() for name in names}
        self.pace = {name: Pace() for name in names}

    @property
    def status(self):
        state = "closed" if self.closed.is_set() else "running"
        counts = {"frames": 9, "dropped": 4, "reconnects": 1}
        status = Status(state, "y7edge", "made", **counts, problem="x:\x1b y")
        return dict.fromkeys(self.names, status)

    def __iter__(self):
        for frame, found in self.results:
            self.current = self.names[0]
            self.ages[self.names[0]].add(7_000_000)
            self.pace[self.names[0]].add()
            yield frame, found
        if not self.ends:
            self.closed.wait(WAIT)

    def close(self):
        self.closed.set()


def _wait(condition):
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_sinks_get_filtered_and_all_detections_in_order():
    calls = []
    loop = Loop(Results(make_result(i) for i in range(3)), Threshold(0.8, 0.05))
    loop.sinks += [
        lambda name, frame, found, every: calls.append(
            (name, frame.sequence, len(found), len(every))
        ),
        lambda *_: calls.append("second"),
    ]
    loop.start()
    assert loop.wait(WAIT)
    assert calls == [
        ("cam", 0, 1, 2),
        "second",
        ("cam", 1, 1, 2),
        "second",
        ("cam", 2, 1, 2),
        "second",
    ]


def test_a_changed_threshold_applies_to_the_next_frame():
    counts, threshold = [], Threshold(0.25, 0.05)
    loop = Loop(Results(make_result(i) for i in range(2)), threshold)
    loop.sinks += [lambda *a: counts.append(len(a[2])), lambda *_: threshold.set(0.8)]
    loop.start()
    assert loop.wait(WAIT)
    assert counts == [2, 1]


def test_tracking_is_by_source():
    seen = []

    def track(name, found):
        seen.append((name, len(found)))
        return replace(found, tracker_id=np.arange(len(found)))

    got = []
    loop = Loop(Results([make_result()]), Threshold(0.8, 0.05), track)
    loop.sinks.append(lambda _, __, found, ___: got.append(found.tracker_id.tolist()))
    loop.start()
    assert loop.wait(WAIT)
    assert (seen, got) == ([("cam", 1)], [[0]])


def test_an_error_ends_the_loop_and_is_raised_once():
    def fail(*_):
        raise OutputError("the disk is full")

    loop = Loop(Results([make_result()], ends=False), Threshold(0.25, 0.05))
    loop.sinks.append(fail)
    loop.start()
    with pytest.raises(OutputError, match="the disk is full"):
        loop.wait(WAIT)
    assert loop.wait(0)


def test_stop_ends_a_stream_that_waits():
    loop = Loop(Results([make_result()], ends=False), Threshold(0.25, 0.05))
    loop.start()
    assert not loop.wait(0.05)
    assert loop.stop(WAIT)
    assert loop.wait(0)


def test_an_engine_that_hangs_does_not_keep_stop_waiting():
    release = threading.Event()
    loop = Loop(Results([make_result()]), Threshold(0.25, 0.05))
    loop.sinks.append(lambda *_: release.wait(WAIT))
    loop.start()
    assert not loop.stop(0.05)
    release.set()
    assert loop.stop(WAIT)


def test_facts_and_summary():
    loop = Loop(Results(make_result(i, boxes=4) for i in range(5)), Threshold(0.05, 0.05))
    assert loop.facts()[0]["age"] is None
    loop.sinks.append(lambda *_: time.sleep(0.01))
    loop.start()
    assert loop.wait(WAIT)
    (row,) = loop.facts()
    assert (row["name"], row["state"], row["problem"]) == ("cam", "running", "x:\\x1b y")
    assert (row["results"], row["frames"], row["dropped"], row["reconnects"]) == (5, 9, 4, 1)
    assert 0 < row["rate"] < 101
    assert row["age"]["p99_ms"] == 7.0
    assert row["objects"] == {0: 2, 1: 1, 2: 1}
    assert row["named"] == {NAMES[0]: 2, NAMES[1]: 1, NAMES[2]: 1}
    (line,) = loop.summary()
    assert line.startswith("cam: 5 of 9 frames, 4 dropped, ")
    assert "frame age 7/7/7/7 ms (p50/p95/p99/max), 1 reconnect, last fault: x:\\x1b y" in line


def test_the_rate_of_a_slow_model_and_of_one_that_hangs(monkeypatch):
    now = 100.0
    monkeypatch.setattr("y7edge.detect.ages.time", SimpleNamespace(monotonic=lambda: now))
    ticks = []

    def tick(*_):
        nonlocal now
        ticks.append((loop.facts()[0]["rate"], loop.facts()[0]["silent"]))
        now += 4

    loop = Loop(Results(make_result(i) for i in range(4)), Threshold(0.25, 0.05))
    loop.sinks.append(tick)
    loop.start()
    assert loop.wait(WAIT)
    assert ticks == [(0.0, None), *[(0.25, None)] * 3]
    row = loop.facts()[0]
    assert (row["rate"], row["silent"]) == (pytest.approx(1 / 8, abs=0.01), None)
    now += 9
    row = loop.facts()[0]
    assert row["rate"] < 0.07
    assert row["silent"] == 13


def test_the_loop_of_a_real_stream():
    white = np.full((64, 96, 3), 255, np.uint8)
    manifest = make_manifest()
    counts = []
    with (
        Detector.from_session(FakeSession(manifest), manifest, conf=0.05) as detector,
        detector.stream(iter([white] * 3)) as stream,
    ):
        loop = Loop(stream, Threshold(0.25, 0.05))
        loop.sinks.append(lambda _, __, found, ___: counts.append(len(found)))
        loop.start()
        assert loop.wait(WAIT)
    assert counts == [96, 96, 96]
