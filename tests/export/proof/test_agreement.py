"""The measures of a proof, compared with plain implementations of their definitions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from y7edge.artifact.manifest import LevelInfo
from y7edge.export.proof.agreement import (
    BEST,
    CandidateAgreement,
    Decoded,
    TensorAgreement,
    candidates_of,
    choose,
    decode,
    iou,
)

GOLDEN = Path(__file__).parents[2] / "reference" / "golden"


def pair(seed=0, noise=0.01, axis=1):
    """A reference whose channels have means far apart, and the same with noise."""
    shape = (1, 6, 5, 7)
    rng = np.random.default_rng(seed)
    means = np.linspace(-30, 30, shape[axis]).reshape([-1 if a == axis else 1 for a in range(4)])
    reference = (rng.normal(size=shape) + means).astype(np.float32)
    return reference, (reference + rng.normal(0, noise, shape)).astype(np.float32)


def by_channel(values, axis):
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def test_deviation_is_relative_to_the_largest_magnitude_of_each_image():
    agreement = TensorAgreement(channel_axis=1)
    worst = []
    for seed in range(3):
        reference, found = pair(seed)
        agreement.add(reference, found)
        worst.append(np.abs(found - reference).max() / np.abs(reference).max())
    assert agreement.deviation == pytest.approx(max(worst), rel=1e-6)


@pytest.mark.parametrize("axis", [1, 2])
def test_cosine_subtracts_channel_means(axis):
    pairs = [pair(seed, noise=0.3, axis=axis) for seed in range(3)]
    agreement = TensorAgreement(channel_axis=axis)
    for reference, found in pairs:
        agreement.add(reference, found)
    r, f = (
        np.concatenate(
            [np.moveaxis(p[side], axis, 0).reshape(p[0].shape[axis], -1) for p in pairs], 1
        ).astype(np.float64)
        for side in (0, 1)
    )
    mean = r.mean(1, keepdims=True)
    expected = ((r - mean) * (f - mean)).sum() / np.sqrt(
        ((r - mean) ** 2).sum() * ((f - mean) ** 2).sum()
    )
    assert agreement.cosine == pytest.approx(expected, abs=1e-9)
    assert expected < 0.97


def test_bias_does_not_affect_the_cosine():
    reference, _ = pair()
    shuffled = np.random.default_rng(1).permuted(reference, axis=3)
    agreement = TensorAgreement(channel_axis=1)
    agreement.add(reference, shuffled)
    flat = (
        reference.ravel() @ shuffled.ravel() / np.linalg.norm(reference) / np.linalg.norm(shuffled)
    )
    assert flat > 0.99
    assert agreement.cosine < 0.5


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("first", [True, False])
def test_non_finite_values_are_kept(value, first):
    broken = pair()[1]
    broken[0, 3, 2, 1] = value
    agreement = TensorAgreement(channel_axis=1)
    for found in (broken, pair()[1]) if first else (pair()[1], broken):
        agreement.add(pair()[0], found)
    assert not agreement.deviation <= 1e9
    assert not agreement.cosine >= -1


def test_constant_reference():
    agreement = TensorAgreement(channel_axis=1)
    same = np.ones((1, 2, 3, 3), np.float32)
    agreement.add(same, same)
    assert agreement.cosine == 1
    agreement.add(same, same + np.arange(3, dtype=np.float32))
    assert np.isnan(agreement.cosine)


def test_equal_zeros_do_not_deviate():
    zeros = np.zeros((1, 3, 4, 4), np.float32)
    agreement = TensorAgreement(channel_axis=1)
    agreement.add(zeros, zeros)
    assert (agreement.deviation, agreement.cosine) == (0, 1)
    agreement.add(zeros, zeros + np.float32(1e-30))
    assert agreement.deviation == np.inf


@pytest.mark.parametrize("nc", [80, 1])
def test_decoding_is_the_published_one(nc):
    golden = np.load(GOLDEN / "model_yolov7-tiny.npz")
    description = json.loads((GOLDEN / "model_yolov7-tiny.json").read_text())
    grid = np.array(description["explicit"]["model.77.anchors"]).reshape(3, 3, 2)
    strides = (8, 16, 32)
    levels = [
        LevelInfo(s, tuple((float(w * s), float(h * s)) for w, h in level))
        for s, level in zip(strides, grid, strict=True)
    ]
    heads = []
    for i in range(3):
        raw = golden[f"raw{i}"][..., : 5 + nc]
        planes = raw.transpose(0, 1, 4, 2, 3)
        heads.append(planes.reshape(1, -1, *raw.shape[2:4]))
    found = decode(heads, levels, nc)
    expected = golden["decoded"][0]
    np.testing.assert_allclose(found.boxes, expected[:, :4], rtol=1e-4, atol=2e-3)
    scores = expected[:, 4:5] * expected[:, 5:] if nc > 1 else expected[:, 4:5]
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((50, 50, 20, 20), (50, 50, 20, 20), 1.0),
        ((50, 50, 20, 20), (60, 50, 20, 20), 1 / 3),
        ((50, 50, 20, 20), (90, 50, 20, 20), 0.0),
        ((50, 50, 20, 20), (50, 50, 10, 10), 0.25),
        ((50, 50, 20, 1e-9), (50, 50.00001, 20, 1e-9), 1.0),  # sides below a pixel are a pixel
        ((50, 50, 0, 0), (50.5, 50, 0, 0), 1 / 3),
        ((50, 50, 20, 20), (50, 50, np.nan, 20), 0.0),
    ],
)
def test_iou(a, b, expected):
    found = iou(np.array(a, np.float32), np.array(b, np.float32))
    assert found == pytest.approx(expected, abs=1e-4)


def scored(scores, nc=2):
    scores = np.asarray(scores, np.float32)
    table = np.zeros((len(scores), nc), np.float32)
    table[:, 1] = scores
    boxes = np.tile(np.array([50, 50, 20, 20], np.float32), (len(scores), 1))
    return Decoded(boxes, table)


def test_best_candidates_come_before_one_per_hundredth():
    rng = np.random.default_rng(0)
    images = [scored(rng.uniform(0.9, 0.99, 80)), scored([*rng.uniform(0.9, 0.99, 80), 0.3, 0.1])]
    chosen = choose([c for i, p in enumerate(images) for c in candidates_of(i, p)])
    everything = np.concatenate([p.scores[:, 1] for p in images])
    np.testing.assert_array_equal(
        [c.score for c in chosen[:BEST]], np.sort(everything)[::-1][:BEST]
    )
    ladder = [round(c.score, 2) for c in chosen[BEST:]]
    assert ladder[-2:] == [0.3, 0.1]
    assert len(chosen) == len({(c.image, c.index) for c in chosen})
    assert all(c.class_id == 1 for c in chosen)
    assert all(images[c.image].scores[c.index, 1] == np.float32(c.score) for c in chosen)


def test_candidates_are_compared_in_their_own_place():
    reference = scored([0.9, 0.5, 0.1])
    found = scored([0.9, 0.48, 0.1])
    found.boxes[2, 0] += 20  # far from the best: matches none
    found.scores[:, 0] = 0.7  # of another class
    agreement = CandidateAgreement()
    for rank, candidate in enumerate(candidates_of(0, reference)):
        agreement.add(candidate, found, is_best=rank < 2)
    assert agreement.score == pytest.approx(0.02, abs=1e-6)
    assert agreement.iou == 1.0
    found.boxes[0, 0] += 2
    found.scores[1, 1] = np.nan
    for candidate in candidates_of(0, reference):
        agreement.add(candidate, found, is_best=True)
    assert agreement.iou == pytest.approx(0.0)
    assert not agreement.score <= 1
