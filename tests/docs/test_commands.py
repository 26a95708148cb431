"""The commands of each page run in order, as a reader types them, in a folder with their files."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import blocks, python_blocks
from tests.docs.blocks import ROOT, Command

CHECKPOINT = ROOT / "tests" / "reference" / "demo.safetensors"
SIDE = 160  # pixels of the checkpoint's images
LIMIT_S = 1800
PAGES = [page for page in blocks.pages() if any(one.is_run for one in blocks.commands(page))]


def _fewer(limit: int):
    return lambda found: f"{found[1]}{min(int(found[2]), limit)}"


def _smaller(found: re.Match[str]) -> str:
    """Scale an image size to at most SIDE pixels, in multiples of 32."""
    sides = [int(side) for side in found[2].split("x")]
    scale = min(1.0, SIDE / max(sides))
    return found[1] + "x".join(str(max(32, round(side * scale / 32) * 32)) for side in sides)


# What makes long commands short: pattern -> replacement. Nothing else is changed.
SHORTER = (
    (re.compile(r"(--epochs[ =])(\d+)"), _fewer(1)),
    (re.compile(r"(--imgsz[ =])(\d+(?:x\d+)?)"), _smaller),
    (re.compile(r"(--batch[ =])(\d+)"), _fewer(4)),
    (re.compile(r"(--duration[ =])(\d+)"), _fewer(3)),
    (re.compile(r"(--frames[ =])(\d+)"), _fewer(30)),
    (re.compile(r"(--calib-images[ =])(\d+)"), _fewer(8)),
)
# What commands do without these options takes long: the command -> options that are added.
DEFAULTS = {
    "y7edge train": {"--epochs": "1", "--imgsz": str(SIDE), "--batch": "4", "--workers": "0"},
}
UNCHANGED = re.compile("--resume|--print-recipe|--help")


def shortened(text: str) -> str:
    """Return a shell command that does the same with less work."""
    for pattern, replacement in SHORTER:
        text = pattern.sub(replacement, text)
    for command, options in DEFAULTS.items():
        if command in text and not UNCHANGED.search(text):
            added = " ".join(f"{key} {value}" for key, value in options.items() if key not in text)
            text = text.replace(command, f"{command} {added}", 1)
    return text


def test_long_commands_become_short():
    assert shortened("y7edge export a --imgsz 384x640 --out b") == (
        "y7edge export a --imgsz 96x160 --out b"
    )
    train = shortened("y7edge train --data d.yaml --epochs 60 --imgsz 320")
    assert train == "y7edge train --batch 4 --workers 0 --data d.yaml --epochs 1 --imgsz 160"
    assert shortened("y7edge train --resume DIR") == "y7edge train --resume DIR"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder with the files that the pages name."""
    import cv2

    from y7edge.data.synthetic import scenes
    from y7edge.data.synthetic.conveyor import Conveyor
    from y7edge.export import export
    from y7edge.models import weights

    folder = tmp_path_factory.mktemp("pages")
    scenes.generate(folder, train=24, val=12, size=(SIDE, SIDE))
    for index in range(3):
        shutil.copy(folder / "images" / "val" / f"{index:05d}.jpg", folder / "images")
    (folder / "runs" / "mine").mkdir(parents=True)
    shutil.copy(CHECKPOINT, folder / "runs" / "mine")
    (folder / "runs" / "mine" / CHECKPOINT.name).rename(folder / "runs/mine/best.safetensors")
    shutil.copy(CHECKPOINT, folder / "best.safetensors")
    checkpoint = weights.load(CHECKPOINT)
    export(checkpoint, folder / "mine.onnx")
    shutil.copy(folder / "mine.onnx", folder / "tiny.onnx")
    export(checkpoint, folder / "mine.xml", target="openvino")
    export(checkpoint, folder / "int8.onnx", precision="int8", data=folder / "data.yaml")
    belt = Conveyor()
    for name in ("image.jpg", "tray.jpg"):
        cv2.imwrite(str(folder / name), belt.view(0).image)
    film = cv2.VideoWriter(
        str(folder / "video.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (640, 480)
    )
    for index in range(20):
        film.write(belt.view(index * 20).image)
    film.release()
    return folder


PROGRAMS = {
    "y7edge": f'exec {shlex.quote(sys.executable)} -m y7edge "$@"',
    "python": f'exec {shlex.quote(sys.executable)} "$@"',
    "python3": f'exec {shlex.quote(sys.executable)} "$@"',
    "pip": "echo 'tests do not install packages' >&2; exit 1",
    "sudo": "echo 'tests do not use sudo' >&2; exit 1",
}


class Script:
    """One page as a bash script, which logs each command that it starts.

    Attributes:
        text: The script. It reads and writes the file descriptors that follow ``requests``.
    """

    def __init__(self, listed: list[Command], work: Path, requests: int, answers: int) -> None:
        self.listed = listed
        lines = ["set -e -o pipefail"]
        for index, command in enumerate(listed):
            lines.append(f"echo {index} > {shlex.quote(str(work / 'at'))}")
            lines.append(f"echo; echo '>>>' {shlex.quote(command.text)}")
            if command.language == "python":
                file = work / f"block{index}.py"
                file.write_text(command.text, encoding="utf-8")
                request = rf"'%s\t{file}\t{command.page}\t{command.line}\n'"
                lines.append(f'printf {request} "$PWD" >&{requests}; read -r code <&{answers}')
                lines.append('[ "$code" = 0 ]')
            elif command.exit_code == 0:
                lines.append(shortened(command.text))
            else:
                lines += ["set +e", f"( {shortened(command.text)}\n) > {work}/printed 2>&1"]
                lines += ["code=$?", "set -e", f"cat {work}/printed"]
                wanted = "-ne 0" if command.exit_code is None else f"-eq {command.exit_code}"
                lines.append(f'[ "$code" {wanted} ]')
                if command.error:
                    lines.append(f"grep -qxF -- {shlex.quote(command.error)} {work}/printed")
        self.text = "\n".join(lines) + "\n"


def run_page(page: str, folder: Path, work: Path) -> None:
    """Run all commands of a page; fail with the command that failed and what was printed."""
    (work / "bin").mkdir(parents=True)
    for name, text in PROGRAMS.items():
        program = work / "bin" / name
        program.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        program.chmod(0o755)
    (work / "home").mkdir()
    changed = {"PATH": f"{work / 'bin'}:{os.environ['PATH']}", "HOME": str(work / "home")}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **changed}
    listed = [command for command in blocks.commands(page) if command.is_run]
    (asked, ask), (answered, answer) = os.pipe(), os.pipe()
    log = work / "log"
    with log.open("w", encoding="utf-8") as output:
        python = subprocess.Popen(
            [sys.executable, "-u", python_blocks.__file__, str(answer)],
            stdin=asked,
            stdout=output,
            stderr=output,
            pass_fds=[answer],
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        shell = subprocess.Popen(
            ["bash", "-c", Script(listed, work, ask, answered).text],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[ask, answered],
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        for descriptor in (asked, ask, answered, answer):
            os.close(descriptor)
        try:
            code: int | str = shell.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            code = f"not ended after {LIMIT_S} s"
        for process in (shell, python):
            if process.poll() is None and (process is shell or code != 0):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)
    if code != 0:
        failed = listed[int((work / "at").read_text())]
        printed = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:])
        pytest.fail(f"{failed.where}: {failed.text}\n{code}\n{printed}", pytrace=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_page(page, prepared, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(prepared, folder)
    (folder / "examples").symlink_to(ROOT / "examples")
    run_page(page, folder, tmp_path / "work")
