"""Re-estimated statistics of BatchNorm against plain sums in float64."""

import copy

import pytest
import torch

from y7edge.data.dataset import load
from y7edge.data.synthetic import scenes
from y7edge.errors import DataError
from y7edge.models import registry
from y7edge.models.scaling import scale
from y7edge.nn.build import Model
from y7edge.train.augment.settings import Augmentation
from y7edge.train.averaging import statistics
from y7edge.train.averaging.statistics import Moments, letterboxed_batches, normalizers, reestimate
from y7edge.train.loading.dataset import TrainingSet


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    spec = scale(registry.get("yolov7-w6", nc=2), width=0.03)
    return Model(spec).eval()


@pytest.fixture(scope="module")
def image_batches():
    """Return batches of different size and brightness: a mean of means would be wrong."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((3, 0.2), (2, 0.9), (1, 0.5))
    return [torch.rand(n, 3, 128, 128, generator=generator) * high for n, high in shapes]


def test_moments_equal_those_of_all_values():
    generator = torch.Generator().manual_seed(0)
    # A mean far from zero: a difference of squares would lose all digits.
    maps = [torch.randn(n, 4, 5, 7, generator=generator) * n + 1000 for n in (1, 3, 2)]
    moments = Moments(4, torch.device("cpu"))
    for each in maps:
        moments.add(each)
    values = torch.cat(maps).double().transpose(0, 1).flatten(1)
    assert torch.allclose(moments.mean, values.mean(1), rtol=1e-7)
    assert torch.allclose(moments.variance, values.var(1), rtol=1e-4)


def test_statistics_equal_those_of_a_float64_computation(model, image_batches):
    found, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    reestimate(found, image_batches)
    seen = {name: [] for name in normalizers(exact)}
    for name in seen:
        layer = exact.get_submodule(name)
        layer.train()
        layer.register_forward_pre_hook(lambda _, inputs, n=name: seen[n].append(inputs[0]))
    with torch.no_grad():
        for images in image_batches:
            exact.raw(images.double())
    assert len(seen) > 100  # the auxiliary rows among them
    for name, maps in seen.items():
        values = torch.cat([each.transpose(0, 1).flatten(1) for each in maps], 1)
        layer = found.get_submodule(name)
        scale_of = values.std(1).clamp_min(1e-3)
        assert ((layer.running_mean - values.mean(1)).abs() / scale_of).max() < 1e-3, name
        assert torch.allclose(layer.running_var.double(), values.var(1), rtol=2e-3), name


def test_only_statistics_change(model, image_batches):
    found = copy.deepcopy(model)
    reestimate(found, image_batches)
    assert not any(layer.training for layer in found.modules())
    assert all(found.get_submodule(name).track_running_stats for name in normalizers(found))
    before, after = model.state_dict(), found.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.rpartition(".")[2] for name in changed} == {"running_mean", "running_var"}
    again = copy.deepcopy(model).train()
    reestimate(again, image_batches)
    assert again.training
    assert all(torch.equal(value, after[name]) for name, value in again.state_dict().items())


def test_other_layers_keep_and_use_their_statistics(model, image_batches):
    found, names = copy.deepcopy(model), normalizers(model)
    first = "rows.1.bn"
    reestimate(found, image_batches, names=names - {first})
    assert torch.equal(found.rows[1].bn.running_mean, torch.zeros_like(found.rows[1].bn.bias))
    maps = torch.cat([model.rows[1](model.rows[0](images)) for images in image_batches])
    values = model.rows[2].conv(maps).transpose(0, 1).flatten(1)
    assert torch.allclose(found.rows[2].bn.running_mean, values.mean(1), atol=1e-5)


def test_no_images_are_refused(model):
    with pytest.raises(DataError, match="expected images"):
        reestimate(copy.deepcopy(model), [])


def test_letterboxed_images_are_not_augmented_and_reproducible(tmp_path, monkeypatch):
    data = load(scenes.generate(tmp_path, train=5, val=1, size=(96, 128)))
    train_set = TrainingSet(data.split("train"), 64, Augmentation(), cache="ram")
    first = torch.cat([images.clone() for images in letterboxed_batches(train_set, 2)])
    assert first.shape == (5, 3, 64, 64)
    assert (first[:, :, :8] == 114).all()  # 48 rows of image between grey
    plain = TrainingSet(data.split("train"), 64, None)
    wanted = {plain[0, index][0].numpy().tobytes() for index in range(5)}
    assert {image.numpy().tobytes() for image in first} == wanted
    again = torch.cat([images.clone() for images in letterboxed_batches(train_set, 2, workers=1)])
    assert torch.equal(first, again)
    assert train_set.augmentation is not None
    monkeypatch.setattr(statistics, "ENOUGH", 3)
    assert sum(len(images) for images in letterboxed_batches(train_set, 2)) == 4
