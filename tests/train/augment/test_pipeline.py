import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.augment.coded import (
    Counting,
    check_labels_follow_pixels,
    classes_of,
    coded_picture,
    coded_set,
)
from y7edge.errors import ConfigError
from y7edge.train.augment.labelled import Picture, rectangle, rgb_planes, targets
from y7edge.train.augment.pipeline import augmented
from y7edge.train.augment.settings import Augmentation

NO_COLOUR = {"hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0}
ALONE = {"mixup": 0.0, "paste_in": 0.0}
STILL = Augmentation(translate=0, scale=0, fliplr=0, **NO_COLOUR).closed()


@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    translate=st.sampled_from([0.0, 0.1, 0.2]),
    joined=st.sampled_from([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)]),
    flipud=st.sampled_from([0.0, 0.5]),
    outlined=st.booleans(),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_labels_follow_their_pixels(seed, scale, translate, joined, flipud, outlined):
    rng = np.random.default_rng(seed)
    size = 128
    pictures = coded_set(rng, size, 9, outlined)
    chosen = Augmentation(
        mosaic=joined[0],
        mosaic9=joined[1],
        scale=scale,
        translate=translate,
        flipud=flipud,
        **NO_COLOUR,
        **ALONE,
    )
    made = augmented(pictures, 0, size, chosen, rng)
    assert made.image.shape == (size, size, 3)
    assert (made.boxes >= 0).all()
    assert (made.boxes <= size).all()
    assert len(made.polygons) == (len(made.boxes) if outlined else 0)
    # A sliver of an ellipse is narrower at the middle of its first row than at the row's edge.
    tolerance = 2.1 if outlined else 1.6
    check_labels_follow_pixels(made, classes_of(pictures), tolerance, largest=28 * (1.1 + scale))


@pytest.mark.parametrize(
    "strength",
    [{"degrees": 30}, {"shear": 15}, {"perspective": 0.0008}, {"degrees": 10, "scale": 0.3}],
    ids=lambda strength: "-".join(strength),
)
@pytest.mark.parametrize("nine", [0.0, 1.0])
def test_outlines_stay_tight_through_any_warp(strength, nine):
    seen = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        pictures = coded_set(rng, 160, 9, outlined=True)
        options = {"mosaic9": nine, "scale": 0.0, **NO_COLOUR, **ALONE, **strength}
        made = augmented(pictures, 0, 160, Augmentation(**options), rng)
        check_labels_follow_pixels(made, classes_of(pictures), tolerance=2.1)
        for line, box in zip(made.polygons, made.boxes, strict=True):
            np.testing.assert_allclose((*line.min(axis=0), *line.max(axis=0)), box)
        seen += len(made.boxes)
    assert seen > 30


def test_boxes_and_polygons_can_be_mixed():
    # By position, or all as what the first one is, labels would get other objects' places.
    rng = np.random.default_rng(1)
    boxes, outlines = coded_set(rng, 128, 4), coded_set(rng, 128, 8, outlined=True)[4:]
    pictures = [picture for pair in zip(boxes, outlines, strict=True) for picture in pair]
    kinds = set()
    for seed in range(20):
        chosen = Augmentation(**NO_COLOUR, **ALONE)
        made = augmented(pictures, seed % 8, 128, chosen, np.random.default_rng(seed))
        check_labels_follow_pixels(made, classes_of(pictures), tolerance=1.6)
        for line, class_id in zip(made.outlines, made.class_id, strict=True):
            assert (line is None) == (class_id < 16)
        kinds.add(frozenset(line is None for line in made.outlines))
    assert frozenset({True, False}) in kinds


@pytest.mark.parametrize("nine", [0.0, 1.0])
def test_pictures_out_of_sight_are_not_asked_for(nine):
    rng = np.random.default_rng(0)
    pictures = Counting(coded_set(rng, 112, 12))
    chosen = Augmentation(mosaic9=nine, scale=0.9, **NO_COLOUR, **ALONE)
    for seed in range(50):
        augmented(pictures, 0, 112, chosen, np.random.default_rng(seed))
    # Those whose place shows, and for nine those on whose size a place depends.
    assert pictures.asked / 50 < (6.5 if nine else 3.6)


@pytest.mark.parametrize("outlined", [False, True])
def test_the_generator_decides_everything(outlined):
    pictures = coded_set(np.random.default_rng(0), 112, 9, outlined)
    chosen = Augmentation(mixup=0.5, paste_in=0.5, copy_paste=0.3, flipud=0.5, degrees=5)
    made = [
        augmented(pictures, 1, 112, chosen, np.random.default_rng(seed)) for seed in (3, 3, 4, 5)
    ]
    assert (made[0].image == made[1].image).all()
    np.testing.assert_array_equal(made[0].boxes, made[1].boxes)
    assert all((a.image != b.image).any() for a, b in itertools.combinations(made[1:], 2))


@pytest.mark.parametrize("degrees", [0.0, 10.0])
def test_the_set_is_left_alone_and_results_are_one_s_own(degrees):
    rng = np.random.default_rng(0)
    pictures = coded_set(rng, 112, 6, outlined=True)
    before = [picture.image.copy() for picture in pictures]
    chosen = Augmentation(copy_paste=0.5, paste_in=1.0, mixup=0.5, degrees=degrees)
    first = augmented(pictures, 0, 112, chosen, rng)
    kept = first.image.copy()
    for index in range(6):
        augmented(pictures, index, 112, chosen, rng)
        augmented(pictures, index, 112, STILL, rng)
    assert all((a == b.image).all() for a, b in zip(before, pictures, strict=True))
    assert (first.image == kept).all()


def test_nothing_changes_without_strength():
    rng = np.random.default_rng(0)
    picture = coded_picture(rng, 112, 112)
    made = augmented([picture], 0, 112, STILL, rng)
    assert (made.image == picture.image).all()
    np.testing.assert_allclose(made.boxes, picture.boxes)


def test_closing_leaves_single_pictures_only():
    rng = np.random.default_rng(0)
    pictures = coded_set(rng, 112, 5, outlined=True)
    full = Augmentation(mosaic=1, mixup=1, copy_paste=1, paste_in=1, **NO_COLOUR)
    for seed in range(10):
        made = augmented(pictures, 2, 112, full.closed(), np.random.default_rng(seed))
        assert set(made.class_id.tolist()) <= set(pictures[2].class_id.tolist())
    names = {"mosaic", "mixup", "copy_paste", "paste_in"}
    changed = {
        f.name for f in fields(full) if getattr(full, f.name) != getattr(full.closed(), f.name)
    }
    assert changed == names


@pytest.mark.parametrize("shape", [(96, 160), (160, 128), (64, 64)])
def test_rectangles(shape):
    rng = np.random.default_rng(2)
    pictures = coded_set(rng, 160, 4)
    for seed in range(6):
        chosen = Augmentation(scale=0.2, **NO_COLOUR)
        made = augmented(pictures, 0, 160, chosen, np.random.default_rng(seed), shape=shape)
        assert made.image.shape[:2] == shape
        assert set(made.class_id.tolist()) <= set(pictures[0].class_id.tolist())
        check_labels_follow_pixels(made, classes_of(pictures), tolerance=1.7)


def test_rectangle_centres_and_scales_labels():
    picture = coded_picture(np.random.default_rng(3), 80, 160, outlined=True)
    made = rectangle(picture, (320, 320))
    assert made.image.shape == (320, 320, 3)
    assert (made.image[:80] == 114).all()
    assert (made.image[240:] == 114).all()
    np.testing.assert_allclose(made.boxes, picture.boxes * 2 + (0, 80, 0, 80))
    np.testing.assert_allclose(made.polygons[0], picture.polygons[0] * 2 + (0, 80))


def test_tensors_are_planes_in_rgb_and_shares():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:] = (1, 2, 3)
    image[7, 9] = (4, 5, 6)
    made = Picture(image, np.array([[8.0, 10, 24, 20]]), np.array([5]))
    planes, labels = rgb_planes(made.image), targets(made)
    assert planes.dtype == np.uint8
    assert planes[:, 0, 0].tolist() == [3, 2, 1]
    assert planes[:, 7, 9].tolist() == [6, 5, 4]
    assert labels.dtype == np.float32
    np.testing.assert_allclose(labels, [[5, 0.2, 0.375, 0.2, 0.25]])


@pytest.mark.parametrize(("flipud", "fliplr"), [(1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("joined", [0.0, 1.0])
def test_flips_mirror_the_result(flipud, fliplr, joined):
    pictures = coded_set(np.random.default_rng(2), 112, 5, outlined=True)
    chosen = Augmentation(mosaic=joined, flipud=0, fliplr=0, **NO_COLOUR, **ALONE)
    plain = augmented(pictures, 0, 112, chosen, np.random.default_rng(0))
    chosen = replace(chosen, flipud=flipud, fliplr=fliplr)
    made = augmented(pictures, 0, 112, chosen, np.random.default_rng(0))
    expected = plain.image[::-1] if flipud else plain.image
    expected = expected[:, ::-1] if fliplr else expected
    assert np.abs(made.image - expected.astype(int)).max() <= 1  # resizing rounds
    check_labels_follow_pixels(made, classes_of(pictures), tolerance=1.6)


@pytest.mark.parametrize("degrees", [0.0, 20.0])
def test_pictures_without_objects(degrees):
    empty = Picture(np.zeros((64, 64, 3), np.uint8), np.empty((0, 4)), np.empty(0, np.int64))
    for joined in (0.0, 1.0):
        chosen = Augmentation(mosaic=joined, degrees=degrees, mixup=1, copy_paste=1, paste_in=1)
        made = augmented([empty] * 4, 1, 64, chosen, np.random.default_rng(0))
        assert made.boxes.shape == (0, 4)
        assert made.class_id.shape == (0,)
        assert targets(made).shape == (0, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mosaic": 1.5}, "mosaic must be a number from 0 to 1, not 1.5"),
        ({"mosaic9": -1}, "mosaic9 must be a number from 0 to 1"),
        ({"fliplr": -0.1}, "fliplr must be a number from 0 to 1"),
        ({"translate": -0.1}, "translate must be 0 or more, not -0.1"),
        ({"degrees": 400}, "degrees must be a number from 0 to 180, not 400"),
        ({"perspective": 5.0}, "perspective must be a number from 0 to 0.01, not 5.0"),
        ({"hsv_h": float("nan")}, "hsv_h must be 0 or more, not nan"),
        ({"scale": 1.0}, "scale must be from 0 to below 1, not 1.0"),
        ({"shear": 45}, "shear must be 0 or more and less than 45, not 45"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        Augmentation(**options)
