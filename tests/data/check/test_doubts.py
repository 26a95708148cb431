"""Contradictory data: the copy keeps unambiguous labels and does not guess the others."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from y7edge.data.check.examine import CHECKS, examine
from y7edge.data.check.fix import Cleaned, write_copy
from y7edge.data.dataset import Dataset, load
from y7edge.data.images import read_image

IMAGE, LABEL = "images/train/00003.jpg", "labels/train/00003.txt"


def messages(root: Path, check: str) -> list[str]:
    return [finding.message for finding in examine(root).findings if finding.check == check]


def fixed(root: Path, out: Path) -> tuple[Cleaned, Dataset]:
    cleaned = write_copy(examine(root), out)
    return cleaned, load(out / "data.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "round, square, ring, bar",
        "round,square,ring,bar,",
        "'[round, square, ring, bar]'",
        "\"['round', 'square', 'ring', 'bar']\"",
        "round; square; ring; bar",
        "|\n  round\n  square\n  ring\n  bar",
        "round square ring bar",
    ],
)
def test_names_in_one_text(text: str, yolo: Path, tmp_path: Path) -> None:
    rest = re.sub(r"(?ms)^names:.*?(?=^\w|\Z)", "", (yolo / "data.yaml").read_text())
    (yolo / "data.yaml").write_text(f"{rest}\nnc: 4\nnames: {text}\n")
    assert "write ['round', 'square', 'ring', 'bar']" in messages(yolo, "names")[0]
    assert fixed(yolo, tmp_path / "out")[1].names == ("round", "square", "ring", "bar")


def test_names_between_commas(yolo: Path, tmp_path: Path) -> None:
    rest = re.sub(r"(?ms)^names:.*?(?=^\w|\Z)", "", (yolo / "data.yaml").read_text())
    (yolo / "data.yaml").write_text(f"{rest}\nnc: 4\nnames: hard hat, vest, head, left hand\n")
    names = ("hard hat", "vest", "head", "left hand")
    assert fixed(yolo, tmp_path / "out")[1].names == names


def boxes_of(data: Dataset) -> list[np.ndarray]:
    return [sample.boxes for split in ("train", "val") for sample in data.split(split)]


@pytest.mark.parametrize("axes", ["x", "y", "xy"])
def test_exchanged_corners_are_not_another_form(axes: str, voc: Path, tmp_path: Path) -> None:
    sides = ("xmin", "ymin", "xmax", "ymax")
    corners = "".join(f"<{side}>(.*?)</{side}>" for side in sides)
    seen = 0

    def rewritten(match: re.Match[str], *, exchange: bool) -> str:
        nonlocal seen
        seen += 1
        # In the upper left half, where the numbers also fit as sizes.
        x1, y1, x2, y2 = (float(text) / 2 for text in match.groups())
        if exchange and seen % 5 == 0:
            x1, x2 = (x2, x1) if "x" in axes else (x1, x2)
            y1, y2 = (y2, y1) if "y" in axes else (y1, y2)
        values = zip(sides, (x1, y1, x2, y2), strict=True)
        return "".join(f"<{name}>{value:.2f}</{name}>" for name, value in values)

    right = Path(shutil.copytree(voc, tmp_path / "right"))
    for root, exchange in ((right, False), (voc, True)):
        seen = 0
        for path in sorted((root / "annotations").glob("*.xml")):
            change = partial(rewritten, exchange=exchange)
            path.write_text(re.sub(corners, change, path.read_text()))
    assert seen >= 20
    assert messages(voc, "corners") == []
    assert len(messages(voc, "negative")) == seen // 5
    (_, one), (_, other) = fixed(right, tmp_path / "expected"), fixed(voc, tmp_path / "out")
    for expected, found in zip(boxes_of(one), boxes_of(other), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def of_json(root: Path, change: Callable[[dict], object]) -> None:
    path = root / "annotations/instances_train.json"
    whole = json.loads(path.read_text())
    change(whole)
    path.write_text(json.dumps(whole))


@pytest.mark.parametrize("broken", [{"id": 1}, {"id": 1, "file_name": "gone.jpg"}])
@pytest.mark.parametrize("place", [0, 99])
def test_image_with_ambiguous_id_is_left_out(
    place: int, broken: dict, coco: Path, tmp_path: Path
) -> None:
    of_json(coco, lambda content: content["images"].insert(place, broken))
    cleaned, copy = fixed(coco, tmp_path / "out")
    assert "00001" not in {sample.path.stem for sample in copy.split("train")}
    assert any("another image has the same id 1" in change.found for change in cleaned.changes)


@pytest.mark.parametrize("folder", ["images/train", "labels/train", "images", "labels"])
def test_linked_split_folder_is_read(folder: str, yolo: Path, tmp_path: Path) -> None:
    shutil.move(yolo / folder, tmp_path / "elsewhere")
    (yolo / folder).symlink_to(tmp_path / "elsewhere")
    assert examine(yolo).findings == ()
    assert sum(map(len, boxes_of(fixed(yolo, tmp_path / "out")[1]))) > 20


@pytest.mark.parametrize("folder", ["images/train", "labels/train"])
def test_unreferenced_files_in_linked_folder(folder: str, yolo: Path, tmp_path: Path) -> None:
    shutil.move(yolo / folder, tmp_path / "elsewhere")
    (yolo / folder).symlink_to(tmp_path / "elsewhere")
    (yolo / IMAGE).unlink()
    (yolo / "images/train/x.heic").write_bytes(b"x")
    assert len(messages(yolo, "unreferenced_label")) == 1
    assert len(messages(yolo, "ignored")) == 1


def test_second_link_to_folder_is_skipped(yolo: Path) -> None:
    (yolo / "images/more").mkdir()
    (yolo / "images/more/again").symlink_to(yolo / "images/train")
    assert examine(yolo).findings == ()


@pytest.mark.parametrize("elsewhere", ["", "1 140 60 20 20\n"])
def test_check_and_copy_agree_on_percent(elsewhere: str, yolo: Path, tmp_path: Path) -> None:
    """Use images of 160 x 120, where any label above 100 shows that the unit is pixels."""
    (yolo / LABEL).write_text("1 80 60 40 30\n")
    if elsewhere:
        (yolo / LABEL).with_name("00002.txt").write_text(elsewhere)
    asked = ["percent or pixels?" in words for words in messages(yolo, "pixels")]
    assert asked == ([False, False] if elsewhere else [True])
    _, copy = fixed(yolo, tmp_path / "out")
    found = {sample.path.stem: sample.boxes for sample in copy.split("train")}
    if elsewhere:
        np.testing.assert_allclose(found["00003"], [[0.5, 0.5, 0.25, 0.25]], atol=1e-6)
    else:
        assert "00003" not in found


def test_unreferenced_label_with_several_images(yolo: Path, tmp_path: Path) -> None:
    (yolo / "labels/other").mkdir()
    (yolo / LABEL).rename(yolo / "labels/other/00003.txt")
    (yolo / LABEL.replace("train", "val")).unlink()
    _, copy = fixed(yolo, tmp_path / "out")
    for split in ("train", "val"):
        assert "00003" not in {sample.path.stem for sample in copy.split(split)}


def training_says(root: Path) -> str:
    return "; ".join(load(root).warnings)


@pytest.mark.parametrize("shift", [0, 60])
def test_outline_of_several_parts_is_compared_as_a_whole(shift: int, coco: Path) -> None:
    def outlined(content: dict) -> None:
        x, y, w, h = content["annotations"][0]["bbox"]
        x = x + shift if x < 80 else x - shift
        left = [x, y, x + w / 3, y, x, y + h]
        right = [x + w, y, x + w, y + h, x + w * 2 / 3, y + h]
        content["annotations"][0]["segmentation"] = [left, right]

    of_json(coco, outlined)
    assert len(messages(coco, "outline")) == (1 if shift else 0)
    assert ("outlines that do not match" in training_says(coco)) == bool(shift)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_outline_with_nan(number: float, coco: Path, tmp_path: Path) -> None:
    def outlined(content: dict) -> None:
        x, y, w, h = content["annotations"][0]["bbox"]
        content["annotations"][0]["segmentation"] = [[x, y, x + w, y, x + w, number, x, y + h]]

    of_json(coco, outlined)
    assert len(messages(coco, "outline")) == 1
    assert "outlines that do not match" in training_says(coco)
    cleaned, _ = fixed(coco, tmp_path / "out")
    assert "its outline is left out" in {change.done for change in cleaned.changes}


def test_dot_in_stem(voc: Path) -> None:
    with (voc / "train.txt").open("a") as stream:
        stream.write("train00001.v2\n")
    (words,) = messages(voc, "list_entry")
    assert "expected the stem of an image in images/, found 'train00001.v2'" in words
    assert "write" not in words


@pytest.mark.parametrize("written", ["images/{}.jpg", "images\\{}.JPG", "other/{}"])
def test_path_instead_of_stem(written: str, voc: Path) -> None:
    (voc / "images/train00001.jpg").rename(voc / "images/train00001.v2.jpg")
    text = (voc / "train.txt").read_text()
    (voc / "train.txt").write_text(text.replace("train00001", written.format("train00001.v2")))
    assert "write 'train00001.v2'" in messages(voc, "list_entry")[0]


@pytest.mark.parametrize(
    ("numbers", "fault"),
    [
        ((-1, 0, 1, 2), "has -1, left out"),
        ((0, 1, 3, 4), "lacks 2"),
        ((-2, -1, 0, 2), "lacks 1 and has -2, -1, left out"),
    ],
)
def test_names_with_gaps(numbers: tuple[int, ...], fault: str, yolo: Path) -> None:
    rest = re.sub(r"(?ms)^names:.*?(?=^\w|\Z)", "", (yolo / "data.yaml").read_text())
    names = "".join(f"  {number}: n{number}\n" for number in numbers)
    (yolo / "data.yaml").write_text(f"{rest}\nnames:\n{names}")
    assert messages(yolo, "names")[0].endswith(fault)


def test_order_of_checks() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    first = ("no_labels", "empty_image", "overlap", "name_twice", "same_splits")
    assert [name for name in names if name in first] == list(first)


def test_low_contrast_16_bits_are_scaled(yolo: Path, tmp_path: Path) -> None:
    for path in sorted((yolo / "images").glob("*/*.jpg")):
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        deep = 20_000 + 3 * grey.astype(np.uint16)
        cv2.imwrite(str(path.with_suffix(".png")), deep)
        path.unlink()
    (words,) = messages(yolo, "low_contrast")
    low, high = map(int, re.findall(r"levels (\d+) to (\d+)", words)[0])
    assert 20_000 <= low < high <= 20_765
    cleaned, copy = fixed(yolo, tmp_path / "out")
    assert copy.levels == (low, high)
    assert cleaned.after.count("warning") == 0
    assert len(np.unique(read_image(copy.split("train")[0].path))) > 100
    assert sum(map(len, boxes_of(copy))) == sum(map(len, boxes_of(load(yolo))))
    with (yolo / "data.yaml").open("a") as stream:
        stream.write("levels: [19000, 21000]\n")
    assert messages(yolo, "low_contrast") == []
    assert fixed(yolo, tmp_path / "again")[1].levels == (19_000, 21_000)


def test_16_bits_with_high_contrast_are_copied(yolo: Path, tmp_path: Path) -> None:
    image = cv2.imread(str(yolo / IMAGE), cv2.IMREAD_GRAYSCALE)
    (yolo / IMAGE).unlink()
    cv2.imwrite(str((yolo / IMAGE).with_suffix(".png")), image.astype(np.uint16) * 257)
    assert messages(yolo, "low_contrast") == []
    assert fixed(yolo, tmp_path / "out")[1].levels is None
