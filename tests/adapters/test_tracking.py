"""Tracking: ids on synthetic motion, with dropped frames, occlusion, restarts and crossings."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest

from y7edge.adapters.tracking import Tracker
from y7edge.detect.detections import Detections, Timing
from y7edge.errors import ConfigError, DataError, RuntimeMissing

pytest.importorskip("trackers", reason="the package trackers is not installed")

NAMES = ("nut", "washer", "screw")
SIZE = (1280, 720)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def frame(boxes, seconds=None, frame_id=None, *, classes=None, confidence=None, **changes):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    classes = np.zeros(len(boxes), int) if classes is None else classes
    confidence = np.full(len(boxes), 0.9) if confidence is None else confidence
    time = None if seconds is None else round(seconds * 1e9)
    return Detections(
        boxes,
        confidence,
        classes,
        SIZE,
        NAMES,
        timestamp_ns=time,
        frame_id=frame_id,
        **changes,
    )


def box(x, y, side=60):
    return x - side / 2, y - side / 2, x + side / 2, y + side / 2


class World:
    """Objects on straight lines, detected with noise."""

    def __init__(self, seed, count=6, speed=120.0):
        self.random = np.random.default_rng(seed)
        self.start = self.random.uniform((100, 100), (1100, 600), (count, 2))
        self.velocity = self.random.normal(0, speed, (count, 2))
        self.side = self.random.uniform(40, 90, (count, 1))
        self.count = count

    def at(self, seconds, frame_id=None, *, timed=True):
        """The detections at a time in a random order, and which object each is."""
        centre = self.start + self.velocity * seconds
        boxes = np.hstack([centre - self.side / 2, centre + self.side / 2])
        boxes += self.random.normal(0, 1, boxes.shape)
        order = self.random.permutation(self.count)
        confidence = np.clip(self.random.normal(0.75, 0.12, self.count), 0.26, 1)[order]
        time = seconds if timed else None
        return frame(boxes[order], time, frame_id, confidence=confidence), order


def ids_of(world, tracker, times, **options):
    """The ids that each object had, as sets, and the fraction of boxes without an id."""
    ids, untracked, boxes = [set() for _ in range(world.count)], 0, 0
    for frame_id, seconds in times:
        found, order = world.at(seconds, frame_id, **options)
        for which, number in zip(order, tracker.update(found).tracker_id, strict=True):
            boxes += 1
            untracked += number < 0
            ids[which] |= {int(number)} - {-1}
    return ids, untracked / boxes


@pytest.mark.parametrize("rate", [10, 30])
@pytest.mark.parametrize("drops", [0.0, 0.5])
@pytest.mark.parametrize("timed", [True, False])
def test_ids_are_stable_across_dropped_frames(rate, drops, timed):
    # Without timestamps, the time is frame_id / rate.
    for seed in range(3):
        random = np.random.default_rng(seed)
        times, run = [], 0
        for index in range(6 * rate):
            run = run + 1 if random.random() < drops and run < rate / 2 else 0
            if not run:
                times.append((index, index / rate))
        ids, untracked = ids_of(World(seed), Tracker(rate), times, timed=timed)
        assert all(len(one) == 1 for one in ids), ids
        assert len(set.union(*ids)) == len(ids)
        assert untracked < 0.05


def test_with_timestamps_the_rate_does_not_matter():
    results = []
    for rate in (None, 5, 120):
        random, world, tracker = np.random.default_rng(1), World(3, speed=400.0), Tracker(rate)
        times = [index / 30 for index in range(120) if random.random() < 0.5]
        results.append([tracker.update(world.at(time)[0]).tracker_id.tolist() for time in times])
    assert results[0] == results[1] == results[2]
    assert {number for ids in results[0] for number in ids} == {-1, *range(1, 7)}


def test_irregular_rates():
    random = np.random.default_rng(0)
    times = np.cumsum(random.choice([0.02, 0.05, 0.15, 0.4], 60))
    ids, _ = ids_of(World(4), Tracker(), [(None, second) for second in times])
    assert all(len(one) == 1 for one in ids)


def test_order_and_content_are_unchanged():
    tracker, world = Tracker(), World(1)
    for index in range(4):
        found, _ = world.at(index / 30, index)
        found = replace(found, source="a", timing=Timing(infer=2.0), model_id="ab")
        tracked = tracker.update(found)
        assert replace(tracked, tracker_id=None).to_dict() == found.to_dict()
        assert found.tracker_id is None
        assert tracked.tracker_id.dtype == np.int32
    assert sorted(tracked.tracker_id) == [1, 2, 3, 4, 5, 6]
    assert tracked[0].tracker_id == tracked.tracker_id[0]


def test_order_of_the_input_does_not_change_ids():
    for seed in range(3):
        results = []
        for shuffle in (False, True):
            world, tracker = World(seed, count=12, speed=300.0), Tracker()
            random, ids = np.random.default_rng(seed), []
            for index in range(25):
                found, _ = world.at(index / 15, index)
                order = random.permutation(len(found)) if shuffle else np.arange(len(found))
                tracked = tracker.update(found[order])
                ids.append(tracked.tracker_id[np.argsort(order)].tolist())
            results.append(ids)
        assert results[0] == results[1]


def test_an_occluded_object_keeps_its_id_for_as_long_as_lost():
    for gap, kept in ((0.8, True), (1.3, False)):
        tracker = Tracker(lost=1.0)
        seconds = [*np.arange(0, 1, 0.1), *(np.arange(0, 1, 0.1) + 0.9 + gap)]
        ids = []
        for second in np.arange(0, seconds[-1] + 0.05, 0.1):
            seen = np.min(np.abs(np.array(seconds) - second)) < 0.05
            # The other object is always there, so that only one track is lost.
            boxes = [box(1000, 600), *([box(100 + 100 * second, 200)] if seen else [])]
            ids.append(tracker.update(frame(boxes, second)).tracker_id[1:].tolist())
        known = {number for pair in ids for number in pair} - {-1}
        assert (len(known) == 1) == kept, (gap, ids)


@pytest.mark.parametrize(("rate", "id_"), [(None, -1), (0.5, 1)])
def test_a_camera_that_is_slower_than_a_track_is_long(rate, id_):
    tracker = Tracker(rate)
    for k in range(4):
        found = tracker.update(frame([box(100 + k, 100)], 2 * k))
    assert found.tracker_id.tolist() == [id_]


def test_crossing_objects_of_equal_speed_keep_their_ids():
    tracker, seen = Tracker(), []
    for index in range(60):
        second = index / 30
        boxes = [box(100 + 400 * second, 300), box(900 - 400 * second, 330)]
        seen.append(tuple(tracker.update(frame(boxes, second)).tracker_id))
    assert set(seen) == {(-1, -1), (1, 2)}
    assert len(seen) - seen.index((1, 2)) == seen.count((1, 2)) == 59


@pytest.mark.parametrize(
    ("shift", "confidence", "same"), [(8, 0.3, True), (35, 0.3, False), (35, 0.9, True)]
)
def test_weak_detections_have_to_be_where_the_object_is_expected(shift, confidence, same):
    tracker = Tracker()
    for index in range(4):
        (known,) = tracker.update(frame([box(300, 300)], index / 30)).tracker_id
    seen = frame([box(300 + shift, 300)], 4 / 30, confidence=[confidence])
    (found,) = tracker.update(seen).tracker_id
    assert (int(found) == int(known)) is same


def test_weak_detections_only_continue_tracks():
    tracker = Tracker(start=0.5)
    for index, confidence in enumerate((0.3, 0.4, 0.8, 0.8, 0.3, 0.3)):
        tracked = tracker.update(frame([box(300, 300)], index / 30, confidence=[confidence]))
        assert tracked.tracker_id.tolist() == ([1] if index > 2 else [-1])


def test_classes_have_their_own_tracks_unless_agnostic():
    flipping = [0, 0, 1, 1, 0, 0]
    found = {}
    for agnostic in (False, True):
        tracker = Tracker(agnostic=agnostic)
        found[agnostic] = [
            int(tracker.update(frame([box(300, 300)], i / 30, classes=[kind])).tracker_id[0])
            for i, kind in enumerate(flipping)
        ]
    assert found == {False: [-1, 1, -1, 2, 1, 1], True: [-1, 1, 1, 1, 1, 1]}


def test_a_frame_that_is_older_ends_all_tracks_and_ids_are_not_used_again():
    tracker = Tracker()
    seen = [
        int(tracker.update(frame([box(300, 300)], second, index)).tracker_id[0])
        for index, second in [(0, 5.0), (1, 5.1), (2, 5.2), (0, 0.0), (1, 0.1)]
    ]
    assert seen == [-1, 1, 1, -1, 2]
    tracker.reset()
    seen = [int(tracker.update(frame([box(300, 300)], s)).tracker_id[0]) for s in (0.2, 0.3)]
    assert seen == [-1, 3]


def test_frames_restart_without_timestamps():
    tracker = Tracker(10)
    seen = [
        int(tracker.update(frame([box(300, 300)], None, index)).tracker_id[0])
        for index in (7, 8, 9, 0, 1, 30, 31)
    ]
    assert seen == [-1, 1, 1, -1, 2, -1, 3]  # 30 is 2.9 seconds after 1


def test_a_newer_frame_with_a_slightly_older_time_is_no_restart():
    tracker = Tracker()
    times = [(0, 1.0), (1, 1.033), (2, 1.031), (3, 1.031), (4, 1.1)]
    seen = [tracker.update(frame([box(300, 300)], s, i)).tracker_id.tolist() for i, s in times]
    assert seen == [[-1], [1], [1], [1], [1]]


def test_without_any_time_each_call_is_a_frame():
    tracker = Tracker(10, lost=0.5)
    steps = [[box(100, 100)], [box(105, 100)], *[[]] * 4, [box(130, 100)], *[[]] * 6]
    seen = [tracker.update(frame(boxes)).tracker_id.tolist() for boxes in steps]
    assert [ids for ids in seen if ids] == [[-1], [1], [1]]
    assert tracker.update(frame([box(165, 100)])).tracker_id.tolist() == [-1]


def test_images_of_a_folder_are_frames():
    tracker = Tracker(10)
    seen = [
        tracker.update(frame([box(100 + 20 * k, 100)], None, 0, source=f"{k}.jpg")).tracker_id[0]
        for k in range(8)
    ]
    assert seen == [-1, *[1] * 7]
    assert tracker._now == pytest.approx(0.7, abs=1e-3)


def test_memory_is_bounded_by_the_objects_of_the_last_seconds():
    tracker, random = Tracker(), np.random.default_rng(0)
    for index in range(400):  # new objects of all classes all the time
        centres = random.uniform(50, 650, (4, 2)) + 1e4 * (index // 3)
        boxes = np.hstack([centres - 20, centres + 20])
        tracker.update(frame(boxes, index / 10, classes=random.integers(0, 3, 4)))
    tracks = sum(len(one.tracks) for one in tracker._tracks.values())
    assert tracks <= 4 * 12
    assert len(tracker._ids) <= tracks
    for index in range(400, 420):
        tracker.update(frame([], index / 10))
    assert not tracker._tracks
    assert not tracker._ids


def test_trackers_are_independent():
    seen = []
    for tracker in (Tracker(), Tracker()):
        tracker.update(frame([box(300, 300)], 0))
        seen.append(tracker.update(frame([box(300, 300)], 0.1)).tracker_id.tolist())
    assert seen == [[1], [1]]


def test_mixed_sources_are_refused():
    tracker = Tracker()
    tracker.update(frame([box(300, 300)], 0, source="a"))
    tracker.update(frame([box(300, 300)], 1, source="b"))  # images of a folder
    with pytest.raises(DataError, match="frames of b and a are mixed"):
        tracker.update(frame([box(300, 300)], 2, source="a"))


def test_boxes_of_any_shape():
    tracker = Tracker()
    boxes = [(5, 5, 5, 5), (9, 9, 3, 3), (-1e6, 0, 1e6, 1e6), (0, 0, 0, 700)]
    for index in range(5):
        assert len(tracker.update(frame(boxes, index / 5))) == 4
    shrinking = [box(300, 300, 200 - 60 * index) for index in range(4)]
    for index, one in enumerate(shrinking):
        tracker.update(frame([one], 2 + index / 10))
    assert len(tracker.update(frame(shrinking[3:], 3.2))) == 1


@pytest.mark.parametrize(
    "values",
    [{"rate": 0}, {"rate": "30"}, {"lost": -1}, {"start": 1.5}, {"iou": float("nan")}],
)
def test_values_out_of_range(values):
    with pytest.raises(ConfigError, match=f"{next(iter(values))} is .*, expected a number from"):
        Tracker(**values)


def test_the_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(RuntimeMissing, match=r'pip install "y7edge\[tracking\]"'):
        Tracker()


def test_tracks_end_if_the_classes_have_other_names():
    """As after ``Detector.swap``: class 0 is another object then."""
    tracker = Tracker()
    found = [tracker.update(frame([box(100, 100)], i / 30, i)) for i in range(4)]
    assert found[-1].tracker_id.tolist() == [1]
    others = [
        replace(frame([box(100, 100)], i / 30, i), names=("bolt", "gear", "cap"))
        for i in range(4, 8)
    ]
    ids = [tracker.update(one).tracker_id.tolist()[0] for one in others]
    assert ids[-1] == 2
    assert 1 not in ids
