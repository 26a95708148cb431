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
    coded_image,
    coded_set,
)
from y7edge.errors import ConfigError
from y7edge.train.augment.labelled import LabelledImage, rgb_planes, targets
from y7edge.train.augment.mosaic import paint, single
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
    images = coded_set(rng, size, 9, outlined)
    chosen = Augmentation(
        mosaic=joined[0],
        mosaic9=joined[1],
        scale=scale,
        translate=translate,
        flipud=flipud,
        **NO_COLOUR,
        **ALONE,
    )
    result = augmented(images, 0, size, chosen, rng)
    assert result.image.shape == (size, size, 3)
    assert (result.boxes >= 0).all()
    assert (result.boxes <= size).all()
    assert len(result.polygons) == (len(result.boxes) if outlined else 0)
    # A sliver of an ellipse, two pixels high with radius 28, is up to 1.4 pixels narrower per side
    # at the middle of its first row than at the row's edge.
    tolerance = 3.0 if outlined else 1.6
    check_labels_follow_pixels(result, classes_of(images), tolerance, largest=28 * (1.1 + scale))


@pytest.mark.parametrize(
    "strength",
    [{"degrees": 30}, {"shear": 15}, {"perspective": 0.0008}, {"degrees": 10, "scale": 0.3}],
    ids=lambda strength: "-".join(strength),
)
@pytest.mark.parametrize("nine", [0.0, 1.0])
def test_outlines_stay_tight_through_any_warp(strength, nine):
    visible = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        images = coded_set(rng, 160, 9, outlined=True)
        options = {"mosaic9": nine, "scale": 0.0, **NO_COLOUR, **ALONE, **strength}
        result = augmented(images, 0, 160, Augmentation(**options), rng)
        check_labels_follow_pixels(result, classes_of(images), tolerance=2.1)
        for line, box in zip(result.polygons, result.boxes, strict=True):
            np.testing.assert_allclose((*line.min(axis=0), *line.max(axis=0)), box)
        visible += len(result.boxes)
    assert visible > 30


def test_boxes_and_polygons_can_be_mixed():
    # Each label is transformed independently, as box or polygon.
    rng = np.random.default_rng(1)
    boxes, outlines = coded_set(rng, 128, 4), coded_set(rng, 128, 8, outlined=True)[4:]
    images = [labelled for pair in zip(boxes, outlines, strict=True) for labelled in pair]
    kinds = set()
    for seed in range(20):
        chosen = Augmentation(**NO_COLOUR, **ALONE)
        result = augmented(images, seed % 8, 128, chosen, np.random.default_rng(seed))
        check_labels_follow_pixels(result, classes_of(images), tolerance=1.6)
        for line, class_id in zip(result.outlines, result.class_id, strict=True):
            assert (line is None) == (class_id < 16)
        kinds.add(frozenset(line is None for line in result.outlines))
    assert frozenset({True, False}) in kinds


@pytest.mark.parametrize("nine", [0.0, 1.0])
def test_invisible_images_are_not_read(nine):
    rng = np.random.default_rng(0)
    images = Counting(coded_set(rng, 112, 12))
    chosen = Augmentation(mosaic9=nine, scale=0.9, **NO_COLOUR, **ALONE)
    for seed in range(50):
        augmented(images, 0, 112, chosen, np.random.default_rng(seed))
    # Visible images, and in a mosaic of nine those on whose size positions depend.
    assert images.asked / 50 < (6.5 if nine else 3.6)


@pytest.mark.parametrize("outlined", [False, True])
def test_result_depends_on_the_generator_only(outlined):
    images = coded_set(np.random.default_rng(0), 112, 9, outlined)
    chosen = Augmentation(mixup=0.5, paste_in=0.5, copy_paste=0.3, flipud=0.5, degrees=5)
    result = [
        augmented(images, 1, 112, chosen, np.random.default_rng(seed)) for seed in (3, 3, 4, 5)
    ]
    assert (result[0].image == result[1].image).all()
    np.testing.assert_array_equal(result[0].boxes, result[1].boxes)
    assert all((a.image != b.image).any() for a, b in itertools.combinations(result[1:], 2))


@pytest.mark.parametrize("degrees", [0.0, 10.0])
def test_source_images_are_not_changed(degrees):
    rng = np.random.default_rng(0)
    images = coded_set(rng, 112, 6, outlined=True)
    before = [labelled.image.copy() for labelled in images]
    chosen = Augmentation(copy_paste=0.5, paste_in=1.0, mixup=0.5, degrees=degrees)
    first = augmented(images, 0, 112, chosen, rng)
    kept = first.image.copy()
    for index in range(6):
        augmented(images, index, 112, chosen, rng)
        augmented(images, index, 112, STILL, rng)
    assert all((a == b.image).all() for a, b in zip(before, images, strict=True))
    assert (first.image == kept).all()


def test_nothing_changes_without_strength():
    rng = np.random.default_rng(0)
    labelled = coded_image(rng, 112, 112)
    result = augmented([labelled], 0, 112, STILL, rng)
    assert (result.image == labelled.image).all()
    np.testing.assert_allclose(result.boxes, labelled.boxes)


def test_closed_augmentation_does_not_mix_images():
    rng = np.random.default_rng(0)
    images = coded_set(rng, 112, 5, outlined=True)
    full = Augmentation(mosaic=1, mixup=1, copy_paste=1, paste_in=1, **NO_COLOUR)
    for seed in range(10):
        result = augmented(images, 2, 112, full.closed(), np.random.default_rng(seed))
        assert set(result.class_id.tolist()) <= set(images[2].class_id.tolist())
    names = {"mosaic", "mixup", "copy_paste", "paste_in"}
    changed = {
        f.name for f in fields(full) if getattr(full, f.name) != getattr(full.closed(), f.name)
    }
    assert changed == names


@pytest.mark.parametrize("shape", [(96, 160), (160, 128), (64, 64)])
def test_rectangular_shapes(shape):
    rng = np.random.default_rng(2)
    images = coded_set(rng, 160, 4)
    for seed in range(6):
        chosen = Augmentation(scale=0.2, **NO_COLOUR)
        result = augmented(images, 0, 160, chosen, np.random.default_rng(seed), shape=shape)
        assert result.image.shape[:2] == shape
        assert set(result.class_id.tolist()) <= set(images[0].class_id.tolist())
        check_labels_follow_pixels(result, classes_of(images), tolerance=1.7)


def test_letterboxed_labels_are_scaled_and_shifted():
    labelled = coded_image(np.random.default_rng(3), 80, 160, outlined=True)
    result = paint(single(labelled, 320, 320))
    assert result.image.shape == (320, 320, 3)
    assert (result.image[:80] == 114).all()
    assert (result.image[240:] == 114).all()
    np.testing.assert_allclose(result.boxes, labelled.boxes * 2 + (0, 80, 0, 80))
    np.testing.assert_allclose(result.polygons[0], labelled.polygons[0] * 2 + (0, 80))


def test_targets_are_normalized_and_planes_are_rgb():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:] = (1, 2, 3)
    image[7, 9] = (4, 5, 6)
    result = LabelledImage(image, np.array([[8.0, 10, 24, 20]]), np.array([5]))
    planes, labels = rgb_planes(result.image), targets(result)
    assert planes.dtype == np.uint8
    assert planes[:, 0, 0].tolist() == [3, 2, 1]
    assert planes[:, 7, 9].tolist() == [6, 5, 4]
    assert labels.dtype == np.float32
    np.testing.assert_allclose(labels, [[5, 0.2, 0.375, 0.2, 0.25]])


@pytest.mark.parametrize(("flipud", "fliplr"), [(1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("joined", [0.0, 1.0])
def test_flips_mirror_the_result(flipud, fliplr, joined):
    images = coded_set(np.random.default_rng(2), 112, 5, outlined=True)
    chosen = Augmentation(mosaic=joined, flipud=0, fliplr=0, **NO_COLOUR, **ALONE)
    plain = augmented(images, 0, 112, chosen, np.random.default_rng(0))
    chosen = replace(chosen, flipud=flipud, fliplr=fliplr)
    result = augmented(images, 0, 112, chosen, np.random.default_rng(0))
    expected = plain.image[::-1] if flipud else plain.image
    expected = expected[:, ::-1] if fliplr else expected
    assert np.abs(result.image - expected.astype(int)).max() <= 1  # resizing rounds
    check_labels_follow_pixels(result, classes_of(images), tolerance=1.6)


@pytest.mark.parametrize("degrees", [0.0, 20.0])
def test_images_without_objects(degrees):
    empty = LabelledImage(np.zeros((64, 64, 3), np.uint8), np.empty((0, 4)), np.empty(0, np.int64))
    for joined in (0.0, 1.0):
        chosen = Augmentation(mosaic=joined, degrees=degrees, mixup=1, copy_paste=1, paste_in=1)
        result = augmented([empty] * 4, 1, 64, chosen, np.random.default_rng(0))
        assert result.boxes.shape == (0, 4)
        assert result.class_id.shape == (0,)
        assert targets(result).shape == (0, 5)


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
def test_invalid_settings(options, message):
    with pytest.raises(ConfigError, match=message):
        Augmentation(**options)
