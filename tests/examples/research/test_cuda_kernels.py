from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from y7edge.errors import RuntimeMissing

SCRIPT = Path(__file__).parents[3] / "examples/research/cuda_kernels.py"


def test_the_committed_ptx_is_compared_or_the_compiler_named():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--check"], capture_output=True, text=True, timeout=120
    )
    if done.returncode == RuntimeMissing.exit_code:
        assert done.stderr.endswith("pip install nvidia-cuda-nvrtc-cu12==12.1.105\n")
    else:
        assert done.returncode == 0
        assert "equals a new compilation" in done.stdout
