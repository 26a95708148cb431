import sys

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from y7edge.data.dataset import Sample
from y7edge.detections import Detections
from y7edge.errors import ConfigError, DataError, RuntimeMissing
from y7edge.evaluate import evaluate, score


def random_boxes(rng, count):
    return np.hstack((rng.uniform(0, 300, (count, 2)), rng.uniform(5, 150, (count, 2))))


def random_tables(seed, images=12, classes=4, labels=60, found=400, unlabelled=()):
    """Labels, and detections that are partly the labels shaken a little, partly noise."""
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, labels)
    used = [index for index in range(classes) if index not in unlabelled]
    truth = np.column_stack((rng.integers(images, size=labels), rng.choice(used, labels), boxes))
    near = rng.integers(labels, size=found)
    shaken = truth[near, 2:] + rng.normal(0, 6, (found, 4))
    noise = rng.random(found) < 0.3
    shaken[noise] = random_boxes(rng, int(noise.sum()))
    shaken[:, 2:] = np.maximum(shaken[:, 2:], 1)
    class_id = np.where(rng.random(found) < 0.1, rng.integers(classes, size=found), truth[near, 1])
    return truth, np.column_stack((truth[near, 0], shaken, rng.random(found), class_id))


def judged_by_pycocotools(truth, found, images, classes, capsys):
    """Average precision (10 thresholds, classes), and -1 where a class has no labels."""
    reference = COCO()
    reference.dataset = {
        "info": {},
        "images": [{"id": index} for index in range(images)],
        "categories": [{"id": index} for index in range(classes)],
        "annotations": [
            {
                "id": number + 1,
                "image_id": int(row[0]),
                "category_id": int(row[1]),
                "bbox": row[2:].tolist(),
                "area": row[4] * row[5],
                "iscrowd": 0,
            }
            for number, row in enumerate(truth)
        ],
    }
    reference.createIndex()
    judge = COCOeval(reference, reference.loadRes(found), "bbox")
    judge.params.maxDets = [1, 10, 300]
    judge.evaluate()
    judge.accumulate()
    capsys.readouterr()
    return judge.eval["precision"][:, :, :, 0, 2].mean(axis=1)


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (0, {}),
        (1, {"classes": 1}),
        (2, {"unlabelled": (1, 3)}),
        (3, {"images": 2, "labels": 8, "found": 700}),
        (4, {"images": 40, "labels": 30}),
        (5, {"found": 1}),
    ],
    ids=["usual", "one-class", "classes-without-labels", "crowded", "mostly-empty", "one-box"],
)
def test_agrees_with_pycocotools(seed, options, capsys):
    truth, found = random_tables(seed, **options)
    images, classes = options.get("images", 12), options.get("classes", 4)
    metrics = score(truth, found, images, [str(index) for index in range(classes)])
    expected = judged_by_pycocotools(truth, found, images, classes, capsys)
    labelled = expected[0] >= 0
    assert metrics.map50 == pytest.approx(expected[0, labelled].mean(), abs=1e-6)
    assert metrics.map75 == pytest.approx(expected[5, labelled].mean(), abs=1e-6)
    assert metrics.map50_95 == pytest.approx(expected[:, labelled].mean(), abs=1e-6)
    for index, item in enumerate(metrics.per_class):
        if labelled[index]:
            assert item.ap50 == pytest.approx(expected[0, index], abs=1e-6)
            assert item.ap50_95 == pytest.approx(expected[:, index].mean(), abs=1e-6)
        else:
            assert item.ap50 is None
            assert item.ap50_95 is None
            assert item.labels == 0


def test_counts_more_than_coco_s_hundred_boxes():
    # 150 objects in one picture, all found: with 100 boxes a picture recall would end at 2/3.
    corners = np.array([(x * 20.0, y * 20.0) for x in range(15) for y in range(10)])
    boxes = np.hstack((corners, np.full((150, 2), 10.0)))
    truth = np.hstack((np.zeros((150, 2)), boxes))
    confidence = np.linspace(0.9, 0.1, 150)
    found = np.column_stack((np.zeros(150), boxes, confidence, np.zeros(150)))
    assert score(truth, found, 1, ["dot"]).map50_95 == pytest.approx(1.0)


def test_nothing_found_scores_zero():
    truth, _ = random_tables(0)
    metrics = score(truth, np.empty((0, 7)), 12, ["a", "b", "c", "d"])
    assert (metrics.map50, metrics.map50_95) == (0.0, 0.0)


def test_no_labels_is_an_error():
    with pytest.raises(
        DataError, match="expected labels to compare with, found none in 3 pictures"
    ):
        score(np.empty((0, 6)), np.empty((0, 7)), 3, ["a"])


@pytest.fixture
def samples(tmp_path):
    """Two pictures that are not square, so that a swap of width and height shows."""
    made = []
    for index, (height, width) in enumerate(((40, 100), (80, 30))):
        path = tmp_path / f"{index}.png"
        cv2.imwrite(str(path), np.full((height, width, 3), index, np.uint8))
        boxes = np.array([[0.5, 0.5, 0.4, 0.2], [0.2, 0.3, 0.1, 0.1]], np.float32)
        made.append(Sample(path, boxes, np.array([0, 1], np.int32)))
    return made


def test_boxes_are_compared_in_pixels_of_the_picture(samples):
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


def test_refuses_a_detector_of_more_classes(samples):
    def predict(image):
        box = np.array([[0, 0, 5, 5]], np.float32)
        size = (image.shape[1], image.shape[0])
        return Detections(box, np.array([0.5]), np.array([7]), size)

    with pytest.raises(ConfigError, match="gave class 7, but the data set has 2 classes"):
        evaluate(predict, samples, ["a", "b"])


def test_says_how_to_install_the_judge(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    truth, found = random_tables(0)
    with pytest.raises(RuntimeMissing, match=r'pip install "y7edge\[eval\]"'):
        score(truth, found, 12, ["a", "b", "c", "d"])
