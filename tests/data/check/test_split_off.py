"""``data check --fix OUT --val FRACTION``: the new split, and images that stay together."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from y7edge.cli import main
from y7edge.data.check.examine import examine
from y7edge.data.dataset import load
from y7edge.errors import DataError


def one_split(root: Path) -> None:
    """Leave only the split train, in any format."""
    for path in (root / "train.txt", root / "val.txt", root / "annotations/instances_val.json"):
        path.unlink(missing_ok=True)
    if (root / "data.yaml").exists():
        text = (root / "data.yaml").read_text()
        kept = [line for line in text.splitlines() if not line.startswith("val")]
        (root / "data.yaml").write_text("\n".join(kept) + "\n")


@pytest.mark.parametrize(("form", "total"), [("yolo", 9), ("voc", 14), ("coco", 9)])
def test_the_copy_can_be_trained_on(form, total, tmp_path, request, capsys):
    root = request.getfixturevalue(form)
    one_split(root)
    with pytest.raises(DataError, match=r"data check DATA --fix OUT --val 0\.2"):
        load(root, splits=("train", "val"))
    out = tmp_path / "out"
    assert main(["data", "check", str(root), "--fix", str(out), "--val", "0.3"]) == 0
    data = load(out)
    train, val = ({sample.path.name for sample in data.split(s)} for s in ("train", "val"))
    assert len(val) == round(0.3 * total)
    assert len(train | val) == total
    printed = capsys.readouterr().out
    assert f"val: {len(val)} images" in printed
    labels = sum(len(sample.boxes) for s in ("train", "val") for sample in data.split(s))
    assert labels == sum(len(entry.labels) for entry in examine(root).scan.entries)


def test_the_choice_depends_on_pixels_only(yolo, tmp_path):
    one_split(yolo)
    first = examine(yolo, val=0.3).scan
    moved = Path(shutil.copytree(yolo, tmp_path / "moved"))
    for folder in ("images", "labels"):
        for path in list((moved / folder / "train").iterdir()):
            path.rename(path.with_name(f"z{9 - int(path.stem)}{path.suffix}"))
    second = examine(moved, val=0.3).scan
    chosen = [{entry.facts.digest for entry in scan.in_split("val")} for scan in (first, second)]
    assert len(chosen[0]) == 3
    assert chosen[0] == chosen[1]


def test_nearly_equal_images_stay_together(yolo):
    """Every image gets a copy that is one pixel lower."""
    one_split(yolo)
    for path in list((yolo / "images/train").iterdir()):
        image = np.roll(cv2.imread(str(path)), 1, axis=0)
        cv2.imwrite(str(path.with_name(f"{path.stem}b.png")), image)
        labels = yolo / "labels/train" / f"{path.stem}.txt"
        shutil.copy(labels, labels.with_name(f"{path.stem}b.txt"))
    report = examine(yolo, val=0.45)
    names = {entry.path.stem for entry in report.scan.in_split("val")}
    assert len(names) == 8
    assert {name.removesuffix("b") for name in names if name.endswith("b")} == {
        name for name in names if not name.endswith("b")
    }
    assert not [finding for finding in report.findings if finding.check == "near_leak"]


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_the_end_of_long_scenes(names, yolo):
    """Two videos, each longer than val."""
    one_split(yolo)
    images, labels = yolo / "images/train", yolo / "labels/train"
    scenes = [cv2.imread(str(path)) for path in sorted(images.iterdir())[:2]]
    line = next(labels.iterdir()).read_text()
    for path in (*images.iterdir(), *labels.iterdir()):
        path.unlink()
    for name, frame in zip(names, scenes, strict=True):
        for number in range(10):
            frame[:4, : number + 1] = 255
            cv2.imwrite(str(images / f"{name}{number}.png"), frame)
            (labels / f"{name}{number}.txt").write_text(line)
    report = examine(yolo, val=0.2)
    assert {entry.path.stem for entry in report.scan.in_split("val")} == {"b6", "b7", "b8", "b9"}
    assert "near_leak" in {finding.check for finding in report.findings}


def test_what_is_refused(yolo, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["data", "check", str(yolo), "--fix", out, "--val", "0.2"]) == 1
    assert "the split val has 5 images already" in capsys.readouterr().err
    assert main(["data", "check", str(yolo), "--val", "0.2"]) == 2
    assert "--fix OUT" in capsys.readouterr().err
    one_split(yolo)
    for path in list((yolo / "images/train").iterdir())[1:]:
        path.unlink()
    assert main(["data", "check", str(yolo), "--fix", out, "--val", "0.2"]) == 1
    assert "at least 2 images in train to divide, found 1" in capsys.readouterr().err
    assert not Path(out).exists()


def test_voc_without_lists_has_one_error_and_none_with_val(voc, capsys):
    for path in voc.glob("*.txt"):
        if path.name != "classes.txt":
            path.unlink()
    found = [f.message for f in examine(voc).findings if f.check == "splits"]
    assert len(found) == 1 and "expected a split val" in found[0]
    assert main(["data", "check", str(voc)]) == 4
    assert "1 error (splits)" in capsys.readouterr().err
    assert not [f for f in examine(voc, val=0.3).findings if f.check == "splits"]
