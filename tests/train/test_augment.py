import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from y7edge.errors import ConfigError
from y7edge.train.augment import (
    Augmentation,
    Picture,
    augment,
    flip,
    jitter_colour,
    letterbox,
    mosaic,
    warp,
)

STILL = Augmentation(mosaic=0, hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0)
NO_COLOUR = {"hsv_h": 0, "hsv_s": 0, "hsv_v": 0}


# Colours by which to recognise objects: far from the padding's grey, and from one another.
CODES = np.array([code for code in np.ndindex(3, 3, 3) if code != (1, 1, 1)]) * 127


def coded_picture(rng, height, width, first=0):
    """Up to four filled boxes of about 24 pixels in a 2x2 grid, each of its own colour, on grey."""
    image = np.full((height, width, 3), 114, np.uint8)
    boxes, classes = [], []
    for index in range(4):
        if rng.random() < 0.2:
            continue
        left, top = (index % 2) * width // 2, (index // 2) * height // 2
        x1, y1 = left + rng.integers(4, width // 2 - 31), top + rng.integers(4, height // 2 - 31)
        x2, y2 = x1 + rng.integers(20, 28), y1 + rng.integers(20, 28)
        image[y1:y2, x1:x2] = CODES[first + index]
        boxes.append((x1, y1, x2, y2))
        classes.append(first + index)
    return Picture(image, np.array(boxes, float).reshape(-1, 4), np.array(classes, np.int64))


def coloured_extent(image, class_id):
    """The box of the pixels nearest to a class's colour, or None if there are hardly any."""
    distance = np.abs(image.astype(int) - CODES[class_id]).max(axis=2)
    rows, columns = np.nonzero(distance < 50)
    if len(rows) < 4:
        return None
    return np.array((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))


def check_labels_follow_pixels(picture, classes, tolerance):
    """Each label lies around its colour, and each colour that shows well has its label."""
    for box, class_id in zip(picture.boxes, picture.class_id, strict=True):
        extent = coloured_extent(picture.image, class_id)
        assert extent is not None
        np.testing.assert_allclose(box, extent, atol=tolerance)
    for class_id in set(classes) - set(picture.class_id.tolist()):
        extent = coloured_extent(picture.image, class_id)
        if extent is not None:  # what was dropped is a remnant, of objects up to 28 x 1.6 wide
            sides = extent[2:] - extent[:2]
            assert sides.min() <= 4 or sides.prod() < 0.13 * (28 * 1.6) ** 2


@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.0, 0.3, 0.5]),
    translate=st.sampled_from([0.0, 0.1, 0.2]),
    joined=st.booleans(),
    flipud=st.sampled_from([0.0, 0.5]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_labels_follow_their_pixels(seed, scale, translate, joined, flipud):
    rng = np.random.default_rng(seed)
    size = 128
    shapes = [(size, int(rng.integers(80, size + 1))), (int(rng.integers(80, size + 1)), size)]
    tiles = [
        coded_picture(rng, *shapes[index % 2], first=4 * index)
        for index in range(4 if joined else 1)
    ]
    chosen = Augmentation(scale=scale, translate=translate, flipud=flipud, **NO_COLOUR)
    made = augment(tiles, size, chosen, rng)
    assert made.image.shape == (size, size, 3)
    assert (made.boxes >= 0).all()
    assert (made.boxes <= size).all()
    classes = [class_id for tile in tiles for class_id in tile.class_id.tolist()]
    check_labels_follow_pixels(made, classes, tolerance=1.5)


@pytest.mark.parametrize(
    "chosen",
    [{"degrees": 30}, {"shear": 15}, {"perspective": 0.0008}, {"degrees": 10, "scale": 0.3}],
    ids=lambda chosen: "-".join(chosen),
)
def test_boxes_are_the_hulls_of_turned_ones(chosen):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        picture = coded_picture(rng, 160, 160)
        options = {**NO_COLOUR, "scale": 0.0, "translate": 0.05, "fliplr": 0.0, **chosen}
        made = warp(picture, 160, Augmentation(**options), rng)
        for box, class_id in zip(made.boxes, made.class_id, strict=True):
            if (box == 0).any() or (box == 160).any():
                continue  # cut off by the border: the hull's corners may lie outside
            np.testing.assert_allclose(box, coloured_extent(made.image, class_id), atol=2.6)


def test_warp_moves_pixels_and_boxes_alike_to_a_fraction():
    # The middle of a bright box, weighed by brightness, lies in the middle of its label. A warp
    # that forgets that OpenCV counts from pixel centres is up to 0.3 off here.
    image = np.full((64, 64, 3), 114, np.uint8)
    image[24:34, 20:36] = 254
    image = cv2.GaussianBlur(image, (0, 0), 3)  # without aliasing when shrunk
    picture = Picture(image, np.array([[20.0, 24, 36, 34]]), np.array([0]))
    for seed in range(8):
        chosen = Augmentation(scale=0.5, translate=0.1)
        made = warp(picture, 64, chosen, np.random.default_rng(seed))
        profile = made.image[:, :, 0] - 114.0
        weight = profile.sum()
        x = (profile.sum(axis=0) * (np.arange(64) + 0.5)).sum() / weight
        y = (profile.sum(axis=1) * (np.arange(64) + 0.5)).sum() / weight
        centre = (made.boxes[0, :2] + made.boxes[0, 2:]) / 2
        np.testing.assert_allclose((x, y), centre, atol=0.06)


def test_nothing_changes_without_strength():
    rng = np.random.default_rng(0)
    picture = coded_picture(rng, 96, 96)
    made = augment([picture], 96, STILL, rng)
    assert (made.image == picture.image).all()
    np.testing.assert_allclose(made.boxes, picture.boxes)


def test_letterbox_centres_and_scales_the_boxes():
    picture = coded_picture(np.random.default_rng(3), 80, 160)
    made = letterbox(picture, 320)
    assert made.image.shape == (320, 320, 3)
    assert (made.image[:80] == 114).all()
    assert (made.image[240:] == 114).all()
    np.testing.assert_allclose(made.boxes, picture.boxes * 2 + (0, 80, 0, 80))


def test_mosaic_places_the_four_tiles_around_one_point():
    tiles = [
        Picture(np.full((64, 64, 3), 10 * index, np.uint8), np.array([[8.0, 8, 56, 56]]), [index])
        for index in range(1, 5)
    ]
    made = mosaic(tiles, 64, np.random.default_rng(5))
    assert made.image.shape == (128, 128, 3)
    places = [np.argwhere(made.image[:, :, 0] == 10 * index) for index in range(1, 5)]
    meet = places[0].max(axis=0) + 1
    assert ((meet >= 32) & (meet <= 96)).all()
    assert (places[1].min(axis=0) == (max(meet[0] - 64, 0), meet[1])).all()
    assert (places[2].min(axis=0) == (meet[0], max(meet[1] - 64, 0))).all()
    assert (places[3].min(axis=0) == meet).all()


def warped(boxes, scale=0.0, seed=0):
    picture = Picture(
        np.zeros((100, 100, 3), np.uint8), np.array(boxes, float), np.arange(len(boxes))
    )
    chosen = Augmentation(scale=scale, translate=0.0)
    return warp(picture, 100, chosen, np.random.default_rng(seed)).class_id.tolist()


def test_remnants_are_dropped():
    boxes = [
        (10, 10, 40, 40),
        (-27.5, 10, 3, 40),  # less than a tenth left
        (-25, 10, 5, 40),  # a sixth left
        (50, 50, 52, 80),  # two pixels wide
        (50, 50, 52.5, 80),
        (10, 90, 90, 93.9),  # too thin: 20.5 to 1
        (10, 90, 90, 94.1),
    ]
    assert warped(boxes) == [0, 2, 4, 6]


def test_scaling_alone_drops_nothing_for_its_lost_area():
    # Shrunk to half, a quarter of the area is left of every box; that is not a loss.
    boxes = [(40, 40, 60, 60)]
    assert all(warped(boxes, scale=0.85, seed=seed) == [0] for seed in range(40))


@pytest.mark.parametrize(("flipud", "fliplr"), [(1, 0), (0, 1), (1, 1)])
def test_flips_mirror_boxes(flipud, fliplr):
    picture = coded_picture(np.random.default_rng(2), 90, 80)
    chosen = Augmentation(flipud=flipud, fliplr=fliplr)
    made = flip(picture, chosen, np.random.default_rng(0))
    assert len(made.boxes) > 0
    for box, class_id in zip(made.boxes, made.class_id, strict=True):
        np.testing.assert_allclose(box, coloured_extent(made.image, class_id))
    assert (made.boxes != picture.boxes).any()


@pytest.mark.parametrize(
    ("chosen", "channel"), [({"hsv_h": 0.5}, 0), ({"hsv_s": 0.9}, 1), ({"hsv_v": 0.9}, 2)]
)
def test_each_colour_setting_moves_its_own_channel(chosen, channel):
    image = np.full((4, 4, 3), (60, 120, 200), np.uint8)
    before = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)[0, 0].astype(int)
    options = Augmentation(**{**NO_COLOUR, **chosen})
    moved = []
    for seed in range(10):
        made = jitter_colour(image, options, np.random.default_rng(seed))
        after = cv2.cvtColor(made, cv2.COLOR_BGR2HSV)[0, 0].astype(int)
        others = [index for index in range(3) if index != channel]
        assert np.abs(after - before)[others].max() <= 3
        moved.append(after[channel] - before[channel])
    assert min(moved) < -3
    assert max(moved) > 3


@pytest.mark.parametrize("chosen", [STILL, Augmentation(degrees=20, perspective=0.0005)])
def test_pictures_without_objects(chosen):
    empty = Picture(np.zeros((64, 64, 3), np.uint8), np.empty((0, 4)), np.empty(0, np.int64))
    for tiles in ([empty], [empty] * 4):
        made = augment(tiles, 64, chosen, np.random.default_rng(0))
        assert made.boxes.shape == (0, 4)
        assert made.class_id.shape == (0,)


def test_the_input_is_left_alone():
    rng = np.random.default_rng(0)
    picture = coded_picture(rng, 96, 96)
    before = picture.image.copy()
    augment([picture] * 4, 96, Augmentation(), rng)
    augment([picture], 96, Augmentation(), rng)
    assert (picture.image == before).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mosaic": 1.5}, "mosaic: expected a probability from 0 to 1, found 1.5"),
        ({"fliplr": -0.1}, "fliplr: expected a probability"),
        ({"translate": -0.1}, "translate: expected a finite number from 0, found -0.1"),
        ({"hsv_h": float("nan")}, "hsv_h: expected a finite number from 0, found nan"),
        ({"scale": 1.0}, "scale: expected 0 or more and less than 1, found 1.0"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        Augmentation(**options)
