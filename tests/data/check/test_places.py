"""Special files, invalid names, unreadable folders, and paths that lead out of the data."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from y7edge.cli import main
from y7edge.data.check.examine import examine, record
from y7edge.data.check.fix import write_copy
from y7edge.data.check.paths import require_copy, require_page
from y7edge.data.check.report import write_page
from y7edge.data.dataset import load
from y7edge.errors import DataError, Y7EdgeError
from y7edge.text import is_printable

# --- special files --------------------------------------------------------------------------------


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


KINDS: dict[str, Callable[[Path], None]] = {
    "a pipe": _pipe,
    "a socket": _socket,
    "a folder": lambda path: path.mkdir(),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "symbolic links": lambda path: path.symlink_to(path.name),
}
PLACES = {
    "yolo": ["images/train/00003.jpg", "labels/train/00003.txt", "data.yaml", "l.txt",
             "classes.txt"],
    "coco": ["images/train/00003.jpg", "annotations/instances_train.json"],
    "voc": ["images/train00003.jpg", "annotations/train00003.xml", "train.txt", "classes.txt"],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("form", "file"), [(f, p) for f, ps in PLACES.items() for p in ps])
def test_special_files_are_refused(
    kind: str, form: str, file: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root: Path = request.getfixturevalue(form)
    source = root
    if file == "l.txt":
        text = (root / "data.yaml").read_text().replace("train: images/train", "train: l.txt")
        (root / "data.yaml").write_text(text)
    if file == "data.yaml":
        source = root / file
    path = root / file
    path.unlink(missing_ok=True)
    KINDS[kind](path)
    start = time.process_time()
    said = ""
    try:
        report = examine(source)
        said = " ".join(f.message for f in report.findings)
        write_copy(report, tmp_path / "out")
    except DataError as error:
        said += str(error)
    try:
        load(source)
    except DataError as error:
        said += str(error)
    assert time.process_time() - start < 10
    if kind == "a folder" and file in ("l.txt", "data.yaml", "images/train/00003.jpg"):
        return  # folders are allowed there
    if form == "voc" and kind == "a folder" and file.startswith("images"):
        return
    if file == "classes.txt" and form == "yolo":
        return  # not read if it is not a file
    assert kind in said or path.name in said


# --- names and folders ----------------------------------------------------------------------------

NAMES = ["x" * 300, "x" * 5000, "a/" * 3000 + "b", "a\0b", "loop/loop/x", "/proc/self/mem/x",
         "/proc/1/root/x", "\udcff\udc80", "~", "", " ", ".", "..", "/", "nul\\..\\x", "%00",
         "file:///x", "http://[::1", "a" * 254 + "/b", "/dev/fd/999/x"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_invalid_file_names(name: str, yolo: Path, coco: Path, voc: Path) -> None:
    path = coco / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = f"{name}.jpg"
    content["images"][1]["file_name"] = name
    path.write_text(json.dumps(content))
    count = len(content["images"])
    assert len(examine(coco).scan.in_split("train")) >= count - 2

    for folder, file, line in ((yolo, "l.txt", "images/train/00003.jpg"),
                               (voc, "train.txt", "train00003")):  # fmt: skip
        text = f"{name}\n{name}.jpg\n{line}\n"
        (folder / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    text = (yolo / "data.yaml").read_text().replace("train: images/train", "train: l.txt")
    (yolo / "data.yaml").write_text(text)
    for folder in (yolo, voc) if "\0" not in name else ():  # a list with that is not text
        assert len(examine(folder).scan.in_split("train")) >= 1
    (yolo / "data.yaml").write_text(f"path: {json.dumps(name)}\ntrain: {json.dumps(name)}\n"
                                    "val: images/val\nnames: [a, b, c, d]\n")  # fmt: skip
    assert len(examine(yolo).scan.in_split("val")) == 5


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "loop/x", "x" * 5000])
def test_invalid_arguments(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    path = tmp_path / name
    page = path.with_name(f"{path.name}.html")
    for use, place in ((load, path), (examine, path), (require_copy, path), (require_page, page)):
        try:
            use(place)
        except Y7EdgeError as error:
            assert is_printable(str(error))
    with pytest.raises(DataError):
        load(path)


@pytest.mark.parametrize("form", ["yolo", "coco", "voc"])
@pytest.mark.parametrize("call", ["scandir", "stat"])
def test_unreadable_folder_is_one_problem(
    call: str, form: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    root: Path = request.getfixturevalue(form)
    (root / "images/closed").mkdir()
    real = getattr(os, call)

    def closed(path: object = ".", *arguments: object, **options: object) -> object:
        if not isinstance(path, int) and "closed" in os.fsdecode(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, call, closed)
    report = examine(root)
    assert len(report.scan.entries) >= 10
    write_page(report, root.parent / "page.html")


# --- paths that lead out --------------------------------------------------------------------------

OUT = ["../../{n}", "../../../{n}", "{root}/{n}", "a/../../../{n}", "..\\..\\{n}",
       "file://{root}/{n}", "./../../{n}", "images/../../{n}", "{root}/data/../{n}"]  # fmt: skip


@pytest.mark.parametrize("written", OUT)
def test_annotation_paths_stay_in_data(written: str, coco: Path, voc: Path, tmp_path: Path) -> None:
    outside = coco.parent / "secret.png"
    noise = np.random.default_rng(9).integers(0, 255, (120, 160, 3)).astype(np.uint8)
    Image.fromarray(noise).save(outside)
    shutil.copy(outside, coco.parent.parent / "secret.png")
    text = written.format(n="secret.png", root=outside.parent)
    path = coco / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = text
    path.write_text(json.dumps(content))
    with (voc / "train.txt").open("a") as stream:
        stream.write(f"{text}\n{text.removesuffix('.png')}\n")
    for root in (coco, voc):
        report = examine(root)
        assert not any("secret" in str(entry.path) for entry in report.scan.entries)
        write_copy(report, tmp_path / f"out {root.parent.name} {root.name}{report.scan.layout}")
    assert not list(tmp_path.glob("out*/**/secret*"))


@pytest.mark.parametrize("form", ["yolo", "coco", "voc"])
def test_linked_images_are_copied(
    form: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root: Path = request.getfixturevalue(form)
    image = next(p for p in sorted(root.rglob("*00003.jpg")) if "train" in str(p))
    moved = tmp_path / "elsewhere.jpg"
    image.rename(moved)
    image.symlink_to(moved)
    write_copy(examine(root), tmp_path / "out")
    copied = next((tmp_path / "out/images/train").glob(f"{image.stem}*"))
    assert not copied.is_symlink()
    assert copied.read_bytes() == moved.read_bytes()
    assert image in {sample.path for sample in load(root).split("train")}


# --- texts ----------------------------------------------------------------------------------------

HOSTILE = ["\x1b[2Jx", "\x1b]0;y\x07", "<script>alert(1)</script>", "a\u202eb", "\x9b31m", "=1+1"]


@pytest.mark.parametrize("name", HOSTILE[:2] + HOSTILE[3:5])
@pytest.mark.parametrize("place", ["data.yaml", "categories", "classes.txt", "xml"])
def test_control_characters_are_refused(
    place: str, name: str, yolo: Path, coco: Path, voc: Path
) -> None:
    root = {"data.yaml": yolo, "categories": coco}.get(place, voc)
    if place == "data.yaml":
        (root / "data.yaml").write_text(
            f"train: images/train\nval: images/val\nnames: [{json.dumps(name)}, b, c, d]\n"
        )
    elif place == "categories":
        for path in (root / "annotations").glob("*.json"):
            content = json.loads(path.read_text())
            content["categories"][0]["name"] = name
            path.write_text(json.dumps(content))
    elif place == "classes.txt":
        (root / "classes.txt").write_text(f"{name}\n", encoding="utf-8")
    elif "\x1b" not in name:  # which XML cannot hold
        path = root / "annotations/train00003.xml"
        path.write_text(path.read_text().replace("<name>", f"<name>{name}", 1), encoding="utf-8")
    else:
        return
    with pytest.raises(DataError, match=r"printable class names|Windows-1252") as caught:
        load(root)
    assert is_printable(str(caught.value))
    report = examine(root)
    assert "names" in {finding.check for finding in report.findings}


@pytest.mark.parametrize("name", [*HOSTILE, "\udcff\udc9b31m"])
def test_output_is_escaped(
    name: str, yolo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = name.replace("/", "_")
    for old, new in (("images/train/00003.jpg", f"images/train/{name}.png"),
                     ("labels/train/00003.txt", f"labels/train/{name}.txt")):  # fmt: skip
        (yolo / old).rename(yolo / new)
    (yolo / f"labels/train/{name}.txt").write_bytes(
        f"0 .5 .5 .2 .2\n{name}\n0 .5 .5 2 2\n".encode("utf-8", "surrogateescape")
    )
    (yolo / f"labels/train/{name} more.txt").write_bytes(b"0 .5 .5 .2 .2")
    (yolo / "classes.txt").write_bytes(f"{name}\n".encode("utf-8", "surrogateescape"))
    page, out = tmp_path / "page.html", tmp_path / "out"
    for more in ([], ["--json"]):
        shutil.rmtree(out, ignore_errors=True)
        main(["data", "check", str(yolo), "--save", str(page), "--fix", str(out), *more])
        said = capsys.readouterr()
        assert all(map(is_printable, (said.out + said.err).splitlines()))
    html = page.read_text(encoding="utf-8")
    assert all(map(is_printable, html.splitlines()))
    assert "<script>" not in html.split("</style>", 1)[-1]
    with (out / "changes.csv").open(encoding="utf-8", newline="") as stream:
        cells = [cell for row in csv.reader(stream) for cell in row]
    assert all(map(is_printable, cells))
    assert not any(cell.startswith(("=", "+", "@")) for cell in cells)
    assert json.dumps(record(examine(yolo)), default=str)


def test_the_root_of_the_file_system_is_not_searched(yolo: Path) -> None:
    text = (yolo / "data.yaml").read_text().replace("train: images/train", "train: /")
    (yolo / "data.yaml").write_text(text)
    (yolo / "images/val/up").symlink_to("/")
    (yolo / "images/val/loop").symlink_to("..")
    start = time.process_time()
    scan = examine(yolo).scan
    assert time.process_time() - start < 10
    assert len(scan.in_split("val")) == 5
    (problem,) = [p for p in scan.problems if p.check == "folder"]
    assert "is the root of the file system" in problem.message
