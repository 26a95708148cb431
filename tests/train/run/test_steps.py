"""Input sizes of multi-scale training."""

import pytest
import torch

from y7edge.train.run.steps import random_side, resized


def test_sides_are_multiples_of_the_stride_from_half_to_one_and_a_half():
    places = [(epoch, batch) for epoch in range(1, 40) for batch in range(20)]
    drawn = [random_side(640, 32, 0, *place) for place in places]
    assert set(drawn) == set(range(320, 961, 32))
    assert [random_side(640, 32, 0, *place) for place in places] == drawn
    assert [random_side(640, 32, 1, *place) for place in places] != drawn


def test_side_is_never_a_single_cell():
    assert {random_side(128, 64, 0, 1, batch) for batch in range(50)} == {128, 192}


@pytest.mark.parametrize(
    ("shape", "side", "expected"),
    [
        pytest.param((64, 64), 96, (96, 96), id="square, up"),
        pytest.param((64, 96), 192, (128, 192), id="lying, doubled"),
        pytest.param((128, 96), 64, (64, 64), id="standing, sides up to the grid"),
        pytest.param((64, 64), 64, (64, 64), id="as it was"),
    ],
)
def test_images_keep_their_shape(shape, side, expected):
    assert resized(torch.zeros(2, 3, *shape), side, 32).shape[2:] == expected


def test_objects_stay_at_their_normalized_coordinates():
    images = torch.zeros(1, 3, 128, 128)
    images[..., 32:64, 64:96] = 1
    scaled = resized(images, 64, 32)
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[16:32, 32:48] = True
    assert (scaled[0, 0][inside] > 0.9).all()
    assert (scaled[0, 0][~inside] < 0.1).all()
