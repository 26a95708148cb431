"""Boxes in other forms and labels with other names are used only if unambiguous."""

from __future__ import annotations

import csv
import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from y7edge.data.check.examine import examine
from y7edge.data.check.fix import Cleaned, write_copy
from y7edge.data.dataset import Dataset, load
from y7edge.data.formats.yolo import parse_line
from y7edge.data.synthetic import scenes

Change = Callable[[list[float]], list[float]]
LABEL = "labels/train/00003.txt"


def corners(v: list[float]) -> list[float]:
    return [v[0] - v[2] / 2, v[1] - v[3] / 2, v[0] + v[2] / 2, v[1] + v[3] / 2]


def top_left(v: list[float]) -> list[float]:
    return [v[0] - v[2] / 2, v[1] - v[3] / 2, v[2], v[3]]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("many") / "data"
    scenes.generate(root, train=12, val=3, seed=3, size=(96, 128))
    return root


@pytest.fixture
def data(many: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(many, tmp_path / "data"))


def rewrite(root: Path, change: Change, pattern: str = "*") -> None:
    for path in (root / "labels").glob(f"*/{pattern}.txt"):
        rows = [text.split() for text in path.read_text().splitlines()]
        changed = [[row[0], *map(repr, change([float(v) for v in row[1:]]))] for row in rows]
        path.write_text("".join(" ".join(row) + "\n" for row in changed))


def fixed(root: Path, out: Path) -> Cleaned:
    return write_copy(examine(root), out)


def same(one: Dataset, other: Dataset) -> None:
    for split in ("train", "val"):
        for first, second in zip(one.split(split), other.split(split), strict=True):
            np.testing.assert_allclose(first.boxes, second.boxes, atol=1e-5)


def changes(out: Path) -> str:
    return (out / "changes.csv").read_text()


@pytest.mark.parametrize("pixels", [False, True])
def test_corners_in_all_files_are_converted(
    pixels: bool, data: Path, many: Path, tmp_path: Path
) -> None:
    scale = (128, 96, 128, 96) if pixels else (1, 1, 1, 1)
    rewrite(data, lambda v: [a * b for a, b in zip(corners(v), scale, strict=True)])
    report = examine(data)
    assert {f.check for f in report.findings if f.severity == "error"} >= {"corners"}
    cleaned = write_copy(report, tmp_path / "out")
    same(load(many), load(tmp_path / "out"))
    assert "read as corners" in changes(tmp_path / "out")
    assert cleaned.after.count("error") == 0


def test_left_and_top_in_all_files(data: Path, many: Path, tmp_path: Path) -> None:
    def grown(v: list[float]) -> list[float]:
        sides = (min(2.2 * s, 2 * c, 2 - 2 * c) for s, c in zip(v[2:], v[:2], strict=True))
        return [*v[:2], *sides]

    rewrite(data, grown)
    right = load(shutil.copytree(data, tmp_path / "right"))
    rewrite(data, top_left)
    report = examine(data)
    assert "corners" in {f.check for f in report.findings if f.severity == "error"}
    write_copy(report, tmp_path / "out")
    same(right, load(tmp_path / "out"))


def test_corners_in_some_files_are_reported(data: Path, tmp_path: Path) -> None:
    (data / LABEL).write_text("1 .6 .6 .9 .9\n2 .7 .1 .95 .4\n")
    cleaned = fixed(data, tmp_path / "out")
    same(load(data), load(tmp_path / "out"))
    assert cleaned.losses == ("not fixed: corners",)


def test_corners_in_most_files_are_an_error(data: Path) -> None:
    rewrite(data, corners, "0000[0-7]")
    found = [f for f in examine(data).findings if f.check == "corners"]
    assert found
    assert {f.severity for f in found} == {"error"}


def test_large_imprecise_boxes_are_kept(data: Path) -> None:
    rewrite(data, lambda v: [0.47, 0.5 + v[1] / 25, 0.96, 1.0])
    assert "corners" not in {f.check for f in examine(data).findings}


def test_corners_in_coco(coco: Path, tmp_path: Path) -> None:
    right = load(shutil.copytree(coco, tmp_path / "right"))
    for path in (coco / "annotations").iterdir():
        whole = json.loads(path.read_text())
        for entry in whole["annotations"]:
            x, y, w, h = entry["bbox"]
            entry["bbox"] = [x, y, x + w, y + h]
        path.write_text(json.dumps(whole))
    report = examine(coco)
    assert "corners" in {f.check for f in report.findings if f.severity == "error"}
    write_copy(report, tmp_path / "out")
    same(right, load(tmp_path / "out"))


def capitals(root: Path) -> None:
    (root / LABEL).rename((root / LABEL).with_suffix(".TXT"))


def accents(root: Path) -> None:
    label = unicodedata.normalize("NFD", "größe.txt")
    (root / LABEL).rename(root / "labels/train" / label)
    name = unicodedata.normalize("NFC", "größe.jpg")
    (root / "images/train/00003.jpg").rename(root / "images/train" / name)


def spelled(change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda root: (root / LABEL).write_text(
        "".join(f"{change(text)}\n" for text in (root / LABEL).read_text().splitlines())
    )


NAMED = spelled(lambda text: f"{scenes.NAMES[int(text[0])]} {text[2:]}")


@pytest.mark.parametrize(
    "plant",
    [capitals, accents, NAMED, spelled(lambda t: t.replace(".", ",")),
     spelled(lambda t: t.replace(" ", ";")), spelled(lambda t: t.replace(" ", ", ")),
     spelled(lambda t: t.replace(".", ",").replace(" ", ";"))],
)  # fmt: skip
def test_repairable_labels_are_used(
    plant: Callable[[Path], object], data: Path, many: Path, tmp_path: Path
) -> None:
    plant(data)
    report = examine(data)
    assert len({f.check for f in report.findings if f.severity == "error"}) == 1
    cleaned = write_copy(report, tmp_path / "out")
    assert cleaned.losses == ()
    assert cleaned.changes
    right = {tuple(s.boxes.round(4).ravel()) for s in load(many).split("train")}
    assert {tuple(s.boxes.round(4).ravel()) for s in load(tmp_path / "out").split("train")} == right


@pytest.mark.parametrize(
    "plant",
    [
        spelled(lambda text: f"person {text[2:]}"),
        spelled(lambda text: "what is this"),
        spelled(lambda text: text.replace(" ", ",").replace(".", ",")),
        lambda root: (root / LABEL).write_bytes(bytes(range(40))),
        lambda root: ((root / LABEL).unlink(), (root / LABEL).mkdir()),
        lambda root: ((root / LABEL).unlink(), (root / LABEL).symlink_to("gone")),
        lambda root: ((root / LABEL).unlink(), os.mkfifo(root / LABEL)),
    ],
)
def test_image_with_unusable_labels_is_left_out(
    plant: Callable[[Path], object], data: Path, tmp_path: Path
) -> None:
    plant(data)
    cleaned = fixed(data, tmp_path / "out")
    assert not (tmp_path / "out" / LABEL).exists()
    with (tmp_path / "out/changes.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert any(r["file"].endswith("00003.jpg") and r["done"] == "image left out" for r in rows)
    assert "class 'person' does not exist" not in changes(tmp_path / "out")
    assert cleaned.after.count("error") == 0


@pytest.mark.parametrize("text", ["1,0,5,0,5,0,2,0,2", "1;2;3", "a,b", "1 .5 .5 .2,3 .2"])
def test_ambiguous_lines_are_not_repaired(text: str) -> None:
    assert parse_line(Path("x"), 1, text, {}).repaired == ""


def test_names_of_several_words() -> None:
    label = parse_line(Path("x"), 1, "hard hat .5 .5 .2 .2", {"head": 0, "hard hat": 1})
    assert (label.class_id, label.values) == (1, (0.5, 0.5, 0.2, 0.2))


def test_lost_split_is_reported(data: Path, tmp_path: Path) -> None:
    for path in (data / "images/val").iterdir():
        path.write_bytes(b"")
    assert "nothing is left of the split val" in fixed(data, tmp_path / "out").losses


def test_many_lost_labels_are_reported(data: Path, tmp_path: Path) -> None:
    for path in sorted((data / "labels/train").iterdir())[:4]:
        path.write_text(path.read_text() + "9 .5 .5 .2 .2\n" * 1 + "9 .5 .4 .2 .2\n" * 1)
        path.write_text("".join(f"9{t[1:]}\n" for t in path.read_text().splitlines()))
    (losses,) = fixed(data, tmp_path / "out").losses
    assert "labels are not in the copy" in losses
