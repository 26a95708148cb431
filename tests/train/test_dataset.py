import pickle

import cv2
import numpy as np
import pytest
import torch

from y7edge.data.dataset import Sample
from y7edge.errors import DataError
from y7edge.train import dataset as module
from y7edge.train import picture_cache
from y7edge.train.augment import Augmentation
from y7edge.train.dataset import TrainingSet, batches, collate, loader


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Ten pictures of 40 x 80 in different reds, each with one object; the last has none."""
    folder = tmp_path_factory.mktemp("pictures")
    made = []
    for index in range(10):
        image = np.full((40, 80, 3), (10, 20, 100 + 10 * index), np.uint8)
        path = folder / f"{index}.png"
        cv2.imwrite(str(path), image)
        count = int(index < 9)
        boxes = np.array([[0.5, 0.5, 0.25, 0.5]] * count, np.float32).reshape(-1, 4)
        made.append(Sample(path, boxes, np.full(count, index % 3, np.int32)))
    return made


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_without_augmentation_pictures_are_letterboxed(samples):
    image, labels = TrainingSet(samples, 64)[3]
    assert image.shape == (3, 64, 64)
    assert image.dtype == torch.uint8
    assert labels.dtype == torch.float32
    assert labels.tolist() == [[0, 0.5, 0.5, 0.25, 0.25]]
    assert image[:, 32, 32].tolist() == [130, 20, 10]  # red first
    assert image[:, 5, 5].tolist() == [114, 114, 114]


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_an_item_depends_on_seed_epoch_and_index_alone(samples, mosaic):
    def item(seed, epoch, index, before=()):
        made = TrainingSet(samples, 64, Augmentation(mosaic=mosaic), seed=seed)
        for other in before:
            made[other]
        return made[epoch, index]

    first = item(0, 2, 5)
    assert same(first, item(0, 2, 5, before=[(2, 1), (1, 5)]))
    assert not same(first, item(1, 2, 5))
    assert not same(first, item(0, 3, 5))
    assert not same(first, item(0, 2, 6))


def test_mosaic_is_as_likely_as_asked(samples, monkeypatch):
    counts = []

    def recorded(tiles, *arguments):
        counts.append(len(tiles))
        return augment(tiles, *arguments)

    augment = module.augment
    monkeypatch.setattr(module, "augment", recorded)
    made = TrainingSet(samples, 64, Augmentation(mosaic=0.3))
    for epoch in range(40):
        for index in range(10):
            made[epoch, index]
    assert set(counts) == {1, 4}
    assert counts.count(4) / len(counts) == pytest.approx(0.3, abs=0.07)


def test_the_picture_asked_for_is_in_its_mosaic(samples):
    made = TrainingSet(samples, 64, Augmentation(hsv_h=0, hsv_s=0, hsv_v=0, scale=0, translate=0))
    shown = [set(made[0, index][0][0].unique().tolist()) for index in range(10)]
    assert all(any(abs(red - 100 - 10 * i) < 2 for red in reds) for i, reds in enumerate(shown))
    assert max(map(len, shown)) > 3


@pytest.mark.parametrize("cache", [True, False])
def test_cached_or_not_is_the_same(samples, cache):
    made = TrainingSet(samples, 64, Augmentation(), cache=cache)
    assert same(made[1, 4], TrainingSet(samples, 64, Augmentation())[1, 4])


def test_cached_pictures_are_read_once(samples, monkeypatch):
    made = TrainingSet(samples, 64, Augmentation())
    monkeypatch.setattr(picture_cache, "read_image", lambda path: pytest.fail("read again"))
    made[0, 0]


def test_no_cache_beyond_the_limit(samples, monkeypatch):
    monkeypatch.setattr(picture_cache, "CACHE_LIMIT", 10 * 64 * 64 * 3 - 1)
    monkeypatch.setattr(picture_cache, "read_image", lambda path: pytest.fail("read too early"))
    TrainingSet(samples, 64)


def test_collate_numbers_the_images(samples):
    made = TrainingSet(samples, 64)
    images, targets = collate([made[1], made[9], made[2]])
    assert images.shape == (3, 3, 64, 64)
    assert images.dtype == torch.uint8
    assert targets.dtype == torch.float32
    assert targets.tolist() == [[0, 1, 0.5, 0.5, 0.25, 0.25], [2, 2, 0.5, 0.5, 0.25, 0.25]]


def test_a_batch_without_objects(samples):
    _, targets = collate([TrainingSet(samples, 64)[9]])
    assert targets.shape == (0, 6)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_don_t_depend_on_workers(samples, workers):
    made = TrainingSet(samples, 64, Augmentation(), seed=4)
    batches = loader(made, 4, workers=workers)
    for epoch in (0, 3):
        batches.sampler.set_epoch(epoch)
        order = list(batches.sampler)
        assert sorted(index for _, index in order) == list(range(10))
        given = list(batches)
        assert [len(images) for images, _ in given] == [4, 4, 2]
        for number, batch in enumerate(given):
            assert same(batch, collate([made[key] for key in order[4 * number : 4 * number + 4]]))


def test_each_epoch_has_its_own_order(samples):
    def order(seed, epoch, shuffle=True):
        made = loader(TrainingSet(samples, 64, seed=seed), 4, shuffle=shuffle)
        made.sampler.set_epoch(epoch)
        return [index for _, index in made.sampler]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)
    assert order(0, 5, shuffle=False) == list(range(10))


def test_workers_may_be_spawned(samples):
    made = loader(TrainingSet(samples, 64, Augmentation()), 5)
    # What a spawned worker is sent.
    sent = pickle.dumps((made.dataset, made.collate_fn, made.worker_init_fn))
    received, _, start = pickle.loads(sent)  # noqa: S301
    threads = cv2.getNumThreads()
    start(0)
    assert same(received[0, 3], made.dataset[0, 3])
    cv2.setNumThreads(threads)


def test_no_samples_is_an_error():
    with pytest.raises(DataError, match="expected pictures to train on, found none"):
        TrainingSet([], 64)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_picture_is_named_in_one_line_by_workers_too(tmp_path, samples, workers):
    lost = Sample(tmp_path / "lost.png", samples[0].boxes, samples[0].class_id)
    made = loader(TrainingSet([lost], 64, cache=False), 1, workers=workers)
    with pytest.raises(DataError) as caught:
        list(batches(made))
    assert str(caught.value).startswith(f"{lost.path}: cannot read the picture")
    assert "\n" not in str(caught.value)


def test_an_unreadable_picture_is_named(tmp_path, samples):
    lost = Sample(tmp_path / "lost.png", samples[0].boxes, samples[0].class_id)
    with pytest.raises(DataError, match=r"lost\.png: cannot read the picture"):
        TrainingSet([lost], 64)
