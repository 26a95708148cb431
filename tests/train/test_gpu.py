"""Training on an NVIDIA GPU, compared with the CPU; without a GPU that torch can use, skipped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from y7edge.data.synthetic import scenes
from y7edge.models import registry, weights
from y7edge.models.scaling import scale
from y7edge.nn.build import create, from_checkpoint
from y7edge.nn.eager import EagerSession, describe
from y7edge.nn.random_weights import random_weights
from y7edge.runtimes.base import SessionOptions
from y7edge.train.augment.on_device import apply_appearance
from y7edge.train.augment.pipeline import Appearance
from y7edge.train.augment.settings import Augmentation
from y7edge.train.loss.loss import TrainingLoss
from y7edge.train.output.results import read_csv
from y7edge.train.run.loop import resume, train
from y7edge.train.run.trainer import Trainer
from y7edge.train.settings.config import TINY, TrainConfig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has no NVIDIA GPU")

PRECISIONS = ["32-true", "16-mixed", "bf16-mixed"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Synthetic scenes."""
    return scenes.generate(tmp_path_factory.mktemp("data"), train=24, val=4, size=(128, 128))


def config(data, out, **changes):
    small = TrainConfig(data, width=0.25, imgsz=96, epochs=3, batch=4, out=out, device="cuda")
    return replace(small, **{"report": False, "workers": 2, "nominal_batch": 4, **changes})


def test_colours_and_mirrors_equal_those_of_the_cpu():
    rng = np.random.default_rng(0)
    for height in (64, 161, 330):
        images = torch.from_numpy(rng.integers(0, 256, (16, 3, height, 90), dtype=np.uint8))
        settings = Augmentation(flipud=0.5, hsv_h=0.02, hsv_s=0.9, hsv_v=0.9)
        drawn = np.array([Appearance.draw(settings, rng).numbers() for _ in images])
        appearance = torch.from_numpy(drawn)
        found = apply_appearance(images.cuda(), appearance).cpu()
        assert torch.equal(found, apply_appearance(images, appearance))


@pytest.mark.parametrize("model", ["yolov7-tiny", "yolov7-w6"])
def test_assignment_and_loss_equal_those_of_the_cpu(model):
    spec = registry.get(model, nc=5)
    rng = np.random.default_rng(1)
    found = {}
    shapes = [(3, 3, 256 // stride, 256 // stride, 10) for stride in spec.strides]
    heads = [torch.from_numpy(rng.normal(-1, 1, s).astype(np.float32)) for s in shapes]
    heads += [head * 0.9 for head in heads] if spec.has_aux else []
    boxes = np.column_stack((rng.uniform(0.2, 0.8, (40, 2)), rng.uniform(0.02, 0.4, (40, 2))))
    rows = np.column_stack((rng.integers(0, 3, 40), rng.integers(0, 5, 40), boxes))
    targets = torch.from_numpy(rows.astype(np.float32))
    for device in ("cpu", "cuda"):
        anchors = create(model, nc=5).head.anchors.to(device)
        loss = TrainingLoss(spec, anchors, TINY, 256)
        leaves = [head.detach().to(device, copy=True).requires_grad_() for head in heads]
        on = targets.to(device)
        assignment = loss.assign(leaves, on, loss.loss.anchors)
        parts = loss(leaves, on)
        parts.total.backward()
        gradients = [leaf.grad.cpu() for leaf in leaves]
        values = torch.stack((parts.box, parts.obj, parts.cls)).cpu()
        found[device] = assignment.sizes, assignment.entries.cpu(), values, gradients
    assert found["cuda"][0] == found["cpu"][0]
    assert torch.equal(found["cuda"][1], found["cpu"][1])
    torch.testing.assert_close(found["cuda"][2], found["cpu"][2], rtol=1e-5, atol=0)
    for one, other in zip(found["cuda"][3], found["cpu"][3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_heads_equal_those_of_the_cpu():
    """In float32 without TF32."""
    spec = scale(registry.get("yolov7", nc=3), width=0.25)
    checkpoint = random_weights(spec, seed=0)
    images = {"images": np.random.default_rng(0).random((2, 3, 128, 160), np.float32)}
    manifest = describe(checkpoint, (128, 160))
    cpu, cuda = (
        EagerSession(from_checkpoint(checkpoint), manifest, SessionOptions(device)).infer(images)
        for device in ("cpu", "cuda:0")
    )
    for name, expected in cpu.items():
        error = np.abs(cuda[name] - expected).max()
        assert error < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_losses_of_a_run_are_those_of_the_cpu(data, tmp_path, precision):
    runs = {
        device: train(config(data, tmp_path / device, device=device, precision=chosen))
        for device, chosen in (("cpu", "32-true"), ("cuda", precision))
    }
    losses = {
        device: np.array(
            [(row.box, row.obj, row.cls) for row in read_csv(run.folder / "results.csv")]
        )
        for device, run in runs.items()
    }
    assert np.isfinite(losses["cuda"]).all()
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=0.25)
    assert weights.load(runs["cuda"].best).spec == weights.load(runs["cpu"].best).spec


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_interrupted_run_is_resumed(data, tmp_path, monkeypatch, precision):
    out = tmp_path / "run"
    learn = Trainer._learn

    def interrupted(self, *batch):
        learn(self, *batch)
        if self.position.epoch == 2 and self.position.batch == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config(data, out, precision=precision, checkpoint_minutes=1e-9))
    monkeypatch.undo()
    done = resume(out)
    assert done.epochs == 3
    assert np.isfinite([row.box for row in read_csv(out / "results.csv")]).all()


@pytest.mark.parametrize("changes", [{"multi_scale": True}, {"sync_bn": True}, {"rect": True}])
def test_further_options(data, tmp_path, changes):
    done = train(config(data, tmp_path / "run", epochs=2, **changes))
    assert np.isfinite([row.obj for row in read_csv(done.folder / "results.csv")]).all()


def test_weights_of_the_mean_of_epochs(data, tmp_path):
    recipe = replace(TINY, average="swa", swa_start=0.5)
    done = train(config(data, tmp_path / "run", epochs=4, recipe=recipe))
    assert np.isfinite(next(iter(weights.load(done.last).arrays.values()))).all()
