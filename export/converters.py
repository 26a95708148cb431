"""Run converters as separate programs, some in another Python interpreter.

Programs run without a shell, with a time limit, and with their own temporary folder as home
directory. Their output is shown only if they fail. ``y7edge.interpreters`` finds interpreters with
a vendor's packages.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
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

    If this process is interrupted, the converter and the programs that it has started are killed.

    Returns:
        What it wrote to standard output.

    Raises:
        ExportError: the converter failed, was killed, took more than ``seconds``, or did not write
            the file. The message begins with ``name``, the name of the converter.
    """
    place = str(folder.absolute())
    home = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), place)
    problem = f"{name} cannot convert the model"
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **_OFFLINE, **home},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise ExportError(f"{problem}: {error}") from error
    with process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise ExportError(f"{problem}: it took more than {seconds:g} s") from error
        finally:  # also if this process is interrupted
            _kill(process)
    if process.returncode < 0:
        raise ExportError(f"{problem}: it was {_killed(-process.returncode)}")
    lines = [line for line in (err or out).splitlines() if line.strip()]
    last = " ".join(lines[-1].split())[:400] if lines else "no message"
    if process.returncode:
        raise ExportError(f"{problem}: {last} (code {process.returncode})")
    if not made.is_file() or not made.stat().st_size:
        what = "an empty file" if made.is_file() else "no file"
        raise ExportError(f"{problem}: it ended without an error, but wrote {what}: {last}")
    return out


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a process that still runs, and the processes that it started."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _killed(number: int) -> str:
    """Describe the end of a process by a signal."""
    try:
        word = signal.Signals(number).name
    except ValueError:
        word = str(number)
    if word == "SIGKILL":
        return (
            "killed, probably because memory ran out: close other programs, or use a smaller "
            "--imgsz or batch"
        )
    return f"ended by signal {word}; please report this to its vendor"
