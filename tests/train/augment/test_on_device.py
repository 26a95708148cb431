"""Colour jitter and mirroring in torch: the pixels that the loader writes by itself."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from tests.train.augment.coded import coded_set
from y7edge.train.augment import on_device
from y7edge.train.augment.colour import Jitter
from y7edge.train.augment.on_device import apply_appearance
from y7edge.train.augment.pipeline import Appearance, augmented, augmented_in_part
from y7edge.train.augment.settings import Augmentation
from y7edge.train.augment.view import Mirror

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 128
_MOST_DIFFERENT = 1e-6  # fraction of values: OpenCV rounds the last pixels of a block differently


def on_torch(images: np.ndarray, appearances: list[Appearance]) -> np.ndarray:
    numbers = np.array([each.numbers() for each in appearances])
    return apply_appearance(torch.from_numpy(images), torch.from_numpy(numbers)).numpy()


def in_numpy(images: np.ndarray, appearances: list[Appearance]) -> np.ndarray:
    result = images.copy()
    for each, planes in zip(appearances, result, strict=True):
        each.apply(planes)
    return result


def assert_same_pixels(found: np.ndarray, expected: np.ndarray):
    difference = cv2.absdiff(found.reshape(-1), expected.reshape(-1))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= max(_MOST_DIFFERENT, 4 / found.size)


@pytest.mark.parametrize(
    "strength", [{}, {"hsv_h": 0.02, "hsv_s": 0.9, "hsv_v": 0.9}, {"hsv_h": 0}]
)
@pytest.mark.parametrize("height", [64, 159, 160, 161, 330])
def test_pixels_equal_those_of_the_loader(height, strength):
    # Whether the brightness overexposes an image is decided for each block of 160 rows.
    rng = np.random.default_rng(height)
    settings = Augmentation(flipud=0.5, **strength)
    for darkest in (1.0, 0.6):
        images = rng.integers(0, 256, (12, 3, height, 90)) * rng.uniform(darkest, 1, (12, 1, 1, 1))
        images[:, :, : height // 2] *= 0.6
        images = images.astype(np.uint8)
        before = images.copy()
        appearances = [Appearance.draw(settings, rng) for _ in images]
        expected = in_numpy(images, appearances)
        assert_same_pixels(on_torch(images, appearances), expected)
        np.testing.assert_array_equal(images, before)
        assert (expected != images).any()


@pytest.mark.parametrize(
    "factors",
    [
        *((1, 1, 1), (1, 0, 1), (1, 1, 0), (1, -0.3, 1.2), (1, 1.5, -1)),
        *((1.01, 2, 2), (1, 1, 255.0), (1, 0.8, 1.25)),
    ],
    ids=str,
)
@pytest.mark.parametrize("largest", [255, 204])  # 1.25 x 204 = 255 is not overexposed
def test_extreme_factors(factors, largest):
    images = np.random.default_rng(1).integers(0, 256, (1, 3, 40, 50), dtype=np.uint8)
    images[:, :, :2] = 0
    images[:, :, 2:4] = 255
    images = np.minimum(images, largest).astype(np.uint8)
    appearance = [Appearance(Jitter(*factors))]
    assert_same_pixels(on_torch(images, appearance), in_numpy(images, appearance))


@pytest.mark.parametrize("mirror", [(False, False), (True, False), (False, True), (True, True)])
def test_mirrors(mirror):
    images = np.random.default_rng(2).integers(0, 256, (2, 3, 5, 7), dtype=np.uint8)
    found = on_torch(images, [Appearance(mirror=Mirror(*mirror)), Appearance()])
    axes = [axis + 1 for axis in (0, 1) if mirror[axis]]
    np.testing.assert_array_equal(found[0], np.flip(images[0], axes))
    np.testing.assert_array_equal(found[1], images[1])


def test_large_batches_are_processed_in_parts(monkeypatch):
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (7, 3, 20, 30), dtype=np.uint8)
    appearances = [Appearance.draw(Augmentation(), rng) for _ in images]
    whole = on_torch(images, appearances)
    monkeypatch.setattr(on_device, "_PIXELS", 1300)  # two images
    np.testing.assert_array_equal(on_torch(images, appearances), whole)


def in_part(images, seed, settings, shape=None):
    """Labels and pixels of both parts, the appearance between them, the generator's state."""
    rng = np.random.default_rng(seed)
    planes = np.empty((3, *(shape or (SIZE, SIZE))), np.uint8)
    labelled, left = augmented_in_part(images, 0, SIZE, settings, rng, shape=shape, planes=planes)
    return labelled, on_torch(planes[None], [left])[0], left, rng.bit_generator.state


@pytest.mark.parametrize(
    ("changes", "least", "most"),
    [
        ({}, 18, 20),
        ({"mixup": 1.0}, 0, 0),  # blended after the jitter
        ({"mixup": 0.5}, 5, 15),
        ({"paste_in": 1.0}, 0, 0),  # pasted objects are not jittered
        ({"copy_paste": 1.0, "flipud": 0.5}, 18, 20),
        ({"hsv_h": 0.5}, 0, 3),  # hues by tables
        ({"degrees": 20.0, "mosaic": 0.5}, 18, 20),
    ],
    ids=str,
)
def test_two_parts_equal_the_whole(changes, least, most):
    images = coded_set(np.random.default_rng(0), SIZE, 9, True)
    base = Augmentation(mixup=0, paste_in=0, copy_paste=0)
    settings, unfinished = replace(base, **changes), 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        whole = augmented(images, 0, SIZE, settings, rng)
        labelled, pixels, left, state = in_part(images, seed, settings)
        assert_same_pixels(pixels, whole.image.transpose(2, 0, 1)[::-1])
        np.testing.assert_array_equal(labelled.boxes, whole.boxes)
        np.testing.assert_array_equal(labelled.class_id, whole.class_id)
        for one, other in zip(labelled.polygons, whole.polygons, strict=True):
            np.testing.assert_array_equal(one, other)
        assert state == rng.bit_generator.state
        unfinished += left.numbers() != Appearance().numbers()
    assert least <= unfinished <= most


def test_rectangular_images_in_two_parts():
    images = coded_set(np.random.default_rng(0), SIZE, 4, True)
    for seed in range(5):
        whole = augmented(
            images, 0, SIZE, Augmentation(), np.random.default_rng(seed), shape=(96, SIZE)
        )
        labelled, pixels, _, _ = in_part(images, seed, Augmentation(), (96, SIZE))
        assert_same_pixels(pixels, whole.image.transpose(2, 0, 1)[::-1])
        np.testing.assert_array_equal(labelled.boxes, whole.boxes)
