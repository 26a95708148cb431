"""COCO results: the entries, and the ids of images and categories."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from y7edge.data.formats.coco_names import COCO_IDS
from y7edge.data.sample import Sample
from y7edge.detect.detections import Detections
from y7edge.errors import ConfigError
from y7edge.evaluation.coco_results import coco_results, write_submission

FOUND = np.array([[1, 10.12345, 20, 30.5, 40, 0.1234567, 2], [0, 1, 2, 3, 4, 0.5, 79]])


def samples(*names):
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
    return [Sample(Path(name), *nothing) for name in names]


def test_numeric_file_names_are_image_ids(tmp_path):
    images = samples("a/000000397133.jpg", "b/37777.png")
    (path,) = write_submission(FOUND, images, tmp_path / "predictions.json", classes=80)
    assert json.loads(path.read_text()) == [
        {"image_id": 37777, "category_id": 2, "bbox": [10.123, 20, 30.5, 40], "score": 0.12346},
        {"image_id": 397133, "category_id": 79, "bbox": [1, 2, 3, 4], "score": 0.5},
    ]


@pytest.mark.parametrize(
    "names",
    [("7.jpg", "car.jpg"), ("7.jpg", "x/7.png"), ("7.jpg", "007.png"), ("²5.jpg", "2.jpg")],
    ids=["a-word", "twice", "twice-with-zeros", "no-ascii-digit"],
)
def test_other_images_are_numbered_and_listed(tmp_path, names):
    path, listed = write_submission(
        FOUND, samples(*names), tmp_path / "predictions.json", classes=80
    )
    assert [row["image_id"] for row in json.loads(path.read_text())] == [2, 1]
    assert json.loads(listed.read_text()) == {names[0]: 1, names[1]: 2}
    assert listed.name == "image_ids.json"


def test_category_ids_of_coco_on_request(tmp_path):
    images = samples("1.jpg", "2.jpg")
    path = tmp_path / "predictions.json"
    write_submission(FOUND, images, path, classes=80, coco_ids=True)
    assert [row["category_id"] for row in json.loads(path.read_text())] == [3, 90]
    with pytest.raises(ConfigError, match="for its 80 classes, this data set has 3"):
        write_submission(FOUND, images, path, classes=3, coco_ids=True)


def test_coco_data_set_keeps_its_annotation_ids(tmp_path):
    images = [
        replace(s, image_id=i) for s, i in zip(samples("1.jpg", "b.jpg"), (70, "x"), strict=True)
    ]
    ids = [*range(100, 102), None, *range(103, 180)]  # class 2 is not in this file
    path = tmp_path / "predictions.json"
    assert write_submission(FOUND, images, path, classes=80, category_ids=ids) == [path]
    rows = json.loads(path.read_text())
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(70, 179)]


def test_category_ids_are_the_published_ones():
    ranges = ((1, 11), (13, 25), (27, 28), (31, 44), (46, 65), (67, 67), (70, 70), (72, 82))
    assert tuple(n for a, b in (*ranges, (84, 90)) for n in range(a, b + 1)) == COCO_IDS


def test_results_of_one_image_equal_those_of_a_data_set(tmp_path):
    found = Detections(
        FOUND[:, 1:5] + np.pad(FOUND[:, 1:3], [(0, 0), (2, 0)]),
        FOUND[:, 5],
        [2, 79],
        (640, 480),
    )
    rows = coco_results(found, 7, COCO_IDS)
    assert [row["category_id"] for row in rows] == [3, 90]
    (path,) = write_submission(
        np.column_stack([[0, 0], FOUND[:, 1:]]),
        samples("7.jpg"),
        tmp_path / "predictions.json",
        classes=80,
        coco_ids=True,
    )
    written = json.loads(path.read_text())
    assert [row | {"bbox": None, "score": None} for row in rows] == [
        row | {"bbox": None, "score": None} for row in written
    ]
    for row, other in zip(rows, written, strict=True):
        assert row["bbox"] == pytest.approx(other["bbox"], abs=2e-3)
        assert row["score"] == pytest.approx(other["score"], abs=1e-5)
    assert json.loads(json.dumps(rows)) == rows


def test_results_of_one_image_need_an_id_for_each_class():
    found = Detections([(0, 0, 1, 1), (0, 0, 2, 2)], [0.5, 0.4], [2, 0], (9, 9))
    assert [row["category_id"] for row in coco_results(found, 1)] == [2, 0]
    assert [row["category_id"] for row in coco_results(found, "a", [None, 5, 6])] == [6]
    with pytest.raises(ConfigError, match="have class 2, but category_ids has 2 ids"):
        coco_results(found, 1, [1, 2])
    assert coco_results(Detections.empty((9, 9)), 1, [1]) == []
