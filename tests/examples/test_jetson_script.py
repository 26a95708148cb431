"""examples/jetson_build_and_run.sh, run with programs that stand in for those of a Jetson."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from y7edge.cli.app import app

SCRIPT = Path(__file__).parents[2] / "examples" / "jetson_build_and_run.sh"
# Programs of the system that the script uses.
SYSTEM = ("bash", "basename", "mkdir", "tee", "sed")
RECORD = f"""#!{sys.executable}
import json, os, pathlib, sys
name = pathlib.Path(sys.argv[0]).name
with open(os.environ["LOG"], "a") as log:
    log.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
sys.exit(int(os.environ.get("FAIL") == " ".join([name, *sys.argv[1:2]])))
"""
# "python3 -m venv FOLDER" makes a folder whose programs record their arguments.
PYTHON = (
    RECORD.rpartition("sys.exit")[0]
    + """
if "venv" in sys.argv:
    programs = pathlib.Path(sys.argv[-1], "bin")
    programs.mkdir(parents=True)
    for made in ("pip", "y7edge"):
        (programs / made).write_text(pathlib.Path(os.environ["RECORD"]).read_text())
        (programs / made).chmod(0o755)
sys.exit(int(os.environ.get("FAIL") == "tensorrt" and "import tensorrt" in sys.argv))
"""
)


class Machine:
    """A folder of programs, and what they were called with."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        (folder / "bin").mkdir()
        for name in SYSTEM:
            found = shutil.which(name)
            assert found
            (folder / "bin" / name).symlink_to(found)
        (folder / "record").write_text(RECORD)
        self.program("nvcc", RECORD)
        self.program("python3", PYTHON)
        for name in ("y7edge.whl", "mine.onnx", "image.jpg"):
            (folder / name).touch()

    def program(self, name: str, text: str) -> None:
        (self.folder / "bin" / name).write_text(text)
        (self.folder / "bin" / name).chmod(0o755)

    def run(self, *arguments: str, fail: str = "") -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        places = {"LOG": str(self.log), "RECORD": str(self.folder / "record"), "FAIL": fail}
        return subprocess.run(
            ["bash", str(SCRIPT), *arguments],
            cwd=self.folder,
            env={"PATH": str(self.folder / "bin"), **places},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


ARGUMENTS = ("y7edge.whl", "mine.onnx", "image.jpg", "out folder")
ENGINE = "out folder/mine.engine"
COMMANDS = [
    ["check"],
    ["build", "mine.onnx", "--target", "tensorrt", "--out", ENGINE],
    ["selftest", ENGINE],
    ["benchmark", ENGINE, "--runs", "200", "--power-interval", "100", "--json"],
    ["predict", ENGINE, "image.jpg", "--save", "out folder/found"],
]


def test_every_step_in_order(machine: Machine) -> None:
    done = machine.run(*ARGUMENTS)
    assert done.returncode == 0, done.stderr
    assert machine.calls() == [
        ["python3", "-c", "import tensorrt"],
        ["python3", "-m", "venv", "--system-site-packages", "out folder/env"],
        ["pip", "install", "numpy<2", "pycuda", "y7edge.whl"],
        *(["y7edge", *command] for command in COMMANDS),
    ]
    assert (machine.folder / "out folder" / "benchmark.json").exists()
    assert machine.run(*ARGUMENTS).returncode == 0  # again: nothing is installed
    assert [call[0] for call in machine.calls()] == ["python3", *["y7edge"] * len(COMMANDS)]


@pytest.mark.parametrize("command", COMMANDS, ids=[command[0] for command in COMMANDS])
def test_the_command_line_accepts_each_command(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, *arguments = command
    monkeypatch.chdir(tmp_path)
    Path(ENGINE).parent.mkdir()
    for path in ("mine.onnx", "image.jpg", ENGINE):
        Path(path).touch()
    group = typer.main.get_command(app)
    found = group.commands[name]  # type: ignore[attr-defined]
    context = found.make_context(name, list(arguments))  # exits if an option does not exist
    values = [str(value) for value in context.params.values()]
    for argument in arguments:
        if not argument.startswith("--") and name != "benchmark":
            assert argument in values


@pytest.mark.parametrize("fail", ["y7edge build", "y7edge selftest", "y7edge benchmark"])
def test_a_failed_step_ends_the_script(machine: Machine, fail: str) -> None:
    assert machine.run(*ARGUMENTS, fail=fail).returncode == 1
    assert " ".join(machine.calls()[-1][:2]) == fail


@pytest.mark.parametrize("count", [0, 2, 5])
def test_usage(machine: Machine, count: int) -> None:
    done = machine.run(*[*ARGUMENTS, "more"][:count])
    assert done.returncode == 2
    assert "jetson_build_and_run.sh WHEEL ARTIFACT.onnx IMAGES [FOLDER]" in done.stderr
    assert "set -euo" not in done.stderr and not machine.calls()


def test_what_is_missing_is_named(machine: Machine) -> None:
    done = machine.run("other.whl", *ARGUMENTS[1:])
    assert (done.returncode, done.stderr) == (1, "other.whl does not exist\n")
    done = machine.run(*ARGUMENTS, fail="tensorrt")
    assert done.returncode == 1
    assert done.stderr == (
        "JetPack's tensorrt cannot be imported: sudo apt install nvidia-jetpack\n"
    )
    (machine.folder / "bin" / "python3").unlink()  # nvcc may be in /usr/local/cuda here
    done = machine.run(*ARGUMENTS)
    assert done.returncode == 1
    assert done.stderr.startswith("python3 was not found: ")
    assert not (machine.folder / "out folder").exists()


def test_shell_syntax() -> None:
    assert SCRIPT.read_text().splitlines()[0] == "#!/usr/bin/env bash"
    assert "\nset -euo pipefail\n" in SCRIPT.read_text()
    assert SCRIPT.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
