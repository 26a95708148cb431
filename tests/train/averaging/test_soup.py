"""Soups: the mean of checkpoints, refused checkpoints, and the evaluation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from y7edge.data.dataset import load
from y7edge.data.synthetic import scenes
from y7edge.errors import CheckpointError, ConfigError, DataError
from y7edge.export.folding import fold_checkpoint
from y7edge.models import registry
from y7edge.models.scaling import scale
from y7edge.nn.build import from_checkpoint
from y7edge.nn.random_weights import random_weights
from y7edge.train.averaging import soup
from y7edge.train.averaging.soup import load_all, make_soup, mean, require_alike
from y7edge.train.averaging.statistics import letterboxed_batches, normalizers, reestimate
from y7edge.train.loading.dataset import TrainingSet

SPEC = scale(registry.get("yolov7-tiny", nc=4), width=0.125)


def checkpoint(seed, spec=SPEC, **changes):
    made = replace(random_weights(spec, seed=seed), meta={"imgsz": 64, "licence": "MIT"})
    return replace(made, **changes)


@pytest.fixture(scope="module")
def three():
    return {f"{name}.safetensors": checkpoint(seed) for seed, name in enumerate("abc")}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load(scenes.generate(tmp_path_factory.mktemp("data"), train=3, val=2, size=(96, 96)))


def test_mean_of_every_weight(three):
    found = mean(list(three.values()))
    assert found.spec == SPEC
    for key, array in found.arrays.items():
        if key.endswith("num_batches_tracked"):
            continue
        values = [c.arrays[key].astype(np.float64) for c in three.values()]
        wanted = (values[0] + values[1] + values[2]) / 3
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, wanted, rtol=1e-6, atol=1e-9)


def other_row():
    rows = list(SPEC.rows)
    rows[5] = replace(rows[5], kernel=1)
    return replace(SPEC, rows=tuple(rows))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (scale(registry.get("yolov7-tiny", nc=4), width=0.25), "name yolov7-tiny-w0.25, expected"),
        (scale(registry.get("yolov7-tiny", nc=3), width=0.125), "nc 3, expected 4"),
        (registry.deploy(SPEC), "form deploy, expected training"),
        (replace(SPEC, activation="silu"), "activation silu, expected leaky_relu"),
        (other_row(), "row 5 has kernel 1, expected 3"),
        (replace(SPEC, anchors=SPEC.anchors[::-1]), r"anchors \(\(\(.*from the same weights"),
    ],
    ids=["name", "nc", "form", "activation", "row", "anchors"],
)
def test_other_models_are_refused(other, message):
    pair = {"a": checkpoint(0), "b": checkpoint(1, other)}
    with pytest.raises(ConfigError, match=f"b cannot be averaged with a: {message}"):
        require_alike(pair)


def test_too_few_equal_and_folded_checkpoints_are_refused(three):
    first = checkpoint(0)
    with pytest.raises(ConfigError, match="at least two"):
        require_alike({"a": first})
    with pytest.raises(ConfigError, match="b and a have the same weights"):
        require_alike({"a": first, "b": checkpoint(0)})
    with pytest.raises(CheckpointError, match="b is folded: folding is not linear"):
        require_alike({"a": first, "b": fold_checkpoint(checkpoint(1))})
    with pytest.raises(ConfigError, match="class name 'bolt', expected '0'"):
        require_alike({"a": first, "b": checkpoint(1, names=("bolt", "1", "2", "3"))})


def test_average_is_evaluated_with_statistics_of_the_training_images(three, data):
    made = make_soup(three, data)
    expected = from_checkpoint(mean(list(three.values())))
    train_set = TrainingSet(data.split("train"), 64)
    reestimate(expected, (i.float() / 255 for i in letterboxed_batches(train_set, 16)))
    found = from_checkpoint(made.checkpoint)
    for name in normalizers(expected):
        ours, theirs = found.get_submodule(name), expected.get_submodule(name)
        assert torch.equal(ours.running_mean, theirs.running_mean), name
        assert torch.equal(ours.running_var, theirs.running_var), name
    meta = made.checkpoint.meta
    assert meta["licence"] == "MIT"
    assert meta["imgsz"] == 64
    assert [one["digest"] for one in meta["ingredients"]] == [c.digest for c in three.values()]
    assert "uniform soup of a.safetensors (digest" in meta["provenance"]


@pytest.mark.parametrize(
    ("last", "better"), [(0.31, True), (0.3, False), (0.2, False)], ids=["above", "equal", "below"]
)
def test_average_must_be_better_than_the_best(three, data, monkeypatch, last, better):
    figures = iter([0.1, 0.3, 0.2, last])

    class Evaluated:
        def __init__(self, samples, names, imgsz) -> None:
            assert len(samples) == 2  # the split to evaluate on

        def __call__(self, model):
            value = next(figures)
            return type("Metrics", (), {"map50": value, "map50_95": value, "conf": 0.5})()

    monkeypatch.setattr(soup, "Validation", Evaluated)
    made = make_soup(three, data)
    assert made.best.name == "b.safetensors"
    assert made.better is better


def test_input_sizes_must_be_equal(three, data):
    other = {**three, "d": replace(checkpoint(4), meta={"imgsz": 96})}
    with pytest.raises(ConfigError, match=r"input size.*d 96"):
        make_soup(other, data)


def test_data_of_other_classes_are_refused(three, data):
    with pytest.raises(DataError, match="has 1 classes, but the checkpoints have 4"):
        make_soup(three, data.single_class())


def test_equal_file_names_are_replaced_by_paths(tmp_path, three):
    from y7edge.models import weights

    paths = [tmp_path / name / "best.safetensors" for name in "ab"]
    for path, each in zip(paths, three.values(), strict=False):
        weights.save(each, path)
    assert list(load_all(paths)) == [str(path) for path in paths]
    with pytest.raises(ConfigError, match="is given twice"):
        load_all([paths[0], paths[0]])
