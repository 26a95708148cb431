"""The sheet of labels beside predictions."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from y7edge.data.dataset import Sample
from y7edge.train.pictures import labels, write_predictions


def sheet(folder, *sizes):
    """The sheet of grey pictures with one box each, and a detector that repeats the label."""
    samples = []
    for index, (height, width) in enumerate(sizes):
        path = folder / f"{index}.png"
        cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))
        box = np.array([[0.5, 0.5, 0.5, 0.5]], np.float32)
        samples.append(Sample(path, box, np.zeros(1, np.int32)))

    def detector(model):
        return lambda image: labels(samples[0], image, ("a",))

    validation = SimpleNamespace(samples=tuple(samples), names=("a",), detector=detector)
    write_predictions(validation, None, folder / "sheet.jpg")
    return cv2.imread(str(folder / "sheet.jpg"))


def test_labels_stand_beside_predictions(tmp_path):
    made = sheet(tmp_path, (100, 200), (200, 100)).astype(int)
    assert made.shape == (28 + 2 * 320, 2 * 640, 3)
    assert abs(made[28:348, :640] - made[28:348, 640:]).max() < 40


@pytest.mark.parametrize("size", [(1, 20000), (20000, 1)])
def test_a_strip_does_not_fill_the_memory(tmp_path, size):
    assert sheet(tmp_path, size, (100, 100)).shape[1] <= 2 * 960
