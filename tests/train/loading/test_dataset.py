"""Items and batches for training: contents, and dependence on seed and key only."""

from __future__ import annotations

import pickle
import sys

import cv2
import numpy as np
import pytest
import torch

from y7edge.data.sample import Sample
from y7edge.errors import ConfigError, DataError
from y7edge.train.augment.on_device import apply_appearance
from y7edge.train.augment.settings import Augmentation
from y7edge.train.loading import memory
from y7edge.train.loading.dataset import TrainingSet, collate, loader
from y7edge.train.loading.sampling import BatchPlan, Key, rect_plan
from y7edge.train.loading.workers import batches

PLAIN = Augmentation(mosaic=0, hsv_h=0, hsv_s=0, hsv_v=0, scale=0, translate=0, fliplr=0)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Ten images of 40 x 80 in different reds, each with one object; the last has none."""
    folder = tmp_path_factory.mktemp("images")
    result = []
    for index in range(10):
        image = np.full((40, 80, 3), (10, 20, 100 + 10 * index), np.uint8)
        path = folder / f"{index}.png"
        cv2.imwrite(str(path), image)
        count = int(index < 9)
        boxes = np.array([[0.5, 0.5, 0.25, 0.5]] * count, np.float32).reshape(-1, 4)
        result.append(Sample(path, boxes, np.full(count, index % 3, np.int32)))
    return result


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def reds(image):
    """Return the index of the red of an image (3, H, W)."""
    return {round((int(red) - 100) / 10) for red in image[0].unique() if red != 114}


def test_without_augmentation_images_are_letterboxed(samples):
    image, labels = TrainingSet(samples, 64)[3]
    assert image.shape == (3, 64, 64)
    assert image.dtype == torch.uint8
    assert labels.dtype == torch.float32
    assert labels.tolist() == [[0, 0.5, 0.5, 0.25, 0.25]]
    assert image[:, 32, 32].tolist() == [130, 20, 10]  # red first
    assert image[:, 5, 5].tolist() == [114, 114, 114]


@pytest.mark.parametrize("settings", [None, PLAIN])
def test_key_sets_the_shape(samples, settings):
    image, labels = TrainingSet(samples, 64, settings)[Key(1, 3, (32, 64))]
    assert image.shape == (3, 32, 64)
    assert labels.numpy() == pytest.approx(np.array([[0, 0.5, 0.5, 0.25, 0.5]]), abs=1e-6)
    assert reds(image) == {3}
    assert (image[0] == 130).all()


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_item_depends_on_seed_and_key_only(samples, mosaic):
    def item(seed, *key, before=()):
        result = TrainingSet(samples, 64, Augmentation(mosaic=mosaic), seed=seed)
        for other in before:
            result[other]
        return result[Key(*key)]

    first = item(0, 2, 5)
    assert same(first, item(0, 2, 5, before=[(2, 1), (1, 5)]))
    assert not same(first, item(1, 2, 5))
    assert not same(first, item(0, 3, 5))
    assert not same(first, item(0, 2, 6))
    assert not same(first, item(0, 2, 5, None, 1))


def test_mosaic_is_off_from_close_at(samples):
    result = TrainingSet(samples, 64, Augmentation(mosaic=1, scale=0), close_at=3)
    visible = {e: [len(reds(result[e, i][0])) for i in range(10)] for e in (1, 2, 3, 4)}
    assert max(visible[1]) > 1
    assert max(visible[2]) > 1
    closed = TrainingSet(samples, 64, Augmentation(mosaic=1, scale=0).closed())
    assert all(same(result[e, i], closed[e, i]) for e in (3, 4) for i in range(10))


def test_labels_are_those_of_the_image(tmp_path):
    """Labels of all images are stored in common arrays."""
    result = []
    for index, count in enumerate((2, 0, 1, 3)):
        path = tmp_path / f"{index}.png"
        cv2.imwrite(str(path), np.zeros((50, 100, 3), np.uint8))
        boxes = np.full((count, 4), 0.2 + index / 10, np.float32)
        line = np.array([[0, 0], [0.5, 0.5], [1, 0.25]], np.float32)
        lines = (None,) * (count - 1) + (line,) if index == 3 else ()
        result.append(Sample(path, boxes, np.arange(count, dtype=np.int32) + index, lines))
    images = TrainingSet(result, 200).images
    assert [len(images[i].boxes) for i in range(4)] == [2, 0, 1, 3]
    assert images[2].boxes == pytest.approx(np.array([[40, 20, 120, 60]]))
    assert images[3].class_id.tolist() == [3, 4, 5]
    assert images[2].polygons == ()
    first, second, third = images[3].polygons
    assert first is None
    assert second is None
    assert third.tolist() == [[0, 0], [100, 50], [200, 25]]


@pytest.mark.parametrize("cache", ["ram", "disk", "none"])
def test_items_do_not_depend_on_the_cache(samples, cache):
    result = TrainingSet(samples, 64, Augmentation(), cache=cache)
    assert all(
        same(result[1, i], TrainingSet(samples, 64, Augmentation())[1, i]) for i in range(10)
    )


def test_collate_numbers_the_images(samples):
    result = TrainingSet(samples, 64)
    images, targets = collate([result[1], result[9], result[2]])
    assert images.shape == (3, 3, 64, 64)
    assert images.dtype == torch.uint8
    assert targets.dtype == torch.float32
    assert targets.tolist() == [[0, 1, 0.5, 0.5, 0.25, 0.25], [2, 2, 0.5, 0.5, 0.25, 0.25]]


def test_batch_without_objects(samples):
    _, targets = collate([TrainingSet(samples, 64)[9]])
    assert targets.shape == (0, 6)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("rect", [False, True])
def test_batches_follow_the_plan_with_any_number_of_workers(samples, workers, rect):
    result = TrainingSet(samples, 64, Augmentation(), seed=4)
    plan = BatchPlan(10, 4, seed=4, rect=rect_plan(samples, 64, 32) if rect else None)
    train_loader = loader(result, plan, workers=workers)
    for epoch, start in ((1, 0), (4, 1), (2, 2)):
        plan.set_epoch(epoch, start)
        keys = list(plan)
        given = list(batches(train_loader))
        assert len(given) == 3 - start
        for batch, wanted in zip(given, keys, strict=True):
            assert same(batch, collate([result[key] for key in wanted]))
            assert batch[0].shape[2:] == ((32, 64) if rect else (64, 64))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("settings", [Augmentation(flipud=0.5, mixup=0.5), None])
def test_batches_in_part_become_the_same_batches(samples, workers, settings):
    result = TrainingSet(samples, 64, settings, seed=4, close_at=2)
    plan = BatchPlan(10, 4, seed=4)
    train_loader = loader(result, plan, workers=workers, in_part=True)
    for epoch in (1, 2):
        plan.set_epoch(epoch)
        given = list(batches(train_loader))
        for (images, targets, appearance), keys in zip(given, list(plan), strict=True):
            expected_images, expected_targets = collate([result[key] for key in keys])
            assert torch.equal(targets, expected_targets)
            assert appearance.shape == (len(images), 5)
            assert (settings is None) == torch.equal(images, expected_images)
            finished = apply_appearance(images, appearance)
            assert (finished.int() - expected_images.int()).abs().max() <= 1


@pytest.mark.parametrize("workers", [0, 1])
def test_incomplete_pass_does_not_affect_the_next(samples, workers):
    result = TrainingSet(samples, 64, Augmentation(), cache="ram")
    plan = BatchPlan(10, 2)
    train_loader = loader(result, plan, workers=workers)
    plan.set_epoch(1)
    next(batches(train_loader))
    plan.set_epoch(1, 3)
    whole = list(batches(train_loader))
    assert [len(batch[0]) for batch in whole] == [2, 2]
    plan.set_epoch(1, 3)
    assert all(
        same(a, collate([result[k] for k in b])) for a, b in zip(whole, list(plan), strict=True)
    )


def test_two_ranks_share_the_batch_of_one_process(samples):
    result = TrainingSet(samples, 64, Augmentation())
    alone = next(batches(loader(result, BatchPlan(10, 6, seed=1))))[0]
    ranks = [
        next(batches(loader(result, BatchPlan(10, 6, seed=1, rank=rank, world=2))))[0]
        for rank in (0, 1)
    ]
    assert torch.equal(torch.stack(ranks, dim=1).flatten(0, 1), alone)


def test_workers_may_be_spawned(samples):
    result = loader(TrainingSet(samples, 64, Augmentation()), BatchPlan(10, 5))
    # What a spawned worker receives.
    sent = pickle.dumps((result.dataset, result.collate_fn, result.worker_init_fn))
    received, *_ = pickle.loads(sent)  # noqa: S301
    task = next(iter(result.sampler))
    assert same(received[task], result.dataset[task])


def test_memory_is_reused_without_workers(samples):
    train_loader = loader(TrainingSet(samples, 64, cache="ram"), BatchPlan(10, 2))
    # Each batch is freed before the next.
    assert len({images.data_ptr() for images, _ in batches(train_loader)}) < 5
    kept = [images for images, _ in batches(train_loader)]
    assert len({images.data_ptr() for images in kept}) == 5


@pytest.mark.skipif(sys.platform != "linux", reason="batches are shared by forked processes")
def test_workers_return_batches_in_shared_memory(samples):
    plan = BatchPlan(10, 4)
    train_loader = loader(TrainingSet(samples, 64, cache="ram"), plan, workers=1)
    block = train_loader.dataset._memory._block
    low = block.__array_interface__["data"][0]
    for images, _ in batches(train_loader):
        assert low <= images.data_ptr() < low + block.nbytes
    plan.set_epoch(2)
    kept = list(batches(train_loader))  # more than there are slots
    plan.set_epoch(3)
    more = list(batches(train_loader))
    for epoch, given in ((2, kept), (3, more)):
        plan.set_epoch(epoch)
        wanted = [collate([train_loader.dataset._dataset[key] for key in keys]) for keys in plan]
        assert all(same(a, b) for a, b in zip(given, wanted, strict=True))


def test_prefetched_batches_must_fit_into_memory(samples, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 100_000)
    result = TrainingSet(samples, 64, cache="none")
    loader(result, BatchPlan(10, 4), workers=0)
    with pytest.raises(ConfigError, match=r"take 0\.3 MB, but only 0\.1 MB"):
        loader(result, BatchPlan(10, 8, world=2), workers=2)


def test_no_samples_is_an_error():
    with pytest.raises(DataError, match="expected training images"):
        TrainingSet([], 64)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_reported_in_one_line(tmp_path, samples, workers):
    lost = Sample(tmp_path / "lost.png", samples[0].boxes, samples[0].class_id)
    result = loader(TrainingSet([lost], 64, cache="none"), BatchPlan(1, 1), workers=workers)
    with pytest.raises(DataError) as caught:
        list(batches(result))
    assert str(caught.value).startswith(f"{lost.path}: cannot read")
    assert "\n" not in str(caught.value)
