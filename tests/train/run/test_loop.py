"""Complete small training runs: files, scores, and ways to end."""

import json
import logging
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision.amp import MixedPrecision

from y7edge.data.dataset import load
from y7edge.data.synthetic import scenes
from y7edge.detect.detector import Detector
from y7edge.errors import CheckpointError, ConfigError, DataError, DeviceError, TrainingError
from y7edge.evaluation.evaluate import evaluate
from y7edge.models import weights
from y7edge.nn.build import create, to_checkpoint
from y7edge.train.augment.settings import Augmentation
from y7edge.train.loading.dataset import loader
from y7edge.train.output.results import read_csv
from y7edge.train.run.loop import train
from y7edge.train.run.progress import Progress
from y7edge.train.run.steps import random_side
from y7edge.train.run.trainer import Trainer
from y7edge.train.settings.config import TINY, TrainConfig
from y7edge.train.setup.parts import build, start_model

STILL = Augmentation(
    mosaic=0, mixup=0, paste_in=0, hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten training images, four validation images."""
    return scenes.generate(tmp_path_factory.mktemp("data"), train=10, val=4, size=(128, 128))


def config(data, out, **changes):
    # Only one run writes a report, which takes longer than training.
    small = TrainConfig(data, width=0.125, imgsz=64, epochs=2, batch=4, out=out, workers=0)
    small = replace(small, device="cpu")  # also on a machine with a GPU
    return replace(small, **{"report": False, **changes})


def trainer_of(config, progress=None):
    progress = progress or Progress()
    return Trainer(build(config, log=progress.log), progress)


class Recorder(Progress):
    """Record what is reported."""

    def __init__(self) -> None:
        self.lines, self.steps, self.rows, self.closed = [], [], [], 0

    def log(self, line):
        self.lines.append(line)

    def step(self, status):
        self.steps.append(status)

    def epoch(self, row, epochs, left):
        self.rows.append(row)

    def close(self):
        self.closed += 1


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished run, with its messages."""
    recorder = Recorder()
    out = tmp_path_factory.mktemp("runs") / "first"
    return train(
        config(data, out, val_every=1, licence="CC0-1.0", report=True), progress=recorder
    ), recorder


def test_run_writes_all_files(run):
    result, _ = run
    names = {path.name for path in result.folder.iterdir()}
    assert names == {
        "best.safetensors",
        "last.safetensors",
        "results.csv",
        "results.png",
        "predictions.json",
        "config.yaml",
        "report.html",
        "state.safetensors",
        "batches",
        "curves",
        "predictions",
        "tensorboard",
        ".lock",
    }
    assert cv2.imread(str(result.folder / "results.png")) is not None


def test_run_without_report_writes_no_images(data, tmp_path):
    names = {path.name for path in train(config(data, tmp_path / "run")).folder.iterdir()}
    assert not names & {"report.html", "results.png", "curves", "predictions", "predictions.json"}
    assert {"best.safetensors", "last.safetensors", "results.csv", "state.safetensors"} <= names


def test_progress_is_reported(run):
    result, recorder = run
    assert "10 training images, 4 validation images, 2 epochs at 64 px" in recorder.lines[1]
    assert [(s.epoch, s.iteration) for s in recorder.steps] == [
        (epoch, iteration) for epoch in (1, 2) for iteration in (1, 2, 3)
    ]
    assert all(s.memory_mb > 0 and s.eta_seconds >= 0 for s in recorder.steps)
    assert recorder.steps[-1].eta_seconds == 0
    assert [row.epoch for row in recorder.rows] == [1, 2]
    assert recorder.closed == 1
    written = read_csv(result.folder / "results.csv")
    assert [row.epoch for row in written] == [1, 2]
    assert [row.box for row in written] == pytest.approx([r.box for r in recorder.rows], rel=1e-5)
    assert result.seconds_per_epoch == pytest.approx(np.mean([r.seconds for r in recorder.rows]))


def test_checkpoint_has_its_provenance(run, data):
    result, _ = run
    checkpoint = weights.load(result.last)
    assert checkpoint.form == "training"
    assert checkpoint.names == scenes.NAMES
    meta = json.loads(json.dumps(checkpoint.meta))
    assert (meta["imgsz"], meta["epoch"], meta["licence"]) == (64, 2, "CC0-1.0")
    assert meta["data"]["path"] == str(data)
    assert len(meta["data"]["digest"]) == 64
    assert meta["config"]["recipe"]["augmentation"]["mosaic"] == 1.0
    assert meta["config"]["nominal_batch"] == 16
    assert "trained from random weights" in meta["provenance"]
    assert meta["metrics"]["map50"] == read_csv(result.folder / "results.csv")[-1].map50
    assert {"torch", "numpy", "python", "y7edge"} <= set(meta["versions"])


def test_equal_seeds_give_equal_weights(run, data, tmp_path):
    first = weights.load(run[0].last)
    again = train(config(data, tmp_path / "again", licence="CC0-1.0"))
    assert weights.load(again.last).digest == first.digest
    other = train(config(data, tmp_path / "other", seed=1))
    assert weights.load(other.last).digest != first.digest


def test_colours_on_the_device_give_the_same_training(data, tmp_path):
    # On a GPU, the loader leaves jitter and mirror to the device; here the device is the CPU.
    results = []
    for in_part in (False, True):
        trainer = trainer_of(config(data, tmp_path / str(in_part)))
        parts = trainer.parts
        assert len(next(iter(parts.loader))) == 2
        parts.loader = loader(parts.train_set, parts.plan, in_part=in_part)
        trainer.train_epoch()
        results.append(trainer.position.sums)
        drawn = tmp_path / str(in_part) / "batches"
        results.append(cv2.imread(str(next(drawn.iterdir()))))
    np.testing.assert_allclose(results[2], results[0], rtol=1e-4)
    assert cv2.absdiff(results[3], results[1]).max() <= 2  # JPEG


def test_saved_model_is_the_moving_average(data, tmp_path):
    trainer = trainer_of(config(data, tmp_path / "run", nominal_batch=4))
    result = trainer.run()
    saved = weights.load(result.last).arrays
    average, trained = (
        trainer.parts.steps.average.model.state_dict(),
        trainer.parts.steps.model.state_dict(),
    )
    key = "rows.0.conv.weight"
    assert np.array_equal(saved[key], average[key].numpy())
    assert not np.array_equal(saved[key], trained[key].numpy())


@pytest.mark.parametrize(
    ("nominal", "updates"),
    [
        pytest.param(4, 6, id="a step after each of 3 iterations, twice"),
        pytest.param(8, 3, id="every two: the second step spans the epochs"),
        pytest.param(16, 2, id="every four: the run's last two are a step too"),
    ],
)
def test_all_gradients_are_used(data, tmp_path, nominal, updates):
    recipe = replace(TINY, warmup_epochs=0.0)
    trainer = trainer_of(config(data, tmp_path / "run", nominal_batch=nominal, recipe=recipe))
    trainer.run()
    assert trainer.parts.steps.average.updates == updates
    assert all(p.grad is None for p in trainer.parts.steps.model.parameters())


@pytest.mark.parametrize(("clip_norm", "clipped"), [(0.0, False), (0.25, True)])
def test_gradients_are_clipped_by_clip_norm(data, tmp_path, monkeypatch, clip_norm, clipped):
    norms, step = [], torch.optim.SGD.step

    def noted(self, *arguments, **options):
        found = [p.grad.norm() for group in self.param_groups for p in group["params"]]
        norms.append(torch.stack(found).norm().item())
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    recipe = replace(TINY, clip_norm=clip_norm, nominal_batch=8)  # every other batch steps
    train(config(data, tmp_path / "run", recipe=recipe))
    assert norms
    assert (max(norms) <= 0.2501) is clipped


def test_training_learns(data, tmp_path):
    recipe = replace(TINY, augmentation=STILL, lr0=0.1)
    recorder = Recorder()
    # Enough epochs for any CPU: the order of sums, and so the result, depends on the CPU.
    changes = {"epochs": 30, "batch": 5, "nominal_batch": 5, "val_every": 30, "recipe": recipe}
    train(config(data, tmp_path / "run", val_split="train", **changes), progress=recorder)
    first, last = recorder.rows[0], recorder.rows[-1]
    assert last.box < 0.8 * first.box
    assert last.cls < 0.75 * first.cls


def test_scores_of_a_run_equal_its_checkpoints(run, data, caplog, capsys):
    caplog.set_level(logging.WARNING)
    result, recorder = run
    with Detector(result.last) as detector:
        samples = load(data).split("val")
        metrics = evaluate(detector.detect_for_evaluation, samples, detector.names)
    last = recorder.rows[-1]
    assert (metrics.map50, metrics.map50_95) == pytest.approx((last.map50, last.map50_95))
    assert (capsys.readouterr().out, caplog.records) == ("", [])  # no other output


def test_patience_ends_a_run(data, tmp_path):
    recipe = replace(TINY, lr0=1e-9, warmup_bias_lr=0.0)
    recorder = Recorder()
    changes = {"epochs": 6, "patience": 2, "val_every": 1, "recipe": recipe}
    result = train(config(data, tmp_path / "run", **changes), progress=recorder)
    assert (result.stopped_early, result.epochs, result.metrics.epoch) == (True, 3, 1)
    assert "stopped: no better fitness since epoch 1" in recorder.lines


def test_patience_waits_for_an_evaluation(data, tmp_path):
    recipe = replace(TINY, lr0=1e-9, warmup_bias_lr=0.0)
    changes = {"epochs": 6, "patience": 1, "val_every": 2, "recipe": recipe}
    result = train(config(data, tmp_path / "run", **changes))
    # The best is that of epoch 2; 3 is not evaluated, and 4, which is, is not better.
    assert (result.stopped_early, result.epochs, result.metrics.epoch) == (True, 4, 2)


def test_patience_starts_once_swa_begins(data, tmp_path):
    recipe = replace(TINY, lr0=1e-9, warmup_bias_lr=0.0, average="swa", swa_start=0.5)
    changes = {"epochs": 8, "patience": 1, "val_every": 1, "recipe": recipe}
    result = train(config(data, tmp_path / "run", **changes))
    # The mean begins with epoch 5, and 6 is not better.
    assert result.stopped_early
    assert result.epochs >= 6


@pytest.mark.parametrize(
    "problem",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate"),
    ],
)
def test_out_of_memory_is_reported(problem, data, tmp_path, monkeypatch):
    def fail(*_):
        raise problem

    monkeypatch.setattr("y7edge.train.run.trainer.Trainer._learn", fail)
    with pytest.raises(TrainingError, match=r"out of memory on cpu with batch 4 at 64 px.*--batch"):
        train(config(data, tmp_path / "run"))


def test_interrupted_run_keeps_its_last_state(data, tmp_path):
    class Impatient(Recorder):
        def step(self, status):
            super().step(status)
            if (status.epoch, status.iteration) == (2, 2):
                raise KeyboardInterrupt

    impatient = Impatient()
    with pytest.raises(KeyboardInterrupt):
        train(config(data, tmp_path / "run"), progress=impatient)
    checkpoint = weights.load(tmp_path / "run" / "last.safetensors")
    assert checkpoint.meta["interrupted"] is True
    assert checkpoint.meta["epoch"] == 1
    assert "the state so far" in impatient.lines[-1]
    assert impatient.closed == 1


def test_non_finite_loss_ends_the_run(data, tmp_path):
    recipe = replace(TINY, lr0=1e12, warmup_epochs=0.0)
    with pytest.raises(TrainingError, match=r"the loss is not finite in epoch \d"):
        train(config(data, tmp_path / "run", recipe=recipe, nominal_batch=4))
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_model_with_auxiliary_heads_trains_them_and_evaluates_the_lead(data, tmp_path):
    recorder = Recorder()
    # The same images in each step, so that the loss falls reliably.
    changes = {
        "model": "yolov7-w6",
        "imgsz": 128,
        "batch": 5,
        "nominal_batch": 5,
        "epochs": 6,
        "recipe": replace(TINY, augmentation=STILL, lr0=0.05, obj=5.0, cls=5.0),
    }
    trainer = trainer_of(config(data, tmp_path / "run", **changes), recorder)
    before = {k: v.clone() for k, v in trainer.parts.steps.model.state_dict().items()}
    result = trainer.run()
    saved = weights.load(result.last)
    assert saved.spec.has_aux
    aux = [key for key in saved.arrays if ".aux." in key]
    assert aux
    assert all(not np.array_equal(saved.arrays[key], before[key].numpy()) for key in aux)
    assert result.metrics.map50 is not None
    first, last = (row.box + row.obj + row.cls for row in (recorder.rows[0], recorder.rows[-1]))
    assert last < first


def test_input_size_changes_from_batch_to_batch(data, tmp_path):
    sizes = []
    trainer = trainer_of(config(data, tmp_path / "run", multi_scale=True, imgsz=128))
    trainer.parts.steps.model.register_forward_pre_hook(
        lambda _, given: sizes.append(given[0].shape[2:])
    )
    trainer.train_epoch()
    assert [tuple(size) for size in sizes] == [
        (random_side(128, 32, 0, 1, batch),) * 2 for batch in range(len(trainer.parts.plan))
    ]


def test_last_epochs_have_no_mosaic(data, tmp_path):
    recipe = replace(TINY, close_mosaic=1)
    trainer = trainer_of(config(data, tmp_path / "run", recipe=recipe))
    assert trainer.parts.train_set.close_at == 2


def test_image_weights_prefer_badly_detected_classes(data, tmp_path):
    trainer = trainer_of(config(data, tmp_path / "run", image_weights=True, val_every=1))
    before = trainer.parts.plan.weights.copy()
    trainer.parts.validation = Scores(trainer.parts.validation, [1.0, 1.0, 1.0, 0.0])
    trainer.run()
    # Only images with the last class have weight.
    shows = np.array([3 in sample.class_id for sample in trainer.parts.train_set.samples])
    assert not np.array_equal(trainer.parts.plan.weights, before)
    assert (trainer.parts.plan.weights[shows] > 0).all()
    assert not trainer.parts.plan.weights[~shows].any()


class Scores:
    """A validation with given scores of each class."""

    def __init__(self, validation, scores) -> None:
        self.validation, self.scores = validation, scores
        self.samples, self.names = validation.samples, validation.names

    def __call__(self, model, *rest):
        found = self.validation(model, *rest)
        classes = [
            replace(one, ap50_95=score)
            for one, score in zip(found.per_class, self.scores, strict=True)
        ]
        return replace(found, per_class=tuple(classes))

    def __getattr__(self, name):
        return getattr(self.validation, name)


def test_fine_tuning_copies_entries_that_fit(run, data, tmp_path, caplog):
    checkpoint = weights.load(run[0].last)
    recorder = Recorder()
    trainer = trainer_of(config(data, tmp_path / "run", weights=run[0].last), recorder)
    assert "fine-tuned from last.safetensors" in recorder.lines[-1]
    start = trainer.parts.steps.model.state_dict()
    assert all(np.array_equal(start[k].numpy(), v) for k, v in checkpoint.arrays.items())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "yolov7-w6", "imgsz": 96}, ConfigError, "imgsz must be a multiple of 64"),
        ({"model": "yolov8"}, ConfigError, "yolov8"),
        ({"imgsz": 100}, ConfigError, "imgsz must be a multiple of 32 .* take 128"),
        ({"device": "cuda:9"}, DeviceError, "device 'cuda:9' is not available: expected cpu"),
        ({"device": "gpu"}, DeviceError, "device 'gpu' is not available: expected cpu"),
        ({"imgsz": 32}, ConfigError, "imgsz must be 64 or more"),
        ({"val_split": "test"}, DataError, "expected an entry 'test', found train, val"),
        ({"data": "nowhere.yaml"}, DataError, "nowhere.yaml"),
    ],
)
def test_invalid_runs_are_refused_at_once(data, tmp_path, changes, error, message):
    out = tmp_path / "run"
    with pytest.raises(error, match=message):
        train(replace(config(data, out), **changes))
    assert not out.exists()


def test_finished_run_is_not_overwritten(run, data):
    before = weights.load(run[0].best).digest
    with pytest.raises(ConfigError, match=r"already holds a run .*give another --out"):
        train(config(data, run[0].folder))
    assert weights.load(run[0].best).digest == before


def test_weights_that_do_not_fit_are_refused(data, tmp_path):
    path = tmp_path / "tiny.safetensors"
    weights.save(to_checkpoint(create("yolov7-tiny", nc=4)), path)
    with pytest.raises(CheckpointError, match=r"fits 0 of 55 convolutions"):
        train(config(data, tmp_path / "run", weights=path))


def test_weights_of_another_model_are_refused(tmp_path):
    path = tmp_path / "tiny.safetensors"
    weights.save(to_checkpoint(create("yolov7-tiny", nc=4)), path)
    # The first layer of both has 32 channels.
    with pytest.raises(CheckpointError, match=r"fits [1-9] of \d+ convolutions of yolov7"):
        start_model(config("", None, model="yolov7", width=1.0, weights=path), "abcd")


@pytest.mark.parametrize(
    ("split", "label", "message"),
    [
        ("train", "", "expected labels to train on, found none for 2 images such as "),
        ("val", "", "expected labels to evaluate on, found none for 2 images such as "),
        ("val", None, "1.jpg: expected an image"),
    ],
)
def test_invalid_data_are_refused_before_training(tmp_path, split, label, message):
    for part in ("train", "val"):
        for index in range(2):
            image = tmp_path / "images" / part / f"{index}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(image), np.zeros((64, 64, 3), np.uint8))
            image.with_suffix(".txt").write_text("0 .5 .5 .2 .2")
            if part == split and label is not None:
                image.with_suffix(".txt").write_text(label)
    if label is None:
        (tmp_path / "images" / split / "1.jpg").write_bytes(b"no image")
    path = tmp_path / "data.yaml"
    path.write_text("train: images/train\nval: images/val\nnames: [a]\n")
    with pytest.raises(DataError, match=message):
        train(config(path, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_faults_in_unused_splits_are_ignored(data, tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text(data.read_text() + f"\npath: {data.parent}\ntest: images/train\n")
    labels = tmp_path / "labels.txt"
    labels.write_text("no image\n")
    path.write_text(path.read_text().replace("test: images/train", f"test: {labels}"))
    assert len(trainer_of(config(path, tmp_path / "run")).parts.plan) == 3


def test_missing_image_ends_the_run_with_a_state(data, tmp_path, monkeypatch):
    def fail(self, model):
        raise DataError("lost.jpg: cannot read the image")

    monkeypatch.setattr("y7edge.train.run.validate.Validation.__call__", fail)
    with pytest.raises(DataError, match="lost"):
        train(config(data, tmp_path / "run", val_every=2))
    assert weights.load(tmp_path / "run" / "last.safetensors").meta["interrupted"] is True


@pytest.mark.parametrize("clip_norm", [0.0, 10.0])
def test_fp16_skips_steps_with_infinite_gradients(data, tmp_path, clip_norm):
    """As on a GPU: the first scale of the loss is too large, and becomes smaller."""
    fabric = Fabric(accelerator="cpu", devices=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, backoff_factor=2.0**-18)
    fabric.strategy.precision = MixedPrecision("16-mixed", "cpu", scaler)
    recipe = replace(TINY, clip_norm=clip_norm, nominal_batch=4)
    trainer = Trainer(build(config(data, tmp_path / "run", recipe=recipe), fabric=fabric))
    weights = dict(trainer.parts.steps.model.named_parameters())
    before = {name: value.detach().clone() for name, value in weights.items()}
    trainer.train_epoch()
    assert scaler.get_scale() == 2.0**12
    moved = torch.stack([(value - before[name]).abs().max() for name, value in weights.items()])
    assert 0 < moved.max() < 1
