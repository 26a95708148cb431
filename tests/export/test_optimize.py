"""``optimize``: every kind of artifact is made, evaluated and measured; the fastest wins."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest

from y7edge import Detector
from y7edge.cli import main
from y7edge.data.synthetic.scenes import generate
from y7edge.errors import ConfigError, DeviceError, GateError, OutputError, RuntimeMissing
from y7edge.export import optimize as module
from y7edge.export.optimize import Candidate, Choice, optimize
from y7edge.export.targets.base import Unprovable
from y7edge.models import weights
from y7edge.runtimes import base, onnxrt, qnn

TRAINED = Path(__file__).parents[1] / "reference" / "demo.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return generate(tmp_path_factory.mktemp("data") / "set", 8, 6, seed=3)


@pytest.fixture(scope="module")
def choice(data, tmp_path_factory) -> Choice:
    out = tmp_path_factory.mktemp("out") / "new"
    limit = {"max_map_drop": 0.1}  # no layer of the int8 artifact goes back to float
    return optimize(weights.load(TRAINED), data, out, name="parts", only=["onnx"], runs=3, **limit)


def test_every_precision_is_proved_evaluated_and_measured(choice):
    assert {(c.target, c.precision) for c in choice.candidates} == {
        ("onnx", "fp32"),
        ("onnx", "fp16"),
        ("onnx", "int8"),
    }
    for one in choice.candidates:
        assert one.path.name == f"parts-onnx-{one.precision}.onnx"
        assert abs(one.drop) < (0.1 if one.precision == "int8" else 0.02)
        assert one.map50_95 == pytest.approx(choice.reference - one.drop, abs=1e-5)
        assert one.latency.runs == 3
        with Detector(one.path) as detector:
            accuracy = detector.manifest.parity["accuracy"]
            assert accuracy["artifact"] == one.map50_95
            assert accuracy["limit"] == (0.1 if one.precision == "int8" else None)
    assert choice.reference > 0.3


def test_targets_whose_engine_is_not_installed_are_listed(monkeypatch, tmp_path):
    monkeypatch.setattr(qnn, "NEEDS", {"no_such_engine": "y7edge[qnn]"})
    kinds = {(kind.target, kind.precision) for kind, _ in module._kinds(None, tmp_path / "best")}
    assert {("onnx", "int8"), ("openvino", "fp32"), ("qnn", "fp16")} <= kinds


def test_the_fastest_within_the_drop_wins(choice):
    times = [one.latency.end_to_end_ms["p50"] for one in choice.candidates]
    assert times == sorted(times)
    assert choice.require_winner() == choice.candidates[0]
    assert choice.candidates[0].in_front
    image = cv2.imread(str(choice.plot))
    assert image.shape[0] > 300
    assert len(set(image.reshape(-1).tolist())) > 20, "an empty plot"


def _candidate(name, ms, accuracy):
    latency = SimpleNamespace(end_to_end_ms={"p50": ms})
    return Candidate(name, "fp32", Path(name), "", 1.0, accuracy, 0.6 - accuracy, latency)


def test_the_front_has_no_slower_and_less_accurate_artifacts():
    made = [
        _candidate("fast", 1, 0.5),
        _candidate("middle", 2, 0.6),
        _candidate("slow", 3, 0.55),
        Candidate("none", "fp32", problem="not installed"),
    ]
    found = {c.target: c.in_front for c in module._with_front(made)}
    assert found == {"fast": True, "middle": True, "slow": False, "none": False}


def test_a_target_that_is_not_possible_here_is_reported(tmp_path, monkeypatch, capsys):
    data = generate(tmp_path / "set", 0, 6, seed=3)
    real = onnxrt.open

    def refuse(artifact, options):
        if artifact.manifest.precision == "fp16":
            raise DeviceError("the device is not here")
        return real(artifact, options)

    monkeypatch.setattr(onnxrt, "open", refuse)
    words = ["optimize", str(TRAINED), "--data", str(data), "--out", str(tmp_path / "o"), "--json"]
    assert main([*words, "--target", "onnx", "--runs", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["winner"].endswith("demo-onnx-fp32.onnx")
    problems = {c["precision"]: c["problem"] for c in found["candidates"]}
    assert problems["fp16"] == "the device is not here"
    assert "expected an entry 'train'" in problems["int8"] and "to calibrate" in problems["int8"]
    assert not problems["fp32"]
    assert found["candidates"][1]["map50_95"] is None
    assert not list((tmp_path / "o").glob("*fp16*"))


def test_a_checkpoint_trained_for_another_profile_has_no_int8_artifact(data, tmp_path, monkeypatch):
    """An option that does not suit is an error, but not if it is only the checkpoint's profile."""
    whole = module.export

    def refusing(*args, precision, **options):
        if precision == refused:
            raise ConfigError("target onnx does not take profile 'x'")
        return whole(*args, precision=precision, **options)

    monkeypatch.setattr(module, "export", refusing)
    monkeypatch.setattr(module.targets.get("onnx"), "PRECISIONS", {"fp32": "fp32", "int8": "int8"})
    checkpoint, refused = weights.load(TRAINED), "int8"
    found = optimize(checkpoint, data, tmp_path, only=["onnx"], runs=1, max_map_drop=0.1)
    assert [bool(one.problem) for one in found.candidates] == [False, True]
    refused = "fp32"
    with pytest.raises(ConfigError, match="does not take"):
        optimize(checkpoint, data, tmp_path, only=["onnx"], runs=1)


def test_without_a_winner_the_exit_code_is_4(choice):
    made = (_candidate("a", 1, 0.5), _candidate("b", 2, 0.55), Candidate("none", "fp32"))
    lost = Choice(0.6, 0.01, made, choice.plot)
    assert Choice(0.6, 0.06, made, choice.plot).winner is made[1], "the fastest drops too much"
    assert Choice(0.6, 0.2, made, choice.plot).winner is made[0]
    with pytest.raises(GateError, match=r"0\.6000, by 0\.0500 or more, expected at most 0\.01:"):
        lost.require_winner()
    assert GateError.exit_code == 4


def test_invalid_options_are_refused_before_the_work(data, tmp_path):
    checkpoint = weights.load(TRAINED)
    with pytest.raises(ConfigError, match="max_map_drop is 2"):
        optimize(checkpoint, data, tmp_path / "o", max_map_drop=2)
    with pytest.raises(ConfigError, match="runs is 0"):
        optimize(checkpoint, data, tmp_path / "o", runs=0)
    with pytest.raises(ConfigError, match="threads is 5000"):
        optimize(checkpoint, data, tmp_path / "o", threads=5000)
    with pytest.raises(ConfigError, match="no target 'tpu'"):
        optimize(checkpoint, data, tmp_path / "o", only=["tpu"])
    assert not (tmp_path / "o").exists()


def test_a_target_that_is_named_twice_is_made_once(tmp_path):
    kinds = module._kinds(["onnx", "onnx"], tmp_path / "a.b")
    names = [f"a.b-onnx-{precision}.onnx" for precision in ("fp32", "fp16", "int8")]
    assert [path.name for _, path in kinds] == names


def test_a_target_without_runtime_is_refused(tmp_path, monkeypatch):
    other = SimpleNamespace(RUNTIME=Unprovable("no simulator"), PRECISIONS={"fp32": "fp32"})
    monkeypatch.setattr(module.targets, "get", lambda _: other)
    with pytest.raises(ConfigError, match=r"target npu has no runtime .*no simulator"):
        module._kinds(["npu"], tmp_path / "a")


@pytest.mark.parametrize("taken", ["parts-onnx-fp16.onnx", "latency.png"])
def test_a_destination_that_cannot_be_replaced_is_refused_before_the_work(taken, data, tmp_path):
    (tmp_path / taken).mkdir()
    with pytest.raises((ConfigError, OutputError), match=rf"{taken}.* exists"):
        optimize(weights.load(TRAINED), data, tmp_path, name="parts", only=["onnx"])
    assert [path.name for path in tmp_path.iterdir()] == [taken]


def test_matplotlib_is_required_before_the_work(data, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "find_spec", lambda name: None if name == "matplotlib" else True)
    with pytest.raises(RuntimeMissing, match=r"plots needs matplotlib.*y7edge\[train\]"):
        optimize(weights.load(TRAINED), data, tmp_path / "o", only=["onnx"])


def test_without_any_artifact_the_first_problem_is_raised(data, tmp_path, monkeypatch):
    monkeypatch.setenv("Y7EDGE_LITERT_PYTHON", str(tmp_path / "no" / "python"))
    with pytest.raises(RuntimeMissing, match="Y7EDGE_LITERT_PYTHON"):
        optimize(weights.load(TRAINED), data, tmp_path / "o", only=["litert"])
