"""NMS in the graph gives what the numpy code gives, to the bit."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tests.detect.ops_cases import arrays, table
from y7edge.artifact.manifest import LevelInfo, Thresholds
from y7edge.detect.postprocess import Criteria, Postprocessor
from y7edge.export.graph import suppress
from y7edge.export.graph.decode import Decoded
from y7edge.export.graph.nodes import NodeWriter

LEVELS = [LevelInfo(8, ((16.0, 16.0),))]
DEFAULTS = Thresholds(conf=0.3, iou=0.5, max_det=10)


@cache
def session(count, nc):
    """The NMS of ``count`` candidates as a graph of its own."""
    writer = NodeWriter()
    thresholds = suppress.write_thresholds(writer, DEFAULTS)
    result = suppress.write_detections(writer, Decoded("boxes", "scores"), count, nc, "/nms")
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", count, last])
        for name, last in (("boxes", 4), ("scores", nc))
    ]
    graph = helper.make_graph(
        writer.nodes, "nms", [*inputs, *thresholds], [result], writer.initializers
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, ir_version=8, opset_imports=opsets)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def run(boxes, scores, **thresholds):
    feeds = {name: np.array(value) for name, value in thresholds.items()}
    feeds = {n: v if n == "max_det" else v.astype(np.float32) for n, v in feeds.items()}
    engine = session(boxes.shape[1], scores.shape[2])
    return engine.run(None, {"boxes": boxes, "scores": scores, **feeds})[0]


def by_numpy(boxes, scores, **thresholds):
    post = Postprocessor(LEVELS, scores.shape[2])
    found = post.decoded(boxes, scores, Criteria(**thresholds))
    rows = [
        np.column_stack([np.full(len(b.score), image), b.xyxy, b.class_id, b.score])
        for image, b in enumerate(found)
    ]
    return np.concatenate(rows).astype(np.float32)


def tied(seed, batch=2, count=400, nc=3):
    """Candidates on a lattice, with few distinct scores: equal scores, overlaps and classes."""
    rng = np.random.default_rng(seed)
    boxes = rng.integers(1, 12, (batch, count, 4)).astype(np.float32) * 8
    scores = rng.integers(0, 9, (batch, count, nc)).astype(np.float32) / 8
    return boxes, scores


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("conf", [0, 0.25, 0.5, 0.9, 1])
@pytest.mark.parametrize("iou", [0, 1 / 3, 0.45, 0.5, 1])
def test_exact_ties_are_decided_as_in_numpy(seed, conf, iou):
    boxes, scores = tied(seed)
    for max_det in (1, 7, 300, 30_000):
        thresholds = {"conf": conf, "iou": iou, "max_det": max_det}
        expected = by_numpy(boxes, scores, **thresholds)
        np.testing.assert_array_equal(run(boxes, scores, **thresholds), expected)
        assert len(expected) or conf == 1
    assert (scores.max(axis=2) == conf).any() or conf in (0, 0.9)


OTHERS = ("agnostic", "multi_label", "classes")  # options that the graph does not have
GOLDEN = [case for case in table()["nms"]["cases"] if not any(map(case.get, OTHERS))]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_golden_cases(case):
    prediction, nc = arrays()[f"nms/{case['name']}/prediction"], case["nc"]
    scores = prediction[..., 4:5] * prediction[..., 5:] if nc > 1 else prediction[..., 4:5]
    rows = run(
        prediction[..., :4],
        scores,
        conf=case["conf_thres"],
        iou=case["iou_thres"],
        max_det=case.get("max_det", 300),
    )
    for image, kept in enumerate(case["kept"]):
        own = rows[rows[:, 0] == image]
        assert len(own) == kept
        expected = arrays()[f"nms/{case['name']}/out{image}"]  # x0, y0, x1, y1, score, class
        np.testing.assert_allclose(own[:, [1, 2, 3, 4, 6, 5]], expected, atol=1e-5)


def test_thresholds_may_be_left_out():
    boxes, scores = tied(5)
    defaults = {"conf": 0.3, "iou": 0.5, "max_det": 10}
    expected = by_numpy(boxes, scores, **defaults)
    np.testing.assert_array_equal(run(boxes, scores), expected)
    assert len(expected) == 20
    found = run(boxes, scores, iou=0.1)
    np.testing.assert_array_equal(found, by_numpy(boxes, scores, **{**defaults, "iou": 0.1}))


def test_nothing_found_is_an_empty_result():
    boxes, scores = tied(0)
    for batch in (1, 2):
        rows = run(boxes[:batch], scores[:batch] * 0)
        assert (rows.shape, rows.dtype) == ((0, 7), np.float32)
    scores[1] = 0
    assert set(run(boxes, scores)[:, 0]) == {0}


def test_boxes_of_different_classes_do_not_suppress_each_other_in_large_images():
    """A shift of 4096 pixels by class would make these two boxes one."""
    boxes = np.array([[[5000, 100, 50, 50], [904, 4196, 50, 50]]], np.float32)
    scores = np.array([[[0.9, 0], [0, 0.8]]], np.float32)
    assert run(boxes, scores)[:, 6].tolist() == pytest.approx([0.9, 0.8])


@pytest.mark.parametrize("place", ["box", "scores"])
def test_nan_is_never_selected(place):
    boxes, scores = tied(1, batch=1)
    if place == "box":
        boxes[0, ::3, 2] = np.nan
    else:
        scores[0, ::3] = np.nan
    thresholds = {"conf": 0.3, "iou": 0.5, "max_det": 10}
    found = run(boxes, scores, **thresholds)
    np.testing.assert_array_equal(found, by_numpy(boxes, scores, **thresholds))
    assert len(found) == 10


def test_only_the_best_candidates_are_compared(monkeypatch):
    monkeypatch.setattr(suppress, "MAX_CANDIDATES", 50)
    session.cache_clear()
    boxes, scores = tied(2, batch=1)
    order = np.random.default_rng(0).permutation(scores.size)
    scores = (order.reshape(scores.shape) / scores.size).astype(np.float32)
    rows = run(boxes, scores, conf=0, iou=1, max_det=1000)
    session.cache_clear()
    best = np.sort(scores.max(axis=2)[0])[::-1][:50]
    np.testing.assert_array_equal(rows[:, 6], best)
