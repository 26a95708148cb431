from __future__ import annotations

import json

import numpy as np
import pytest

from y7edge.detect.detections import Detections, Timing, class_ids
from y7edge.errors import ConfigError, DataError

NAMES = ("nut", "washer", "screw")


def three(**extra) -> Detections:
    return Detections(
        [[10, 20, 30, 60], [0, 0, 100, 50], [5, 5, 6, 7]],
        [0.9, 0.5, 0.25],
        [2, 0, 2],
        (200, 100),
        NAMES,
        **extra,
    )


def test_fields_have_the_promised_dtypes_and_shapes():
    found = three(tracker_id=[7, 8, 9])
    assert (found.xyxy.dtype, found.xyxy.shape) == (np.float32, (3, 4))
    assert (found.confidence.dtype, found.confidence.shape) == (np.float32, (3,))
    assert (found.class_id.dtype, found.class_id.shape) == (np.int32, (3,))
    assert (found.tracker_id.dtype, found.tracker_id.shape) == (np.int32, (3,))


def test_arrays_are_copied():
    xyxy = np.zeros((1, 4), np.float32)
    found = Detections(xyxy, np.ones(1, np.float32), np.zeros(1, np.int32), (8, 8))
    part = found[:1]
    xyxy[:] = 5
    found.xyxy[:] = 7
    assert part.xyxy.max() == 0


def test_rows_read_like_objects():
    row = three()[0]
    assert (row.left, row.top, row.right, row.bottom) == (10, 20, 30, 60)
    assert (row.area, row.center) == (800, (20, 40))
    assert (row.class_id, row.class_name, row.tracker_id) == (2, "screw", None)
    assert row.confidence == pytest.approx(0.9)
    assert [r.class_name for r in three()] == ["screw", "nut", "screw"]
    assert three()[-1].xyxy == (5, 5, 6, 7)


@pytest.mark.parametrize(
    ("index", "kept"),
    [
        (slice(1, None), [1, 2]),
        (np.array([True, False, True]), [0, 2]),
        ([2, 0], [2, 0]),
        ([], []),
        (np.zeros(3, bool), []),
    ],
    ids=["slice", "mask", "indices", "empty list", "empty mask"],
)
def test_selection_keeps_other_fields(index, kept):
    whole = three(
        tracker_id=[7, 8, 9],
        timestamp_ns=5,
        source="cam",
        timing=Timing(1, 2, 3, 4),
        frame_id=6,
        model_id="ab",
    )
    part = whole[index]
    np.testing.assert_array_equal(part.xyxy, whole.xyxy[kept])
    np.testing.assert_array_equal(part.tracker_id, whole.tracker_id[kept])
    kept_fields = ("timestamp_ns", "frame_id", "source", "timing", "model_id", "names", "image_wh")
    assert all(getattr(part, name) == getattr(whole, name) for name in kept_fields)
    assert (part.timestamp_ns, part.frame_id, part.model_id) == (5, 6, "ab")
    assert part.xyxy.shape == (len(kept), 4)


def test_filter_by_confidence_and_class():
    assert three().filter(0.5).confidence.tolist() == pytest.approx([0.9])  # 0.5 itself goes
    assert three().filter(classes=["screw"]).class_id.tolist() == [2, 2]
    assert three().filter(0.3, classes=[0, "screw"]).confidence.tolist() == pytest.approx(
        [0.9, 0.5]
    )
    assert len(three().filter(classes=[])) == 0
    with pytest.raises(ConfigError, match="no class 'nit'; did you mean 'nut'"):
        three().filter(classes=["nit"])
    with pytest.raises(ConfigError, match="list of names and ids, found 5"):
        three().filter(classes=5)


def test_filter_without_confidence_keeps_a_confidence_of_zero():
    found = Detections([[0, 0, 1, 1]], [0], [0], (8, 8))
    assert len(found.filter()) == len(found.filter(classes="0")) == 1
    assert len(found.filter(0)) == 0


@pytest.mark.parametrize(
    ("classes", "names", "expected"),
    [
        (["cat"], ("cat", "dog", "cat"), (0, 2)),
        ("cat", ("cat", "dog", "cat"), (0, 2)),
        (["0"], ("1", "2", "0"), (2,)),
        (["0"], ("cat", "dog"), (0,)),
        ([0], ("1", "2", "0"), (0,)),
        (["1", 1], ("1", "2", "0"), (0, 1)),
        (["07"], (*"abcdefgh",), (7,)),
        ([9, "11"], (), (9, 11)),
        ([np.int64(1)], ("cat", "dog"), (1,)),
    ],
)
def test_classes_by_name_first_and_then_by_number(classes, names, expected):
    assert class_ids(classes, names) == expected


@pytest.mark.parametrize(
    ("item", "names", "message"),
    [
        ("2", ("cat", "dog"), "no class 2; expected an id from 0 to 1"),
        ("-1", ("cat", "dog"), "no class '-1'; did you mean"),
        ("cat,dog", ("cat", "dog"), "each class on its own"),
        ("cat", (), "no class 'cat'; its class names are unknown"),
        (-1, (), "no class -1; expected an id from 0$"),
        (1.0, ("cat", "dog"), r"expected a name or an id, found 1\.0"),
        (True, ("cat", "dog"), "found True"),
    ],
)
def test_classes_that_do_not_exist(item, names, message):
    with pytest.raises(ConfigError, match=message):
        class_ids([item], names)


def test_time_and_frame_are_plain_numbers():
    found = three(timestamp_ns=np.int64(5), frame_id=np.uint8(7), source="cam")
    assert (type(found.timestamp_ns), type(found.frame_id)) == (int, int)
    record = json.loads(json.dumps(found.to_dict()))
    assert (record["timestamp_ns"], record["frame_id"], record["source"]) == (5, 7, "cam")
    for name, value in (("timestamp_ns", 1.5), ("frame_id", "7"), ("source", 0)):
        with pytest.raises(DataError, match=f"{name} is {value!r}, expected a"):
            three(**{name: value})


def test_views():
    np.testing.assert_array_equal(three().xywh[0], [10, 20, 20, 40])
    np.testing.assert_allclose(three().xyxyn[0], [0.05, 0.2, 0.15, 0.6], rtol=1e-6)
    np.testing.assert_array_equal(three().area, [800, 5000, 2])


def test_empty():
    nothing = Detections.empty((64, 48), NAMES)
    assert len(nothing) == 0
    assert list(nothing) == []
    assert nothing.xywh.shape == nothing.xyxyn.shape == nothing.xyxy.shape == (0, 4)
    assert len(Detections([], [], [], (64, 48))) == 0
    assert nothing.to_dict()["detections"] == []


def test_to_dict_is_json():
    record = json.loads(json.dumps(three(source="a.jpg", tracker_id=[1, 2, 3]).to_dict()))
    assert record["source"] == "a.jpg"
    assert record["image_size"] == [200, 100]
    assert record["detections"][0] == {
        "xyxy": [10, 20, 30, 60],
        "confidence": pytest.approx(0.9),
        "class_id": 2,
        "class_name": "screw",
        "tracker_id": 1,
    }


@pytest.mark.parametrize(
    ("xyxy", "confidence", "class_id", "size", "message"),
    [
        ([[1, 2, 3]], [1], [0], (8, 8), r"xyxy has shape \(1, 3\), expected \(N, 4\)"),
        ([[1, 2, 3, 4]], [1, 1], [0], (8, 8), r"confidence has shape \(2,\), expected \(1,\)"),
        ([[1, 2, 3, 4]], [1], [], (8, 8), r"class_id has shape \(0,\), expected \(1,\)"),
        ([[1, 2, 3, 4]], [1], [3], (8, 8), "class_id has values outside 0 to 2"),
        ([[1, 2, 3, 4]], [1], [-1], (8, 8), "class_id has values outside 0 to 2"),
        ([[1, 2, 3, 4]], [1], [0.5], (8, 8), "class_id has dtype float64, expected integers"),
        ([[1, 2, np.nan, 4]], [1], [0], (8, 8), "not finite"),
        ([[1, 2, 3, 4]], ["x"], [0], (8, 8), "confidence cannot be read as float32"),
        ([[1, 2, 3, 4]], [1], [0], (0, 8), r"image_wh is \(0, 8\)"),
    ],
)
def test_invalid_fields_are_named(xyxy, confidence, class_id, size, message):
    with pytest.raises(DataError, match=message):
        Detections(xyxy, confidence, class_id, size, NAMES)


def test_indices_that_do_not_exist():
    with pytest.raises(DataError, match="3 detections"):
        three()[np.array([True, False])]
    with pytest.raises(IndexError):
        three()[3]
