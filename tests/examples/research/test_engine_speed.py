"""The comparison of engines: every installed engine is measured."""

from __future__ import annotations

import importlib.util
from itertools import product
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "examples" / "research" / "engine_speed.py"
PRECISIONS = ("fp32", "fp16")  # random weights amplify bfloat16's rounding errors too much
WORDS = ["--imgsz", "64", "--runs", "2", "--input", "float32", "uint8", "--precision", *PRECISIONS]


def test_every_installed_target_is_measured(narrow_tiny, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("engine_speed", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "open_checkpoint", lambda _: narrow_tiny)
    monkeypatch.setattr("sys.argv", [SCRIPT.name, *WORDS])
    script.main()
    lines = capsys.readouterr().out.splitlines()
    for name in script.targets.names():
        if script.missing(script.targets.get(name).NEEDS):
            continue
        target = script.targets.get(name)
        for precision, kind in product(PRECISIONS, target.INPUTS):
            label = f"{name} {precision}{' uint8' if kind == 'uint8' else ''}  "
            (line,) = [line for line in lines if line.startswith(label)]
            assert " ms " in line
    (base,) = [line for line in lines if line.startswith("onnx fp32  ")]
    assert "1.00 x onnx fp32" in base
    assert "image to boxes 1.000 x" in base
