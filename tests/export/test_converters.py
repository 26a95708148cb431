"""Converters that fail, are killed, hang or write nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from y7edge.errors import ExportError
from y7edge.export import converters


def convert(tmp_path, code, seconds=60.0):
    made = tmp_path / "made.bin"
    converters.run([sys.executable, "-c", code], tmp_path, "Tool", made, seconds)
    return made


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return open(f"/proc/{pid}/stat").read().split()[2] != "Z"  # noqa: PTH123


def test_the_home_folder_and_the_network_are_not_the_users(tmp_path):
    names = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HUB_OFFLINE", "DO_NOT_TRACK")
    code = f"import os; open('made.bin', 'w').write(' '.join(os.environ[n] for n in {names}))"
    assert convert(tmp_path, code).read_text() == " ".join([str(tmp_path)] * 3 + ["1", "1"])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import sys; print('first\\nlast word', file=sys.stderr); sys.exit(3)",
            r"last word \(code 3\)",
        ),
        ("print('done')", "ended without an error, but wrote no file: done"),
        ("open('made.bin', 'w')", "ended without an error, but wrote an empty file: no message"),
        ("import os; os.kill(os.getpid(), 9)", "was killed, probably because memory ran out"),
        ("import os; os.abort()", "was ended by signal SIGABRT"),
        ("print('x' * 9000); raise SystemExit(1)", r"x{400} \(code 1\)"),
        ("import sys; sys.stdout.buffer.write(b'\\xff\\x1b[2J'); sys.exit(1)", r"code 1"),
    ],
)
def test_failures_are_one_line(tmp_path, code, message):
    with pytest.raises(ExportError, match=f"^Tool cannot convert the model: .*{message}") as caught:
        convert(tmp_path, code)
    assert str(caught.value).isprintable()


def test_a_program_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ExportError, match=r"^Tool cannot convert the model: .*no-such-program"):
        converters.run(["no-such-program"], tmp_path, "Tool", tmp_path / "made.bin", 60)


_GRANDCHILD = (
    "import subprocess, sys, time; "
    "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    "open('pid', 'w').write(str(p.pid)); time.sleep(600)"
)


def test_after_the_time_limit_all_its_processes_are_killed(tmp_path):
    with pytest.raises(ExportError, match=r"Tool cannot convert the model: it took more than 3 s"):
        convert(tmp_path, _GRANDCHILD, seconds=3)
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not alive(pid))


def test_an_interrupt_kills_all_its_processes(tmp_path):
    code = (
        "import sys; from pathlib import Path; from y7edge.export import converters; "
        f"folder = Path({str(tmp_path)!r}); "
        f"converters.run([sys.executable, '-c', {_GRANDCHILD!r}], folder, 'Tool', folder / 'm', "
        "600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    process.send_signal(signal.SIGINT)
    process.wait(60)
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not alive(pid))


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
