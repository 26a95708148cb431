"""The commands of each page run in order, as a reader types them, in a folder with their files."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.docs import blocks, python_blocks
from tests.docs.blocks import ROOT, Command

CHECKPOINT = ROOT / "tests" / "reference" / "demo.safetensors"
SIDE = 160  # pixels of the checkpoint's images
LIMIT_S = 2400  # on a busy machine
END = "999999"  # noted after the last command
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
# A training without these options takes long: they are added if they are missing.
TRAIN = {"--epochs": "1", "--imgsz": str(SIDE), "--batch": "4", "--workers": "0"}
QAT = {"--qat-iterations": "10"}
UNCHANGED = re.compile("--resume|--print-recipe|--help")
# Cameras and streams: what stands in for them is a synthetic belt that ends.
BELT = "test://scenes?frames=30"
CAMERA = re.compile(
    r"(?:csi|v4l2)://[^\s\"'`,]+|(?:rtsp|rtp)://[^\s\"'`,]+|/dev/video\d|(?<=\.onnx )0(?= --)"
)
ENDLESS = re.compile(r"test://scenes(\?[^\s\"'`]*)?")
# Ports that pages name; each page gets free ones, because tests run side by side.
PORTS = ("8080", "8081")


def _with_end(found: re.Match[str]) -> str:
    query = found[1] or ""
    if "frames=" in query:
        return found[0]
    return f"{BELT}&{query[1:]}" if query else BELT


def shortened(text: str) -> str:
    """Return a command or Python block that does the same with less work, and without a camera."""
    text = ENDLESS.sub(_with_end, CAMERA.sub(BELT, text))
    for pattern, replacement in SHORTER:
        text = pattern.sub(replacement, text)
    if "y7edge train" in text and not UNCHANGED.search(text):
        options = QAT if "--qat" in text else TRAIN
        added = " ".join(f"{key} {value}" for key, value in options.items() if key not in text)
        text = text.replace("y7edge train", f"y7edge train {added}", 1)
    return text


def test_long_commands_become_short():
    assert shortened("y7edge export a --imgsz 384x640 --out b") == (
        "y7edge export a --imgsz 96x160 --out b"
    )
    train = shortened("y7edge train --data d.yaml --epochs 60 --imgsz 320")
    assert train == "y7edge train --batch 4 --workers 0 --data d.yaml --epochs 1 --imgsz 160"
    qat = shortened("y7edge train --qat a.safetensors --data d.yaml")
    assert qat == "y7edge train --qat-iterations 10 --qat a.safetensors --data d.yaml"
    assert shortened("y7edge train --resume DIR") == "y7edge train --resume DIR"
    live = shortened("y7edge live a.onnx 0 --web 8080 && y7edge live a.onnx rtsp://10.0.0.9/cam")
    assert live == f"y7edge live a.onnx {BELT} --web 8080 && y7edge live a.onnx {BELT}"
    assert shortened('open_source("csi://0?fps=30")') == f'open_source("{BELT}")'
    assert shortened('"test://scenes?fps=60"') == f'"{BELT}&fps=60"'
    assert shortened('"test://scenes?frames=6"') == '"test://scenes?frames=6"'


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder with the files that the pages name."""
    import cv2

    from tests.runtimes.test_foreign import foreign
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
    (folder / "tests" / "reference").mkdir(parents=True)
    shutil.copy(CHECKPOINT, folder / "tests" / "reference")
    checkpoint = weights.load(CHECKPOINT)
    export(checkpoint, folder / "mine.onnx")
    shutil.copy(folder / "mine.onnx", folder / "tiny.onnx")
    (folder / "runs" / "demo").mkdir()
    shutil.copy(folder / "mine.onnx", folder / "runs" / "demo" / "parts.onnx")
    export(checkpoint, folder / "mine.xml", target="openvino")
    export(checkpoint, folder / "int8.onnx", precision="int8", data=folder / "data.yaml")
    foreign("rows", folder / "other.onnx", batch=1, size=(SIDE, SIDE))
    (folder / "labels.txt").write_text("\n".join(scenes.NAMES) + "\n", encoding="utf-8")
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


def free_ports(count: int) -> list[int]:
    """Return ports that no program uses at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def script(listed: list[Command], work: Path, requests: int, answers: int) -> str:
    """Return the commands of a page as a bash script, which notes each command that it starts.

    Python blocks are run by another process: ``requests`` and ``answers`` are file descriptors.
    """
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    lines = ["set -e -o pipefail"]
    for index, command in enumerate(listed):
        lines.append(f"echo {index} $SECONDS >> {work}/started")
        lines.append(f"echo; echo '>>>' {shlex.quote(command.text)}")
        text = shortened(command.text)
        for port, free in ports.items():
            text = re.sub(rf"\b{port}\b", str(free), text)
        if command.language == "python":
            file = work / f"block{index}.py"
            file.write_text(text, encoding="utf-8")
            request = rf"'%s\t{file}\t{command.page}\t{command.line}\n'"
            lines.append(f'printf {request} "$PWD" >&{requests}; read -r code <&{answers}')
            lines.append('[ "$code" = 0 ]')
        elif command.exit_code == 0:
            # bash -e does not end where `a` of `a && b` fails.
            lines += [text, '[ "$?" = 0 ]']
        else:
            lines += ["set +e", f"( {text}\n) > {work}/printed 2>&1"]
            lines += ["code=$?", "set -e", f"cat {work}/printed"]
            wanted = "-ne 0" if command.exit_code is None else f"-eq {command.exit_code}"
            lines.append(f'[ "$code" {wanted} ]')
            if command.error:
                lines.append(f"grep -qxF -- {shlex.quote(command.error)} {work}/printed")
    # A page with `exit` or `exec` would end early.
    return "\n".join([*lines, f"echo {END} >> {work}/started"]) + "\n"


def run_page(page: str, folder: Path, work: Path) -> None:
    """Run the commands of a page that no mark excludes."""
    run_commands([command for command in blocks.commands(page) if command.is_run], folder, work)


def run_commands(listed: list[Command], folder: Path, work: Path) -> None:
    """Run commands; fail with the command that failed and what was printed."""
    (work / "bin").mkdir(parents=True)
    for name, text in PROGRAMS.items():
        program = work / "bin" / name
        program.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        program.chmod(0o755)
    (work / "home").mkdir()
    changed = {"PATH": f"{work / 'bin'}:{os.environ['PATH']}", "HOME": str(work / "home")}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **changed}
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
            ["bash", "-c", script(listed, work, ask, answered)],
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
        code: int | str = f"not ended after {LIMIT_S} s"
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = shell.wait(LIMIT_S)
            if code == 0:
                code = python.wait(60)
        finally:
            for process in (shell, python):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(60)
    last = (work / "started").read_text().splitlines()[-1].split()[0]
    if code != 0 or last != END:
        failed = listed[min(int(last), len(listed) - 1)]
        printed = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:])
        pytest.fail(f"{failed.where}: {failed.text}\n{code}\n{printed}", pytrace=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_page(page, prepared, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(prepared, folder)
    (folder / "examples").symlink_to(ROOT / "examples")
    run_page(page, folder, tmp_path / "work")


@pytest.mark.slow
def test_examples_of_help_texts(prepared, tmp_path):
    """All in one folder; `diff` compares the files that `export` and `build` wrote."""
    folder = tmp_path / "folder"
    shutil.copytree(prepared, folder)
    examples = [one for one in blocks.commands("docs/cli.md") if one.is_help]
    listed = [one for one in examples if not one.text.startswith(("y7edge soup", "y7edge diff"))]
    listed += [one for one in examples if one.text.startswith("y7edge diff")]
    assert len(listed) == 17
    trained = next(i for i, one in enumerate(listed) if one.text.startswith("y7edge train")) + 1
    # The chip refuses the variant without the rewrites that the audit names.
    listed = [replace(one, exit_code=4 if "audit" in one.text else 0) for one in listed]
    # Scores of a model after one epoch are too equal for a proof.
    copy = Command("docs/cli.md", 0, "sh", "cp best.safetensors runs/train/best.safetensors")
    listed.insert(trained, copy)
    run_commands(listed, folder, tmp_path / "work")
