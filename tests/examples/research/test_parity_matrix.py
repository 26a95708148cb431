"""The matrix of proofs: every supported combination is a row, and a failed proof is reported."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from y7edge.runtimes import onnxrt

SCRIPT = Path(__file__).parents[3] / "examples" / "research" / "parity_matrix.py"


@pytest.fixture
def matrix(narrow_tiny, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("parity_matrix", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "parity_matrix", script)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "open_checkpoint", lambda _: narrow_tiny)

    def run(*words):
        monkeypatch.setattr("sys.argv", ["parity_matrix.py", "narrow", "--imgsz", "64", *words])
        code = script.main()
        lines = capsys.readouterr().out.splitlines()
        return code, [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][1:]

    return run


@pytest.mark.slow
def test_every_combination_is_a_row(matrix):
    code, rows = matrix("--target", "onnx", "--precision", "fp32")
    assert code == 0
    found = {tuple(row[2:4]) for row in rows}
    assert {(o, b) for o in ("heads", "decoded") for b in ("1", "3", "dynamic")} <= found
    for row in rows:
        assert row[-1] == "passed"
        assert float(row[4]) < 1e-4
        assert float(row[6]) > 0.999


def test_a_failed_proof_is_reported(matrix, monkeypatch):
    monkeypatch.setattr(onnxrt, "DEVIATION", 1e-12)
    words = ("--target", "onnx", "--precision", "fp32", "--outputs", "heads", "--batch", "1")
    code, rows = matrix(*words)
    assert code == 4
    assert [row[-1] for row in rows] == ["failed"]


def test_a_missing_converter_is_a_row_and_proves_nothing(matrix, monkeypatch, tmp_path):
    monkeypatch.setenv("Y7EDGE_LITERT_PYTHON", str(tmp_path / "python"))
    code, rows = matrix("--target", "litert", "--outputs", "heads", "--precision", "fp32")
    assert code == 4
    assert {row[-1].partition(":")[0] for row in rows} == {"not here"}


def test_a_combination_that_does_not_exist_is_refused(matrix, capsys):
    with pytest.raises(SystemExit, match="2"):
        matrix("--target", "onnx", "--precision", "int2")
    assert "no target that is installed here" in capsys.readouterr().err


def test_an_error_is_one_line(matrix, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["parity_matrix.py", "--imgsz", "100", "--target", "onnx"])
    assert sys.modules["parity_matrix"].main() == 1
    last = capsys.readouterr().err.splitlines()[-1]  # after the targets that are not installed
    assert last.startswith("error: imgsz is 100x100")
