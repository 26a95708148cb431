"""Anchors: recall, clusters, evolution, and the choice of new ones."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from y7edge.data.sample import Sample
from y7edge.models import registry
from y7edge.train.setup.anchors import Fit, choose, evolve, kmeans, recall, sizes_of

GOLDEN = Path(__file__).parents[2] / "reference" / "golden"
SPEC = registry.get("yolov7-tiny")


def sample(*sides, size=(640, 480), path="none.jpg"):
    """An image with boxes of these normalized sides."""
    boxes = np.array([(0.5, 0.5, *pair) for pair in sides], np.float32).reshape(-1, 4)
    return Sample(Path(path), boxes, np.zeros(len(boxes), np.int32), size=size)


def flat_boxes(count, seed=0, aspect=12.0, low=30.0, high=600.0):
    """Return sizes in pixels of very wide boxes, which the published anchors miss."""
    random = np.random.default_rng(seed)
    width = np.exp(random.uniform(np.log(low), np.log(high), count))
    return np.stack((width, width / aspect * random.uniform(0.8, 1.25, count)), axis=1)


def of_pixels(sizes, per_image=10):
    """Samples of 640 x 640 images with boxes of these sizes."""
    sides = sizes / 640
    return [
        sample(*sides[i : i + per_image].tolist(), size=(640, 640))
        for i in range(0, len(sides), per_image)
    ]


# ---- the measure


def test_recall_equals_the_published_measure():
    cases = json.loads((GOLDEN / "ops.json").read_text())["anchor_metric"]["cases"]
    with np.load(GOLDEN / "ops.npz") as arrays:
        for case in cases:
            fit = recall(arrays[f"anchors/{case['name']}/wh_px"], case["anchors_px"], case["thr"])
            assert fit.bpr == pytest.approx(case["bpr"], rel=1e-6)
            aat = case["anchors_above_threshold_per_target"]
            assert fit.aat == pytest.approx(aat, rel=1e-6)
    assert len(cases) == 2


def test_recall_counts_anchors_within_the_threshold_only():
    anchors = [[[10, 10], [100, 100]], [[20, 20], [30, 60]]]
    assert recall([[10, 10]], anchors) == Fit(1.0, 2.0)
    assert recall([[10, 39.9], [10, 40.1]], [[10, 10]]) == Fit(0.5, 0.5)
    assert recall([[10, 39.9]], [[10, 10]], threshold=3.0) == Fit(0.0, 0.0)
    assert recall([[0, 10], [10, 10]], [[10, 10]]) == Fit(0.5, 0.5)
    assert recall(np.zeros((0, 2)), anchors) == Fit(0.0, 0.0)


def test_sizes_are_those_of_images_with_their_longer_side_at_the_input_size(tmp_path):
    cv2.imwrite(str(tmp_path / "tall.png"), np.zeros((100, 50, 3), np.uint8))
    samples = [
        sample((0.5, 0.5), (0.1, 0.2), size=(640, 480)),
        sample(size=None, path="not-looked-at.jpg"),
        sample((1.0, 1.0), size=None, path=tmp_path / "tall.png"),
    ]
    expected = [[160, 120], [32, 48], [160, 320]]
    np.testing.assert_allclose(sizes_of(samples, 320), expected, rtol=1e-6)
    assert sizes_of([], 320).shape == (0, 2)


# ---- the search


def test_clusters_are_found_and_sorted_by_area():
    random = np.random.default_rng(1)
    centres = np.array([[10.0, 10], [10, 60], [70, 12], [90, 90], [200, 150], [20, 200]])
    points = centres.repeat(40, 0) * random.uniform(0.95, 1.05, (240, 2))
    found = kmeans(random.permutation(points), 6)
    expected = centres[centres.prod(1).argsort()]
    np.testing.assert_allclose(found, expected, rtol=0.03)


@pytest.mark.parametrize("points", [[[5.0, 7.0]] * 20, [[5.0, 7.0], [9.0, 3.0]] * 6])
def test_fewer_distinct_sizes_than_clusters(points):
    found = kmeans(points, 4)
    assert found.shape == (4, 2)
    assert {tuple(row) for row in found.round(9).tolist()} == {tuple(p) for p in points}


def test_evolution_improves_fitness():
    sizes = flat_boxes(500)
    start = sizes[:9]

    def fitness(anchors):
        ratio = sizes[:, None] / anchors
        alike = np.minimum(ratio, 1 / ratio).min(2).max(1)
        return (alike * (alike > 0.25)).mean()

    values = [fitness(evolve(sizes, start, generations=n)) for n in (0, 10, 100, 1000)]
    assert values[0] == pytest.approx(fitness(start))
    assert values == sorted(values)
    assert values[-1] > values[0] + 0.02


def test_anchors_have_at_least_two_pixels_and_are_sorted():
    found = evolve(flat_boxes(300, low=1.0, high=20.0), [[1.0, 1.0], [20, 2], [8, 2]])
    assert found.min() == 2.0
    assert (np.diff(found.prod(1)) >= 0).all()


# ---- the choice


@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7-w6"])
def test_boxes_that_no_anchor_fits_get_new_anchors(name):
    spec, sizes = registry.get(name), flat_boxes(400)
    chosen, message = choose(of_pixels(sizes), spec, 640)
    assert np.shape(chosen) == np.shape(spec.anchors)
    areas = np.prod(np.reshape(chosen, (-1, 2)), axis=1)
    assert (np.diff(areas) >= 0).all()
    before, after = recall(sizes, spec.anchors), recall(sizes, chosen)
    assert before.bpr < 0.7 < 0.99 < after.bpr
    assert f"recall {before.bpr:.4f} -> {after.bpr:.4f}" in message
    assert f"{before.aat:.2f} -> {after.aat:.2f} anchors" in message
    for level in (chosen[0], chosen[-1]):
        assert ",".join(f"{side:.4g}" for side in level[0]) in message
    assert replace(spec, anchors=chosen).anchors == chosen
    assert "\n" not in message


def test_choice_depends_on_the_seed():
    samples = of_pixels(flat_boxes(200))
    assert choose(samples, SPEC, 640, seed=3) == choose(samples, SPEC, 640, seed=3)
    assert choose(samples, SPEC, 640, seed=3)[0] != choose(samples, SPEC, 640, seed=4)[0]


def test_choice_depends_on_the_input_size():
    samples = of_pixels(np.tile([[30.0, 30.0], [90.0, 80.0]], (20, 1)))
    assert choose(samples, SPEC, 640)[0] is None
    assert choose(samples, SPEC, 64)[0] is not None


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "anchors kept: no boxes"),
        ([sample()], "anchors kept: no boxes"),
        (of_pixels(np.array([[20.0, 20.0]])), r"kept: best possible recall 1\.0000, \d"),
        (of_pixels(flat_boxes(8)), "8 boxes are too few for 9 new ones"),
        (of_pixels(np.full((50, 2), 1.0)), "0 boxes are too few for 9 new ones"),
        (of_pixels(np.tile([[300.0, 1.9]], (20, 1))[:, ::-1]), "anchors changed"),
        (of_pixels(np.tile([[600.0, 0.4]], (20, 1))), r"had no better recall \(0\.0000\)"),
    ],
    ids=["empty", "no-boxes", "fit", "few", "tiny", "thin", "thinner-than-any-anchor"],
)
def test_anchors_are_kept_if_new_ones_are_not_better(samples, message):
    chosen, message_found = choose(samples, SPEC, 640)
    assert (chosen is None) == ("kept" in message_found)
    assert re.search(message, message_found), message_found


def test_many_boxes_are_sampled(monkeypatch):
    monkeypatch.setattr("y7edge.train.setup.anchors._EXAMPLES", 50)
    sizes = flat_boxes(300)
    chosen, _ = choose(of_pixels(sizes), SPEC, 640)
    assert chosen != choose(of_pixels(sizes[:50]), SPEC, 640)[0]
    assert recall(sizes, chosen).bpr > 0.95
