"""The table of variants: measured values, and failed proofs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from y7edge.errors import ParityError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def table():
    path = ROOT / "examples" / "research" / "model_table.py"
    spec = importlib.util.spec_from_file_location("model_table", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["model_table"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["model_table"]


def run(table, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["model_table.py", *arguments])
    return table.main()


def test_tiny_is_measured(table, monkeypatch, capsys):
    options = ("--models", "yolov7-tiny", "--imgsz", "64", "--json")
    assert run(table, monkeypatch, *options) == 0
    (line,) = json.loads(capsys.readouterr().out)
    reference = json.loads((ROOT / "tests/reference/table.json").read_text())["yolov7-tiny"]
    assert line["parameters"] == reference["training"]["parameters"]
    assert line["parameters_folded"] == reference["deploy_fused"]["parameters"]
    assert line["gflops"] == pytest.approx(reference["training"]["gflops"], rel=1e-3)
    assert line["golden"] <= 5e-4
    assert 0 < line["fold"] <= 1e-4
    assert line["fold_weights"] == "golden"
    assert 0 < line["onnx"] <= 1e-4
    assert line["onnx_status"] == "passed"


def test_without_golden_files_and_with_a_failed_proof(table, monkeypatch, capsys, tmp_path):
    outputs = {"head0": {"deviation": 0.5}, "head1": {"deviation": 0.25}}
    record = {"status": "failed", "outputs": outputs}
    report = SimpleNamespace(status="failed", to_dict=lambda: record)

    def failing(*_arguments, **_options):
        raise ParityError("it is another model", report)

    monkeypatch.setattr(table, "export", failing)
    options = ("--models", "yolov7-tiny", "--golden", str(tmp_path), "--markdown")
    assert run(table, monkeypatch, *options) == 4
    out, err = capsys.readouterr()
    assert "it is another model" in err
    *golden, fold, onnx = out.splitlines()[-1].strip("| ").split(" | ")
    assert golden[-1].strip() == "-"
    assert fold.endswith("(random)")
    assert onnx == "5.0e-01 failed"


def test_unknown_names_are_refused(table, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(table, monkeypatch, "--models", "yolov9")
    assert "yolov9" in capsys.readouterr().err
