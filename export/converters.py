"""Run converters as separate programs, some in another Python interpreter.

Programs run without a shell, with a time limit, and with their own temporary folder as home
directory. Their output is shown only if they fail. ``y7edge.interpreters`` finds interpreters with
a vendor's packages.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from y7edge.errors import ExportError

# Switch off downloads and telemetry of packages that converters import.
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}


def run(command: Sequence[str], folder: Path, name: str, made: Path, seconds: float) -> str:
    """Run a converter in ``folder``, an empty temporary folder. It must write the file ``made``.

    Returns:
        What it wrote to standard output.

    Raises:
        ExportError: the converter failed, took more than ``seconds``, or did not write the file.
            The message begins with ``name``, the name of the converter.
    """
    place = str(folder.absolute())
    home = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), place)
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **_OFFLINE, **home},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExportError(f"{name} cannot convert the model: {error}") from error
    if done.returncode or not made.is_file():
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        last = " ".join(lines[-1].split())[:400] if lines else "no message"
        raise ExportError(f"{name} cannot convert the model: {last} (code {done.returncode})")
    return done.stdout
