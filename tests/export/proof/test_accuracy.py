"""The gate on the mAP: an artifact that loses accuracy is not written."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.blocking import BLOCKER
from tests.tampering import convolutions_of, scale_weight
from y7edge.cli import main
from y7edge.data.synthetic import scenes
from y7edge.errors import ConfigError, DataError, ParityError
from y7edge.export import pipeline
from y7edge.export.conversion import build
from y7edge.export.pipeline import export
from y7edge.export.proof import parity
from y7edge.export.proof.accuracy import Baseline
from y7edge.export.targets import registry as targets
from y7edge.models import weights
from y7edge.runtimes import registry
from y7edge.runtimes.base import missing

ROOT = Path(__file__).parents[3]
FILE = ROOT / "tests" / "reference" / "demo.safetensors"
CHECKPOINT = weights.load(FILE)
SIZE = 160


def require_target(name):
    if absent := missing(targets.get(name).NEEDS):
        pytest.skip(f"target {name}: {', '.join(absent)} is not installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight labelled scenes that the checkpoint was not trained on."""
    return scenes.generate(tmp_path_factory.mktemp("data"), train=1, val=8, seed=7)


@pytest.fixture
def damaged(monkeypatch):
    """Make a target write a damaged graph, and switch the proof's verdict off.

    The proof of some precisions only reports; then only the mAP decides.
    """
    target = targets.get("onnx")
    build_well = target.build

    def build_badly(request):
        made = build_well(request)
        name = convolutions_of(made.path)[0]
        scale_weight(made.path, made.path, name, 0.5)
        return made

    monkeypatch.setattr(target, "build", build_badly)
    monkeypatch.setattr(parity, "require_passed", lambda *_: None)


def test_a_proved_artifact_passes_and_records_its_map(data, tmp_path, capsys):
    path = tmp_path / "m.onnx"
    told = []
    made = export(CHECKPOINT, path, imgsz=SIZE, data=data, max_map_drop=0.002, progress=told.append)
    found = made.manifest.parity["accuracy"]
    assert found["reference"] > 0.3
    assert abs(found["reference"] - found["artifact"]) <= 0.002
    assert (found["split"], found["images"], found["limit"]) == ("val", 8, 0.002)
    assert any("evaluate" in line for line in told)
    assert main(["info", str(path)]) == 0
    assert "drop 0.0000 (allowed 0.002)" in capsys.readouterr().out
    assert main(["val", str(path), "--data", str(data), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["map50_95"] == pytest.approx(found["artifact"], abs=1e-6)
    size = ["--imgsz", str(SIZE)]
    assert main(["val", str(FILE), "--data", str(data), "--json", *size]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["map50_95"] == pytest.approx(found["reference"], abs=1e-6)


def test_a_damaged_artifact_is_not_written(data, tmp_path, damaged):
    path = tmp_path / "m.onnx"
    with pytest.raises(ParityError, match=r"mAP@0.5:0.95 drops by 0\.\d+ on") as error:
        export(CHECKPOINT, path, imgsz=SIZE, data=data, max_map_drop=0.002)
    assert not list(tmp_path.iterdir())
    report = error.value.report
    assert report.status == "failed"
    assert report.accuracy.drop > 0.002
    assert error.value.exit_code == 4
    made = export(CHECKPOINT, path, imgsz=SIZE, data=data)  # without a limit it is only recorded
    assert made.manifest.parity["accuracy"]["limit"] is None
    assert made.manifest.parity["accuracy"]["artifact"] == report.accuracy.artifact


def test_the_command_prints_the_numbers(data, tmp_path, damaged, capsys):
    out = tmp_path / "m.onnx"
    words = ["export", str(FILE), "--imgsz", str(SIZE), "--data", str(data), "--out", str(out)]
    assert main([*words, "--max-map-drop", "0.002"]) == 4
    printed = capsys.readouterr().err
    assert "(allowed 0.002)" in printed
    assert printed.splitlines()[-1].startswith("error: nothing was written to")
    assert not out.exists()
    assert main([*words, "--max-map-drop", "0.002", "--json"]) == 4
    record = json.loads(capsys.readouterr().out)
    assert record["status"] == "failed"
    assert record["accuracy"]["reference"] - record["accuracy"]["artifact"] > 0.002
    assert main([*words, "--max-map-drop", "0.9"]) == 0
    assert "(allowed 0.9)" in capsys.readouterr().out
    assert out.exists()


def test_the_checkpoint_is_evaluated_once_for_several_artifacts(data, tmp_path, monkeypatch):
    baseline = Baseline(CHECKPOINT, data, split="train")
    opened = []
    whole = Baseline._open
    monkeypatch.setattr(
        Baseline, "_open", lambda self, size: opened.append(size) or whole(self, size)
    )
    for index, precision in enumerate(("fp32", "fp16")):
        made = export(
            CHECKPOINT,
            tmp_path / f"{index}.onnx",
            imgsz=SIZE,
            precision=precision,
            data=baseline,
            max_map_drop=0.05,
        )
        assert made.manifest.parity["accuracy"]["split"] == "train"
    assert opened == [(SIZE, SIZE)]
    other = replace(CHECKPOINT, names=tuple(f"{name}s" for name in CHECKPOINT.names))
    with pytest.raises(ConfigError, match="another model"):
        export(other, tmp_path / "2.onnx", imgsz=SIZE, data=baseline)


def test_build_compares_with_the_onnx_artifact(data, tmp_path, capsys):
    require_target("openvino")
    source = export(CHECKPOINT, tmp_path / "m.onnx", imgsz=SIZE).path
    out = tmp_path / "m.xml"
    words = ["build", str(source), "--target", "openvino", "--out", str(out), "--data", str(data)]
    assert main([*words, "--max-map-drop", "0.002"]) == 0
    found = registry.load(out).manifest.parity["accuracy"]
    assert found["reference"] == pytest.approx(found["artifact"], abs=0.002)
    capsys.readouterr()
    artifact = registry.load(source)
    baseline = Baseline(artifact, data)
    better = baseline.metrics((SIZE, SIZE))
    baseline._metrics[SIZE, SIZE] = replace(better, map50_95=better.map50_95 + 0.01)
    again = tmp_path / "again.xml"
    with pytest.raises(ParityError, match=r"drops by 0\.01"):
        build(source, again, target="openvino", data=baseline, max_map_drop=0.002)
    assert not [path for path in tmp_path.iterdir() if path.stem == "again"]


@pytest.mark.parametrize("target", ["onnx", "openvino", "ncnn"])
def test_val_of_artifacts_needs_neither_torch_nor_onnx(target, data, tmp_path):
    require_target(target)
    suffix = targets.get(target).SUFFIX
    options = {"imgsz": SIZE, "target": target}
    made = export(CHECKPOINT, tmp_path / f"m{suffix}", data=data, max_map_drop=0.002, **options)
    code = "from y7edge.cli import main; sys.exit(main(sys.argv[1:]))"
    blocked = {"torch", "onnx", "onnxsim", "safetensors"}
    words = ["val", str(made.path), "--data", str(data), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKER.format(blocked=blocked) + code, *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = made.manifest.parity["accuracy"]
    assert json.loads(done.stdout)["map50_95"] == pytest.approx(found["artifact"], abs=1e-6)
    assert found["reference"] == pytest.approx(found["artifact"], abs=0.002)


def test_wrong_arguments_are_refused_before_the_export(data, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "fold_checkpoint", lambda _: pytest.fail("began to export"))
    path = tmp_path / "m.onnx"
    with pytest.raises(ConfigError, match="needs a data set"):
        export(CHECKPOINT, path, max_map_drop=0.1)
    for limit in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="max_map_drop"):
            export(CHECKPOINT, path, data=data, max_map_drop=limit)
    with pytest.raises(DataError, match=r"none\.yaml"):
        export(CHECKPOINT, path, data=tmp_path / "none.yaml")
