"""examples/coreml_selftest.sh, run with programs that stand in for those of a Mac."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import typer.main

from tests.runtimes.conftest import COMMITTED
from y7edge.cli.app import app

SCRIPT = Path(__file__).parents[2] / "examples" / "coreml_selftest.sh"
PACKAGE = COMMITTED / "coreml" / "narrow.mlpackage"
RECORD = """#!/bin/sh
echo "$(basename $0) $*" >> "$LOG"
case "$*" in *"$FAIL"*) exit 4;; esac
echo '{}'
"""


@pytest.fixture
def run(tmp_path):
    """Run the script; return its exit code, output, and the commands that it ran."""
    for name, text in {
        "uname": "#!/bin/sh\necho ${SYSTEM:-Darwin}\n",
        "y7edge": RECORD,
        "python": RECORD,
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(*arguments, fail="nothing fails", system="Darwin"):
        log = tmp_path / "log"
        log.write_text("")
        done = subprocess.run(
            ["bash", str(SCRIPT), *map(str, arguments)],
            cwd=tmp_path,
            env={
                "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
                **{"LOG": str(log), "FAIL": fail, "SYSTEM": system},
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr, log.read_text().splitlines()

    return run


def test_each_device_is_tested(run, tmp_path):
    """All commands exist, and their results are in the folder."""
    code, output, commands = run(PACKAGE)
    assert code == 0, output
    folder = tmp_path / "coreml-selftest"
    assert len(list(folder.iterdir())) == 13
    assert json.loads((folder / "selftest-npu.json").read_text()) == {}
    parser = typer.main.get_command(app)
    for command in commands:
        program, *words = command.split()
        if program == "y7edge":
            found = parser.get_command(None, words[0])
            found.make_context(words[0], words[1:])  # raises for an unknown option
        else:
            assert Path(words[0]) == SCRIPT.with_name("coreml_placement.py")
            assert words[1:] in ([str(PACKAGE), device] for device in ("cpu", "gpu", "npu", "auto"))


def test_a_device_that_fails(run):
    code, output, commands = run(PACKAGE, fail="--device npu")
    assert code == 1 and "the self-test failed: coreml-selftest/selftest-npu.json" in output
    assert any("--device auto" in command for command in commands)
    assert not any("benchmark" in command and "npu" in command for command in commands)


def test_misuse(run, tmp_path):
    assert run()[0] == 2
    shutil.copytree(PACKAGE, tmp_path / "alone.mlpackage")
    code, output, _ = run("alone.mlpackage")
    assert code == 1 and "alone.mlpackage.json are needed" in output
    code, output, _ = run(PACKAGE, system="Linux")
    assert code == 1 and "Core ML runs on macOS only, this is Linux" in output
