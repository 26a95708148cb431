"""Full disks, missing folders, closed streams, and unusual file names."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from y7edge.cli import main

Words = Callable[[Path], list[str]]


@pytest.fixture
def commands(
    artifact_path: Path, checkpoint_path: Path, data: Path, tmp_path: Path
) -> dict[str, Words]:
    """Every command that writes, as a function of the folder that it writes into."""
    image = next((data.parent / "images" / "val").iterdir())
    video = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 10, (128, 96))
    for _ in range(20):
        writer.write(cv2.randu(np.empty((96, 128, 3), np.uint8), 0, 256))
    writer.release()
    model, other = str(artifact_path), str(checkpoint_path)
    return {
        "image": lambda out: ["predict", model, str(image), "--save", str(out)],
        "video": lambda out: ["predict", model, str(video), "--save", str(out)],
        "val": lambda out: ["val", model, "--data", str(data), "--save", str(out)],
        "export": lambda out: ["export", other, "--imgsz", "64", "--out", f"{out}/m.onnx"],
        "build": lambda out: ["build", model, "--target", "openvino", "--out", f"{out}/m.xml"],
        "page": lambda out: ["data", "check", str(data), "--save", f"{out}/page.html"],
        "copy": lambda out: ["data", "check", str(data), "--fix", f"{out}/copy"],
    }  # fmt: skip


NAMES = ["image", "video", "val", "export", "build", "page", "copy"]


def _content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- full disks -----------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk(
    name: str, commands: dict[str, Words], disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (disk / "filler").write_bytes(bytes(4096 * (os.statvfs(disk).f_bavail - 2)))
    before = _content(disk)
    assert main(commands[name](disk)) == 1
    *remarks, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert "disk" in error
    assert not [line for line in remarks if "rror" in line]
    left = {path: kept for path, kept in _content(disk).items() if path in before or not kept}
    assert left == before, "an empty file or folder of ours was left, or one of theirs is gone"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("limit", [0, 1000])
def test_a_file_that_may_not_grow(
    name: str,
    limit: int,
    commands: dict[str, Words],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An older good result stays, and nothing else does."""
    out = tmp_path / "out"
    out.mkdir()
    words = commands[name](out)
    if name != "copy":
        assert main(words) in (0, 4)
    before = _content(out)
    capsys.readouterr()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        code = main(words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    err = capsys.readouterr().err
    assert code == 1
    assert err.count("error: ") == 1
    assert "internal" not in err
    assert _content(out) == before
    assert not [path for path in out.rglob("*") if path.name.startswith(".y7edge-")]


def test_a_full_disk_for_temporary_files(
    commands: dict[str, Words],
    disk: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (disk / "filler").write_bytes(bytes(4096 * (os.statvfs(disk).f_bavail - 2)))
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    out = tmp_path / "out"
    for name in ("export", "build"):
        assert main(commands[name](out)) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        # OpenVINO does not say why its stream failed.
        start = f"error: {disk}: cannot write temporary files: the disk is full"
        assert error.startswith((start, "error: OpenVINO cannot convert the graph: "))
    assert [path.name for path in disk.iterdir()] == ["filler"]
    assert not out.exists()


# --- folders that are missing or cannot be written ------------------------------------------------

PLACES = ["/dev/null/x", "gone", "pipe"]


def _place(name: str, folder: Path) -> str:
    os.mkfifo(folder / "pipe")
    return str(folder / name)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("variable", ["HOME", "TMPDIR", "Y7EDGE_CACHE", "XDG_CACHE_HOME"])
def test_commands_without_places_of_their_own(
    variable: str,
    place: str,
    commands: dict[str, Words],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    odd = _place(place, tmp_path)
    for name in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    if variable == "HOME":
        monkeypatch.delenv("Y7EDGE_CACHE")
    monkeypatch.setenv(variable, odd)
    monkeypatch.setattr(tempfile, "tempdir", None)
    for name in ("image", "val", "build", "page") if variable != "TMPDIR" else ("build",):
        assert main(commands[name](tmp_path / name)) in (0, 4), capsys.readouterr().err
    capsys.readouterr()


@pytest.mark.parametrize("place", ["/dev/null/x", "pipe"])
def test_export_without_a_cache(
    place: str,
    commands: dict[str, Words],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("Y7EDGE_CACHE", _place(place, tmp_path))
    assert main(commands["export"](tmp_path)) == 0, capsys.readouterr().err


def test_no_place_for_temporary_files(
    commands: dict[str, Words],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null/x")
    assert main(commands["build"](tmp_path / "out")) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("Not a directory")


# --- destinations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "socket", "link", "dangling", "link to folder", "other"])
@pytest.mark.parametrize("name", [*NAMES, "soup"])
def test_destinations_are_refused_before_the_work(
    name: str,
    kind: str,
    commands: dict[str, Words],
    checkpoint_path: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for worker in ("y7edge.data.dataset.load", "y7edge.data.check.examine.examine",
                   "y7edge.detect.detector.Detector.__init__", "y7edge.export.pipeline._build",
                   "y7edge.export.conversion._repeat"):  # fmt: skip
        monkeypatch.setattr(worker, lambda *_, **__: pytest.fail("worked first"))
    files = {"export": "m.onnx", "build": "m.xml", "page": "page.html", "soup": "s.safetensors"}
    folder = tmp_path / "out"
    folder.mkdir()
    if name == "soup":
        words = ["soup", str(checkpoint_path), "b.safetensors", "--data", str(data)]
        words += ["--out", str(folder / files[name])]
    else:
        words = commands[name](folder if name in {*files, "copy"} else folder / "copy")
    destination = folder / files.get(name, "copy")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("kept")
    if kind == "pipe":
        os.mkfifo(destination)
    elif kind == "socket":
        monkeypatch.chdir(destination.parent)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(destination.name)
    elif kind == "other":  # a folder where a file is written, a file where a folder is
        destination.mkdir() if name in files else destination.touch()
        if name in files:
            (destination / "theirs").touch()
    else:
        target = {"link": "file", "dangling": "gone", "link to folder": "."}[kind]
        destination.symlink_to(tmp_path / "kept" / target)
    before = destination.lstat()
    assert main(words) == 1
    err = capsys.readouterr().err
    assert err.count("error: ") == 1
    assert destination.name in err
    assert destination.lstat().st_ino == before.st_ino
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["file"]
    assert (tmp_path / "kept" / "file").read_text() == "kept"


# --- sources --------------------------------------------------------------------------------------


def test_a_folder_with_pipes_and_others(
    artifact_path: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = next((data.parent / "images" / "val").iterdir())
    shutil.copy(image, tmp_path / "good.png")
    shutil.copy(image, os.fsencode(tmp_path) + b"/\xff.png")
    for name in ("a.jpg", "b.mp4", "c.gif"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "d.png").symlink_to("/dev/zero")
    (tmp_path / "e.png").symlink_to(tmp_path / "a.jpg")
    (tmp_path / "f.png").mkdir()
    started = time.monotonic()
    assert main(["predict", str(artifact_path), str(tmp_path), "--json"]) == 1
    assert time.monotonic() - started < 5
    out, err = capsys.readouterr()
    sources = [json.loads(line)["source"] for line in out.splitlines()]
    assert sources == [
        str(tmp_path / "good.png"),
        os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"),
    ]
    lines = err.splitlines()
    for name, kind in (("a.jpg", "pipe"), ("b.mp4", "pipe"), ("c.gif", "pipe"),
                       ("d.png", "device"), ("e.png", "pipe")):  # fmt: skip
        assert [line for line in lines if f"{name}: " in line and f"found a {kind}" in line], name
    assert lines[-1].endswith("5 of 7 files could not be read completely")


@pytest.mark.parametrize("kind", ["pipe", "socket", "/dev/zero"])
@pytest.mark.parametrize("suffix", ["", ".onnx", ".safetensors", ".pt", ".xml", ".yaml", ".jpg"])
def test_special_files_as_input_of_every_command(
    suffix: str,
    kind: str,
    artifact_path: Path,
    checkpoint_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = f"odd{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
    else:
        Path(path).symlink_to(kind)
    model, other = str(artifact_path), str(checkpoint_path)
    for words in (
        ["info", path], ["selftest", path], ["benchmark", path], ["predict", path, "x.jpg"],
        ["predict", model, path], ["val", model, "--data", path], ["export", path],
        ["build", path, "--target", "openvino"], ["verify", path, "--against", other],
        ["verify", model, "--against", path], ["data", "check", path],
        ["soup", path, other, "--data", "x", "--out", "s.safetensors"],
    ):  # fmt: skip
        started = time.monotonic()
        assert main(words) in (1, 4), words
        assert time.monotonic() - started < 2
        err = capsys.readouterr().err
        assert err.splitlines()[-1].startswith("error: ")
        assert "internal" not in err
        assert path in err or words[:2] == ["predict", path], words
