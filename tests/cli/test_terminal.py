"""Colours, progress bars and completion, as a terminal and a shell see them."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from y7edge.cli import main
from y7edge.cli.options import variants

COLOUR = re.compile(rb"\x1b\[[0-9;]*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[0-9;]*m")
SLOW = pytest.mark.slow  # each test starts processes
SCRIPT = f'#!/bin/sh\nexec {sys.executable} -m y7edge "$@"\n'


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    removed = ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS", "LINES", "CI", "GITHUB_ACTIONS")
    kept = {name: value for name, value in os.environ.items() if name not in removed}
    return kept | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"} | dict(variables)


def _run(
    words: list[object],
    variables: Mapping[str, str] | None = None,
    terminals: str = "both",
    program: Sequence[str] = (sys.executable, "-m", "y7edge"),
) -> tuple[bytes, bytes]:
    """Run a command with its output on a terminal; return stdout and stderr, or both and b""."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*program, *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=slave if terminals == "both" else subprocess.PIPE,
        stderr=subprocess.PIPE if terminals == "none" else slave,
        env=_environment(variables or {}),
    )
    os.close(slave)
    shown = b""
    while terminals != "none" and (part := _part(master)):
        shown += part
    os.close(master)
    out, err = process.communicate(timeout=120)
    return (shown, b"") if terminals == "both" else (out, err if terminals == "none" else shown)


def _part(master: int) -> bytes:
    try:
        return os.read(master, 1 << 16)
    except OSError:  # Linux: no process has the other end
        return b""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with an error, a warning and enough images for a bar."""
    root = tmp_path_factory.mktemp("set")
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for index in range(3):
            image = np.full((40, 40, 3), 40 * index, np.uint8)
            cv2.imwrite(str(root / "images" / split / f"{index}.png"), image)
            label = "7 0.5 0.5 0.2 0.2\n" if index else "0 0.5 0.5 0.2 0.2\n"
            (root / "labels" / split / f"{index}.txt").write_text(label)
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [a]\n")
    return root / "data.yaml"


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [
        ({}, True),
        ({"NO_COLOR": "1"}, False),
        pytest.param({"NO_COLOR": ""}, True, marks=SLOW),  # no-color.org: only if not empty
        pytest.param({"TERM": "dumb"}, False, marks=SLOW),
    ],
    ids=str,
)
def test_colours_on_a_terminal(variables: dict[str, str], coloured: bool, dataset: Path) -> None:
    shown, _ = _run(["data", "check", dataset], variables)
    assert b"error" in shown
    assert bool(COLOUR.search(shown)) is coloured
    if variables.get("TERM") == "dumb":
        assert b"\x1b" not in shown


@SLOW
def test_a_pipe_gets_no_escape_codes(dataset: Path) -> None:
    out, err = _run(["data", "check", dataset], terminals="none")
    assert b"error" in out
    assert b"\x1b" not in out + err
    assert b"\r" not in out + err


@SLOW
def test_colours_in_a_pipe_if_forced(dataset: Path) -> None:
    """FORCE_COLOR colours tables, but neither JSON nor remarks, and draws no bars."""
    out, err = _run(["data", "check", dataset], {"FORCE_COLOR": "1"}, "none")
    assert COLOUR.search(out)
    assert b"\x1b" not in err
    out, err = _run(["data", "check", dataset, "--json"], {"FORCE_COLOR": "1"}, "none")
    assert json.loads(out)["findings"]
    assert b"\x1b" not in out + err


@SLOW
def test_messages_of_the_completion_are_coloured_on_a_terminal_only(tmp_path: Path) -> None:
    """They are click's, which does not know NO_COLOR."""
    words: list[object] = [f"{sys.executable} -m y7edge --install-completion; true"]
    for variables, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        home = {"HOME": str(tmp_path)}
        shown, _ = _run(words, {**variables, **home}, program=("bash", "-c"))
        assert b"completion installed" in shown
        assert bool(COLOUR.search(shown)) is coloured


@SLOW
@pytest.mark.parametrize("command", ["data", "val", "predict", "live"])
def test_bars_are_drawn_on_a_terminal_only(
    command: str, dataset: Path, artifact_path: Path, data: Path
) -> None:
    words = {
        "data": ["data", "check", dataset, "--json"],
        "val": ["val", artifact_path, "--data", data, "--json"],
        "predict": ["predict", artifact_path, data.parent / "images" / "val", "--json"],
        "live": ["live", artifact_path, "test://pattern?fps=10", "--duration", "1", "--json"],
    }[command]
    out, err = _run(words, terminals="stderr")
    records = [json.loads(line) for line in out.splitlines()]
    assert records
    assert b"\x1b[?25l" in err  # the cursor is hidden
    assert b"\x1b[?25h" in err.rpartition(b"\x1b[?25l")[2]  # and shown again
    for variables in ({}, {"FORCE_COLOR": "1"}):
        out, err = _run(words, variables, "none")
        assert out.count(b"\n") == len(records) or command == "live"
        assert b"\x1b" not in out + err


# --- completion -----------------------------------------------------------------------------------


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """A home folder with the program ``y7edge`` on the path."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "y7edge"
    program.write_text(SCRIPT)
    program.chmod(0o755)
    (tmp_path / "home").mkdir()
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    root = str(Path(__file__).parents[2])
    return _environment({"PATH": path, "HOME": str(tmp_path / "home"), "PYTHONPATH": root})


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("y7edge se", ["sensitivity", "selftest"]),
        ("y7edge data ", ["check"]),
        ("y7edge export --quant", ["--quantize-heads"]),
        ("y7edge export m --target op", ["openvino"]),
        ("y7edge export m --target all", ["all-here"]),
        ("y7edge predict m i --backend o", ["onnxrt", "ov"]),
        ("y7edge export m --precision fp", ["fp32", "fp16"]),
        ("y7edge val m --split ", ["train", "val", "test"]),
        ("y7edge train --cache d", ["disk"]),
        ("y7edge info yolov7-e", ["yolov7-e6", "yolov7-e6e"]),
        ("y7edge audit m --target kl5", ["kl520", "kl530"]),
        ("y7edge predict ", []),  # nothing: bash completes file names
        ("y7edge export /", []),
        ("y7edge export ../yolov7", []),
        ("y7edge export [*]**/\x1b", []),
        ("y7edge export m --out ", []),
    ],
)
def test_completed_words(
    line: str,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ask as the completion of bash does; the last word of the line is completed."""
    words = line.split(" ")
    monkeypatch.setenv("COMP_WORDS", "\n".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setenv("_Y7EDGE_COMPLETE", "complete_bash")
    with pytest.raises(SystemExit) as ended:
        main([])
    printed = capsys.readouterr()
    assert (printed.out.split(), printed.err, ended.value.code) == (expected, "", 0)


def test_files_take_precedence_over_variants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert variants("yolov7-t") == ["yolov7-tiny", "yolov7-tiny-silu"]
    (tmp_path / "yolov7-tiny.onnx").touch()
    assert variants("yolov7-t") == []  # the shell completes the file
    assert variants("") == []


@SLOW
def test_other_shells(shell: dict[str, str]) -> None:
    asked = {"_TYPER_COMPLETE_ARGS": "y7edge export m --target op"}
    for name, more, expected in (
        ("zsh", {}, "_arguments '*: :((\"openvino\"))'"),
        ("fish", {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}, "openvino"),
    ):
        variables = {**shell, **asked, **more, "_Y7EDGE_COMPLETE": f"complete_{name}"}
        done = subprocess.run(["y7edge"], env=variables, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


def test_completion_is_quick(shell: dict[str, str]) -> None:
    """Commands and options are completed without numpy and engines."""
    code = (
        "import os, sys\n"
        "os.environ |= {'_Y7EDGE_COMPLETE': 'complete_bash', 'COMP_CWORD': '1',"
        " 'COMP_WORDS': 'y7edge tra'}\n"
        "from y7edge.cli import main\n"
        "try: main([])\n"
        "finally: print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=shell, capture_output=True, text=True, check=True
    )
    assert done.stdout == "train\n"
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "typer" in loaded
    assert not loaded & {"numpy", "cv2", "torch", "onnx", "onnxruntime", "rich"}


@SLOW
def test_installed_completion_in_bash(shell: dict[str, str], tmp_path: Path) -> None:
    """Install it, start a real bash on a terminal, and press Tab."""
    home = Path(shell["HOME"])
    (home / ".bashrc").write_text("PS1='> '\nalias kept=true\n")
    show = [["bash", "-c", f"y7edge --{what}-completion"] for what in ("show", "install")]
    script = subprocess.run(show[0], env=shell, capture_output=True, text=True, check=True).stdout
    assert [path.name for path in home.rglob("*") if path.is_file()] == [".bashrc"]
    done = subprocess.run(show[1], env=shell, capture_output=True, text=True, check=True)
    made = home / ".bash_completions" / "y7edge.sh"
    assert str(made) in done.stdout
    assert made.read_text().strip() == script.strip()
    assert (home / ".bashrc").read_text().startswith("PS1='> '\nalias kept=true\n")
    files = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    assert files == {".bashrc", ".bash_completions/y7edge.sh"}

    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "mine.onnx").touch()
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(tmp_path / "work")
        os.execvpe("bash", ["bash", "-i"], {**shell, "TERM": "dumb"})
    try:
        _read_until(master, b"> ")
        os.write(master, b"y7edge selft\t")
        _read_until(master, b"selftest ")
        os.write(master, b"mi\t")
        _read_until(master, b"mine.onnx ")
        os.write(master, b"--backend onn\t")
        _read_until(master, b"--backend onnxrt ")
    finally:
        os.write(master, b"\x15exit\n")
        os.waitpid(pid, 0)
        os.close(master)


def _read_until(master: int, wanted: bytes) -> None:
    shown, end = b"", time.monotonic() + 60
    while wanted not in shown:
        ready, _, _ = select.select([master], [], [], max(0.0, end - time.monotonic()))
        assert ready, shown
        shown += os.read(master, 4096)
