"""Examples run as by a user, from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def start(tmp_path):
    """Start an example in an empty folder, without a display; it is ended after the test."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")
    }
    running = []

    def start(name, *arguments):
        done = subprocess.Popen(
            [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
            cwd=tmp_path,
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        running.append(done)
        return done

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def run(start):
    """Run an example to its end; return its exit code, lines, and what it wrote to stderr."""

    def run(name, *arguments):
        process = start(name, *arguments)
        out, err = process.communicate(timeout=120)
        return process.returncode, out.splitlines(), err

    return run
