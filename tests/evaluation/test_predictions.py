"""Labels beside predictions."""

import cv2
import numpy as np
import pytest

from y7edge.data.sample import Sample
from y7edge.detect.detections import Detections
from y7edge.evaluation import predictions
from y7edge.evaluation.predictions import beside, labels, write_predictions


def grey(folder, *sizes):
    """Samples of grey images (height, width) with one box each."""
    samples = []
    for index, (height, width) in enumerate(sizes):
        path = folder / f"{index}.png"
        cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))
        box = np.array([[0.5, 0.5, 0.5, 0.5]], np.float32)
        samples.append(Sample(path, box, np.zeros(1, np.int32)))
    return samples


def nothing(image):
    return Detections.empty((image.shape[1], image.shape[0]))


def test_labels_are_left_and_detections_right(tmp_path):
    (sample,) = grey(tmp_path, (100, 200))
    image = np.full((100, 200, 3), 90, np.uint8)
    made = beside(image, labels(sample, image, ("a",)), nothing(image)).astype(int)
    assert made.shape == (26 + 240, 2 * 480 + 6, 3)  # enlarged for the letters, under a heading
    colourful = np.ptp(made[26:], axis=2) > 40
    assert colourful[:, :480].any()
    assert not colourful[:, 480:].any()
    # The box: its left side at a quarter of the width, its middle empty.
    assert colourful[120, 119:123].any()
    assert not colourful[120, 200:280].any()


def test_images_are_spread_over_the_split(tmp_path, monkeypatch):
    samples = grey(tmp_path, *[(30 + index, 40) for index in range(9)])
    seen = []

    def detect(image):
        seen.append(image.shape[0] - 30)
        return nothing(image)

    monkeypatch.setattr(predictions, "COUNT", 3)
    paths = write_predictions(detect, samples, ("a",), tmp_path / "out")
    assert seen == [0, 4, 8]
    assert [path.name for path in paths] == ["000.jpg", "001.jpg", "002.jpg"]
    assert all(cv2.imread(str(path)) is not None for path in paths)


@pytest.mark.parametrize("size", [(1, 20000), (20000, 1)])
def test_extreme_aspect_ratios_use_little_memory(tmp_path, size):
    (path,) = write_predictions(nothing, grey(tmp_path, size), ("a",), tmp_path / "out")
    assert max(cv2.imread(str(path)).shape) <= 2 * 960 + 6
