"""Curves and the best threshold against plain loops."""

import numpy as np
import pytest

from tests.evaluation.random_tables import random_tables
from y7edge.evaluation.average_precision import averages
from y7edge.evaluation.curves import THRESHOLDS, Curves, curves, verdicts
from y7edge.evaluation.tables import Tables


def iou(a, b):
    """Of two boxes left, top, width, height."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def right_ones(truth, found):
    """Match detections as COCO does, in plain loops."""
    right, taken = set(), set()
    for index in sorted(range(len(found)), key=lambda i: -found[i, 5]):
        image, *box, _, class_id = found[index]
        best, best_iou = None, 0.5
        for other, (its_image, its_class, *its_box, _) in enumerate(truth):
            overlap = iou(box, its_box)
            same = (image, class_id) == (its_image, its_class)
            if same and other not in taken and overlap >= best_iou:
                best, best_iou = other, overlap
        if best is not None:
            taken.add(best)
            right.add(index)
    return right


def made(truth, found, images=12, classes=4):
    tables = Tables(truth, found, images)
    return curves(tables, classes, averages(tables, classes).precision[0, :, :, 0])


@pytest.mark.parametrize("seed", range(3))
def test_verdicts_equal_plain_loops(seed):
    truth, found = random_tables(seed, images=4)
    verdict = verdicts(Tables(truth, found, 4))
    assert set(np.flatnonzero(verdict == 1)) == right_ones(truth, found)
    assert set(np.unique(verdict)) == {0, 1}


@pytest.mark.parametrize("threshold", [0, 137, 500, 998])
def test_curves_equal_counts_above_the_threshold(threshold):
    truth, found = random_tables(1, unlabelled=(2,))
    right = right_ones(truth, found)
    drawn = made(truth, found)
    for class_id in (0, 1, 3):
        own = [i for i in range(len(found)) if found[i, 6] == class_id]
        kept = [i for i in own if found[i, 5] > THRESHOLDS[threshold]]
        hits, labels = len(right & set(kept)), int((truth[:, 1] == class_id).sum())
        assert drawn.recall[class_id, threshold] == hits / labels
        assert drawn.f1[class_id, threshold] == 2 * hits / (len(kept) + labels)
        precision = drawn.precision[class_id, threshold]
        assert precision == hits / len(kept) if kept else np.isnan(precision)
    assert np.isnan([drawn.precision[2], drawn.recall[2], drawn.f1[2]]).all()


def test_best_threshold_has_the_highest_mean_f1():
    truth, found = random_tables(2, unlabelled=(2,))
    drawn = made(truth, found)
    mean = drawn.f1[[0, 1, 3]].mean(axis=0)
    assert mean[drawn.best] == mean.max() > 0


def f1_of(values):
    f1 = np.zeros((1, 1000))
    f1[0, : len(values)] = values
    return Curves(f1, f1, f1, np.zeros((1, 101))).best


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([0.5, 0.8, 0.6], 1),
        ([0.5, 0.8, 0.8, 0.8, 0.6], 2),  # the middle of the plateau
        ([0.5, 0.8, 0.6, 0.8, 0.8, 0.8], 1),
        ([1.0] * 1000, 499),
        ([], None),
    ],
    ids=["peak", "plateau", "first-of-two", "all-equal", "nothing-right"],
)
def test_best_threshold_is_the_middle_of_a_plateau(values, best):
    assert f1_of(values) == best


def test_area_under_precision_over_recall_is_the_average_precision():
    truth, found = random_tables(4)
    tables = Tables(truth, found, 12)
    precision = averages(tables, 4).precision[0, :, :, 0]
    assert curves(tables, 4, precision).by_recall.mean(axis=1) == pytest.approx(
        precision.mean(axis=0)
    )


def test_detections_in_a_crowd_are_ignored():
    truth = np.array([[0, 0, 0, 0, 10, 10, 0], [0, 0, 20, 0, 40, 40, 1]], float)
    found = np.array(
        [
            [0, 0, 0, 10, 10, 0.9, 0],  # right
            [0, 25, 5, 10, 10, 0.8, 0],  # inside the crowd
            [0, 12, 5, 12, 10, 0.7, 0],  # a third of it inside
            [0, 25, 5, 10, 10, 0.6, 1],  # inside, but of another class
        ]
    )
    assert verdicts(Tables(truth, found, 1)).tolist() == [1, -1, 0, 0]
