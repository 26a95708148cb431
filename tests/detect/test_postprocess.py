from __future__ import annotations

import time

import numpy as np
import pytest

from tests.detect.ops_cases import arrays, table
from y7edge.artifact.manifest import LevelInfo
from y7edge.detect import postprocess
from y7edge.detect.postprocess import EVALUATION, Criteria, Postprocessor
from y7edge.errors import ConfigError, DataError

ANCHORS = ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0))
LEVELS = [LevelInfo(8, ANCHORS), LevelInfo(16, ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)))]
NC = 4
EVERYTHING = Criteria(conf=0, iou=1, max_det=100_000, multi_label=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def random_heads(seed=0, nc=NC, spread=2.0, batch=1, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = [(batch, 3 * (5 + nc), 12, 16), (batch, 3 * (5 + nc), 6, 8)]
    return [rng.normal(0, spread, shape).astype(dtype) for shape in shapes]


def decode(heads, nc):
    """Boxes (N, 4) cx, cy, w, h, objectness (N,), classes (N, nc), by the formula."""
    rows = []
    for head, level in zip(heads, LEVELS, strict=True):
        fields = head.reshape(3, 5 + nc, *head.shape[1:])
        for a, y, x in np.ndindex(3, *head.shape[1:]):
            s = sigmoid(fields[a, :, y, x])
            centre = [(2 * s[0] - 0.5 + x) * level.stride, (2 * s[1] - 0.5 + y) * level.stride]
            size = (2 * s[2:4]) ** 2 * level.anchors[a]
            rows.append([*centre, *size, *s[4:]])
    table = np.array(rows)
    return table[:, :4], table[:, 4], table[:, 5:]


def corners(boxes):
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)


@pytest.mark.parametrize("case", table()["decode"], ids=lambda case: case["name"])
def test_decoding_equals_the_published_one(case):
    head = arrays()[f"decode/{case['name']}/conv_out_nchw"]
    expected = arrays()[f"decode/{case['name']}/decoded"][0]
    anchors = tuple(zip(case["anchors_px"][::2], case["anchors_px"][1::2], strict=True))
    post = Postprocessor([LevelInfo(int(case["stride"]), anchors)], case["nc"])
    found = post.candidates([head[0]], EVERYTHING)
    boxes = np.repeat(corners(expected[:, :4]), case["nc"], axis=0)
    np.testing.assert_allclose(found.xyxy, boxes, rtol=1e-5, atol=1e-4)
    scores = expected[:, 4:5] * expected[:, 5:]
    np.testing.assert_allclose(found.score, scores.reshape(-1), atol=1e-6)


@pytest.mark.parametrize("case", table()["nms"]["cases"], ids=lambda case: case["name"])
def test_suppression_equals_the_published_one(case):
    prediction, nc = arrays()[f"nms/{case['name']}/prediction"], case["nc"]
    criteria = Criteria(
        conf=case["conf_thres"],
        iou=case["iou_thres"],
        classes=tuple(case["classes"]) if "classes" in case else None,
        agnostic=case.get("agnostic", False),
        multi_label=case.get("multi_label", False),
    )
    scores = prediction[..., 4:5] * prediction[..., 5:] if nc > 1 else prediction[..., 4:5]
    found = Postprocessor(LEVELS, nc).decoded(prediction[..., :4], scores, criteria)
    assert [len(boxes.score) for boxes in found] == case["kept"]
    for image, boxes in enumerate(found):
        rows = np.column_stack([*boxes])
        np.testing.assert_allclose(rows, arrays()[f"nms/{case['name']}/out{image}"], atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("conf", [0.0, 0.001, 0.25, 0.9, 0.9999999, 1.0])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("nc", [1, NC])
def test_candidates_are_exactly_those_of_the_formula(dtype, conf, multi_label, nc):
    heads = [head[0] for head in random_heads(nc=nc, spread=4, dtype=dtype)]
    boxes, objectness, classes = decode(heads, nc)
    scores = objectness[:, None] * classes if nc > 1 else objectness[:, None]
    if multi_label or nc == 1:
        row, kind = np.nonzero(scores > conf)
    else:
        row = np.flatnonzero(scores.max(axis=1) > conf)
        kind = scores[row].argmax(axis=1)
    found = Postprocessor(LEVELS, nc).candidates(heads, Criteria(conf, multi_label=multi_label))
    np.testing.assert_array_equal(found.class_id, kind)
    np.testing.assert_allclose(found.score, scores[row, kind], rtol=1e-5)
    np.testing.assert_allclose(found.xyxy, corners(boxes[row]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("conf", [1e-9, 0.001, 0.25, 0.26, 0.408, 0.457, 0.5, 0.999, 1 - 1e-7])
def test_threshold_applies_to_probabilities(conf):
    # All float32 logits around the threshold: those that round to it must not pass.
    middle = np.float32(np.log(conf / (1 - conf)))
    steps = np.arange(-200, 200, dtype=np.int32)
    logits = (np.full(400, middle).view(np.int32) + steps).view(np.float32)
    head = np.zeros((3 * 6, 1, 400), np.float32)
    head[:] = -50
    head[4, 0] = logits
    found = Postprocessor(LEVELS[:1], 1).candidates([head], Criteria(conf))
    with np.errstate(over="ignore"):
        probability = np.float32(1) / (np.float32(1) + np.exp(-logits))
    np.testing.assert_array_equal(found.score, probability[probability > np.float32(conf)])


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_score_equal_to_conf_is_not_enough(multi_label):
    head = np.full((3 * (5 + NC), 1, 1), -50, np.float32)
    head[4], head[6] = 50, 0  # objectness 1, class probability 0.5
    post = Postprocessor(LEVELS[:1], NC)
    assert len(post.candidates([head], Criteria(0.5, multi_label=multi_label)).score) == 0
    assert len(post.candidates([head], Criteria(0.4999999, multi_label=multi_label)).score) == 1


def test_decoded_outputs_give_what_heads_give():
    heads = random_heads(batch=2)
    boxes, scores = [], []
    for image in range(2):
        box, objectness, classes = decode([head[image] for head in heads], NC)
        boxes.append(box)
        scores.append(objectness[:, None] * classes)
    post = Postprocessor(LEVELS, NC)
    for criteria in (Criteria(), EVALUATION, Criteria(classes=(1, 3)), Criteria(agnostic=True)):
        raw = post.heads(heads, criteria)
        decoded = post.decoded(np.array(boxes, np.float32), np.array(scores, np.float32), criteria)
        for a, b in zip(raw, decoded, strict=True):
            np.testing.assert_array_equal(a.class_id, b.class_id)
            np.testing.assert_allclose(a.score, b.score, rtol=1e-5)
            np.testing.assert_allclose(a.xyxy, b.xyxy, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("nc", [1, NC])
def test_sigmoid_heads_give_what_their_logits_give(dtype, nc):
    logits = [head.clip(-6, 6) for head in random_heads(nc=nc, spread=3)]
    heads = [sigmoid(head).astype(dtype) for head in logits]
    back = [np.log(h / (1 - h)).astype(np.float32) for h in map(np.float64, heads)]
    for criteria in (Criteria(), EVALUATION, Criteria(conf=0), Criteria(conf=0.9)):
        (found,) = Postprocessor(LEVELS, nc, "sigmoid").heads(heads, criteria)
        (expected,) = Postprocessor(LEVELS, nc).heads(back, criteria)
        assert len(found.score) > 0
        np.testing.assert_array_equal(found.class_id, expected.class_id)
        np.testing.assert_allclose(found.score, expected.score, rtol=1e-5)
        np.testing.assert_allclose(found.xyxy, expected.xyxy, rtol=1e-4, atol=1e-3)


def test_another_activation_is_refused():
    with pytest.raises(ConfigError, match='activation is \'relu\', expected "logit" or "sigmoid"'):
        Postprocessor(LEVELS, NC, "relu")


def test_channels_last_heads_give_what_channels_first_give():
    heads = random_heads(batch=2)
    last = [np.ascontiguousarray(head.transpose(0, 2, 3, 1)) for head in heads]
    post = Postprocessor(LEVELS, NC, layout="NHWC")
    for criteria in (Criteria(), EVALUATION):
        expected = Postprocessor(LEVELS, NC).heads(heads, criteria)
        for a, b in zip(post.heads(last, criteria), expected, strict=True):
            for one, other in zip(a, b, strict=True):
                np.testing.assert_array_equal(one, other, strict=True)
    with pytest.raises(DataError, match=r"head0 is \(2, 16, 27, 12\), expected"):
        post.heads(heads, Criteria())
    with pytest.raises(ConfigError, match="layout of the heads is 'NC4HW4'"):
        Postprocessor(LEVELS, NC, layout="NC4HW4")


@pytest.mark.parametrize("activation", ["logit", "sigmoid"])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("conf", [0.0, 1e-6, 0.001, 0.25, 0.5, 0.9, 0.999999, 1.0])
@pytest.mark.parametrize(
    ("dtype", "zero_point"), [("int8", -128), ("int8", 7), ("uint8", 0), ("int16", -5)]
)
def test_integer_heads_give_exactly_what_their_real_values_give(
    activation, multi_label, conf, dtype, zero_point
):
    limits = np.iinfo(dtype)
    low, high = (-9.0, 9.0) if activation == "logit" else (0.0, 1.0)
    scale = (high - low) / (limits.max - limits.min)
    rng = np.random.default_rng(0)
    heads = [rng.integers(limits.min, limits.max + 1, h.shape, dtype) for h in random_heads()]
    quantization = (scale, zero_point)
    real = [(h.astype(np.float32) - np.float32(zero_point)) * np.float32(scale) for h in heads]
    criteria = Criteria(conf, multi_label=multi_label)
    (found,) = Postprocessor(LEVELS, NC, activation, [quantization] * 2).heads(heads, criteria)
    (expected,) = Postprocessor(LEVELS, NC, activation).heads(real, criteria)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def test_integer_heads_are_thresholded_before_they_are_dequantised(monkeypatch):
    seen = []
    real = postprocess._dequantised

    def spy(values, quantization):
        seen.append(values.shape)
        return real(values, quantization)

    monkeypatch.setattr(postprocess, "_dequantised", spy)
    head = np.full((1, 3 * (5 + NC), 12, 16), -100, np.int8)
    head[0, 4, 3, 3] = 100
    Postprocessor(LEVELS[:1], NC, quantization=[(0.05, 0)]).heads([head], Criteria())
    assert seen == [(5 + NC, 1)]


def test_one_step_of_an_integer_decides():
    post = Postprocessor(LEVELS[:1], 1, "sigmoid", [(1 / 256, 0)])
    head = np.zeros((1, 3 * 6, 1, 3), np.uint8)
    head[0, 4] = 63, 64, 65  # 64 / 256 is conf itself
    assert post.heads([head], Criteria(0.25, iou=1))[0].score.tolist() == [65 / 256]


def test_images_of_a_batch_are_independent():
    heads, post = random_heads(batch=3), Postprocessor(LEVELS, NC)
    together = post.heads(heads, Criteria())
    for image, boxes in enumerate(together):
        (alone,) = post.heads([head[image : image + 1] for head in heads], Criteria())
        for a, b in zip(boxes, alone, strict=True):
            np.testing.assert_array_equal(a, b)


def test_one_class_models_score_by_objectness_alone():
    head = np.full((1, 3 * 6, 1, 1), -20, np.float32)
    head[0, 4] = 2.0  # objectness of the first anchor; its class logit says no
    (found,) = Postprocessor(LEVELS[:1], 1).heads([head], Criteria())
    assert found.score.tolist() == pytest.approx([sigmoid(np.array(2.0))])


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("field", ["x", "objectness", "class", "everything"])
def test_nan_is_never_selected(field, multi_label):
    head = np.full((1, 3 * (5 + NC), 4, 4), 3, np.float32)
    place = {"x": slice(0, 1), "objectness": slice(4, 5), "class": slice(6, 7)}
    head[0, place.get(field, slice(None)), 1, 1] = np.nan
    criteria = Criteria(iou=1.0, multi_label=multi_label)
    (found,) = Postprocessor(LEVELS[:1], NC).heads([head], criteria)
    assert np.isfinite(found.xyxy).all()
    assert np.isfinite(found.score).all()
    cells = {"class": 48, "everything": 45}.get(field, 47)
    missing = field == "class" and multi_label  # that class of that cell only
    assert len(found.score) == (cells * NC - missing if multi_label else cells)


def test_nan_in_decoded_outputs_is_never_selected():
    boxes = np.tile(np.array([50, 50, 10, 10], np.float32), (1, 4, 1))
    scores = np.full((1, 4, NC), 0.5, np.float32)
    boxes[0, 0, 2] = np.nan
    scores[0, 1, 2] = np.nan
    scores[0, 2] = np.nan
    (found,) = Postprocessor(LEVELS, NC).decoded(boxes, scores, Criteria(iou=1.0))
    assert found.score.tolist() == [0.5, 0.5]
    assert np.isfinite(found.xyxy).all()


@pytest.mark.parametrize("spread", [0.0, 100.0])
def test_extreme_logits_give_no_warning(spread, recwarn):
    post = Postprocessor(LEVELS, NC)
    post.heads(random_heads(spread=spread), Criteria())
    post.heads([np.full_like(head, -np.inf) for head in random_heads()], Criteria(conf=0))
    assert not recwarn.list


@pytest.mark.parametrize("criteria", [Criteria(), EVALUATION, Criteria(conf=0)])
@pytest.mark.parametrize("level", [-20.0, 0.0, 20.0])
def test_time_has_a_bound_when_nothing_or_everything_passes(criteria, level):
    rng = np.random.default_rng(0)
    heads = [rng.normal(level, 1, (1, 3 * 85, side, side)).astype(np.float32) for side in (80, 40)]
    post = Postprocessor(LEVELS, 80)
    started = time.thread_time()
    (found,) = post.heads(heads, criteria)
    assert time.thread_time() - started < 2
    assert len(found.score) <= 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conf": 1.1}, r"conf is 1\.1, expected a number from 0 to 1"),
        ({"conf": float("nan")}, "conf: expected a finite number, found nan"),
        ({"conf": "0.5"}, "conf: .*found '0.5'"),
        ({"iou": -0.1}, r"iou is -0\.1"),
        ({"iou": True}, "iou: .*found True"),
        ({"max_det": 0}, "max_det is 0, expected 1 to 100000"),
        ({"max_det": 10**12}, "max_det is 1000000000000, expected 1 to 100000"),
        ({"max_det": 2.5}, r"max_det: expected a whole number, found 2\.5"),
    ],
)
def test_criteria_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        Criteria(**options)


def test_outputs_of_another_shape():
    post, heads = Postprocessor(LEVELS, NC), random_heads()
    with pytest.raises(DataError, match="1 heads, expected 2"):
        post.heads(heads[:1], Criteria())
    with pytest.raises(DataError, match=r"head1 is \(1, 18, 6, 8\), expected \(B, 27, H, W\)"):
        post.heads([heads[0], heads[1][:, :18]], Criteria())
    with pytest.raises(DataError, match="head0 is int8"):
        post.heads([head.astype(np.int8) for head in heads], Criteria())
    with pytest.raises(DataError, match="head0 is float32, expected integers"):
        Postprocessor(LEVELS, NC, quantization=[(0.1, 0)] * 2).heads(heads, Criteria())
    with pytest.raises(DataError, match=r"scores \(1, 9, 3\), expected"):
        post.decoded(np.zeros((1, 9, 4)), np.zeros((1, 9, 3)), Criteria())


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 63, 1003])
@pytest.mark.parametrize("density", [0, 0.01, 0.5, 1])
def test_indices_of_true_values(length, density):
    values = np.random.default_rng(length).random(length) < density
    np.testing.assert_array_equal(postprocess._indices(values), values.nonzero()[0])


@pytest.mark.parametrize("count", [2, 80, 300])
def test_best_of_columns_equals_argmax(count):
    rng = np.random.default_rng(count)
    values = rng.integers(-3, 3, (count, 500)).astype(np.float32)  # with ties
    values[:, 0], values[:, 1] = -np.inf, np.inf
    row, largest = postprocess._best_of_columns(values)
    np.testing.assert_array_equal(row, values.argmax(axis=0))
    np.testing.assert_array_equal(largest, values.max(axis=0))
    values[rng.integers(0, count, 40), rng.integers(0, 500, 40)] = np.nan
    row, largest = postprocess._best_of_columns(values)
    np.testing.assert_array_equal(row, np.nan_to_num(values, nan=-np.inf).argmax(axis=0))
    np.testing.assert_array_equal(largest, np.nanmax(values, axis=0))
