"""``y7edge audit`` from end to end."""

from __future__ import annotations

import json
import shlex

import pytest

from y7edge.cli import main
from y7edge.errors import ConfigError
from y7edge.export import pipeline
from y7edge.export.audit import chips
from y7edge.export.fallback import Options
from y7edge.export.proof import accuracy
from y7edge.export.targets import registry
from y7edge.models import weights

TABLE = """\
title: My chip
vendor: Me
source: my measurements of 2026-11
others: refused
others_why: not tried
operations: {Conv: {}, LeakyRelu: {}, Concat: {}, MaxPool: {}, Resize: {limits: {axes: {max: 1}}}}
"""


@pytest.fixture
def run(capsys):
    def run_it(*words, exits=0):
        code = main(["audit", *map(str, words)])
        printed = capsys.readouterr()
        assert code == exits, printed.err
        return printed.out, printed.err

    return run_it


def test_one_chip(run) -> None:
    out, _ = run("yolov7-tiny", "--target", "kl720")
    lines = out.splitlines()
    assert lines[0] == "Kneron KL720: fits with rewrites"
    assert lines[1] == "133 of 135 nodes run on the accelerator, 2 run on the CPU"
    assert any(
        line.startswith("Resize") and "CPU" in line and line.endswith("--rewrite resize-per-axis")
        for line in lines
    )
    assert "with --rewrite resize-per-axis: fits" in lines
    assert "source: Kneron document center" in out
    assert lines[-1] == (
        "export: y7edge export yolov7-tiny --target kneron --option chip=kl720 "
        "--rewrite resize-per-axis --calib DATA"
    )
    out, _ = run("yolov7-tiny", "--target", "edgetpu")
    assert out.splitlines()[-1] == (
        "export: y7edge export yolov7-tiny --target edgetpu --imgsz 320 --data DATA"
    )


# One chip for each target and set of precisions: their commands have the same form.
_FORMS = {(chip.target, chip.precisions): chip.name for chip in chips.load_all() if chip.target}


@pytest.mark.parametrize("name", _FORMS.values())
def test_the_printed_command_is_accepted(name, run, tmp_path, narrow_tiny, monkeypatch, capsys):
    """It passes all checks of the export that come before the graph is written."""
    path = tmp_path / "narrow net.safetensors"
    weights.save(narrow_tiny, path)
    out, _ = run(path, "--target", name)
    *words, last = shlex.split(out.splitlines()[-1])[2:]
    assert words[:2] == ["export", str(path)]

    def reached(*_):
        raise ConfigError("all checks passed")

    monkeypatch.setattr(pipeline, "require", lambda *_: None)
    monkeypatch.setattr(pipeline, "_versions", lambda *_: {})
    unread = object.__new__(accuracy.Baseline)
    monkeypatch.setattr(accuracy, "Baseline", lambda *_, **__: unread)
    monkeypatch.setattr(pipeline, "gate_of", lambda *_: None)
    monkeypatch.setattr(Options, "choose", lambda *_: None)
    monkeypatch.setattr(pipeline, "_make", reached)
    suffix = registry.get(chips.load(name).target).SUFFIX
    assert main([*words, last, "--out", str(tmp_path / f"made{suffix}")]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: all checks passed"


def test_commands_of_targets_that_read_no_graph(run) -> None:
    out, _ = run("yolov7-w6", "--target", "apple-ane")
    assert out.splitlines()[-1].startswith("export: y7edge export yolov7-w6 --target coreml")
    assert "--rewrite" not in out
    out, _ = run("yolov7-w6", "--target", "apple-ane", "--rewrite", "reorg-conv6")
    assert out.splitlines()[-1] == "export: target coreml reads no graph, so it takes no --rewrite"
    _, err = run("yolov7-w6", "--target", "edgetpu", exits=4)
    assert err.endswith("memory: parameters of 70.4 MB, expected at most 8.39 MB\n")


def test_a_refused_model_exits_with_4(run) -> None:
    out, err = run("yolov7", "--target", "kl520", exits=4)
    assert "Sigmoid" in out
    assert err.startswith("error: yolov7 is refused by Kneron KL520: train with --act ")


def test_rewrites_that_are_applied(run) -> None:
    run("yolov7-w6", "--target", "kl720", exits=4)
    out, _ = run("yolov7-w6", "--target", "kl720", "--rewrite", "auto")
    assert out.startswith("Kneron KL720, graph with reorg-conv6, resize-per-axis: fits\n")
    run("yolov7-w6", "--target", "kl720", "--rewrite", "reorg", exits=1)


def test_all_chips(run) -> None:
    out, _ = run("yolov7-tiny", "--imgsz", 320)
    lines = out.splitlines()
    assert sorted(line.split()[0] for line in lines[1:-2]) == chips.names()
    row = next(line for line in lines if line.startswith("kl720"))
    assert "fits with rewrites" in row
    assert "--rewrite resize-per-axis" in row


def test_json_and_a_file(run, tmp_path) -> None:
    path = tmp_path / "audit.json"
    out, _ = run("yolov7-tiny", "--target", "kl720", "--json", "--out", path)
    record = json.loads(out)
    assert json.loads(path.read_text()) == record
    assert (record["outcome"], record["rewrites"]) == ("cpu", ["resize-per-axis"])
    assert record["with_rewrites"]["outcome"] == "fits"
    assert record["counts"] == {"refused": 0, "unknown": 0, "cpu": 2, "runs": 133}
    out, _ = run("yolov7-tiny", "--json")
    found = {chip["chip"]: chip for chip in json.loads(out)["chips"]}
    assert sorted(found) == chips.names()
    assert found["kl720"]["outcome_with_rewrites"] == "fits"
    assert found["kl720"]["helps"] == "--rewrite resize-per-axis"
    assert found["edgetpu"]["advice"][0]["options"] == "--imgsz 320"


def test_a_table_of_the_user(run, tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(TABLE)
    for words in (("--target", path), ("--target", "mine", "--chips", tmp_path)):
        out, _ = run("yolov7-tiny", *words, exits=4)
        assert out.startswith("My chip: fits with rewrites\n")
    out, _ = run("yolov7-tiny", "--chips", tmp_path)
    assert out.splitlines()[1].split()[:2] == ["mine", "Me"]
    path.write_text(TABLE + "colour: red\n")
    _, err = run("yolov7-tiny", "--target", path, exits=1)
    assert err.startswith(f"error: {path}: there is no 'colour'")


def test_artifacts(run, artifact_path) -> None:
    out, _ = run(artifact_path, "--target", "kl720")
    assert out.startswith("Kneron KL720: partly on the CPU\n")
    assert out.endswith("audit the checkpoint or the variant instead of the graph\n")
    _, err = run(artifact_path, "--imgsz", 64, exits=1)
    assert "is a finished graph: omit --imgsz" in err


def test_checkpoints(run, tmp_path, narrow_tiny) -> None:
    path = tmp_path / "narrow.safetensors"
    weights.save(narrow_tiny, path)
    out, _ = run(path, "--target", "artpec-9", "--imgsz", 64, "--json")
    assert json.loads(out)["outcome"] == "unknown"


def test_mistakes(run, tmp_path) -> None:
    for words, message in (
        (("yolov7-tiny", "--target", "kl52"), "did you mean 'kl520'?"),
        (("yolov7-tiny", "--outputs", "boxes"), "no outputs 'boxes'"),
        (("yolov7-tiny", "--imgsz", 100), "expected multiples of 32"),
        (("yolov9",), "unknown model 'yolov9'"),
        ((tmp_path / "a.onnx",), "there is no file"),
        (("yolov7-tiny", "--chips", tmp_path), "found none"),
    ):
        _, err = run(*words, exits=1)
        assert message in err
        assert err.count("\n") == 1
