"""Each command from end to end: its JSON, files and exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests import tampering
from y7edge import Detector
from y7edge.artifact.reports import ParityReport
from y7edge.cli import main
from y7edge.cli.check import _shortened
from y7edge.machine import usable_cores
from y7edge.models import registry, weights
from y7edge.models.checkpoint import Checkpoint

TABLE = json.loads((Path(__file__).parents[1] / "reference" / "table.json").read_text())

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command with --json and give the objects that it printed, one for each line."""

    def run_it(*words: object, exits: int = 0) -> list[dict[str, Any]]:
        code = main([*map(str, words), "--json"])
        printed = capsys.readouterr()
        assert code == exits, printed.err
        return [json.loads(line) for line in printed.out.splitlines()]

    return run_it


@pytest.mark.parametrize("name", registry.names())
def test_info_of_variants(name: str, run: Run) -> None:
    (record,) = run("info", name)
    expected = TABLE[name]["training"]
    assert record["parameters"] == expected["parameters"]
    assert record["gflops"] == pytest.approx(expected["gflops"], rel=1e-3)
    assert record["form"] == "training"
    assert record["nc"] == len(record["names"]) == 80


def test_info_of_all_variants(run: Run) -> None:
    (record,) = run("info")
    assert [variant["name"] for variant in record["variants"]] == registry.names()


def test_info_at_a_size(run: Run) -> None:
    (square,), (wide,) = run("info", "yolov7"), run("info", "yolov7", "--imgsz", "384x640")
    assert wide["gflops"] == pytest.approx(0.6 * square["gflops"], rel=1e-3)
    assert wide["outputs"][0]["shape"] == ["dynamic", 255, 48, 80]


INFO_KEYS = {
    *("name", "form", "parameters", "gflops", "strides", "nc", "names"),
    *("inputs", "outputs", "opset", "precision", "parity"),
}


@pytest.mark.parametrize("of_file", [False, True])
def test_info_at_a_size_that_does_not_fit(
    of_file: bool, checkpoint_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = str(checkpoint_path) if of_file else "yolov7"
    assert main(["info", subject, "--imgsz", "333"]) == 1
    assert "expected multiples of 32" in capsys.readouterr().err


def test_info_of_a_checkpoint(checkpoint_path: Path, narrow_tiny: Checkpoint, run: Run) -> None:
    (record,) = run("info", checkpoint_path)
    assert set(record) >= INFO_KEYS
    assert record["names"] == list(narrow_tiny.names)
    assert record["digest"] == narrow_tiny.digest


def test_info_of_an_artifact(artifact_path: Path, narrow_tiny: Checkpoint, run: Run) -> None:
    (record,) = run("info", artifact_path)
    assert set(record) >= INFO_KEYS
    assert record["opset"] == 17
    assert record["inputs"][0]["shape"] == [1, 3, 96, 128]
    assert record["parity"]["status"] == "passed"
    assert record["source"]["digest"] == narrow_tiny.digest


def test_info_names_all_files(
    artifact_path: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (record,) = run("info", artifact_path)
    assert record["files"] == [str(artifact_path)]
    out = tmp_path / "a.param"
    pytest.importorskip("ncnn")
    pytest.importorskip("pnnx")
    assert main(["build", str(artifact_path), "--target", "ncnn", "--out", str(out)]) == 0
    capsys.readouterr()
    (record,) = run("info", out)
    names = ["a.param", "a.bin", "a.param.json"]
    assert [Path(file).name for file in record["files"]] == names
    capsys.readouterr()
    assert main(["info", str(out)]) == 0
    assert " ".join(names) in capsys.readouterr().out
    (tmp_path / "a.param.json").unlink()
    assert main(["selftest", str(out)]) == 1
    assert "copy a.param, a.bin and a.param.json together" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["name", "checkpoint", "artifact"])
def test_info_for_people(
    what: str, checkpoint_path: Path, artifact_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = {"name": "yolov7-tiny", "checkpoint": checkpoint_path, "artifact": artifact_path}
    assert main(["info", str(subject[what])]) == 0
    assert "8, 16, 32" in capsys.readouterr().out


def test_info_as_a_c_header(
    artifact_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The header is written to a file or printed; it exists for artifacts with heads only."""
    header = tmp_path / "model.h"
    assert main(["info", str(artifact_path), "--c-header", str(header), "--json"]) == 0
    printed = capsys.readouterr()
    digest = json.loads(printed.out)["digest"]
    assert printed.err == f"written to {header}\n" and f'"{digest}"' in header.read_text("ascii")
    assert main(["info", str(artifact_path), "--c-header", "-"]) == 0
    assert capsys.readouterr().out == header.read_text("ascii")
    assert main(["info", "yolov7", "--c-header", str(header)]) == 1
    assert "--c-header describes an artifact" in capsys.readouterr().err
    assert main(["info", str(artifact_path), "--c-header", str(tmp_path)]) != 0
    assert "a folder exists there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("subject", "problem"),
    [("yolov7-tny", "did you mean yolov7-tiny"), ("a/b.onnx", "there is no file a/b.onnx")],
)
def test_info_of_a_missing_model(
    subject: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", subject]) == 1
    assert problem in capsys.readouterr().err


def test_export(checkpoint_path: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "wide.onnx"
    options = ("--imgsz", "64x96", "--outputs", "decoded", "--dynamic")
    (record,) = run("export", checkpoint_path, "--out", out, *options)
    assert record["artifact"] == str(out)
    assert record["parity"]["status"] == "passed"
    assert record["parity"]["batches"] == [1, 3]
    (info,) = run("info", out)
    assert info["inputs"][0]["shape"] == ["dynamic", 3, 64, 96]
    assert [output["name"] for output in info["outputs"]] == ["boxes", "scores"]


def test_export_with_other_input_outputs_and_graph(
    checkpoint_path: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bytes.onnx"
    options = ("--imgsz", "64", "--input", "uint8", "--outputs", "heads-sigmoid")
    rewrites = ("--rewrite", "pool3x3", "--rewrite", "leaky-max")
    run("export", checkpoint_path, "--out", out, *options, *rewrites)
    (info,) = run("info", out)
    assert info["inputs"][0]["shape"] == [1, 64, 64, 3]
    assert info["inputs"][0]["dtype"] == "uint8"
    assert {output["activation"] for output in info["outputs"]} == {"sigmoid"}
    assert info["tools"]["rewrites"] == "pool3x3, leaky-max"
    (report,) = run("benchmark", out, "--threads", "1", "--runs", "1")
    assert report["pre_ms"]["p50"] > 0
    assert main(["info", str(out)]) == 0
    assert "float32 sigmoid" in capsys.readouterr().out
    assert main(["export", str(checkpoint_path), "--rewrite", "reorg-conv6"]) == 1
    assert "rewrite reorg-conv6 does not apply" in capsys.readouterr().err


def test_export_of_a_name_says_that_its_weights_are_random(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "yolov7-tiny").mkdir()  # a folder of this name is not a model
    assert main(["export", "yolov7-tiny", "--imgsz", "64"]) == 0
    printed = capsys.readouterr()
    assert "random weights" in printed.err
    assert "best candidates" in printed.out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["yolov7-tiny", "yolov7-tiny.onnx"]


def test_export_without_proof_leaves_nothing(
    narrow_tiny: Checkpoint, tmp_path: Path, run: Run
) -> None:
    # A head that says nearly the same everywhere: agreement with it proves nothing.
    mute = {
        k: v * v.dtype.type(1e-3) if ".lead." in k else v for k, v in narrow_tiny.arrays.items()
    }
    weights.save(replace(narrow_tiny, arrays=mute), tmp_path / "mute.safetensors")
    (tmp_path / "out").mkdir()
    command = ("export", tmp_path / "mute.safetensors", "--imgsz", "64")
    (report,) = run(*command, "--out", tmp_path / "out" / "mute.onnx", exits=4)
    assert report["status"] == "inconclusive"
    assert not list((tmp_path / "out").iterdir())


def test_verify(artifact_path: Path, checkpoint_path: Path, run: Run) -> None:
    command = ("verify", artifact_path, "--against", checkpoint_path)
    (report,) = run(*command, "--backend", "onnxrt", "--threads", "1")
    assert (report["status"], report["engine"]) == ("passed", "onnxrt")
    run(*command, "--backend", "abacus", exits=1)


def test_an_unverified_artifact_says_so(
    artifact_path: Path,
    checkpoint_path: Path,
    tmp_path: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
) -> None:
    unverified = ParityReport("unverified", reason="no engine here").to_dict()
    path = tampering.rewrite(artifact_path, tmp_path / "m.onnx", parity=unverified)
    (record,) = run("info", path)
    assert record["parity"]["status"] == "unverified"
    assert main(["info", str(path)]) == 0
    assert "unverified: no engine here" in capsys.readouterr().out
    (report,) = run("selftest", path)
    assert (report["status"], report["parity"]) == ("passed", "unverified")
    assert main(["selftest", str(path)]) == 0
    assert "exported unverified" in capsys.readouterr().out
    (report,) = run("verify", path, "--against", checkpoint_path)
    assert report["status"] == "passed"


def test_verify_against_another_checkpoint(
    artifact_path: Path, narrow_tiny: Checkpoint, tmp_path: Path, run: Run
) -> None:
    other = tmp_path / "other.safetensors"
    weights.save(replace(narrow_tiny, names=("a", "b", "c")), other)
    (report,) = run("verify", artifact_path, "--against", other, exits=4)
    assert report["status"] == "failed"


def test_diff(
    artifact_path: Path,
    checkpoint_path: Path,
    data: Path,
    tmp_path: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
) -> None:
    image = data.parent / "images" / "val" / "6.png"
    (report,) = run("diff", checkpoint_path, artifact_path, "--image", image, "--layers")
    assert (report["status"], report["first"], report["cause"]) == ("equal", None, None)
    assert report["image"] == str(image)
    assert report["a"]["target"] == "checkpoint"
    name = tampering.convolutions_of(artifact_path)[3]
    changed = tampering.scale_weight(artifact_path, tmp_path / "changed.onnx", name, seal=True)
    (report,) = run("diff", artifact_path, changed, "--layers", exits=4)
    assert report["cause"]["name"] == "changed weights"
    assert report["first_row"] == f"/row{name.split('.')[1]}"
    assert main(["diff", str(artifact_path), str(changed)]) == 4
    printed = capsys.readouterr()
    assert "first difference: head0" in printed.out
    assert printed.err.splitlines()[-1].startswith("error: ")


def test_selftest(artifact_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (report,) = run("selftest", artifact_path)
    assert report["status"] == "passed"
    assert main(["selftest", str(artifact_path)]) == 0
    assert "payload  unchanged" in capsys.readouterr().out


def test_selftest_of_a_changed_file(artifact_path: Path, tmp_path: Path, run: Run) -> None:
    content = bytearray(artifact_path.read_bytes())
    content[len(content) // 2] ^= 1
    changed = tmp_path / "changed.onnx"
    changed.write_bytes(content)
    assert run("selftest", changed, exits=4) == []


@pytest.mark.parametrize("kind", ["artifact", "checkpoint"])
def test_val(kind: str, artifact_path: Path, checkpoint_path: Path, data: Path, run: Run) -> None:
    model = artifact_path if kind == "artifact" else checkpoint_path
    options = ("--imgsz", "96") if kind == "checkpoint" else ()
    (record,) = run("val", model, "--data", data, "--split", "val", *options)
    assert 0 <= record["map50_95"] <= record["map50"] <= 1
    assert [row["labels"] for row in record["per_class"]] == [3, 3, 3]
    assert "square letterbox" in record["protocol"]


def test_val_with_other_classes(
    artifact_path: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "data.yaml"
    other.write_text(f"path: {data.parent}\nval: images/val\nnames: [a, b, c, d]\n")
    assert main(["val", str(artifact_path), "--data", str(other)]) == 1
    assert "has 4 classes, the model 3" in capsys.readouterr().err


def test_predict(artifact_path: Path, data: Path, tmp_path: Path, run: Run) -> None:
    images = sorted((data.parent / "images" / "val").iterdir())
    words = ("predict", artifact_path, images[0].parent, "--conf", "0.1")
    records = run(*words, "--save", tmp_path / "out")
    assert [record["source"] for record in records] == list(map(str, images))
    with Detector(artifact_path, conf=0.1) as detector:
        expected = detector(cv2.imread(str(images[0]))).to_dict()
    assert records[0]["image_size"] == [128, 96]
    assert records[0]["detections"] == expected["detections"]
    keys = {"xyxy", "confidence", "class_id", "class_name"}
    assert all(set(found) >= keys for record in records for found in record["detections"])
    saved = tmp_path / "out" / images[0].name
    drawn = bool(np.any(cv2.imread(str(saved)) != cv2.imread(str(images[0]))))
    assert drawn == bool(expected["detections"])


def test_predict_only_some_classes(artifact_path: Path, data: Path, run: Run) -> None:
    image = next((data.parent / "images" / "val").iterdir())
    words = ("predict", artifact_path, image, "--conf", "0.01")
    everything, some = run(*words), run(*words, "--class", "washer", "--class", "0")
    assert {found["class_id"] for found in everything[0]["detections"]} == {0, 1, 2}
    assert {found["class_name"] for found in some[0]["detections"]} == {"nut", "washer"}


def test_predict_with_tiles(artifact_path: Path, data: Path, run: Run) -> None:
    image = next((data.parent / "images" / "val").iterdir())
    (found,) = run("predict", artifact_path, image, "--conf", "0.1", "--tile", "64")
    with Detector(artifact_path, conf=0.1, tile=64) as detector:
        expected = detector(cv2.imread(str(image))).to_dict()
    assert found["detections"] == expected["detections"]
    (whole,) = run("predict", artifact_path, image, "--conf", "0.1")
    assert found["detections"] != whole["detections"]


def test_predict_with_other_thresholds(artifact_path: Path, data: Path, run: Run) -> None:
    image = next((data.parent / "images" / "val").iterdir())
    words = ("predict", artifact_path, image, "--conf", "0.01")
    assert len(run(*words, "--max-det", "1")[0]["detections"]) == 1
    assert len(run(*words)[0]["detections"]) > 1


def test_predict_with_nothing_to_read(
    artifact_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(artifact_path), "no/such.jpg"]) == 1
    assert capsys.readouterr().err.startswith("error: no/such.jpg: expected an image")


def test_predict_reports_bad_files_and_processes_the_others(
    artifact_path: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = next((data.parent / "images" / "val").iterdir())
    for name in ("a.jpg", "d.jpg"):
        shutil.copy(source, tmp_path / name)
    (tmp_path / "b.jpg").write_bytes(b"")
    writer = cv2.VideoWriter(str(tmp_path / "c.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(20):
        writer.write(cv2.randu(np.empty((48, 64, 3), np.uint8), 0, 256))
    writer.release()
    os.truncate(tmp_path / "c.avi", (tmp_path / "c.avi").stat().st_size // 2)
    words = ("predict", str(artifact_path), str(tmp_path), "--json")
    assert main([*words, "--save", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    records = [json.loads(line) for line in out.splitlines()]
    frames = [record["frame_id"] for record in records if "frame_id" in record]
    whole = [Path(record["source"]).name for record in records if "frame_id" not in record]
    assert (whole, frames) == (["a.jpg", "d.jpg"], list(range(len(frames))))
    empty, broken, count = err.splitlines()
    assert "b.jpg: expected an image, found an empty file" in empty
    assert f"c.avi: truncated: read {len(frames)} frames, expected 20" in broken
    assert count.endswith(": 2 of 4 files could not be read completely")
    saved = cv2.VideoCapture(str(tmp_path / "out" / "c.mp4"))
    assert saved.get(cv2.CAP_PROP_FRAME_COUNT) == len(frames)


def test_predict_prints_one_line_for_each_damaged_file(artifact_path: Path, tmp_path: Path) -> None:
    """In a process of its own: OpenCV and FFmpeg print past Python, and set it up at import."""
    for name, content in (
        ("a.pgm", b"P5 9 9 65535\n"),
        ("b.webp", b"RIFF\x40\0\0\0WEBPVP8X" + bytes(20)),
        ("c.mp4", b"\0\0\0\x18ftypisom" + bytes(12)),
    ):
        (tmp_path / name).write_bytes(content)
    words = (sys.executable, "-m", "y7edge", "predict", artifact_path, tmp_path)
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert all(line.startswith("error: ") for line in done.stderr.splitlines()), done.stderr
    assert len(done.stderr.splitlines()) == 4


def test_benchmark(
    artifact_path: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copy(artifact_path, tmp_path / "copy.onnx")
    records = run("benchmark", artifact_path, copy, "--threads", "1", "--runs", "3")
    assert [record["artifact"] for record in records] == [str(artifact_path), str(copy)]
    for stage in ("model_ms", "pre_ms", "post_ms", "end_to_end_ms"):
        assert set(records[0][stage]) == {"p50", "p95", "p99"}
    assert records[0]["device"] == "cpu"
    assert {"y7edge", "onnxruntime"} <= set(records[0]["versions"])
    assert records[0]["overhead"] > 0 and records[0]["startup_ms"] > 0
    records = run("benchmark", artifact_path, "--threads", "1,all", "--runs", "1")
    assert [record["threads"] for record in records] == [1, usable_cores()]
    capsys.readouterr()
    assert main(["benchmark", str(artifact_path), str(copy), "--threads", "1", "--runs", "1"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()[-3:]
    assert head.startswith("artifact ")
    assert [row.split()[0] for row in rows] == [str(artifact_path), str(copy)]


def test_check_prints_each_recipe_once() -> None:
    recipe = "python -m venv ENV && ENV/bin/pip install a; then set A=ENV/bin/python"
    rows = [("a", "no", f"needs a: {recipe}"), ("b", "no", f"needs b: {recipe}"), ("c", "yes", "c")]
    recipes: dict[str, int] = {}
    found = _shortened(rows, recipes)
    assert [why for *_, why in found] == ["needs a: see [1]", "needs b: see [1]", "c"]
    assert recipes == {recipe: 1}


def test_benchmark_looks_for_all_files_first(
    artifact_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("y7edge.cli.benchmark.open_detector", lambda *_, **__: pytest.fail())
    assert main(["benchmark", str(artifact_path), "missing.onnx"]) == 1
    assert "there is no file missing.onnx" in capsys.readouterr().err


@pytest.mark.parametrize("threads", ["0", "-1", "", "1,", "x", "1.5", "99999", "1;2"])
def test_benchmark_threads(
    threads: str, artifact_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", str(artifact_path), f"--threads={threads}"]) == 2
    assert not threads or "Invalid value for '--threads': expected" in capsys.readouterr().err


def test_benchmark_of_a_checkpoint(checkpoint_path: Path, run: Run) -> None:
    (record,) = run("benchmark", checkpoint_path, "--threads", "1", "--runs", "1", "--warmup", "1")
    assert record["model_ms"]["p50"] > 0
    assert "torch" in record["versions"]


@pytest.mark.parametrize(("budget", "exits"), [(1e-6, 4), (1e6, 0)])
def test_benchmark_gate(
    budget: float, exits: int, artifact_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "y7edge.benchmark.hotpath.BUDGET", {"pre": budget, "post": budget, "rest": budget}
    )
    (record,) = run("benchmark", artifact_path, "--runs", "1", "--gate", exits=exits)
    assert record["gate"]["pre"] > 0  # the report comes before the verdict


def test_train(data: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "run"
    small = ("--width", "0.25", "--imgsz", "64", "--epochs", "1", "--batch", "2")
    (record,) = run("train", "--data", data, *small, "--out", out, "--licence", "MIT")
    assert record["epochs"] == 1
    assert weights.load(record["best"]).meta["licence"] == "MIT"
    assert weights.load(record["best"]).meta["config"]["workers"] is None  # the device decides
    assert {"map50", "map50_95"} <= set(record)
    for name in ("best.safetensors", "last.safetensors", "results.csv"):
        assert (out / name).is_file()
    (info,) = run("info", record["best"])
    assert info["imgsz"] == [64, 64]
    assert info["names"] == ["nut", "washer", "schraube mit Öse"]


def test_train_on_a_folder_that_holds_a_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.csv").write_text("mine")
    assert main(["train", "--data", str(data), "--out", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
    assert (tmp_path / "results.csv").read_text() == "mine"
