"""Average precision and recall against COCO's own program."""

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.evaluation.random_tables import random_tables
from y7edge.evaluation.average_precision import COUNTS, SIZES, averages
from y7edge.evaluation.tables import Tables

CASES = {
    "usual": {},
    "one-class": {"classes": 1},
    "classes-without-labels": {"unlabelled": (1, 3)},
    "crowded": {"images": 2, "labels": 8, "found": 700},
    "mostly-empty": {"images": 40, "labels": 30},
    "one-box": {"found": 1},
    "with-crowds": {"labels": 90, "crowds": 0.3},
}


def by_pycocotools(truth, found, images, classes):
    """Precision (10, 101, classes, sizes) and recall (10, classes, sizes, counts)."""
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
                "bbox": row[2:6].tolist(),
                "area": row[4] * row[5],
                "iscrowd": int(row[6]),
            }
            for number, row in enumerate(truth)
        ],
    }
    reference.createIndex()
    evaluator = COCOeval(reference, reference.loadRes(found), "bbox")
    assert evaluator.params.areaRngLbl == list(SIZES)  # their own areas, not ours
    evaluator.params.maxDets = list(COUNTS)
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval["precision"][..., -1], evaluator.eval["recall"]


@pytest.mark.parametrize(("seed", "options"), list(enumerate(CASES.values())), ids=list(CASES))
def test_agrees_with_pycocotools(seed, options, capsys):
    truth, found = random_tables(seed, **options)
    images, classes = options.get("images", 12), options.get("classes", 4)
    ours = averages(Tables(truth, found, images), classes)
    precision, recall = by_pycocotools(truth, found, images, classes)
    capsys.readouterr()
    assert ours.precision == pytest.approx(precision, abs=1e-6)
    assert ours.recall == pytest.approx(recall, abs=1e-6)
    for index, size in enumerate(SIZES):
        for theirs, mine in (
            (precision[..., index], ours.mean_precision(size)),
            (recall[:, :, index, 3], ours.mean_recall(300, size)),
        ):
            known = theirs[theirs > -1]
            assert mine == (pytest.approx(known.mean(), abs=1e-6) if known.size else None)
    for index, count in enumerate(COUNTS):
        known = recall[:, :, 0, index]
        assert ours.mean_recall(count) == pytest.approx(known[known > -1].mean(), abs=1e-6)


def test_no_detections_score_as_one_false_detection():
    # The evaluator needs a non-empty list: use a false detection of another class.
    truth, _ = random_tables(3, unlabelled=(3,), labels=5)
    nowhere = np.array([[0, 9000, 9000, 1, 1, 0.5, 3]], float)
    ours = averages(Tables(truth, nowhere[:0], 12), 4)
    theirs = averages(Tables(truth, nowhere, 12), 4)
    assert (ours.precision == theirs.precision).all()
    assert (ours.recall == theirs.recall).all()
