"""Data sets that are slow to check: time is linear, or bounded with a message."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from y7edge.data.check.examine import examine
from y7edge.data.check.fix import write_copy
from y7edge.data.dataset import load
from y7edge.errors import DataError

IMAGE, LABEL = "images/train/00003.jpg", "labels/train/00003.txt"
XML, JSON = "annotations/train00003.xml", "annotations/instances_train.json"


@contextmanager
def seconds(most: float) -> Iterator[None]:
    start = time.process_time()
    yield
    assert time.process_time() - start < most


def of_json(root: Path, change: Callable[[dict], object]) -> None:
    content = json.loads((root / JSON).read_text())
    change(content)
    (root / JSON).write_text(json.dumps(content))


def many_lines(root: Path) -> None:
    (root / LABEL).write_text("0 .5 .5 .1 .1\n" * 1_000_000)


def many_objects(root: Path) -> None:
    text = (root / XML).read_text()
    start, end = text.index("<object>"), text.index("</object>") + len("</object>")
    (root / XML).write_text(text[:start] + text[start:end] * 60_000 + text[end:])


def many_annotations(root: Path) -> None:
    of_json(root, lambda c: c["annotations"].extend(c["annotations"][:1] * 60_000))


@pytest.mark.parametrize(
    ("form", "make"), [("yolo", many_lines), ("voc", many_objects), ("coco", many_annotations)]
)
def test_too_many_labels_are_refused(
    form: str, make: Callable[[Path], None], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root: Path = request.getfixturevalue(form)
    make(root)
    with seconds(15):
        report = examine(root)
        with pytest.raises(DataError, match=r"at most 50,000 labels for an image, found [\d,]{6}"):
            load(root)
        write_copy(report, tmp_path / "out")
    assert "annotation" in {finding.check for finding in report.findings}


def test_many_near_boxes(yolo: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [f"0 {x:.8f} {y:.8f} .5 .5\n" for x, y in rng.uniform(0.5, 0.5001, (20_000, 2))]
    (yolo / LABEL).write_text("".join(rows))
    with seconds(15):
        report = examine(yolo)
    assert any("to compare all" in f.message for f in report.findings if f.check == "overlap")


def test_class_names_instead_of_numbers(yolo: Path) -> None:
    text = "train: images/train\nval: images/val\nnames:\n"
    (yolo / "data.yaml").write_text(text + "".join(f"- c{i}\n" for i in range(40_000)))
    (yolo / LABEL).write_text("c39999 .5 .5 .1 .1\n" * 10_000)
    with seconds(8):
        entry = next(e for e in examine(yolo).scan.entries if e.path == yolo / IMAGE)
    assert {label.class_id for label in entry.labels} == {39_999}


def test_many_similar_names(voc: Path) -> None:
    text = (voc / XML).read_text()
    start, end = text.index("<object>"), text.index("</object>") + len("</object>")
    one = text[start:end]
    name = one[one.index("<name>") + 6 : one.index("</name>")]
    objects = [one.replace(name, "bearing")] * 30
    objects += [one.replace(name, f"bearing{i}") for i in range(20_000)]
    (voc / XML).write_text(text[:start] + "".join(objects) + text[end:])
    with seconds(15):
        messages = [f.message for f in examine(voc).findings if f.check == "name_rare"]
    assert any("too many to compare" in words for words in messages)
    assert any("did you mean" in words for words in messages)


def test_many_categories(coco: Path) -> None:
    for path in (coco / "annotations").glob("*.json"):
        content = json.loads(path.read_text())
        content["categories"] += [{"id": i, "name": f"c{i}"} for i in range(100, 40_100)]
        path.write_text(json.dumps(content))
    with seconds(12):
        assert len(examine(coco).scan.names) > 40_000


def test_many_equal_images(yolo: Path, tmp_path: Path) -> None:
    for index in range(300):
        shutil.copy(yolo / IMAGE, yolo / f"images/train/c{index}.jpg")
        (yolo / f"labels/train/c{index}.txt").write_text(f"0 .5 .5 .2 .{index + 100}\n")
    report = examine(yolo)
    found = [f for f in report.findings if f.check == "twice_in_split"]
    assert len(found) == 300
    assert {f.other for f in found} == {yolo / IMAGE}
    cleaned = write_copy(report, tmp_path / "out")
    assert not any("same image twice" in change.found for change in cleaned.changes)


def test_many_hidden_folders(yolo: Path) -> None:
    for index in range(1500):
        (yolo / f"images/train/.h{index}").mkdir()
    with seconds(8):
        report = examine(yolo)
    assert sum(f.check == "passed_over" for f in report.findings) == 1500


DEEP = 200_000


@pytest.mark.parametrize(
    "text", ["[" * DEEP, '{"images":' + "[" * DEEP + "]" * DEEP + "}", '{"a":' * DEEP,
             '{"images": [' + "9" * 5000 + "]}", '{"images": [{"id": 1e999}]}', "\ufeff{}", ""],
)  # fmt: skip
def test_deep_or_large_json(text: str, coco: Path) -> None:
    (coco / JSON).write_text(text)
    with seconds(8), pytest.raises(DataError, match="instances_train"):
        load(coco)
    examine(coco)


@pytest.mark.parametrize(
    "text",
    ["<annotation>" + "<a>" * DEEP, "<annotation>" + "<a>" * DEEP + "</a>" * DEEP + "</annotation>",
     '<!DOCTYPE a [<!ENTITY b "x">]><annotation>&b;</annotation>', "<annotation>&b;</annotation>",
     '<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "<annotation " + "a='1' " * DEEP,
     "<annotation>" + "<object/>" * 40_000 + "</annotation>", "<?xml" + "?" * DEEP, ""],
)  # fmt: skip
def test_deep_or_growing_xml(text: str, voc: Path) -> None:
    (voc / XML).write_text(text)
    with seconds(12):
        examine(voc)
        try:
            load(voc)
        except DataError as error:
            assert "train00003" in str(error)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "nan", "inf", "9" * 5000, "0." + "1" * 5000,
                                    "1e-999", "0x1p3", "1_0", "\u0663", "1e5"])  # fmt: skip
def test_huge_numbers(number: str, yolo: Path, voc: Path) -> None:
    (yolo / LABEL).write_text(f"0 {number} .5 .2 .2\n{number} .5 .5 .2 .2\n", encoding="utf-8")
    text = (voc / XML).read_text()
    place = text.index("<xmin>") + 6
    (voc / XML).write_text(text[:place] + number + text[text.index("</xmin>") :], encoding="utf-8")
    for root in (yolo, voc):
        with seconds(8):
            examine(root)
            try:
                load(root)
            except DataError as error:
                assert "00003" in str(error)


@pytest.mark.parametrize("form", ["yolo", "voc", "coco"])
def test_underscore_in_number(form: str, request: pytest.FixtureRequest) -> None:
    root: Path = request.getfixturevalue(form)
    if form == "yolo":
        (root / LABEL).write_text("0 .5 .5 .2_5 .2\n")
    elif form == "voc":
        text = (root / XML).read_text()
        place = text.index("<xmin>") + 6
        (root / XML).write_text(f"{text[:place]}1_0{text[text.index('</xmin>') :]}")
    else:
        of_json(root, lambda c: c["annotations"][0].update(bbox=["1_0", 1, 9, 9]))
    with pytest.raises(DataError, match=r"expected .*(numbers|finite)"):
        load(root)
