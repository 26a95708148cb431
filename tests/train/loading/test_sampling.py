"""Batch plans: reproducible, equal over ranks, resumable at any batch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from y7edge.data.sample import Sample
from y7edge.errors import ConfigError
from y7edge.train.loading.sampling import (
    BatchPlan,
    Key,
    RectPlan,
    generator,
    image_weights,
    rect_plan,
)


def sample(classes=(), size=None, path="none.png"):
    boxes = np.full((len(classes), 4), 0.5, np.float32)
    return Sample(Path(path), boxes, np.array(classes, np.int32), size=size)


def batches(plan, epoch=1, start=0):
    plan.set_epoch(epoch, start)
    return list(plan)


def indices(result):
    return [[key.index for key in keys] for keys in result]


def test_epoch_has_every_image_once():
    result = batches(BatchPlan(10, 4, seed=3), epoch=7)
    assert [len(keys) for keys in result] == [4, 4, 2]
    assert sorted(key for keys in result for key in keys) == [Key(7, i) for i in range(10)]


def test_order_depends_on_seed_and_epoch_only():
    plan = BatchPlan(20, 4, seed=0)
    second = batches(plan, 2)
    assert batches(plan, 1) != second
    assert batches(plan, 2) == second
    assert indices(batches(BatchPlan(20, 4, seed=1), 2)) != indices(second)
    assert indices(batches(BatchPlan(20, 20, shuffle=False), 2)) == [list(range(20))]


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_pass_starts_at_the_given_batch(start):
    plan = BatchPlan(10, 4, seed=3)
    assert batches(plan, 5, start) == batches(plan, 5)[start:]
    assert len(plan) == 3


def test_a_pass_keeps_its_epoch_when_the_next_is_set():
    plan = BatchPlan(8, 4)
    whole = batches(plan, 1)
    plan.set_epoch(1)
    running = iter(plan)
    plan.set_epoch(2, 1)
    assert list(running) == whole


@pytest.mark.parametrize(("length", "kept"), [(48, 48), (49, 48), (50, 50), (53, 53)])
@pytest.mark.parametrize("rect", [False, True])
def test_two_ranks_share_the_batch_of_one_process(length, kept, rect):
    shapes = RectPlan(np.linspace(0.4, 1.7, length), 64, 32) if rect else None
    ranks = [BatchPlan(length, 16, seed=1, rank=r, world=2, rect=shapes) for r in (0, 1)]
    alone = BatchPlan(length, 16, seed=1, rect=shapes)
    first, second = (batches(plan, 4) for plan in ranks)
    assert len(first) == len(second) == len(ranks[0]) == len(ranks[1])
    whole = batches(alone, 4)
    if kept < length:
        whole = [keys for keys in whole if len(keys) > 1]
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [
        sorted(keys) for keys in whole
    ]
    assert all(0 <= len(a) - len(b) <= 1 for a, b in zip(first, second, strict=True))
    assert sum(map(len, first + second)) == kept


def test_dropped_images_differ_between_epochs():
    plan = BatchPlan(5, 4, world=4)
    left_out = [set(range(5)) - {k.index for r in range(4) for b in again(5, r, e) for k in b}
                for e in range(12)]  # fmt: skip
    assert len(plan) == 1
    assert all(len(one) == 1 for one in left_out)
    assert len(set.union(*left_out)) > 2


def again(length, rank, epoch):
    return batches(BatchPlan(length, 4, rank=rank, world=4), epoch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 6, "world": 4}, r"multiple of 4 \(the number of processes\), found 6"),
        ({"batch": 0}, "found 0"),
        ({"batch": 8, "world": 4, "length": 3}, "3 images are too few for 4 processes"),
    ],
)
def test_invalid_plans(arguments, message):
    with pytest.raises(ConfigError, match=message):
        BatchPlan(**{"length": 10, **arguments})


# --- weights -------------------------------------------------------------------------------------


def test_images_are_drawn_by_weight():
    plan = BatchPlan(4, 4, seed=0)
    plan.set_weights(np.array([0, 1, 1, 6]))
    drawn = Counter(key.index for epoch in range(500) for key in batches(plan, epoch)[0])
    assert drawn[0] == 0
    assert drawn[3] / 2000 == pytest.approx(0.75, abs=0.04)
    assert drawn[1] / 2000 == pytest.approx(0.125, abs=0.03)
    assert batches(plan, 7) == batches(plan, 7)
    assert indices(batches(plan, 7)) != indices(batches(plan, 8))
    plan.set_weights(None)
    assert sorted(indices(batches(plan, 7))[0]) == [0, 1, 2, 3]


def test_repeated_image_is_a_different_item():
    plan = BatchPlan(6, 4)
    plan.set_weights(np.array([0, 0, 1, 0, 0, 1]))
    keys = [key for result in batches(plan, 3) for key in result]
    assert len(set(keys)) == len(keys) == 6
    for index in (2, 5):
        repeats = [key.repeat for key in keys if key.index == index]
        assert repeats == list(range(len(repeats)))


@pytest.mark.parametrize("weights", [[1, 2], [0, 0, 0], [1, -1, 2], [1, np.nan, 2]])
def test_invalid_weights(weights):
    with pytest.raises(ConfigError, match="weights: expected"):
        BatchPlan(3, 1).set_weights(np.array(weights))


def test_image_weights_are_the_published_ones():
    samples = [sample([0, 0, 1]), sample([1, 1]), sample(), sample([2])]
    # Objects per class: 2, 3, 1; 1/count normalised: 3/11, 2/11, 6/11.
    assert image_weights(samples, 3) == pytest.approx(np.array([8, 4, 0, 6]) / 11)
    scores = np.array([0.5, np.nan, 0.9])
    assert image_weights(samples, 3, scores) == pytest.approx(
        np.array([2 * 3 * 0.25 + 2, 4, 0, 6 * 0.01]) / 11
    )


def test_image_weights_without_objects_are_equal():
    assert image_weights([sample(), sample()], 2).tolist() == [1, 1]
    assert image_weights([sample([0]), sample()], 1, np.ones(1)).tolist() == [1, 1]


# --- rect ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aspects", "shape"),
    [
        ([0.75, 0.5], (480, 640)),
        ([0.76, 0.5], (512, 640)),
        ([1.5, 2.0], (640, 448)),
        ([0.5, 2.0], (640, 640)),
        ([0.5, 1.0], (640, 640)),
        ([416 / 640], (416, 640)),
        ([0.01], (32, 640)),
    ],
)
def test_batch_shape_is_as_published(aspects, shape):
    plan = RectPlan(np.array(aspects), 640, 32)
    assert plan.shape(np.arange(len(aspects))) == shape


def test_rect_batches_have_similar_aspects():
    aspect = np.array([1.5, 0.5, 0.9, 0.5, 2.0, 0.75, 0.5, 1.5])
    plan = BatchPlan(8, 2, seed=2, rect=RectPlan(aspect, 64, 32))
    pairs = {(0.5, 0.5): (32, 64), (0.5, 0.75): (64, 64), (0.9, 1.5): (64, 64),
             (1.5, 2.0): (64, 64)}  # fmt: skip
    orders, partners = set(), set()
    for epoch in range(20):
        result = batches(plan, epoch)
        met = {tuple(sorted(aspect[[k.index for k in keys]])): keys[0].shape for keys in result}
        assert met == pairs
        assert all(key.shape == keys[0].shape for keys in result for key in keys)
        orders.add(tuple(aspect[keys[0].index] > 1 for keys in result))
        partners |= {tuple(sorted(k.index for k in keys)) for keys in result}
    assert len(orders) > 1
    assert len(partners) > 4


def test_rect_without_shuffle_is_sorted_by_aspect():
    aspect = np.array([1.5, 0.5, 1.0])
    plan = BatchPlan(3, 1, shuffle=False, rect=RectPlan(aspect, 64, 32))
    assert indices(batches(plan)) == [[1], [2], [0]]


def test_aspects_come_from_samples_or_headers(tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.zeros((30, 40, 3), np.uint8))
    plan = rect_plan([sample(size=(200, 100)), sample(path=path)], 640, 32)
    assert plan.aspect.tolist() == [0.5, 0.75]


def test_generator_depends_on_the_key_only():
    keys = [Key(epoch, index, None, repeat) for epoch, index, repeat in np.ndindex(2, 2, 2)]
    drawn = {}
    for seed in (0, 1):
        for key in keys:
            rng = generator(seed, key)
            drawn[seed, key] = rng.random(4).tolist()
            rng.integers(7, size=3)  # leaves half a word in the buffer
    assert len({number for numbers in drawn.values() for number in numbers}) == 4 * len(drawn)
    for (seed, key), numbers in reversed(drawn.items()):
        assert generator(seed, key).random(4).tolist() == numbers
