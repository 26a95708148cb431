"""Colour jitter against floating-point HSV and against the tables."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from y7edge.data.synthetic import scenes
from y7edge.train.augment.colour import Jitter
from y7edge.train.augment.labelled import LabelledImage
from y7edge.train.augment.pipeline import augmented
from y7edge.train.augment.settings import Augmentation

STILL = Augmentation(translate=0, scale=0, fliplr=0, hsv_h=0, hsv_s=0, hsv_v=0).closed()


RANDOM = np.random.default_rng(0).integers(0, 256, (200, 60, 3), np.uint8)
RANDOM[:2] = 0
RANDOM[2:4] = 255
RANDOM[4:6] = (0, 0, 255)
IMAGES = {"random": RANDOM, "natural": scenes.scene(0).image}


def jittered(image, factors):
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    Jitter(*factors).apply(image, planes)
    return planes[::-1].transpose(1, 2, 0).astype(float)


def by_definition(image, hue, saturation, brightness):
    """Multiply HSV in floating point."""
    hsv = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_BGR2HSV)
    hsv *= (hue, saturation, brightness)
    hsv[..., 0] %= 360
    hsv[..., 1:] = hsv[..., 1:].clip(0, 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR) * 255.0


def difference(result, expected):
    """Mean and largest difference, by pixel."""
    apart = np.abs(result - expected).max(axis=2)
    return apart.mean(), apart.max()


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("saturation", [0.0, 0.3, 1.0, 1.3, 1.7])
@pytest.mark.parametrize("brightness", [0.0, 0.6, 1.0, 1.1, 1.4])
def test_saturation_and_brightness_equal_hsv(image, saturation, brightness):
    factors = (1.0, saturation, brightness)
    mean, most = difference(jittered(image, factors), by_definition(image, *factors))
    assert mean < 0.7
    assert most < 2.6
    # The published tables round more than that.
    mean, most = difference(jittered(image, factors), Jitter(*factors).by_table(image))
    assert mean < 2.5
    assert most < 9


@pytest.mark.parametrize("hue", [0.985, 0.995, 1.005, 1.015])
@pytest.mark.parametrize("others", [(1.0, 1.0), (0.5, 1.2), (1.5, 0.8)])
@pytest.mark.parametrize(("name", "mean", "most"), [("random", 8, 33), ("natural", 2, 12)])
def test_hue_is_near_the_published_one(hue, others, name, mean, most):
    """All hues are shifted by the mean of 0 to 2.7 of 180."""
    factors = (hue, *others)
    found = difference(jittered(IMAGES[name], factors), by_definition(IMAGES[name], *factors))
    assert found[0] < mean
    assert found[1] < most


@pytest.mark.parametrize("hue", [0.985, 1.015])
def test_hue_shifts_all_colours_equally(hue):
    before = np.arange(0, 360, 7.5, np.float32)
    hsv = np.stack((before, np.full_like(before, 0.6), np.full_like(before, 0.8)), axis=1)[None]
    image = np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR) * 255).astype(np.uint8)
    after = cv2.cvtColor(jittered(image, (hue, 1, 1)).astype(np.float32), cv2.COLOR_BGR2HSV)
    turned = (after[0, :, 0] - before + 180) % 360 - 180
    assert turned == pytest.approx((hue - 1) * 180, abs=0.9)
    grey = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    assert (jittered(grey, (hue, 1, 1)) == grey).all()


def test_saturated_colours_keep_their_hue():
    # If channels were clipped separately, (0, 128, 255) would become (0, 39, 255).
    colours = np.array([[(0, 128, 255), (255, 60, 0), (40, 200, 90), (0, 255, 0)]], np.uint8)
    result = jittered(colours, (1.0, 1.7, 1.0))
    assert np.abs(result - by_definition(colours, 1, 1.7, 1)).max() < 2
    assert result[0, 0] == pytest.approx([0, 128, 255], abs=1)
    # Overexposed colours keep their hue as well.
    result = jittered(colours, (1.0, 1.0, 1.4))
    assert result[0, 0] == pytest.approx([0, 128, 255], abs=1)


@pytest.mark.parametrize("hue", [0.5, 0.9, 1.1, 1.6])
def test_large_hue_factors_use_the_published_tables(hue):
    result = jittered(RANDOM, (hue, 1.2, 0.9))
    assert (result == Jitter(hue, 1.2, 0.9).by_table(RANDOM)).all()


def test_without_strength_nothing_changes():
    assert (jittered(RANDOM, (1, 1, 1)) == RANDOM).all()


@pytest.mark.parametrize("factors", [(1.01, 0.4, 1.3), (0.99, 1.6, 0.7), (1.6, 1.2, 0.9)])
def test_padding_is_jittered_too(factors):
    grey = np.full((3, 3, 3), 114, np.uint8)
    assert np.abs(jittered(grey, factors) - min(114 * factors[2], 255)).max() <= 1


def test_views_are_read_and_written():
    planes = np.zeros((3, 260, 100), np.uint8)
    Jitter(1.01, 1.3, 1.2).apply(RANDOM[:190, 5:55], planes[:, 10:200, 20:70])
    whole = jittered(np.ascontiguousarray(RANDOM[:190, 5:55]), (1.01, 1.3, 1.2))
    assert (planes[::-1, 10:200, 20:70].transpose(1, 2, 0) == whole).all()
    planes[:, 10:200, 20:70] = 0
    assert not planes.any()


@pytest.mark.parametrize(
    ("chosen", "channel"), [({"hsv_h": 0.5}, 0), ({"hsv_s": 0.9}, 1), ({"hsv_v": 0.9}, 2)]
)
def test_each_colour_setting_moves_its_own_channel(chosen, channel):
    labelled = LabelledImage(
        np.full((4, 4, 3), (60, 120, 200), np.uint8), np.empty((0, 4)), np.empty(0, int)
    )
    before = cv2.cvtColor(labelled.image, cv2.COLOR_BGR2HSV)[0, 0].astype(int)
    options = replace(STILL, **chosen)
    moved = []
    for seed in range(10):
        result = augmented([labelled], 0, 4, options, np.random.default_rng(seed)).image
        after = cv2.cvtColor(result, cv2.COLOR_BGR2HSV)[0, 0].astype(int)
        others = [index for index in range(3) if index != channel]
        assert np.abs(after - before)[others].max() <= 4
        moved.append(after[channel] - before[channel])
    assert min(moved) < -3
    assert max(moved) > 3


@pytest.mark.parametrize("mirror", [-1, 0, 1])
@pytest.mark.parametrize("factors", [(1.01, 1.3, 1.2), (1.0, 0.5, 0.9), (1.6, 1.0, 1.0)])
def test_tall_image_is_mirrored_across_chunks(mirror, factors):
    image = np.random.default_rng(1).integers(0, 256, (700, 9, 3), np.uint8)
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    Jitter(*factors).apply(image, planes, mirror)
    assert (cv2.flip(jittered(image, factors), mirror) == planes[::-1].transpose(1, 2, 0)).all()
