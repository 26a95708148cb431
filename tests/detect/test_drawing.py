from __future__ import annotations

import numpy as np
import pytest

from y7edge.detect.detections import Detections
from y7edge.detect.drawing import class_colour, draw
from y7edge.errors import ConfigError, DataError

NAMES = ("nut", "washer", "Unterlegscheibe mit Öse")
GREY = np.full((120, 160, 3), 100, np.uint8)


def found(*boxes, class_id=None, size=(160, 120)) -> Detections:
    count = len(boxes)
    return Detections(boxes, np.linspace(0.9, 0.3, count), class_id or [0] * count, size, NAMES)


def test_boxes_are_drawn_on_a_copy():
    image = GREY.copy()
    drawn = draw(image, found([40, 50, 100, 90], class_id=[1]))
    np.testing.assert_array_equal(image, GREY)
    assert drawn.shape == GREY.shape
    for x, y in ((40, 70), (100, 70), (70, 90)):
        assert tuple(drawn[y, x]) == class_colour(1)
    assert (drawn[60:85, 50:90] == 100).all()  # nothing inside
    assert (drawn[100:] == 100).all()


def test_a_frame_in_rgb_gives_the_same_image_in_rgb():
    image = np.random.default_rng(0).integers(0, 256, GREY.shape, dtype=np.uint8)
    boxes = found([40, 50, 100, 90], [10, 60, 30, 90], class_id=[1, 2])
    expected = draw(image, boxes)[..., ::-1]
    np.testing.assert_array_equal(draw(image[..., ::-1], boxes, color="rgb"), expected)
    with pytest.raises(ConfigError, match="color is 'rgba'"):
        draw(image, boxes, color="rgba")


def test_a_frame_of_another_size_is_refused():
    with pytest.raises(DataError, match=r"frame is 120x160, expected 160x120"):
        draw(GREY.transpose(1, 0, 2), found([1, 2, 3, 4]))


def test_without_detections_a_copy_is_returned():
    image = GREY.copy()
    drawn = draw(image, Detections.empty((160, 120)))
    np.testing.assert_array_equal(drawn, image)
    assert not np.shares_memory(drawn, image)


@pytest.mark.parametrize(
    "box",
    [[0, 0, 160, 120], [-20, -20, 400, 300], [150, 110, 159, 119], [10, 10, 10, 10]],
    ids=["whole", "beyond", "corner", "empty"],
)
def test_labels_stay_inside_the_image(box):
    drawn = draw(GREY, found(box))
    labelled = (drawn == class_colour(0)).all(axis=2)
    assert labelled.sum() > 200


def test_the_best_box_lies_on_top():
    boxes = [[40, 50, 100, 90], [40, 50, 100, 90]]
    drawn = draw(GREY, found(*boxes, class_id=[1, 0]))
    assert tuple(drawn[70, 40]) == class_colour(1)


def test_line_width_grows_with_the_image():
    large = np.zeros((2400, 3200, 3), np.uint8)
    drawn = draw(large, found([1000, 1000, 2000, 2000], size=(3200, 2400)))
    width = (drawn[1500, :1500] == class_colour(0)).all(axis=1).sum()
    assert 5 <= width <= 12


def test_grey_alpha_and_read_only_images():
    boxes = found([40, 50, 100, 90], class_id=[2])
    frozen = GREY.copy()
    frozen.flags.writeable = False
    expected = draw(frozen, boxes)
    np.testing.assert_array_equal(draw(GREY[..., 0], boxes), expected)
    np.testing.assert_array_equal(draw(np.dstack([GREY, GREY[..., 0]]), boxes), expected)
    with pytest.raises(DataError, match="must be uint8"):
        draw(GREY / 255, boxes)


def test_colours_are_fixed_and_neighbours_differ():
    colours = np.array([class_colour(index) for index in range(80)], int)
    assert len(np.unique(colours, axis=0)) == 80
    assert np.abs(np.diff(colours, axis=0)).sum(axis=1).min() > 150
    assert class_colour(0) == (38, 38, 255)


def test_labels_without_confidence():
    # The strip behind the letters is as long as they are.
    lengths = [
        (draw(GREY, found([40, 50, 100, 90]), confidence=wanted) == class_colour(0))
        .all(axis=2)[:48]
        .any(axis=0)
        .sum()
        for wanted in (True, False)
    ]
    assert lengths[0] > lengths[1] + 20


@pytest.mark.parametrize(
    "name", ["Öse", "a\nb", "\x1b[31m", "\ud800", "\x7f", "猫", "x" * 5000, ""]
)
def test_names_that_the_font_lacks_are_drawn_as_their_number(name):
    boxes = ([40.0, 50, 100, 90],)
    drawn = draw(GREY, Detections(boxes, [0.9], [0], (160, 120), (name,)))
    number = draw(GREY, Detections(boxes, [0.9], [0], (160, 120), ("#0",)))
    assert np.array_equal(drawn, number) == (name not in ("", "x" * 5000))
