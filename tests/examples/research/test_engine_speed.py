"""The comparison of engines: every installed engine is measured."""

from __future__ import annotations

import importlib.util
from itertools import product
from pathlib import Path

TRAINED = Path(__file__).parents[2] / "reference" / "demo.safetensors"
SCRIPT = Path(__file__).parents[3] / "examples" / "research" / "engine_speed.py"


def test_every_installed_target_is_measured(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("engine_speed", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    argv = ["engine_speed.py", str(TRAINED), "--imgsz", "160", "--runs", "2"]
    monkeypatch.setattr("sys.argv", [*argv, "--input", "float32", "uint8"])
    monkeypatch.setenv("Y7EDGE_LITERT_PYTHON", str(SCRIPT.with_name("no-python")))
    script.main()
    lines = capsys.readouterr().out.splitlines()
    for name in script.targets.names():
        if script.missing(script.targets.get(name).NEEDS):
            continue
        target = script.targets.get(name)
        for precision, kind in product(target.PRECISIONS, target.INPUTS):
            label = f"{name} {precision}{' uint8' if kind == 'uint8' else ''}  "
            if name == "litert":  # its converter is missing
                assert f"{label.strip()}: not here: Y7EDGE_LITERT_PYTHON" in "\n".join(lines)
                continue
            (line,) = [line for line in lines if line.startswith(label)]
            assert " ms " in line
    (base,) = [line for line in lines if line.startswith("onnx fp32  ")]
    assert "1.00 x onnx fp32" in base
    assert "image to boxes 1.000 x" in base
