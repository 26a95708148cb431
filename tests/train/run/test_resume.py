"""An interrupted and resumed run equals an uninterrupted one, bit by bit."""

import csv
import errno
import json
import multiprocessing
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from y7edge.data.synthetic import scenes
from y7edge.errors import CheckpointError, ConfigError, DataError, TrainingError
from y7edge.models import weights
from y7edge.train.output.batch_files import BAD_BATCH, HEADER
from y7edge.train.run import state
from y7edge.train.run.loop import resume, train
from y7edge.train.run.progress import Progress
from y7edge.train.run.trainer import Trainer
from y7edge.train.settings.config import TINY, TrainConfig
from y7edge.train.setup.parts import build

# Of a run of 3 epochs with 5 batches each.
EPOCHS, BATCHES = 3, 5


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten training images, two validation images."""
    return scenes.generate(tmp_path_factory.mktemp("data"), train=10, val=2, size=(96, 96))


def config(data, out, **changes):
    # Four batches per step, so that gradients are accumulated over the end of an epoch.
    small = TrainConfig(
        data=data,
        width=0.125,
        imgsz=64,
        epochs=EPOCHS,
        batch=2,
        nominal_batch=8,
        val_every=2,
        workers=0,
        report=False,
        recipe=replace(TINY, warmup_epochs=0.4),
        out=out,
        device="cpu",  # also on a machine with a GPU
    )
    return replace(small, **changes)


class StopAt(Progress):
    """Press Ctrl-C after a certain batch; record messages."""

    def __init__(self, epoch, batch) -> None:
        self.at, self.lines = (epoch, batch), []

    def log(self, line):
        self.lines.append(line)

    def step(self, status):
        if (status.epoch, status.iteration) == self.at:
            signal.raise_signal(signal.SIGINT)


def assert_equal_runs(folder, expected):
    """Weights of last and best, and the table but for times and memory."""
    for name in ("last.safetensors", "best.safetensors"):
        found, wanted = weights.load(folder / name), weights.load(expected / name)
        assert found.digest == wanted.digest, name
    assert rows(folder) == rows(expected)


def rows(folder):
    with (folder / "results.csv").open(newline="") as stream:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "memory_mb")}
            for row in csv.DictReader(stream)
        ]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The uninterrupted run."""
    return train(config(data, tmp_path_factory.mktemp("whole") / "run", workers=2)).folder


@pytest.mark.parametrize(
    ("epoch", "batch"),
    [
        pytest.param(1, 2, id="gradients of two batches wait, no momentum yet"),
        pytest.param(1, 5, id="behind the last batch of an epoch"),
        pytest.param(3, 4, id="after an evaluated epoch"),
    ],
)
def test_interrupted_run_equals_an_uninterrupted_one(data, tmp_path, whole, epoch, batch):
    stop, out = StopAt(epoch, batch), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config(data, out), progress=stop)
    assert f"resume with y7edge train --resume {out}" in stop.lines[-1]
    assert weights.load(out / "last.safetensors").meta["interrupted"] is True
    kept = state.read(out / state.STATE).facts.position
    assert (kept.epoch, kept.batch) == (epoch, batch)
    again = StopAt(0, 0)
    result = resume(out, progress=again)
    assert f"resumed at epoch {epoch}, after {batch} batches" in again.lines
    assert result.epochs == EPOCHS
    assert_equal_runs(out, whole)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"image_weights": True, "multi_scale": True}, id="drawn images and sizes"),
        pytest.param({"recipe": replace(TINY, average="none", close_mosaic=1)}, id="no average"),
        pytest.param({"rect": True, "freeze": (0, 1, 2)}, id="shapes and frozen rows"),
    ],
)
def test_runs_with_options_can_be_resumed(data, tmp_path, changes):
    expected = train(config(data, tmp_path / "whole", val_every=1, **changes)).folder
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config(data, out, val_every=1, **changes), progress=StopAt(2, 3))
    resume(out)
    assert_equal_runs(out, expected)


def test_initial_weights_are_not_needed_to_resume(data, tmp_path, whole):
    own = whole / "last.safetensors"
    lent = tmp_path / "lent.safetensors"
    shutil.copy(own, lent)
    expected = train(config(data, tmp_path / "whole", weights=own)).folder
    stop, again, out = StopAt(1, 3), StopAt(0, 0), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config(data, out, weights=lent), progress=stop)
    lent.unlink()
    resume(out, progress=again)
    assert_equal_runs(out, expected)
    before, after = (weights.load(folder / "last.safetensors") for folder in (expected, out))
    assert after.meta["provenance"] == before.meta["provenance"].replace(own.name, lent.name)
    # Notes about the weights, and the line on how the run begins.
    assert again.lines[: len(stop.lines) - 1] == stop.lines[:-1]


def test_interrupted_evaluation_does_not_average_twice(data, tmp_path, whole, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            "y7edge.train.run.validate.Validation.__call__",
            lambda *_: signal.raise_signal(signal.SIGINT),
        )
        train(config(data, out))
    assert state.read(out / state.STATE).facts.position.closed
    resume(out)
    assert_equal_runs(out, whole)


KILLED = """
import os, signal, sys
from y7edge.train.run.loop import resume, train
from y7edge.train.run.progress import Progress
import torch
torch.set_num_threads(1)
sys.path.insert(0, {here!r})
from test_resume import config

class Kill(Progress):
    steps = 0
    def step(self, status):
        self.steps += 1
        if self.steps == {steps}:
            os.kill(os.getpid(), signal.SIGKILL)

if {fresh}:
    train(config({data!r}, {out!r}, workers=2, checkpoint_minutes={minutes}), progress=Kill())
else:
    resume({out!r}, progress=Kill())
"""


def kill(data, out, *, steps, fresh, minutes):
    """Train or resume in a process of its own that is killed after some batches."""
    code = KILLED.format(
        here=str(Path(__file__).parent),
        steps=steps,
        fresh=fresh,
        data=str(data),
        out=str(out),
        minutes=minutes,
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_killed_run_equals_an_uninterrupted_one(data, tmp_path, whole):
    """Kill a run with two workers twice, inside an epoch and an accumulation."""
    out = tmp_path / "run"
    kill(data, out, steps=3, fresh=True, minutes=1e-6)  # a state after every batch
    assert state.read(out / state.STATE).facts.gathered > 0
    kill(data, out, steps=6, fresh=False, minutes=1e-6)
    resume(out)
    assert_equal_runs(out, whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_runs_killed_at_random_equal_an_uninterrupted_one(data, tmp_path, whole, seed):
    """Kill five runs ten times at random batches, with states after every batch or rarely."""
    draw, out = random.Random(seed), tmp_path / "run"
    minutes = draw.choice([1e-6, 10.0])
    for fresh in (True, False):
        kill(data, out, steps=draw.randint(1, BATCHES), fresh=fresh, minutes=minutes)
    resume(out)
    assert_equal_runs(out, whole)


def command(*words):
    return [sys.executable, "-m", "y7edge", "train", *map(str, words)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_command_with_130_and_a_hint(data, tmp_path, number):
    out = tmp_path / "run"
    words = ["--data", data, "--width", 0.125, "--imgsz", 64, "--epochs", 500, "--batch", 2]
    process = subprocess.Popen(
        command(*words, "--workers", 2, "--out", out), stderr=subprocess.PIPE, text=True
    )
    while not (out / "results.csv").exists():
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(number)
    _, output = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"resume with y7edge train --resume {out}" in output
    assert "Traceback" not in output
    assert state.read(out / state.STATE).facts.position.epoch >= 2


@pytest.mark.slow
def test_state_is_kept_if_a_worker_dies(data, tmp_path, whole):
    class Killer(StopAt):
        def step(self, status):
            if (status.epoch, status.iteration) == self.at:
                for worker in multiprocessing.active_children():
                    worker.kill()

    out, killer = tmp_path / "run", Killer(2, 1)
    with pytest.raises(TrainingError, match="worker"):
        train(config(data, out, workers=2), progress=killer)
    assert "stopped by an error; the state so far is in" in killer.lines[-1]
    resume(out)
    assert_equal_runs(out, whole)


def test_full_disk_ends_the_run_with_the_previous_state(data, tmp_path, whole, monkeypatch):
    out, writes, real = tmp_path / "run", [], state.atomic_write

    def filling(path):
        writes.append(path)
        if len(writes) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(state, "atomic_write", filling)
        with pytest.raises(TrainingError, match=r"the disk is full.*\(epoch 2, after 0 batches\)"):
            train(config(data, out))
    assert len(writes) == 3
    resume(out)
    assert_equal_runs(out, whole)


def test_previous_state_is_used_if_the_last_is_truncated(data, tmp_path, whole):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config(data, out), progress=StopAt(2, 3))
    path = out / state.STATE
    path.write_bytes(path.read_bytes()[:-100])
    again = StopAt(0, 0)
    resume(out, progress=again)
    assert any("truncated" in line and "resuming from" in line for line in again.lines)
    assert_equal_runs(out, whole)


def test_finished_run_is_not_resumed(whole):
    with pytest.raises(ConfigError, match=r"finished after 3 epochs; .*--weights"):
        resume(whole)


def test_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected the folder of a run"):
        resume(tmp_path)
    (tmp_path / "data.yaml").touch()
    (tmp_path / "config.yaml").write_text(f"data: {tmp_path / 'data.yaml'}\n")
    with pytest.raises(CheckpointError, match="expected the folder of a run"):
        resume(tmp_path)


def test_other_data_are_refused_and_another_thread_count_is_reported(tmp_path):
    data = scenes.generate(tmp_path / "data", train=4, val=2, size=(96, 96))
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config(data, out), progress=StopAt(1, 1))
    torch.set_num_threads(2)
    again = StopAt(1, 2)
    with pytest.raises(KeyboardInterrupt):
        resume(out, progress=again)
    torch.set_num_threads(1)
    assert any("threads is 2, was 1" in line for line in again.lines)
    label = next((tmp_path / "data").rglob("labels/train/*.txt"))
    label.write_text("0 .5 .5 .25 .25\n")
    with pytest.raises(DataError, match="data have changed"):
        resume(out)


def test_edited_settings_and_moved_files_are_refused(data, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config(data, out), progress=StopAt(1, 1))
    path = out / "config.yaml"
    text = path.read_text()
    for line, other, message in (
        ("width: 0.125", "width: 0.25", r"width is 0\.25, was 0\.125"),
        ("act: null", "act: relu", "act is 'relu', was None"),
        ("average: ema", "average: swa", "average is 'swa', was 'ema'"),
        ("scale: 0.5", "scale: 0.4", r"scale is 0\.4, was 0\.5"),
        ("epochs: 3", "epochs: 4", "epochs is 4, was 3"),
        (f"data: {data}", "data: /nowhere", r"config\.yaml: data: /nowhere does not exist"),
    ):
        assert line in text
        path.write_text(text.replace(line, other))
        with pytest.raises(ConfigError, match=message):
            resume(out)
    path.write_text(text.replace("patience: 0", "patience: 2"))
    with pytest.raises(KeyboardInterrupt):
        resume(out, progress=StopAt(1, 2))


def test_batch_of_a_non_finite_loss_is_dumped(data, tmp_path):
    out = tmp_path / "run"
    trainer = Trainer(build(config(data, out)))
    real = trainer.parts.steps.loss

    def broken(heads, targets):
        parts = real(heads, targets)
        spoiled = trainer.iteration == BATCHES + 1  # the second batch of the second epoch
        return replace(parts, box=parts.box * float("nan")) if spoiled else parts

    trainer.parts.steps.loss = broken
    with pytest.raises(TrainingError, match=r"not finite in epoch 2, batch 2 .*nan_batch"):
        trainer.run()
    with safe_open(out / BAD_BATCH, framework="numpy") as file:
        facts = json.loads(file.metadata()[HEADER])
        images, targets = file.get_tensor("images"), file.get_tensor("targets")
    assert "box nan" in facts["reason"]
    assert images.shape == (2, 3, 64, 64)
    # The dumped batch equals the one of the same keys.
    trainer.parts.plan.set_epoch(2, 1)
    keys = next(iter(trainer.parts.plan))
    assert facts["pictures"] == [
        str(trainer.parts.train_set.samples[key.index].path) for key in keys
    ]
    for image, key in zip(images, keys, strict=True):
        assert np.array_equal(image, trainer.parts.train_set[key][0].numpy())
    assert set(targets[:, 0]) <= {0.0, 1.0}
    assert state.read(out / state.STATE).facts.position.epoch == 2
