from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from y7edge import boxes as module
from y7edge.boxes import best_first, centred, corners, intersections, nms


def greedy(boxes, scores, classes, iou, max_det):
    """The definition, box by box."""
    kept = []
    iou = np.float32(iou)  # before NumPy 2, a float32 is compared with a float in float64
    for index in np.argsort(-scores, kind="stable"):
        if all(
            classes[index] != classes[other] or not overlap(boxes[index], boxes[other]) > iou
            for other in kept
        ):
            kept.append(int(index))
    return kept[:max_det]


def overlap(a, b):
    sides = np.maximum(0, np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]))
    inter = sides[0] * sides[1]
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    with np.errstate(invalid="ignore"):
        return inter / (areas - inter)


def scene(seed, count, classes, *, grid=None):
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(0, 200, (count, 2)), rng.uniform(0, 80, (count, 2))
    boxes = np.concatenate([corner, corner + side], axis=1).astype(np.float32)
    scores = rng.random(count, dtype=np.float32)
    if grid:  # many equal boxes, equal scores and empty boxes
        boxes, scores = np.round(boxes / grid) * np.float32(grid), np.round(scores, 1)
    return boxes, scores, rng.integers(0, classes, count).astype(np.int32)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 120),
    classes=st.integers(1, 5),
    grid=st.sampled_from([None, 16, 64]),
    iou=st.sampled_from([0.0, 0.1, 0.45, 0.65, 0.95, 1.0]),
    max_det=st.sampled_from([1, 7, 300]),
    block=st.sampled_from([4, 1024]),
)
def test_equals_the_definition(seed, count, classes, grid, iou, max_det, block):
    given_boxes = scene(seed, count, classes, grid=grid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        found = nms(*given_boxes, iou, max_det)
    assert found.tolist() == greedy(*given_boxes, iou, max_det)


def test_agnostic_compares_all_classes():
    boxes, scores, classes = scene(1, 80, 4)
    found = nms(boxes, scores, classes, 0.3, 300, agnostic=True)
    assert found.tolist() == greedy(boxes, scores, np.zeros_like(classes), 0.3, 300)


def test_iou_equal_to_the_threshold_stays():
    boxes = np.array([[0, 0, 2, 2], [0, 0, 2, 1]], np.float32)  # IoU 0.5 exactly
    scores, classes = np.array([0.9, 0.8], np.float32), np.zeros(2, np.int32)
    assert nms(boxes, scores, classes, 0.5, 300).tolist() == [0, 1]
    assert nms(boxes, scores, classes, 0.499, 300).tolist() == [0]


@pytest.mark.parametrize("iou", [0.0, 0.1, 0.45, 0.65, 0.9])
def test_partners_at_the_greatest_distance_are_found(iou):
    # The right part of a box has an IoU with the whole of just its own share.
    lefts = np.linspace(0, 100, 401)[:-1]
    for left in lefts:
        boxes = np.array([[0, 0, 100, 10], [left, 0, 100, 10]], np.float32)
        scores, classes = np.array([0.9, 0.8], np.float32), np.zeros(2, np.int32)
        expected = [0] if overlap(*boxes) > np.float32(iou) else [0, 1]
        assert nms(boxes, scores, classes, iou, 300).tolist() == expected, left


def test_classes_never_meet_however_large_a_box_is():
    boxes = np.array([[0, 0, 1e30, 1]] * 3, np.float32)
    scores, classes = np.array([0.9, 0.8, 0.7], np.float32), np.array([0, 1, 1], np.int32)
    assert nms(boxes, scores, classes, 0.0, 300).tolist() == [0, 1]


@pytest.mark.parametrize("far", [5000.0, 1e6, 1e30])
def test_classes_never_meet_however_far_a_box_lies(far):
    # Class x 4096 added to coordinates would lay the first two on one another.
    boxes = np.array([[far, 0, far + 10, 10], [far - 4096, 0, far - 4086, 10]], np.float32)
    boxes = np.concatenate([boxes, boxes[:1]])
    scores, classes = np.array([0.9, 0.8, 0.7], np.float32), np.array([0, 1, 2], np.int32)
    assert nms(boxes, scores, classes, 0.45, 300).tolist() == [0, 1, 2]


def test_equal_scores_keep_their_order():
    boxes = np.array([[i * 20, 0, i * 20 + 10, 10] for i in range(50)], np.float32)
    ones, zeros = np.ones(50, np.float32), np.zeros(50, np.int32)
    assert nms(boxes, ones, zeros, 0.45, 300).tolist() == list(range(50))


def test_best_first_is_the_stable_sort_cut_off():
    scores = np.round(np.random.default_rng(0).random(5000, dtype=np.float32), 2)
    expected = np.argsort(-scores, kind="stable")
    np.testing.assert_array_equal(best_first(scores, 777), expected[:777])
    np.testing.assert_array_equal(best_first(scores, 5000), expected)


@pytest.mark.parametrize("kind", ["scattered", "one class", "all equal", "far apart", "chain"])
def test_time_has_a_bound_when_everything_passes(kind):
    rng, count = np.random.default_rng(0), 40_000
    corner = rng.uniform(0, 640, (count, 2)) * (100 if kind == "far apart" else 1)
    boxes = np.concatenate([corner, corner + rng.uniform(5, 100, (count, 2))], axis=1)
    if kind == "all equal":
        boxes[:] = boxes[0]
    if kind == "chain":
        left = np.arange(count) * 2.0
        boxes = np.stack([left, left * 0, left + 10, left * 0 + 10], axis=1)
    classes = rng.integers(0, 80 if kind == "scattered" else 1, count).astype(np.int32)
    scores = np.linspace(1, 0, count, dtype=np.float32)
    started = time.thread_time()
    kept = nms(boxes.astype(np.float32), scores, classes, 0.45, 300)
    # 30000 x 30000 IoUs would take several seconds, and 3.6 GB; this takes some 10 ms.
    assert time.thread_time() - started < 0.5
    assert len(kept) == (1 if kind == "all equal" else 300)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_corners_and_centres_are_inverse(dtype):
    boxes = np.array([[5, 10, 2, 4], [0, 0, 0, 0], [-3, 1, 1, 8]], dtype)
    found = corners(boxes[:, :2], boxes[:, 2:])
    assert found.tolist() == [[4, 8, 6, 12], [0, 0, 0, 0], [-3.5, -3, -2.5, 5]]
    np.testing.assert_array_equal(centred(found), boxes, strict=True)
    assert corners(boxes[:0, :2], boxes[:0, 2:]).shape == centred(boxes[:0]).shape == (0, 4)


def test_intersections_are_areas():
    first = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float64)
    second = np.array([[5, 5, 15, 15], [10, 0, 20, 10], [22, 21, 25, 40]], np.float64)
    assert intersections(first, second).tolist() == [[25, 0, 0], [0, 0, 27]]
    assert intersections(first, second[:0]).shape == (2, 0)
