import cv2
import numpy as np
import pytest

from y7edge.data.dataset import load
from y7edge.data.synthetic import parts
from y7edge.data.synthetic.scenes import NAMES, generate, scene
from y7edge.errors import ConfigError


def test_same_seed_gives_same_image():
    first, again, other = scene(7), scene(7), scene(8)
    assert (first.image == again.image).all()
    assert (first.boxes == again.boxes).all()
    assert (first.image != other.image).any()


def test_scenes_keep_numpy_global_state():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    scene(0)
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize("size", [(320, 320), (240, 400), (97, 96)])
def test_boxes_are_inside_image_and_large_enough(size):
    seen = set()
    for seed in range(12):
        made = scene(seed, size)
        assert made.image.shape == (*size, 3)
        assert made.image.dtype == np.uint8
        assert len(made.boxes) == len(made.class_id)
        assert (made.boxes >= 0).all()
        assert (made.boxes[:, 2:] <= (size[1], size[0])).all()
        sides = made.boxes[:, 2:] - made.boxes[:, :2]
        assert (sides.max(axis=1) >= 24 / 320 * min(size)).all()
        seen.update(made.class_id.tolist())
    assert seen == set(range(len(NAMES)))


def test_small_size_is_refused():
    with pytest.raises(ConfigError, match="at least 96x96 pixels, found 50x320"):
        scene(0, (50, 320))


@pytest.mark.parametrize("make", [parts.nut, parts.washer, parts.screw, parts.bracket])
def test_extent_is_tight_around_the_drawn_part(make):
    rng = np.random.default_rng(3)
    for angle in rng.uniform(0, 6, 6):
        sprite = parts.render(make(rng), (100.3, 50.8), 60.0, angle, (1.0, 0.0), rng)
        rows, columns = np.nonzero(sprite.alpha > 0.5)
        x, y = sprite.origin
        drawn = (x + columns.min(), y + rows.min(), x + columns.max() + 1, y + rows.max() + 1)
        np.testing.assert_allclose(sprite.extent, drawn, atol=1.3)


def test_parts_have_requested_size_and_angle():
    rng = np.random.default_rng(0)
    flat = parts.render(parts.screw(rng), (0, 0), 80.0, 0.0, (1.0, 0.0), rng).extent
    upright = parts.render(parts.screw(rng), (0, 0), 80.0, np.pi / 2, (1.0, 0.0), rng).extent
    assert flat[2] - flat[0] == pytest.approx(80)
    assert upright[3] - upright[1] == pytest.approx(80)
    assert flat[3] - flat[1] < 40


def test_hidden_parts_are_not_labelled(monkeypatch):
    # Parts lie over one another in the order in which they are drawn.
    drawn = []
    render = parts.render

    def recorded(*arguments):
        sprite = render(*arguments)
        drawn.append(sprite)
        return sprite

    monkeypatch.setattr("y7edge.data.synthetic.scenes.render", recorded)
    monkeypatch.setattr("y7edge.data.synthetic.scenes.LEAST_VISIBLE", 0.9)
    hidden = 0
    for seed in range(20):
        drawn.clear()
        made = scene((9, seed), (200, 200))
        owner = np.full((600, 600), -1)
        for index, sprite in enumerate(drawn):
            x, y = sprite.origin[0] + 200, sprite.origin[1] + 200
            side = sprite.alpha.shape[0]
            owner[y : y + side, x : x + side][sprite.alpha > 0.5] = index
        owner = owner[200:400, 200:400]
        shares = [
            (owner == index).sum() / (sprite.alpha > 0.5).sum()
            for index, sprite in enumerate(drawn)
        ]
        assert len(made.boxes) == sum(share >= 0.9 for share in shares)
        hidden += sum(share < 0.9 for share in shares)
    assert hidden > 0


def test_classes_have_similar_colours():
    means = {index: [] for index in range(len(NAMES))}
    rng = np.random.default_rng(0)
    makers = (parts.nut, parts.washer, parts.screw, parts.bracket)
    for index, make in enumerate(makers):
        for _ in range(60):
            sprite = parts.render(make(rng), (0, 0), 60.0, rng.uniform(0, 6), (1.0, 0.0), rng)
            means[index].append(sprite.colour[sprite.alpha > 0.5].mean(axis=0))
    spread = np.concatenate(list(means.values())).std(axis=0)
    centres = np.array([np.mean(values, axis=0) for values in means.values()])
    assert (np.ptp(centres, axis=0) < 0.75 * spread).all()


def test_generated_data_set_loads(tmp_path):
    path = generate(tmp_path / "parts", train=3, val=2, seed=5, size=(128, 160))
    data = load(path)
    assert data.names == NAMES
    assert data.warnings == ()
    assert [len(data.split("train")), len(data.split("val"))] == [3, 2]
    for split, number in (("train", 0), ("val", 1)):
        for index, sample in enumerate(data.split(split)):
            made = scene((5, number, index), (128, 160))
            image = cv2.imread(str(sample.path))
            assert image.shape == made.image.shape
            assert np.abs(image.astype(int) - made.image).mean() < 8
            centre = sample.boxes[:, :2] * (160, 128)
            np.testing.assert_allclose(
                centre, (made.boxes[:, :2] + made.boxes[:, 2:]) / 2, atol=0.01
            )
            assert (sample.class_id == made.class_id).all()


def test_a_data_set_without_val(tmp_path):
    data = load(generate(tmp_path / "set", train=2, val=0))
    assert {split: len(samples) for split, samples in data.splits.items()} == {"train": 2}


def test_generate_is_deterministic(tmp_path):
    first, second, other = (
        load(generate(tmp_path / name, train=2, val=1, seed=seed, size=(96, 96))).digest
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == second != other
