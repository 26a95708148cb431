from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from y7edge.benchmark.measure import benchmark
from y7edge.cli.console import to_json
from y7edge.detect.detector import Detector

SCRIPT = Path(__file__).parents[3] / "examples/research/benchmark_page.py"


def test_a_page_is_made_from_reports(artifact_path, tmp_path):
    with Detector(artifact_path, threads=1) as detector:
        reports = [benchmark(detector, name, threads=1, warmup=1, runs=1) for name in "ab"]
    source, out = tmp_path / "reports.jsonl", tmp_path / "page.md"
    source.write_text("\n".join(map(to_json, reports)))
    subprocess.run([sys.executable, SCRIPT, source, "--out", out], check=True, timeout=60)
    page = out.read_text()
    assert page.count("\n## ") == 1
    first, second = (line for line in page.splitlines() if line.startswith(("| a |", "| b |")))
    assert first.split(" | ")[4] == "1.00"
    ratio = reports[1].model_ms["p50"] / reports[0].model_ms["p50"]
    assert second.split(" | ")[4] == f"{ratio:.2f}"
    assert reports[0].processor in page and "onnxruntime" in first


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (None, None, "cannot read"),
        ("", "", "is empty, expected the output of `y7edge benchmark --json`"),
        ("{", "", "line 1: expected a report of `y7edge benchmark --json`, found '\"artifact"),
        ("imgsz", "size", "line 1: there is no 'size'"),
        ('"model_ms": {"p50": ', '"model_ms": {"p51": ', "a report of latency needs a value for"),
        (
            '"model_ms": {"p50": ',
            '"model_ms": {"p50": 0, "was": ',
            "expected a positive model_ms.p50",
        ),
        ('"runs": 60', '"runs": "many"', "line 1: runs: expected"),
    ],
)
def test_a_damaged_file_is_an_error_of_one_line(old, new, words, tmp_path):
    docs = Path(__file__).parents[3] / "docs"
    source, out = tmp_path / "reports.jsonl", tmp_path / "page.md"
    if old is not None:
        whole = (docs / "benchmarks.jsonl").read_text()
        assert old in whole
        source.write_text(whole.replace(old, new, 1) if old else "")
    command = [sys.executable, SCRIPT, source, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {'cannot read ' if old is None else ''}{source}")
    assert words in line
    assert done.returncode == 1
    assert not out.exists()


def test_the_page_in_the_documentation_is_generated(tmp_path):
    docs = Path(__file__).parents[3] / "docs"
    out = tmp_path / "page.md"
    command = [sys.executable, SCRIPT, docs / "benchmarks.jsonl", "--out", out]
    subprocess.run(command, check=True, timeout=60)
    assert out.read_text() == (docs / "benchmarks.md").read_text()
