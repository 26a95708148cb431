"""Quantisation-aware training: the graph is the same, runs resume, exports use the ranges."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from y7edge.artifact.description import describe
from y7edge.cli import main
from y7edge.data import dataset
from y7edge.data.synthetic import scenes
from y7edge.errors import CheckpointError, ConfigError, DataError, TrainingError
from y7edge.export import export, qat
from y7edge.export.calibration import choose_images
from y7edge.export.folding import fold_checkpoint
from y7edge.export.graph.build import build_graph
from y7edge.export.quantization import Quantizer
from y7edge.models import registry, weights
from y7edge.models.scaling import scale
from y7edge.nn.random_weights import random_weights
from y7edge.train.run import distil, state
from y7edge.train.run.progress import Progress
from y7edge.train.settings.qat import QatConfig

SIDE = 64
RUN = {"profile": "s8s8", "ranges": "minmax", "iterations": 20, "ranges_lr": 2e-3}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small kernels are slower with threads, and equal runs must be bit-identical."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    scenes.generate(folder, train=6, val=2, size=(96, 96))
    return folder


@pytest.fixture(scope="module")
def source(data, tmp_path_factory):
    """A narrow model with random weights, for the classes of the scenes."""
    names = dataset.load(data).names
    spec = scale(registry.get("yolov7-tiny", nc=len(names)), width=0.125)
    path = tmp_path_factory.mktemp("model") / "float.safetensors"
    weights.save(replace(random_weights(spec, seed=3), names=tuple(names)), path)
    return path


def config(source, data, out, **changes):
    made = QatConfig(
        source, data, iterations=10, batch=2, imgsz=SIDE, calib_images=4, device="cpu", out=out
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def trained(source, data, tmp_path_factory):
    """A run in profile s8s8."""
    out = tmp_path_factory.mktemp("run") / "run"
    qat.train(config(source, data, out, **RUN))
    return out


def arrays(path):
    return weights.load(path).arrays


def graph_of(checkpoint):
    return build_graph(fold_checkpoint(checkpoint), height=SIDE, width=SIDE)


def ptq(source, data, profile):
    """Return the QDQ graph of the float checkpoint, calibrated as in the training."""
    checkpoint = weights.load(source)
    image = describe(
        checkpoint, fold_checkpoint(checkpoint).spec, (SIDE, SIDE), batch=1, tools={}
    ).input
    images = choose_images(data, checkpoint.names, count=4).inputs(image)
    return Quantizer(graph_of(checkpoint), images, profile)


def retrained(path):
    """Return the QDQ graph of a trained checkpoint."""
    checkpoint = weights.load(path)
    found = qat.recorded(checkpoint)
    return Quantizer(graph_of(checkpoint), [], found.profile, trained=found.ranges)


def initializers(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


@pytest.mark.parametrize("act", ["relu", pytest.param("hardswish", marks=pytest.mark.slow)])
def test_other_activations(act, data, tmp_path):
    """The trained graph has the nodes of the export's, and no zero point has moved."""
    names = dataset.load(data).names
    spec = scale(registry.get("yolov7-tiny", nc=len(names), act=act), width=0.0625)
    path = tmp_path / "float.safetensors"
    weights.save(replace(random_weights(spec, seed=3), names=tuple(names)), path)
    qat.train(config(path, data, tmp_path / "run", ranges_lr=2e-3))
    trained = tmp_path / "run" / "last.safetensors"
    assert weights.load(trained).spec.activation == act
    before, after = ptq(path, data, "u8s8").quantized(), retrained(trained).quantized()
    assert list(before.graph.node) == list(after.graph.node)
    old, new = initializers(before), initializers(after)
    # The union of two ranges, behind a Concat, may round to another zero point.
    moved = [n for n in old if n.endswith("zero_point") and not np.array_equal(old[n], new[n])]
    assert not moved if act == "relu" else len(moved) < 10
    assert any(n.endswith("/scale") and old[n] != new[n] for n in old if not old[n].shape)


@pytest.mark.parametrize("heads", [False, True])
def test_only_numbers_differ_from_the_graph_without_training(heads, trained, source, data):
    kept = () if heads else None
    before, after = ptq(source, data, "s8s8").quantized(kept), None
    after = retrained(trained / "last.safetensors").quantized(kept)
    assert [n.SerializeToString() for n in before.graph.node] == [
        n.SerializeToString() for n in after.graph.node
    ]
    old, new = initializers(before), initializers(after)
    assert list(old) == list(new)
    for name, value in old.items():
        assert (value.dtype, value.shape) == (new[name].dtype, new[name].shape)
        if name.endswith("zero_point"):
            assert np.array_equal(value, new[name])
    changed = [name for name, value in old.items() if not np.array_equal(value, new[name])]
    assert any(name.endswith("weight/quantized") for name in changed)
    assert any(name.endswith("/scale") and "weight" not in name for name in changed)
    assert "images/scale" not in changed  # pixels


@pytest.mark.parametrize("profile", ["u8s8", pytest.param("u16s8", marks=pytest.mark.slow)])
def test_the_training_has_the_scales_of_the_export(profile, source, data, tmp_path, monkeypatch):
    made, write = [], qat._Source.task
    monkeypatch.setattr(qat._Source, "task", lambda *given: made.append(write(*given)) or made[0])
    qat.train(config(source, data, tmp_path / "run", profile=profile, ranges_lr=0.03))
    trained = made[0].student.scales()
    exported = initializers(retrained(tmp_path / "run" / "last.safetensors").quantized())
    assert all(exported[f"{group}/scale"] == np.float32(v) for group, v in trained.items())
    start = initializers(ptq(source, data, profile).quantized())
    moved = [group for group, v in trained.items() if abs(start[f"{group}/scale"] / v - 1) > 0.02]
    assert len(moved) > len(trained) / 2
    assert "/row6" in moved  # a Concat


def test_without_a_change_the_graph_is_the_same(source, data, tmp_path):
    data = data / "images" / "train"  # without labels, there are no evaluations
    qat.train(config(source, data, tmp_path / "run", lr=1e-30, ranges_lr=1e-30))
    before = initializers(ptq(source, data, "u8s8").quantized())
    after = initializers(retrained(tmp_path / "run" / "last.safetensors").quantized())
    for name, value in before.items():
        if name.endswith("weight/quantized"):
            assert np.array_equal(value, after[name])
        elif name.endswith("/scale"):
            # The range of a Concat follows from ranges whose zero points were rounded.
            assert np.allclose(value, after[name], rtol=0.01)


def test_the_loss_falls(trained):
    lines = (trained / "results.csv").read_text().splitlines()
    assert lines[0].startswith("part,iterations,loss,lr,seconds,map50,map50_95,float_map50_95")
    losses = [float(line.split(",")[2]) for line in lines[1:]]
    assert len(losses) == 11
    assert min(losses[5:]) < 0.8 * losses[0]


class _Stop(Progress):
    """Press Ctrl-C after an iteration."""

    def __init__(self, at):
        self.at, self.lines = at, []

    def log(self, line):
        self.lines.append(line)

    def advance(self, title, done, total, text):
        if done == self.at:
            raise KeyboardInterrupt


def test_a_resumed_run_is_bit_identical(trained, source, data, tmp_path):
    out, stop = tmp_path / "run", _Stop(9)
    same = config(source, data, out, **RUN)
    with pytest.raises(KeyboardInterrupt):
        qat.train(same, progress=stop)
    assert f"resume with y7edge train --resume {out}" in stop.lines[-1]
    assert state.read(out / "state.safetensors").facts.position.seconds > 0
    assert main(["train", "--resume", str(out)]) == 0
    for name in ("best.safetensors", "last.safetensors"):
        expected, found = arrays(trained / name), arrays(out / name)
        assert all(np.array_equal(value, found[key]) for key, value in expected.items())
        ranges = [qat.recorded(weights.load(folder / name)).ranges for folder in (trained, out)]
        assert ranges[0] == ranges[1]


@pytest.mark.slow
def test_a_finished_run_and_changed_images_are_not_resumed(source, data, tmp_path):
    mine = tmp_path / "data"
    shutil.copytree(data, mine)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        qat.train(config(source, mine, out), progress=_Stop(2))
    image = next((mine / "images" / "train").iterdir())
    image.write_bytes(next(p for p in (data / "images" / "val").iterdir()).read_bytes())
    with pytest.raises(DataError, match="the data have changed"):
        qat.resume(out)
    shutil.rmtree(mine)
    shutil.copytree(data, mine)
    qat.resume(out)
    with pytest.raises(ConfigError, match="the run is finished"):
        qat.resume(out)


def test_another_checkpoint_is_not_resumed(source, data, tmp_path):
    out, mine = tmp_path / "run", tmp_path / "float.safetensors"
    shutil.copy(source, mine)
    with pytest.raises(KeyboardInterrupt):
        qat.train(config(mine, data, out), progress=_Stop(2))
    other = weights.load(source)
    changed = {k: v * 0.5 if k.endswith("bias") else v for k, v in other.arrays.items()}
    weights.save(replace(other, arrays=changed), mine)
    with pytest.raises(ConfigError, match=r"checkpoint is '[0-9a-f]+', was '[0-9a-f]+'"):
        qat.resume(out)


def test_a_damaged_state_is_refused(source, data, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        qat.train(config(source, data, out), progress=_Stop(3))
    saved = state.read(out / "state.safetensors")
    (out / "state-previous.safetensors").unlink()
    saved.arrays["model.factors.0"] = np.full((), np.nan, np.float32)
    state.save(saved, out)
    (out / "state-previous.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.factors\.0 is missing, not finite"):
        qat.resume(out)


def test_a_loss_that_is_not_finite_ends_the_run(source, data, tmp_path, monkeypatch):
    monkeypatch.setattr(distil, "_error", lambda found, _: found.sum() * float("nan"))
    with pytest.raises(TrainingError, match="the loss is not finite after 0 iterations"):
        qat.train(config(source, data, tmp_path / "run"))


def test_labels_are_optional(source, data, tmp_path):
    lines = _Stop(0)
    result = qat.train(config(source, data / "images" / "train", tmp_path / "a"), progress=lines)
    assert result.chosen.map50_95 is None
    assert result.chosen.loss == min(row for row in (result.start.loss, result.chosen.loss))
    assert any("has no labels: the weights with the smallest loss" in line for line in lines.lines)
    assert qat.recorded(weights.load(result.best)).drop is None


def test_settings_are_checked_before_the_calibration(source, data, tmp_path):
    lines = []
    with pytest.raises(ConfigError, match="no range method 'entropy'"):
        qat._Source(config(source, data, tmp_path, ranges="entropy"), "cpu", lines.append)
    assert not lines
    # More images than a calibration takes.
    qat._Source(config(source, data, tmp_path, iterations=400, batch=64), "cpu", lines.append)
    assert any("6 training images" in line for line in lines)


def test_images_of_the_evaluation_are_not_trained_on(source, data, tmp_path):
    mine, lines = tmp_path / "data", []
    shutil.copytree(data, mine)
    image = next((mine / "images" / "val").iterdir())
    shutil.copy(image, mine / "images" / "train" / f"copy{image.suffix}")
    qat._Source(config(source, mine, tmp_path), "cpu", lines.append)
    assert any("6 training images, 2 validation images" in line for line in lines)
    assert any("images of the evaluation: 1 are not used" in line for line in lines)


def test_trained_checkpoints_are_not_trained_again(trained, data, tmp_path):
    with pytest.raises(ConfigError, match="was already trained with --qat"):
        qat.train(config(trained / "best.safetensors", data, tmp_path / "again"))
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"profile": "u4"}, "profile 'u4', expected one of"),
        ({"ranges": {}}, "0 ranges"),
        ({"ranges": {"images": [1.0, 2.0]}}, "the range of 'images' is 1 to 2"),
        ({"ranges": {"images": [-1e38, 1e38]}}, "the range of 'images'"),
        ({"method": "entropy"}, "method 'entropy', expected one of minmax"),
        ({"calibration": "none"}, "calibration is not a SHA-256"),
        ({"images": []}, "0 calibration images"),
        ({"images": ["a\x1b[31mb"]}, "cannot be printed"),
        ({"ranges": {"images": "all"}}, "ranges.images"),
        ({"extra": 1}, "extra"),
    ],
)
def test_damaged_metadata_is_refused(change, problem, trained):
    checkpoint = weights.load(trained / "best.safetensors")
    entry = {**checkpoint.meta[qat.KEY], **change}
    with pytest.raises(CheckpointError, match=problem):
        qat.recorded(replace(checkpoint, meta={qat.KEY: entry}))


def test_the_export_uses_the_trained_ranges(trained, data, tmp_path):
    checkpoint = weights.load(trained / "last.safetensors")
    found = qat.recorded(checkpoint)
    given = {"precision": "int8", "calib": data, "unverified": "a test"}
    with pytest.raises(ConfigError, match="trained for profile s8s8"):
        export(checkpoint, tmp_path / "a.onnx", **given, profile="u8s8")
    with pytest.raises(ConfigError, match="omit --profile and --ranges"):
        export(checkpoint, tmp_path / "a.onnx", **given, ranges="mse")
    made = export(checkpoint, tmp_path / "a.onnx", **given, simplify=False)
    assert made.manifest.quantization.corrections == ("training",)
    assert made.manifest.quantization.calibration == found.calibration
    assert (made.manifest.quantization.profile, made.manifest.input.height) == ("s8s8", SIDE)
    written = initializers(onnx.load(made.path))
    expected = initializers(retrained(trained / "last.safetensors").quantized())
    assert written.keys() == expected.keys()
    assert all(np.array_equal(value, written[name]) for name, value in expected.items())


def test_other_graphs_than_the_trained_one_are_refused(trained):
    checkpoint = weights.load(trained / "best.safetensors")
    ranges = {"images": qat.recorded(checkpoint).ranges["images"]}
    with pytest.raises(ConfigError, match="without the tensor /row0: omit rewrites"):
        Quantizer(graph_of(checkpoint), [], "s8s8", trained=ranges).quantized()


def test_the_command_line(source, data, tmp_path, capsys):
    base = ["train", "--qat", str(source), "--data", str(data)]
    assert main([*base, "--epochs", "3"]) == 1
    assert "omit --epochs" in capsys.readouterr().err
    assert main(["train", "--data", str(data), "--qat-iterations", "20"]) == 1
    assert "--qat-iterations is for --qat" in capsys.readouterr().err
    small = ["--imgsz", str(SIDE), "--batch", "1", "--qat-iterations", "10", "--device", "cpu"]
    out = tmp_path / "run"
    assert main([*base, *small, "--qat-profile", "u8s8-fused", "--out", str(out), "--json"]) == 0
    assert '"best_iterations"' in capsys.readouterr().out
    assert qat.recorded(weights.load(out / "best.safetensors")).profile == "u8s8-fused"
    assert main([*base, *small, "--out", str(out)]) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert main([*base, *small, "--qat-profile", "u7"]) == 1
    assert "no profile 'u7'" in capsys.readouterr().err
