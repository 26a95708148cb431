"""Data that would make a check hang, crash, or say what is not so."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from y7edge.doctor import walking
from y7edge.doctor.check_labels import _covering
from y7edge.doctor.examine import Report, examine
from y7edge.doctor.mend import mend
from y7edge.errors import DataError

IMAGE, LABEL = "images/train/00003.jpg", "labels/train/00003.txt"


def checks(report: Report, severity: str = "error") -> set[str]:
    return {f.check for f in report.findings if f.severity == severity}


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert re.search(old, text)
    path.write_text(re.sub(old, new, text))


@pytest.mark.parametrize("nc", ["100001", "9" * 400, "-3"])
def test_counts_of_classes_beyond_reason(nc: str, yolo: Path) -> None:
    edited(yolo / "data.yaml", "names:", f"nc: {nc}\nnames:")
    report = examine(yolo)
    assert checks(report) == {"names"}
    assert len(report.summary["classes"]) == 4


def test_keys_of_names_beyond_reason(yolo: Path) -> None:
    edited(yolo / "data.yaml", "  3: ", "  123456789: ")
    (finding,) = [f for f in examine(yolo).findings if f.check == "names"]
    assert "123456789" in finding.message


@pytest.mark.parametrize("names", ["&a [*a]", "&a {x: *a}"])
def test_yaml_that_holds_itself(names: str, yolo: Path) -> None:
    (yolo / "data.yaml").write_text(f"train: images/train\nnames: {names}\n")
    with pytest.raises(DataError, match="circular"):
        examine(yolo)


def test_yaml_that_grows(yolo: Path) -> None:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (yolo / "data.yaml").write_text("train: images/train\n" + "\n".join(lines) + "\n")
    with pytest.raises(DataError, match="aliases"):
        examine(yolo)


@pytest.mark.parametrize("file", [IMAGE, LABEL])
@pytest.mark.parametrize("kind", ["pipe", "device", "circle"])
def test_files_that_are_none(kind: str, file: str, yolo: Path) -> None:
    path = yolo / file
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path.name)
    assert checks(examine(yolo)) & {"unreadable_picture", "unreadable_text"}


def test_a_folder_that_cannot_be_read(yolo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.walk

    def walk(top: Path, onerror: Callable[[OSError], object]) -> object:
        onerror(PermissionError(13, "Permission denied", str(yolo / "images/train/more")))
        return real(top)

    monkeypatch.setattr(walking.os, "walk", walk)
    report = examine(yolo)
    assert checks(report) == {"folder"}
    assert len(report.scan.pictures) == 14


def test_many_labels_in_one_file_take_seconds(yolo: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [f"1 {x:.6f} .5 .1 .1\n" for x in rng.uniform(0.3, 0.7, 6000)]
    (yolo / LABEL).write_text("".join(rows + rows[:3000] * 2))
    start = time.process_time()
    report = examine(yolo)
    assert time.process_time() - start < 20
    assert sum(f.check == "duplicate" for f in report.findings) >= 6000


def test_covering_boxes_are_found_as_by_comparing_all() -> None:
    rng = np.random.default_rng(1)
    low = rng.uniform(0, 0.05, (300, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.2, 0.23, (300, 2))], axis=1)
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    sides = np.clip(high - np.maximum(boxes[:, None, :2], boxes[None, :, :2]), 0, None)
    shared, area = sides.prod(axis=2), (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    near = np.tril(shared / (area[:, None] + area - shared) > 0.95, -1)
    wanted = {(int(np.nonzero(row)[0][0]), i) for i, row in enumerate(near) if row.any()}
    assert len(wanted) > 20
    assert {(one, other) for one, other, _ in _covering(boxes)} == wanted


def test_integers_of_many_digits(coco: Path) -> None:
    path = coco / "annotations/instances_train.json"
    edited(path, r'"width": 160', f'"width": 1{"0" * 400}')
    assert "annotation" not in checks(examine(coco))


def test_a_picture_of_one_pixel_is_only_tiny(yolo: Path) -> None:
    Image.new("RGB", (1, 1)).save(yolo / IMAGE)
    assert checks(examine(yolo)) == {"tiny_picture"}


def test_large_pictures_are_sound(yolo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert examine(yolo).findings == ()
    assert Image.MAX_IMAGE_PIXELS == 100


def test_frames_of_one_scene_may_have_the_same_labels(yolo: Path) -> None:
    with Image.open(yolo / IMAGE) as picture:
        picture.save(yolo / "images/train/x.jpg", quality=60)
    (yolo / "labels/train/x.txt").write_text((yolo / LABEL).read_text())
    assert "same_labels" not in checks(examine(yolo), "warning")


def test_ids_counted_from_one(yolo: Path, tmp_path: Path) -> None:
    for path in (yolo / "labels").glob("*/*.txt"):
        lines = path.read_text().splitlines()
        path.write_text("".join(f"{int(t[0]) + 1}{t[1:]}\n" for t in lines))
    report = examine(yolo)
    assert "shifted_ids" in checks(report)
    assert "not mended: shifted_ids" in mend(report, tmp_path / "out").losses


def test_a_path_that_leads_nowhere(yolo: Path) -> None:
    edited(yolo / "data.yaml", "^", "path: /gone/away\n")
    (finding,) = examine(yolo).findings
    assert (finding.check, finding.line) == ("path_entry", 1)
    assert "/gone/away" in finding.message


@pytest.mark.parametrize("root", ['annotation xmlns="http://x.org/"', "Annotation"])
def test_another_root_of_voc(root: str, voc: Path) -> None:
    path = voc / "annotations/train00003.xml"
    edited(path, "<annotation>", f"<{root}>")
    edited(path, "</annotation>", f"</{root.split()[0]}>")
    assert checks(examine(voc)) == {"annotation"}


def test_letters_that_changed_places(voc: Path) -> None:
    for path in (voc / "annotations").glob("*.xml"):
        path.write_text(re.sub(r"<name>\w+<", "<name>RBC<", path.read_text()))
    path = voc / "annotations/train00003.xml"
    path.write_text(path.read_text().replace("RBC", "RCB", 1))
    (finding,) = [f for f in examine(voc).findings if f.check == "name_rare"]
    assert "did you mean RBC?" in finding.message


def test_a_picture_sent_as_text(yolo: Path, tmp_path: Path) -> None:
    with Image.open(yolo / IMAGE) as picture:
        picture.resize((640, 480)).save(yolo / IMAGE, quality=98)
    raw = (yolo / IMAGE).read_bytes()
    start = raw.rfind(b"\xff\xda") + 14
    body = raw[start:].replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    (yolo / IMAGE).write_bytes(raw[:start] + body)
    report = examine(yolo)
    assert "corrupt_picture" in checks(report)
    mend(report, tmp_path / "out")
    assert not (tmp_path / "out" / IMAGE).exists()
