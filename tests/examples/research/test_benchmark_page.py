from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_the_page_in_the_documentation_is_generated(tmp_path):
    docs = Path(__file__).parents[3] / "docs"
    out = tmp_path / "page.md"
    command = [sys.executable, SCRIPT, docs / "benchmarks.jsonl", "--out", out]
    subprocess.run(command, check=True, timeout=60)
    assert out.read_text() == (docs / "benchmarks.md").read_text()
