from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "examples/research/two_detectors.py"


def test_one_and_two_sessions_are_compared(artifact_path):
    command = [sys.executable, SCRIPT, artifact_path, "--threads", "1", "--seconds", "0.02"]
    done = subprocess.run(
        [*command, "--rounds", "2"], capture_output=True, text=True, timeout=120, check=True
    )
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["1 sessions"] * 2 + ["2 sessions"] * 2
    for first, line in zip(lines[::2], lines[1::2], strict=True):
        assert " spin " in first and " = 1.00 x" in first
        assert " sleep " in line and " CPU time per image = " in line
