"""The adapter for supervision: arrays are shared; its annotators, zones and trackers work."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from y7edge.detect.detections import Detections
from y7edge.errors import DataError, RuntimeMissing

sv = pytest.importorskip("supervision", reason="the package supervision is not installed")

NAMES = ("nut", "washer", "schraube mit Öse")
SIZE = (200, 100)


def detections(**changes):
    return Detections(
        [(10, 10, 50, 60), (100, 20, 140, 80), (150, 5, 190, 30)],
        [0.9, 0.6, 0.4],
        [0, 2, 1],
        SIZE,
        NAMES,
        **{"timestamp_ns": 7, "frame_id": 3, "source": "camera", **changes},
    )


def test_arrays_are_shared():
    found = detections(tracker_id=[4, 5, -1])
    shared = found.to_supervision()
    for name in ("xyxy", "confidence", "class_id", "tracker_id"):
        assert np.shares_memory(getattr(shared, name), getattr(found, name)), name
    assert shared.data["class_name"].tolist() == ["nut", "schraube mit Öse", "washer"]
    assert shared.metadata == {"timestamp_ns": 7, "frame_id": 3, "source": "camera"}
    assert shared[shared.data["class_name"] == "washer"].class_id.tolist() == [1]


@pytest.mark.parametrize("changes", [{}, {"tracker_id": [1, -1, 2]}])
def test_there_and_back(changes):
    found = detections(**changes)
    back = Detections.from_supervision(found.to_supervision(), SIZE, NAMES)
    assert back.to_dict() == found.to_dict()
    assert not np.shares_memory(back.xyxy, found.xyxy)


def test_empty():
    nothing = Detections.empty(SIZE)
    shared = nothing.to_supervision()
    assert len(shared) == 0
    assert shared.data["class_name"].shape == (0,)
    assert sv.Detections.merge([shared, detections().to_supervision()]) is not None
    assert len(Detections.from_supervision(sv.Detections.empty(), SIZE)) == 0


def test_classes_without_names_are_their_ids():
    found = Detections([(1, 2, 3, 4)], [0.5], [7], SIZE)
    assert found.to_supervision().data["class_name"].tolist() == ["7"]


def test_from_supervision_sorts_and_fills_in():
    given = sv.Detections(
        xyxy=np.array([(0, 0, 1, 1), (2, 2, 3, 3)], float),
        confidence=np.array([0.3, 0.8]),
        class_id=np.array([0, 1]),
    )
    found = Detections.from_supervision(given, SIZE, NAMES)
    assert found.class_id.tolist() == [1, 0]
    assert found.xyxy.dtype == np.float32
    given.confidence = None
    assert Detections.from_supervision(given, SIZE).confidence.tolist() == [1, 1]
    given.class_id = None
    with pytest.raises(DataError, match="has no class_id: set it"):
        Detections.from_supervision(given, SIZE)


def test_annotators_draw():
    shared = detections(tracker_id=[1, 2, 3]).to_supervision()
    blank = np.zeros((100, 200, 3), np.uint8)
    for annotator in (
        sv.BoxAnnotator(),
        sv.LabelAnnotator(),
        sv.DotAnnotator(),
        sv.TraceAnnotator(),
        sv.HeatMapAnnotator(),
        sv.PercentageBarAnnotator(),
    ):
        drawn = annotator.annotate(blank.copy(), shared)
        assert drawn.any() or isinstance(annotator, sv.TraceAnnotator), annotator


def test_annotators_that_only_need_boxes_take_our_detections():
    blank = np.zeros((100, 200, 3), np.uint8)
    for annotator in (sv.BoxAnnotator, sv.BoxCornerAnnotator, sv.EllipseAnnotator):
        ours = annotator().annotate(blank.copy(), detections())
        assert np.array_equal(
            ours, annotator().annotate(blank.copy(), detections().to_supervision())
        )
        assert ours.any()


def test_zones_count():
    zone = sv.PolygonZone(np.array([(0, 0), (90, 0), (90, 99), (0, 99)]))
    assert zone.trigger(detections().to_supervision()).tolist() == [True, False, False]
    line = sv.LineZone(sv.Point(0, 50), sv.Point(199, 50))
    for top in (80, 60, 40, 20, 5):
        moving = Detections([(90, top - 4, 110, top + 4)], [0.9], [0], SIZE, tracker_id=[1])
        line.trigger(moving.to_supervision())
    assert line.in_count + line.out_count == 1


def test_trackers_of_the_package_trackers_take_it():
    trackers = pytest.importorskip("trackers", reason="the package trackers is not installed")
    tracker = trackers.SORTTracker()
    for _ in range(4):
        found = tracker.update(detections().to_supervision())
    back = Detections.from_supervision(found, SIZE, NAMES)
    assert sorted(back.tracker_id)[-1] >= 0
    assert back.source == "camera"


def test_the_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(RuntimeMissing, match=r'pip install "y7edge\[tracking\]"'):
        detections().to_supervision()
