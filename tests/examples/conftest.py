"""The demo's model as an artifact, once per session; examples run as by a user, from elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="session")
def parts_model(tmp_path_factory):
    """An ONNX artifact of the committed checkpoint of `make demo`."""
    from y7edge.export import export
    from y7edge.models import weights

    checkpoint = weights.load(ROOT / "tests" / "reference" / "demo.safetensors")
    return export(checkpoint, tmp_path_factory.mktemp("model") / "parts.onnx").path


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
