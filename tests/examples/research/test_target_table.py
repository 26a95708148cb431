"""The table of targets in docs/support.md."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from y7edge.cli.console import to_json
from y7edge.export.everything import Made

SCRIPT = Path(__file__).parents[3] / "examples" / "research" / "target_table.py"


def run(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def recorded(tmp_path):
    path = tmp_path / "tiny.json"
    made = Made("onnx", "int8", "run", Path("a/m.onnx"), "", 6.4, 12.2, "cosine 0.9990", "int8")
    made = Made(**{**asdict(made), "map50_95": 0.56, "drop": 0.002, "ms": 3.25})
    other = Made("qnn", "fp16", problem="the package is missing")
    path.write_text(to_json({"artifacts": [made, other], "folder": "a"}))
    assert len(json.loads(path.read_text())["artifacts"]) == 2
    return path


def test_one_row_for_each_artifact(tmp_path):
    done = run(f"tiny=={recorded(tmp_path)}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "**tiny=**"
    row = "| onnx | int8 | run | cosine 0.9990 | 0.5600 (0.0020) | 3.25 | 6.4 | 12 | int8 |"
    assert row in lines
    assert "| qnn | fp16 | not made |  |  |  |  |  |  |" in lines
    assert "- qnn fp16: the package is missing" in lines


def test_a_page_is_changed_between_its_comments_only(tmp_path):
    page = tmp_path / "page.md"
    begin, end = "<!-- targets: begin -->", "<!-- targets: end -->"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    run_ = f"tiny={recorded(tmp_path)}"
    assert run(run_, "--write", page).returncode == 0
    first = page.read_text()
    assert first.startswith(f"before\n{begin}\n\n**tiny**")
    assert first.endswith(f"{end}\nafter\n") and "old" not in first
    assert run(run_, "--write", page).returncode == 0
    assert page.read_text() == first
    page.write_text("no comments")
    done = run(run_, "--write", page)
    assert done.returncode == 1 and "does not have the lines" in done.stderr
    assert page.read_text() == "no comments"
    assert run("untitled.json").returncode == 1
