"""The measurement of reading ahead prints a line for each number of threads."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from y7edge.data.synthetic import scenes

SCRIPT = Path(__file__).parents[3] / "examples" / "research" / "read_ahead.py"


@pytest.mark.slow
def test_lines(tmp_path, parts_model):
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), scenes.scene(number, (120, 160)).image)
    done = subprocess.run(
        [sys.executable, SCRIPT, parts_model, tmp_path, "--rounds", "2"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first.split() == ["reading", "threads", "images/s", "ratio"]
    assert [line.split()[0] for line in lines] == ["0", "1", "2", "4"]
    assert float(lines[0].split()[2]) == 1
    assert all(float(line.split()[1]) > 0 for line in lines)
