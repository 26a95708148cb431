"""The confusion matrix against plain loops, and its orientation."""

import numpy as np
import pytest

from tests.evaluation.random_tables import random_tables
from y7edge.evaluation.confusion import confusion
from y7edge.evaluation.tables import Tables


def iou(a, b):
    """Of two boxes left, top, width, height."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def counted(truth, found, classes):
    """Compute the matrix in plain loops: match the best remaining pair repeatedly."""
    matrix = np.zeros((classes + 1, classes + 1), int)
    left_truth = set(range(len(truth)))
    left_found = {i for i in range(len(found)) if found[i, 5] > 0.25}
    while True:
        pairs = [
            (iou(truth[t, 2:6], found[f, 1:5]), found[f, 5], t, f)
            for t in left_truth
            for f in left_found
            if truth[t, 0] == found[f, 0]
        ]
        best = max(pairs, default=(0,))
        if best[0] <= 0.45:
            break
        _, _, t, f = best
        matrix[int(truth[t, 1]), int(found[f, 6])] += 1
        left_truth.remove(t)
        left_found.remove(f)
    for t in left_truth:
        matrix[int(truth[t, 1]), classes] += 1
    for f in left_found:
        matrix[classes, int(found[f, 6])] += 1
    return matrix


@pytest.mark.parametrize("seed", range(3))
def test_matrix_equals_plain_loops(seed):
    truth, found = random_tables(seed, images=3, labels=20, found=90)
    names = ["a", "b", "c", "d"]
    assert (confusion(Tables(truth, found, 3), names).matrix == counted(truth, found, 4)).all()


def one_box(*rows):
    """Detections x, confidence, class of 10 x 10 pixels in the first image."""
    return np.array([[0, x, 0, 10, 10, conf, c] for x, conf, c in rows], float).reshape(-1, 7)


TRUTH = np.array([[0, 0, 0, 0, 10, 10, 0]], float)  # one object of class a


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([(0, 0.9, 1)], {("a", "b"): 1}),  # row a: truth; column b: prediction
        ([], {("a", "background"): 1}),
        ([(50, 0.9, 1)], {("a", "background"): 1, ("background", "b"): 1}),
        ([(0, 0.25, 0)], {("a", "background"): 1}),  # not above the threshold
        ([(1, 0.9, 1), (0, 0.3, 0)], {("a", "a"): 1, ("background", "b"): 1}),  # overlap first
        ([(0, 0.3, 1), (0, 0.9, 0)], {("a", "a"): 1, ("background", "b"): 1}),  # then confidence
    ],
    ids=["mistaken", "missed", "made-up", "at-the-threshold", "closest-wins", "equal-overlaps"],
)
def test_rows_are_the_truth_and_columns_the_prediction(found, expected):
    made = confusion(Tables(TRUTH, one_box(*found), 1), ["a", "b"])
    labels = made.labels
    assert labels == ("a", "b", "background")
    cells = {(labels[r], labels[c]): int(n) for (r, c), n in np.ndenumerate(made.matrix) if n}
    assert cells == expected


def test_row_sums_are_object_counts():
    truth, found = random_tables(5)
    matrix = confusion(Tables(truth, found, 12), list("abcd")).matrix
    assert (matrix[:4].sum(axis=1) == np.bincount(truth[:, 1].astype(int), minlength=4)).all()
    kept = found[found[:, 5] > 0.25, 6].astype(int)
    assert (matrix[:, :4].sum(axis=0) == np.bincount(kept, minlength=4)).all()
    assert matrix[4, 4] == 0
