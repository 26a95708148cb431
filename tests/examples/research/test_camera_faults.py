"""The table of faults: its rows can be measured, and the documentation has the same messages."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def faults():
    path = ROOT / "examples" / "research" / "camera_faults.py"
    spec = importlib.util.spec_from_file_location("camera_faults", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["camera_faults"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["camera_faults"]


@pytest.mark.parametrize("name", ["crash", "end", "missing"])
def test_a_row_is_in_the_documentation(faults, name):
    row = faults.ROWS[name]()
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    assert f"| {row.fault} | {row.seen} |" in text
    assert float(row.noticed) < 5 and (row.again == "-" or float(row.again) < 10)


@pytest.mark.slow
def test_a_stalled_camera_is_noticed_after_a_second(faults):
    row = faults.ROWS["stall"]()
    assert 1.0 <= float(row.noticed) < 4 and "no frame for 1." in row.seen


def test_only_known_rows_are_measured(faults, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["camera_faults.py", "--only", "missing"])
    faults.main()
    assert len(capsys.readouterr().out.splitlines()) == 3
    monkeypatch.setattr(sys, "argv", ["camera_faults.py", "--only", "fire"])
    with pytest.raises(SystemExit):
        faults.main()
