import json
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest

from tests.evaluation.random_tables import random_tables
from y7edge.data.dataset import Sample
from y7edge.detect.detections import Detections
from y7edge.errors import ConfigError, DataError, RuntimeMissing
from y7edge.evaluation.evaluate import Metrics, evaluate, metrics_of
from y7edge.evaluation.tables import Tables


def score(truth, found, images, names) -> Metrics:
    return metrics_of(Tables(truth, found, images), names)


def test_up_to_300_boxes_count():
    # 150 objects in one image, all found: with 100 boxes an image recall would end at 2/3.
    corners = np.array([(x * 20.0, y * 20.0) for x in range(15) for y in range(10)])
    boxes = np.hstack((corners, np.full((150, 2), 10.0)))
    truth = np.hstack((np.zeros((150, 2)), boxes, np.zeros((150, 1))))
    confidence = np.linspace(0.9, 0.1, 150)
    found = np.column_stack((np.zeros(150), boxes, confidence, np.zeros(150)))
    assert score(truth, found, 1, ["dot"]).map50_95 == pytest.approx(1.0)


def test_nothing_found_scores_zero():
    truth, _ = random_tables(0)
    metrics = score(truth, np.empty((0, 7)), 12, ["a", "b", "c", "d"])
    assert (metrics.map50, metrics.map50_95, metrics.map_large, metrics.ar1) == (0.0,) * 4
    assert metrics.conf is None
    assert metrics.f1 is None
    assert metrics.confusion.matrix[:-1, -1].sum() == metrics.labels


def test_the_matrix_has_the_threshold_of_the_tables():
    truth, found = random_tables(3)
    metrics = score(truth, found, 12, ["a", "b", "c", "d"])
    assert metrics.conf is not None and metrics.conf != 0.25
    expected = np.bincount(found[found[:, 5] > metrics.conf, 6].astype(int), minlength=4)
    assert (metrics.confusion.matrix[:, :4].sum(axis=0) == expected).all()
    assert metrics.to_dict()["confusion"]["conf"] == metrics.conf


def test_no_labels_is_an_error():
    with pytest.raises(DataError, match="expected labels to compare with, found none in 3 images"):
        score(np.empty((0, 7)), np.empty((0, 7)), 3, ["a"])


@pytest.fixture
def samples(tmp_path):
    """Two images that are not square, so that a swap of width and height shows."""
    made = []
    for index, (height, width) in enumerate(((40, 100), (80, 30))):
        path = tmp_path / f"{index}.png"
        cv2.imwrite(str(path), np.full((height, width, 3), index, np.uint8))
        boxes = np.array([[0.5, 0.5, 0.4, 0.2], [0.2, 0.3, 0.1, 0.1]], np.float32)
        made.append(Sample(path, boxes, np.array([0, 1], np.int32)))
    return made


def test_boxes_are_compared_in_image_pixels(samples):
    expected = {
        0: [[30, 16, 70, 24], [15, 10, 25, 14]],
        1: [[9, 32, 21, 48], [4.5, 20, 7.5, 28]],
    }

    def predict(image):
        xyxy = np.array(expected[int(image[0, 0, 0])], np.float32)
        size = (image.shape[1], image.shape[0])
        return Detections(xyxy, np.array([0.9, 0.8]), np.array([0, 1]), size)

    seen = []
    metrics = evaluate(predict, samples, ["a", "b"], lambda done, of: seen.append((done, of)))
    assert metrics.map50_95 == pytest.approx(1.0)
    assert (metrics.images, metrics.labels) == (2, 4)
    assert metrics.to_dict()["per_class"][1] == {
        "name": "b",
        "ap50": pytest.approx(1.0),
        "ap50_95": pytest.approx(1.0),
        "labels": 2,
        "precision": pytest.approx(1.0),
        "recall": pytest.approx(1.0),
        "f1": pytest.approx(1.0),
    }
    assert seen == [(1, 2), (2, 2)]
    # Objects of at most 21 pixels: nothing medium or large to find, which is not a score of 0.
    assert (metrics.map_small, metrics.ar_small) == (pytest.approx(1.0), pytest.approx(1.0))
    assert (metrics.map_medium, metrics.map_large, metrics.ar_large) == (None, None, None)


def test_crowd_regions_are_ignored(samples):
    crowd = np.array([[1, 0.75, 0.75, 0.5, 0.5]], np.float32)
    samples = [replace(samples[0], crowd=crowd)]

    def predict(image):
        # Both objects, and three of class 1 inside the crowd region, more confident than they.
        boxes = [[30, 16, 70, 24], [15, 10, 25, 14], *([x, 25, x + 8, 35] for x in (55, 65, 80))]
        class_id = np.array([0, 1, 1, 1, 1])
        confidence = np.array([0.8, 0.7, 0.9, 0.9, 0.9])
        return Detections(np.array(boxes, np.float32), confidence, class_id, (100, 40))

    metrics = evaluate(predict, samples, ["a", "b"])
    assert metrics.labels == 2
    assert (metrics.map50_95, metrics.f1) == (pytest.approx(1.0), 1.0)
    assert metrics.confusion.matrix.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_json_has_all_but_the_curves():
    truth, found = random_tables(0)
    record = score(truth, found, 12, ["a", "b", "c", "d"]).to_dict()
    assert {"map50", "map50_95", "per_class", "ar300", "map_small", "conf", "f1"} <= set(record)
    assert "curves" not in record
    assert (record["confusion"]["rows"], record["confusion"]["columns"]) == ("truth", "prediction")
    assert record["confusion"]["labels"] == ["a", "b", "c", "d", "background"]
    assert json.loads(json.dumps(record)) == record | {"per_class": list(record["per_class"])}


def test_precision_and_recall_are_at_the_best_threshold():
    truth, found = random_tables(6)
    metrics = score(truth, found, 12, ["a", "b", "c", "d"])
    kept = score(truth, found[found[:, 5] > metrics.conf], 12, ["a", "b", "c", "d"])
    curves = kept.curves
    assert [c.f1 for c in metrics.per_class] == pytest.approx(curves.f1[:, 0])
    assert [c.precision for c in metrics.per_class] == pytest.approx(curves.precision[:, 0])
    assert metrics.recall == pytest.approx(curves.recall[:, 0].mean())


def test_refuses_a_detector_of_more_classes(samples):
    def predict(image):
        box = np.array([[0, 0, 5, 5]], np.float32)
        size = (image.shape[1], image.shape[0])
        return Detections(box, np.array([0.5]), np.array([7]), size)

    with pytest.raises(ConfigError, match="class 7, the data set has 2 classes"):
        evaluate(predict, samples, ["a", "b"])


def test_missing_evaluator_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    truth, found = random_tables(0)
    with pytest.raises(RuntimeMissing, match=r'pip install "y7edge\[eval\]"'):
        score(truth, found, 12, ["a", "b", "c", "d"])
