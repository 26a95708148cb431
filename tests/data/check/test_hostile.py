"""Data that may make a check hang, crash, or report false findings."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from y7edge.data.check.examine import Report, examine
from y7edge.data.check.fix import Cleaned, write_copy
from y7edge.data.check.labels import _covering
from y7edge.data.check.report import write_page
from y7edge.data.dataset import Dataset, load
from y7edge.data.formats import listing
from y7edge.errors import DataError

IMAGE, LABEL = "images/train/00003.jpg", "labels/train/00003.txt"


def checks(report: Report, severity: str = "error") -> set[str]:
    return {f.check for f in report.findings if f.severity == severity}


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert re.search(old, text)
    path.write_text(re.sub(old, new, text))


@pytest.mark.parametrize("nc", ["100001", "9" * 400, "-3"])
def test_huge_class_counts(nc: str, yolo: Path) -> None:
    edited(yolo / "data.yaml", "names:", f"nc: {nc}\nnames:")
    report = examine(yolo)
    assert checks(report) == {"names"}
    assert len(report.summary["classes"]) == 4


def test_huge_name_keys(yolo: Path) -> None:
    edited(yolo / "data.yaml", "  3: ", "  123456789: ")
    (finding,) = [f for f in examine(yolo).findings if f.check == "names"]
    assert "123456789" in finding.message


@pytest.mark.parametrize("names", ["&a [*a]", "&a {x: *a}"])
def test_circular_yaml(names: str, yolo: Path) -> None:
    (yolo / "data.yaml").write_text(f"train: images/train\nnames: {names}\n")
    with pytest.raises(DataError, match="circular"):
        examine(yolo)


def test_exponential_yaml(yolo: Path) -> None:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (yolo / "data.yaml").write_text("train: images/train\n" + "\n".join(lines) + "\n")
    with pytest.raises(DataError, match="aliases"):
        examine(yolo)


@pytest.mark.parametrize("file", [IMAGE, LABEL])
@pytest.mark.parametrize("kind", ["pipe", "device", "circle"])
def test_pipe_device_and_link(kind: str, file: str, yolo: Path) -> None:
    path = yolo / file
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path.name)
    assert checks(examine(yolo)) & {"unreadable_image", "unreadable_text"}


def test_unreadable_folder(yolo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir
    (yolo / "images/train/more").mkdir()

    def scandir(top: Path) -> object:
        if Path(top).name == "more":
            raise PermissionError(13, "Permission denied", str(top))
        return real(top)

    monkeypatch.setattr(listing.os, "scandir", scandir)
    report = examine(yolo)
    assert checks(report) == {"folder"}
    assert len(report.scan.entries) == 14


def test_many_labels_in_one_file(yolo: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [f"1 {x:.6f} .5 .1 .1\n" for x in rng.uniform(0.3, 0.7, 6000)]
    (yolo / LABEL).write_text("".join(rows + rows[:3000] * 2))
    start = time.process_time()
    report = examine(yolo)
    assert time.process_time() - start < 20
    assert sum(f.check == "duplicate" for f in report.findings) >= 6000


def test_near_duplicates_equal_brute_force() -> None:
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


def test_long_integers(coco: Path) -> None:
    path = coco / "annotations/instances_train.json"
    edited(path, r'"width": 160', f'"width": 1{"0" * 400}')
    assert "annotation" not in checks(examine(coco))


def test_one_pixel_image(yolo: Path) -> None:
    Image.new("RGB", (1, 1)).save(yolo / IMAGE)
    assert checks(examine(yolo)) == {"tiny_image"}


def test_large_images_are_valid(yolo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert examine(yolo).findings == ()
    assert Image.MAX_IMAGE_PIXELS == 100


def test_similar_frames_with_same_labels(yolo: Path) -> None:
    with Image.open(yolo / IMAGE) as opened:
        opened.save(yolo / "images/train/x.jpg", quality=60)
    (yolo / "labels/train/x.txt").write_text((yolo / LABEL).read_text())
    assert "same_labels" not in checks(examine(yolo), "warning")


def test_ids_counted_from_one(yolo: Path, tmp_path: Path) -> None:
    for path in (yolo / "labels").glob("*/*.txt"):
        lines = path.read_text().splitlines()
        path.write_text("".join(f"{int(t[0]) + 1}{t[1:]}\n" for t in lines))
    report = examine(yolo)
    assert "shifted_ids" in checks(report)
    assert "not fixed: shifted_ids" in write_copy(report, tmp_path / "out").losses


def test_missing_path_entry(yolo: Path) -> None:
    edited(yolo / "data.yaml", "^", "path: /gone/away\n")
    (finding,) = examine(yolo).findings
    assert (finding.check, finding.line) == ("path_entry", 1)
    assert "/gone/away" in finding.message


@pytest.mark.parametrize("root", ['annotation xmlns="http://x.org/"', "Annotation"])
def test_unexpected_voc_root(root: str, voc: Path) -> None:
    path = voc / "annotations/train00003.xml"
    edited(path, "<annotation>", f"<{root}>")
    edited(path, "</annotation>", f"</{root.split()[0]}>")
    assert checks(examine(voc)) == {"annotation"}


def test_swapped_letters(voc: Path) -> None:
    for path in (voc / "annotations").glob("*.xml"):
        path.write_text(re.sub(r"<name>\w+<", "<name>RBC<", path.read_text()))
    path = voc / "annotations/train00003.xml"
    path.write_text(path.read_text().replace("RBC", "RCB", 1))
    (finding,) = [f for f in examine(voc).findings if f.check == "name_rare"]
    assert "did you mean RBC?" in finding.message


def test_crlf_converted_image(yolo: Path, tmp_path: Path) -> None:
    with Image.open(yolo / IMAGE) as opened:
        opened.resize((640, 480)).save(yolo / IMAGE, quality=98)
    raw = (yolo / IMAGE).read_bytes()
    start = raw.rfind(b"\xff\xda") + 14
    body = raw[start:].replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    (yolo / IMAGE).write_bytes(raw[:start] + body)
    report = examine(yolo)
    assert "corrupt_image" in checks(report)
    write_copy(report, tmp_path / "out")
    assert not (tmp_path / "out" / IMAGE).exists()


def messages(root: Path, check: str) -> list[str]:
    return [finding.message for finding in examine(root).findings if finding.check == check]


def fixed(root: Path, out: Path) -> tuple[Cleaned, Dataset]:
    cleaned = write_copy(examine(root), out)
    return cleaned, load(out / "data.yaml")


def of_json(root: Path, change: Callable[[dict], object]) -> None:
    path = root / "annotations/instances_train.json"
    whole = json.loads(path.read_text())
    change(whole)
    path.write_text(json.dumps(whole))


def test_voc_sizes_as_corners(voc: Path, tmp_path: Path) -> None:
    _, expected = fixed(voc, tmp_path / "right")

    def shortened(match: re.Match[str]) -> str:
        x1, y1, x2, y2 = (float(text) for text in match.groups())
        sides = zip(("xmin", "ymin", "xmax", "ymax"), (x1, y1, x2 - x1, y2 - y1), strict=True)
        return "".join(f"<{name}>{value:.1f}</{name}>" for name, value in sides)

    corners = r"<xmin>(.*?)</xmin><ymin>(.*?)</ymin><xmax>(.*?)</xmax><ymax>(.*?)</ymax>"
    for path in (voc / "annotations").glob("*.xml"):
        path.write_text(re.sub(corners, shortened, path.read_text()))
    (words,) = messages(voc, "corners")
    assert "left, top, width, height" in words
    _, found = fixed(voc, tmp_path / "out")
    for one, other in zip(expected.split("train"), found.split("train"), strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=0.002)


@pytest.mark.parametrize("exchanged", [False, True])
def test_voc_centres_as_corners(exchanged: bool, voc: Path, tmp_path: Path) -> None:
    _, expected = fixed(voc, tmp_path / "right")

    def rewritten(match: re.Match[str]) -> str:
        x1, y1, x2, y2 = (float(text) for text in match.groups())
        values = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        values = (x2, y2, x1, y1) if exchanged else values
        sides = zip(("xmin", "ymin", "xmax", "ymax"), values, strict=True)
        return "".join(f"<{name}>{value:.1f}</{name}>" for name, value in sides)

    corners = r"<xmin>(.*?)</xmin><ymin>(.*?)</ymin><xmax>(.*?)</xmax><ymax>(.*?)</ymax>"
    for path in (voc / "annotations").glob("*.xml"):
        path.write_text(re.sub(corners, rewritten, path.read_text()))
    if exchanged:
        _, found = fixed(voc, tmp_path / "out")
        np.testing.assert_allclose(
            found.split("train")[0].boxes, expected.split("train")[0].boxes, atol=0.002
        )
    else:
        assert "centre x, centre y" in messages(voc, "corners")[0]
        assert "not fixed: corners" in fixed(voc, tmp_path / "out")[0].losses


def test_paths_in_stem_list(voc: Path) -> None:
    edited(voc / "train.txt", "train00003", "images/train00003.jpg")
    (words,) = messages(voc, "list_entry")
    assert "write 'train00003'" in words


@pytest.mark.parametrize("labels", ["beside", "parallel"])
def test_folder_link_is_followed_once(labels: str, yolo: Path, tmp_path: Path) -> None:
    before = len(load(yolo).split("train"))
    for kind in ("images", "labels"):
        place = tmp_path / "pool" / ("images" if labels == "beside" else kind)
        shutil.copytree(yolo / kind / "val", place, dirs_exist_ok=True)
        shutil.rmtree(yolo / kind / "val")
    (yolo / "data.yaml").write_text(
        (yolo / "data.yaml").read_text().replace("val: images/val", "val: images/train")
    )
    (yolo / "images/train/more").symlink_to(tmp_path / "pool/images")
    (yolo / "images/train/again").symlink_to(tmp_path / "pool/images")
    (tmp_path / "pool/images/loop").symlink_to(yolo / "images/train")
    data = load(yolo)
    assert len(data.split("train")) == before + 5
    assert data.warnings == ()
    assert sum(len(s.boxes) for s in data.split("train") if "again" in s.path.parts) > 5


def test_images_with_equal_ids_are_left_out(coco: Path, tmp_path: Path) -> None:
    of_json(coco, lambda c: c["images"][3].update(id=1))
    cleaned, copy = fixed(coco, tmp_path / "out")
    assert {"00001", "00003"}.isdisjoint(sample.path.stem for sample in copy.split("train"))
    assert "renumber the images" in messages(coco, "ids")[0]
    assert sum("another image has the same id" in change.found for change in cleaned.changes) == 2


def test_repeated_entry_keeps_image(coco: Path, tmp_path: Path) -> None:
    of_json(coco, lambda c: c["images"].append(dict(c["images"][3])))
    _, copy = fixed(coco, tmp_path / "out")
    assert "00003" in {sample.path.stem for sample in copy.split("train")}


@pytest.mark.parametrize("shift", [0, 60])
def test_outline_outside_box(shift: int, coco: Path, tmp_path: Path) -> None:
    def outlined(content: dict) -> None:
        x, y, w, h = content["annotations"][0]["bbox"]
        x = x + shift if x < 80 else x - shift
        ring = [x, y, x + w, y, x + w, y + h, x, y + h]
        content["annotations"][0]["segmentation"] = [ring]

    _, expected = fixed(coco, tmp_path / "right")
    of_json(coco, outlined)
    assert len(messages(coco, "outline")) == (1 if shift else 0)
    _, found = fixed(coco, tmp_path / "out")
    np.testing.assert_allclose(
        found.split("train")[0].boxes, expected.split("train")[0].boxes, atol=1e-3
    )


def test_repeated_category_id(coco: Path) -> None:
    of_json(coco, lambda c: c["categories"][1].update(id=c["categories"][0]["id"]))
    names = [
        entry["name"]
        for entry in json.loads(next(coco.glob("a*/*.json")).read_text())["categories"]
    ]
    assert f"for {names[0]!r} and {names[1]!r}" in messages(coco, "ids")[0]


def test_json_without_categories(coco: Path) -> None:
    shutil.rmtree(coco / "images/val")
    (coco / "annotations/instances_val.json").unlink()
    of_json(coco, lambda c: c.update(categories=[]))
    assert (
        "one of the classes (there are none), found 1; correct it"
        in messages(coco, "class_range")[0]
    )


def test_missing_test_split_is_not_a_loss(yolo: Path, tmp_path: Path) -> None:
    """Roboflow always describes a test split, even if there is none."""
    with (yolo / "data.yaml").open("a") as stream:
        stream.write("test: ../test/images\n")
    assert fixed(yolo, tmp_path / "out")[0].losses == ()


def test_labels_in_the_folder_of_another_split(yolo: Path, tmp_path: Path) -> None:
    name = sorted((yolo / "labels/val").iterdir())[0].name
    (yolo / "labels/train" / name).unlink()
    (yolo / "images/train" / name).with_suffix(".jpg").unlink()
    (yolo / "labels/val" / name).rename(yolo / "labels/train" / name)
    (words,) = messages(yolo, "missing_label")
    assert f"labels/train/{name} has the same name" in words
    _, copy = fixed(yolo, tmp_path / "out")
    assert all(len(sample.boxes) for sample in copy.split("val"))  # none became background


def test_percent_in_small_images(yolo: Path, tmp_path: Path) -> None:
    for path in (yolo / "labels").glob("*/*.txt"):
        rows = [line.split() for line in path.read_text().splitlines()]
        lines = [" ".join([row[0], *(f"{100 * float(v):.3f}" for v in row[1:])]) for row in rows]
        path.write_text("\n".join(lines))
    assert "percent or pixels?" in messages(yolo, "pixels")[0]
    with pytest.raises(DataError, match="expected labels that can be copied"):
        write_copy(examine(yolo), tmp_path / "out")


def test_equal_images_keep_one_with_own_labels(yolo: Path, tmp_path: Path) -> None:
    with Image.open(yolo / IMAGE) as opened:
        opened.save(yolo / "images/train/00002.png")  # takes the labels of 00002.jpg
    _, copy = fixed(yolo, tmp_path / "out")
    assert "00003.jpg" in {sample.path.name for sample in copy.split("train")}


@pytest.mark.parametrize("spelled", ["01", "1.0", "+1"])
def test_two_spellings_of_class(spelled: str, yolo: Path) -> None:
    (yolo / LABEL).write_text(f"1 0.5 0.5 0.2 0.2\n{spelled} 0.5 0.5 0.2 0.2\n")
    assert len(messages(yolo, "duplicate")) == 1
    assert messages(yolo, "overlap") == []


@pytest.mark.parametrize("name", ["00003", "00003.jpg_", "00003.JPG.part"])
def test_wrong_image_suffix(name: str, yolo: Path) -> None:
    (yolo / IMAGE).rename(yolo / "images/train" / name)
    (words,) = messages(yolo, "ignored")
    assert "is an image" in words
    assert "rename it" in words


def test_padding_after_image(yolo: Path) -> None:
    with (yolo / IMAGE).open("ab") as stream:
        stream.write(b"\0" * 500)
    assert examine(yolo).findings == ()


def test_names_as_one_text(yolo: Path, tmp_path: Path) -> None:
    text = (yolo / "data.yaml").read_text()
    count = len(load(yolo).names)
    words = [f"n{index}" for index in range(count)]
    rest = re.sub(r"(?ms)^names:.*?(?=^\w|\Z)|^nc:.*?\n", "", text)
    (yolo / "data.yaml").write_text(f"{rest}\nnc: {count}\nnames: {' '.join(words)}\n")
    assert str(words) in messages(yolo, "names")[0]
    assert fixed(yolo, tmp_path / "out")[1].names == tuple(words)


def test_names_from_one(yolo: Path) -> None:
    text = (yolo / "data.yaml").read_text()
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(load(yolo).names, 1))
    rest = re.sub(r"(?ms)^names:.*?(?=^\w|\Z)|^nc:.*?\n", "", text)
    (yolo / "data.yaml").write_text(f"{rest}\nnames:\n{names}")
    assert "lacks 0; if the numbers start at 1" in messages(yolo, "names")[0]


def test_line_break_in_name(yolo: Path, tmp_path: Path) -> None:
    (yolo / LABEL).rename(yolo / "labels/train/a\nb.txt")
    (yolo / IMAGE).unlink()
    (yolo / "images/train/a\nb.jpg").write_bytes(b"")
    report = examine(yolo)
    assert checks(report, "info") >= {"path_spaces"}
    assert [c.file for c in write_copy(report, tmp_path / "out").changes] == [
        r"images/train/a\nb.jpg"
    ]


def test_image_instead_of_data_set(yolo: Path) -> None:
    with pytest.raises(DataError, match="found an image"):
        examine(yolo / IMAGE)


def test_libjpeg_messages_are_not_printed(yolo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    raw = bytearray((yolo / IMAGE).read_bytes())
    raw[-2:-2] = b"abcdef"  # libjpeg reports these bytes on standard error
    (yolo / IMAGE).write_bytes(raw)
    report = examine(yolo)
    assert "suspicious_image" in {f.check for f in report.findings}
    write_page(report, yolo.parent / "page.html")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-1 0.5 0.5 0.2 0.2", "correct or remove the line; classes start at 0"),
        ("1.5 0.5 0.5 0.2 0.2", "correct or remove the line"),
        ("1 0.5 nan 0.2 0.2", "remove it"),
        ("1 0.5 0.5 -0.2 0.2", "put in order"),
    ],
)
def test_messages_have_hints(line: str, words: str, yolo: Path) -> None:
    (yolo / LABEL).write_text(f"{line}\n")
    assert words in next(f.message for f in examine(yolo).findings if f.file == yolo / LABEL)
