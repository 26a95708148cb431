"""The comparisons of trainings and evaluations, on the CPU; test_gpu.py has the kernels."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from y7edge.data.synthetic import scenes

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "tests" / "reference" / "demo.safetensors"


@pytest.fixture
def module(monkeypatch):
    path = ROOT / "examples" / "research" / "gpu_checks.py"
    spec = importlib.util.spec_from_file_location("gpu_checks", path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    config_of = found.config_of
    monkeypatch.setattr(
        found, "config_of", lambda *given, **more: replace(config_of(*given, **more), width=0.125)
    )
    monkeypatch.setattr(found, "REPEATS", 2)
    return found


@pytest.mark.parametrize("what", ["speed", "loss", "val"])
def test_comparisons(module, tmp_path, monkeypatch, what):
    data = scenes.generate(tmp_path / "data", train=6, val=2, size=(96, 96))
    out = tmp_path / "found.json"
    options = {
        **{"data": data, "device": "cpu", "imgsz": 64, "batch": 2, "epochs": 1, "iterations": 2},
        **{"workers": 0, "compile": "no", "checkpoint": DEMO, "precisions": "fp32", "out": out},
    }
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["gpu_checks.py", what, *given])
    module.main()
    rows = json.loads(out.read_text())
    assert not any("error" in row for row in rows), rows
    if what == "speed":
        assert rows[0]["images_per_second / first"] == 1
        assert len(rows) == 2
    elif what == "loss":
        assert [row["sum / first fp32"] == [1.0] for row in rows] == [True, True, False]
    else:
        assert rows[-1]["largest difference of logits"] == 0
