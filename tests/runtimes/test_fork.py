"""Forked processes: engines opened before the fork raise an error in the child."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from y7edge.models import weights

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

# While one thread detects, children are forked that open a Detector of their own and end.
SCRIPT = """
import os, sys, threading, time
import numpy as np
from y7edge import Detector
from y7edge.errors import DeviceError

path, options = sys.argv[1], {"threads": 2}
if path.endswith(".safetensors"):
    options["imgsz"] = (64, 96)
image = np.zeros((64, 96, 3), np.uint8)
detector, over = Detector(path, **options), threading.Event()

def use():
    while not over.is_set():
        detector(image)

thread = threading.Thread(target=use)
thread.start()
time.sleep(0.3)
for given in ({}, options) * 3:
    child = os.fork()
    if child == 0:
        try:
            Detector(path, **{**options, "threads": None, **given})(image)
        except DeviceError as error:
            if "spawn" not in str(error):
                raise
        sys.exit(7)
    end = time.monotonic() + 20
    while not (found := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
        time.sleep(0.01)
    if not found[0]:
        os.kill(child, 9)
    if os.waitstatus_to_exitcode(found[1] if found[0] else 9) != 7:
        over.set()
        raise SystemExit(f"a child: {found}")
over.set()
thread.join()
print("done")
"""


@pytest.fixture
def checkpoint(narrow_tiny, tmp_path):
    weights.save(narrow_tiny, tmp_path / "narrow.safetensors")
    return tmp_path / "narrow.safetensors"


def _fork_while_it_detects(path):
    command = [sys.executable, "-c", SCRIPT, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.stdout == "done\n", done.stdout + done.stderr[-2000:]


def test_children_of_a_busy_engine_open_or_raise(made):
    _fork_while_it_detects(made.artifact.path)


@pytest.mark.slow
def test_children_of_a_busy_checkpoint_open_or_raise(checkpoint):
    _fork_while_it_detects(checkpoint)
