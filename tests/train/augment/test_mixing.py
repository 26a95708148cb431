import numpy as np
import pytest

from tests.train.augment.coded import (
    CODES,
    Counting,
    classes_of,
    coded_image,
    coded_set,
    coloured,
    places,
)
from y7edge.train.augment.mixing import copy_paste, filled, mixup, paste_in
from y7edge.train.augment.pipeline import augmented
from y7edge.train.augment.settings import Augmentation

SIZE = 160


def overlaps(labelled):
    """Fraction of each box (row) covered by each other box."""
    boxes = labelled.boxes
    low = np.maximum(boxes[:, None, :2], boxes[:, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[:, 2:])
    shared = np.maximum(high - low, 0).prod(axis=2)
    return shared / (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)[:, None] * (1 - np.eye(len(boxes)))


def test_mixup_blends_pixels_and_keeps_all_labels():
    rng = np.random.default_rng(0)
    first, second = (
        coded_image(rng, SIZE, SIZE, 4 * index, outlined=bool(index)) for index in (0, 1)
    )
    fractions = []
    for seed in range(200):
        result = mixup(first, second, np.random.default_rng(seed))
        fraction = np.random.default_rng(seed).beta(8, 8)
        expected = fraction * first.image + (1 - fraction) * second.image
        assert np.abs(result.image - expected).max() <= 0.51
        fractions.append(fraction)
    assert 0.45 < np.mean(fractions) < 0.55
    np.testing.assert_array_equal(result.boxes, np.concatenate((first.boxes, second.boxes)))
    np.testing.assert_array_equal(
        result.class_id, np.concatenate((first.class_id, second.class_id))
    )
    assert [line is None for line in result.polygons] == [
        len(line) == 0 for line in [()] * len(first.boxes) + list(second.polygons)
    ]


def test_mixup_needs_a_mosaic():
    images = coded_set(np.random.default_rng(0), SIZE, 4)
    chosen = Augmentation(mosaic=0, mixup=1, hsv_h=0, hsv_s=0, hsv_v=0)
    for seed in range(5):
        result = augmented(images, 1, SIZE, chosen, np.random.default_rng(seed))
        assert set(result.class_id.tolist()) <= set(images[1].class_id.tolist())


@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_copy_paste_mirrors_objects(fraction):
    pasted = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labelled = coded_image(rng, SIZE, SIZE, outlined=True)
        before = labelled.image.copy()
        result = copy_paste(labelled, fraction, rng)
        assert (labelled.image == before).all()
        count = len(labelled.boxes)
        np.testing.assert_array_equal(result.boxes[:count], labelled.boxes)
        new = result.boxes[count:]
        assert len(new) <= round(fraction * count)
        originals = [labelled.class_id.tolist().index(kind) for kind in result.class_id[count:]]
        mirror_of = labelled.boxes[originals][:, [2, 1, 0, 3]] * (-1, 1, -1, 1) + (SIZE, 0, SIZE, 0)
        np.testing.assert_allclose(new, mirror_of, atol=1e-9)
        assert len(result.polygons) == len(result.boxes)
        for index in np.flatnonzero(overlaps(result).max(axis=1, initial=0) == 0):
            found = places(coloured(result.image, result.class_id[index]))
            assert np.abs(found - result.boxes[index]).max(axis=1).min() <= 1.6
        pasted += len(new)
    assert pasted > 10


def test_copies_hide_less_than_a_third_of_an_object():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labelled = coded_image(rng, SIZE, SIZE, outlined=True, side=44)
        result = copy_paste(labelled, 1.0, rng)
        count = len(labelled.boxes)
        assert overlaps(result)[:count, count:].max(initial=0) < 0.3


def test_labels_match_pasted_objects():
    pasted = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labelled = coded_image(rng, SIZE, SIZE, 0)
        sources = [coded_image(rng, SIZE, SIZE, 4 + 4 * n, outlined=True) for n in range(4)]
        before = [source.image.copy() for source in (labelled, *sources)]
        result = paste_in(labelled, sources, rng)
        for source, image in zip((labelled, *sources), before, strict=True):
            assert (source.image == image).all()
        count = len(labelled.boxes)
        np.testing.assert_array_equal(result.boxes[:count], labelled.boxes)
        assert [line is None for line in result.outlines] == [True] * count + [False] * (
            len(result.boxes) - count
        )
        new = result.boxes[count:]
        assert (result.class_id[count:] >= 4).all()
        assert (new >= 0).all()
        assert (new <= SIZE).all()
        assert ((new[:, 2:] - new[:, :2]) > 8).all()
        # Sources are interpolated: a pixel at the edge may be a mixture.
        check_pasted(result, count)
        assert np.triu(overlaps(result), 1).max(initial=0) < 0.3 + 1e-9
        pasted += len(new)
    assert pasted > 40


def check_pasted(result, count):
    later = overlaps(result).max(axis=1, initial=0)
    for index in range(count, len(result.boxes)):
        if later[index]:
            continue
        x1, y1, x2, y2 = result.boxes[index].round().astype(int)
        found = coloured(result.image, result.class_id[index])
        assert found[y1:y2, x1:x2].mean() > 0.5
        inside = filled(result.polygons[index], SIZE, SIZE)
        assert found[inside].mean() > 0.7


def test_without_polygons_nothing_is_pasted_or_read():
    rng = np.random.default_rng(0)
    images = Counting(coded_set(rng, 112, 9))
    chosen = Augmentation(paste_in=1, copy_paste=1, mosaic9=0, mixup=0)
    for seed in range(10):
        result = augmented(images, 0, 112, chosen, np.random.default_rng(seed))
        assert result.polygons == ()
    assert images.asked <= 10 * 4
    labelled = images[0]
    assert copy_paste(labelled, 1.0, rng) is labelled
    assert paste_in(labelled, [images[1], images[2]], rng) is labelled


def test_paste_in_reads_few_images():
    class Endless:
        asked = 0

        def __iter__(self):
            while True:
                self.asked += 1
                yield coded_image(np.random.default_rng(self.asked), SIZE, SIZE, 4, True)

    sources = Endless()
    paste_in(coded_image(np.random.default_rng(0), SIZE, SIZE), sources, np.random.default_rng(0))
    assert sources.asked <= 30


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_labels_follow_pixels_with_all_augmentations(flip):
    made_new = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        images = coded_set(rng, SIZE, 9, outlined=True)
        chosen = Augmentation(
            copy_paste=1.0, mixup=0, paste_in=0, hsv_h=0, hsv_s=0, hsv_v=0, fliplr=flip, scale=0.2
        )
        result = augmented(images, 0, SIZE, chosen, rng)
        for index in np.flatnonzero(overlaps(result).max(axis=1, initial=0) == 0):
            inside = filled(result.polygons[index], SIZE, SIZE)
            if inside.sum() > 60:
                assert coloured(result.image, result.class_id[index])[inside].mean() > 0.75
        made_new += len(result.class_id) - len(set(result.class_id.tolist()))
    assert made_new > 3
    assert len(CODES) > max(classes_of(images))


def test_filled_polygons():
    square = np.array([(3.0, 4), (9, 4), (9, 12), (3, 12)])
    mask = filled(square, 20, 16)
    inner = np.zeros((20, 16), bool)
    inner[4:12, 3:9] = True
    assert (mask & inner).sum() == inner.sum()
    assert mask.sum() <= inner.sum() + 2 * (6 + 8) + 4
