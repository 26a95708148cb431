"""Each planted defect gives exactly its finding; clean data give none."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from y7edge.data.check.examine import examine
from y7edge.data.synthetic import scenes
from y7edge.errors import DataError

IMAGE, LABEL = "images/train/00003.jpg", "labels/train/00003.txt"
Plant = Callable[[Path], object]


def line(text: str) -> Plant:
    """Add a line to a label file."""

    def plant(root: Path) -> None:
        with (root / LABEL).open("a") as stream:
            stream.write(text + "\n")

    return plant


def every_line(change: Callable[[list[float]], list[float]]) -> Plant:
    """Change the four numbers of each line of a label file."""

    def plant(root: Path) -> None:
        rows = [text.split() for text in (root / LABEL).read_text().splitlines()]
        changed = [[row[0], *map(repr, change([float(v) for v in row[1:]]))] for row in rows]
        (root / LABEL).write_text("".join(" ".join(row) + "\n" for row in changed))

    return plant


def data_yaml(old: str, new: str) -> Plant:
    def plant(root: Path) -> None:
        text = (root / "data.yaml").read_text()
        assert old in text
        (root / "data.yaml").write_text(text.replace(old, new))

    return plant


def content(change: Callable[[bytes], bytes], file: str = IMAGE) -> Plant:
    return lambda root: (root / file).write_bytes(change((root / file).read_bytes()))


def saved(change: Callable[[Image.Image], Image.Image], file: str = IMAGE, **options) -> Plant:
    """Decode, change and save one image."""

    def plant(root: Path) -> None:
        with Image.open(root / IMAGE) as opened:
            opened.load()
            changed = change(opened)
        (root / IMAGE).unlink()
        changed.save(root / file, **options)

    return plant


def copied(source: str, destination: str) -> Plant:
    return lambda root: shutil.copy(root / source, root / destination)


def both(*plants: Plant) -> Plant:
    return lambda root: [plant(root) for plant in plants]


def png_with_a_wrong_checksum(root: Path) -> None:
    opened = Image.open(root / IMAGE)
    opened.load()
    (root / IMAGE).unlink()
    path = (root / IMAGE).with_suffix(".png")
    opened.save(path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0x55
    path.write_bytes(raw)


def turned(orientation: int) -> Plant:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(lambda opened: opened, quality=95, exif=exif)


def whole_pixels(root: Path) -> None:
    """Write labels drawn on the stored image, 160x120, which is upright 120x160."""
    turned(6)(root)
    corners = [(13, 17, 51, 67), (21, 31, 77, 103), (91, 11, 157, 113)]
    rows = [
        f"1 {(x1 + x2) / 320:.7f} {(y1 + y2) / 240:.7f} {(x2 - x1) / 160:.7f} "
        f"{(y2 - y1) / 120:.7f}\n"
        for x1, y1, x2, y2 in corners
    ]
    (root / LABEL).write_text("".join(rows))


def listed(entries: str) -> Plant:
    """Use a list file with every training image, then ``entries``."""

    def plant(root: Path) -> None:
        paths = sorted((root / "images/train").iterdir())
        text = "".join(f"./images/train/{path.name}\n" for path in paths)
        (root / "train.txt").write_text(text + entries)
        data_yaml("train: images/train", "train: train.txt")(root)

    return plant


def without_class(split: str, number: int) -> Plant:
    def plant(root: Path) -> None:
        for path in (root / "labels" / split).iterdir():
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join(x for x in lines if not x.startswith(f"{number} ")))

    return plant


def half_grey(raw: bytes) -> bytes:
    return raw[: len(raw) // 2] + b"\xff\xd9"


def zeros_within(raw: bytes) -> bytes:
    start = raw.rfind(b"\xff\xda") + (len(raw) - raw.rfind(b"\xff\xda")) // 2
    return raw[:start] + bytes(200) + raw[start + 200 :]


def scrambled(raw: bytes) -> bytes:
    """Damage a JPEG without markers, so that only the decoder detects it."""
    start = raw.rfind(b"\xff\xda") + 600
    return raw[:start] + bytes(range(1, 251)) + raw[start + 250 :]


def noise_within(raw: bytes) -> bytes:
    start = raw.rfind(b"\xff\xda") + 200
    return raw[:start] + b"\xff\x01\xff\xb7\xff\x33" + raw[start + 6 :]


def sixteen_bits(root: Path) -> None:
    grey = cv2.imread(str(root / IMAGE), cv2.IMREAD_GRAYSCALE)
    (root / IMAGE).unlink()
    cv2.imwrite(str((root / IMAGE).with_suffix(".png")), grey.astype(np.uint16) * 257)


YOLO: dict[str, tuple[Plant, list[str]]] = {
    # images
    "empty": (content(lambda raw: b""), ["empty_image error"]),
    "zeros": (content(lambda raw: bytes(900)), ["empty_image error"]),
    "truncated": (content(lambda raw: raw[: len(raw) // 2]), ["truncated_image error"]),
    "no end": (content(lambda raw: raw[:-2]), ["truncated_image error"]),
    "half downloaded": (
        content(lambda raw: raw[: len(raw) // 2] + bytes(len(raw) - len(raw) // 2)),
        ["truncated_image error"],
    ),
    "zeros for the end": (
        content(lambda raw: raw[:-2] + bytes(4000)),
        ["truncated_image error"],
    ),
    "half grey": (content(half_grey), ["corrupt_image error"]),
    "zeros within": (content(zeros_within), ["suspicious_image warning"]),
    "scrambled": (content(scrambled), ["corrupt_image error"]),
    "noise within": (content(noise_within), ["corrupt_image error"]),
    "text": (content(lambda raw: b"<html>404</html>"), ["corrupt_image error"]),
    "checksum": (png_with_a_wrong_checksum, ["corrupt_image error"]),
    "dangling": (
        lambda root: ((root / IMAGE).unlink(), (root / IMAGE).symlink_to("gone.jpg")),
        ["unreadable_image error"],
    ),
    "tiny": (saved(lambda p: p.resize((9, 9))), ["tiny_image error"]),
    "plain": (
        saved(lambda p: Image.new("RGB", p.size, (7, 7, 7))),
        ["plain_image warning"],
    ),
    "turned": (turned(6), ["rotation warning"]),
    "upside down": (turned(3), ["rotation warning"]),
    "boxes not turned": (whole_pixels, ["rotation error"]),
    "png in jpg": (saved(lambda p: p, format="PNG"), ["suffix warning"]),
    "cmyk": (saved(lambda p: p.convert("CMYK")), ["mode info"]),
    "alpha": (
        saved(lambda p: p.convert("RGBA"), IMAGE.replace("jpg", "png")),
        ["mode info"],
    ),
    "palette": (saved(lambda p: p.quantize(), IMAGE.replace("jpg", "png")), ["mode info"]),
    "16 bits": (sixteen_bits, ["mode info"]),
    "gif": (
        saved(lambda p: p, IMAGE.replace("jpg", "gif")),
        ["ignored warning", "unreferenced_label warning"],
    ),
    # labels
    "five numbers": (line("1 .5 .5 .2 .2 .9"), ["columns error"]),
    "three numbers": (line("1 .5 .5 .2"), ["columns error"]),
    "even polygon": (line("1 .1 .1 .2 .1 .2 .2 .1"), ["columns error"]),
    "words": (line("1 .5 .5 wide .2"), ["number error"]),
    "commas": (line("1, 0.5, 0.5, 0.2, 0.2"), ["separators error"]),
    "decimal commas": (line("1 0,5 0,5 0,2 0,2"), ["separators error"]),
    "nan": (line("1 nan .5 .2 .2"), ["not_finite error"]),
    "inf": (line("1 .5 .5 inf .2"), ["not_finite error"]),
    "pixels": (
        every_line(lambda v: [v[0] * 160, v[1] * 120, v[2] * 160, v[3] * 120]),
        ["pixels error"],
    ),
    "percent": (every_line(lambda v: [100 * x for x in v]), ["pixels error"]),
    "twice": (
        every_line(lambda v: [v[0] / 160, v[1] / 120, v[2] / 160, v[3] / 120]),
        ["twice error"],
    ),
    "corners": (
        lambda root: (root / LABEL).write_text("1 .6 .6 .9 .9\n2 .7 .1 .95 .4\n"),
        ["corners warning", "sticks_out warning", "sticks_out warning"],
    ),
    "negative": (line("1 -.02 .5 .2 .2"), ["range error"]),
    "above one": (line("1 .9 .5 1.3 .2"), ["range error"]),
    "negative size": (line("1 .5 .5 -.2 .2"), ["negative error"]),
    "no area": (line("1 .5 .5 0 .2"), ["no_area error"]),
    "outside, left": (line("1 -.5 .5 .2 .2"), ["outside error"]),
    "outside": (line("1 1.5 .5 .2 .2"), ["outside error"]),
    "sticks out": (line("1 .95 .5 .2 .2"), ["sticks_out warning"]),
    "sliver": (line("1 .5 .5 .004 .2"), ["sliver warning", "small info"]),
    "small": (line("1 .5 .5 .01 .2"), ["small info"]),
    "whole image": (line("1 .5 .5 1 1"), ["whole_image info"]),
    "twin": (
        both(line("1 .5 .5 .2 .2"), line("1 .5 .5 .2 .2")),
        ["duplicate warning"],
    ),
    "near twin": (both(line("1 .5 .5 .3 .3"), line("1 .502 .5 .3 .3")), ["overlap info"]),
    "two classes": (both(line("1 .5 .5 .3 .3"), line("2 .5 .5 .3 .3")), ["overlap warning"]),
    "mixed": (line("1 .1 .1 .4 .1 .4 .4 .1 .4"), ["mixed_lines info"]),
    "same labels": (
        copied("labels/train/00001.txt", "labels/train/00002.txt"),
        ["same_labels warning"],
    ),
    # classes
    "class beyond": (line("4 .5 .5 .2 .2"), ["class_range error"]),
    "class below": (line("-1 .5 .5 .2 .2"), ["class_range error"]),
    "class fraction": (line("1.5 .5 .5 .2 .2"), ["class_number error"]),
    "class name": (line("washer .5 .5 .2 .2"), ["class_number error"]),
    "nc": (data_yaml("names:", "nc: 5\nnames:"), ["class_balance warning", "names error"]),
    "nc word": (data_yaml("names:", "nc: four\nnames:"), ["names error"]),
    "no names": (lambda root: data_yaml("names:", "labels:")(root), ["names error"]),
    "key twice": (
        data_yaml("  1: washer", "  1: washer\n  1: washers"),
        ["names error"],
    ),
    "name twice": (data_yaml("washer", "Nut"), ["name_twice warning"]),
    "no name": (data_yaml("washer", "''"), ["name_empty warning"]),
    "gap": (data_yaml("  3: ", "  7: "), ["class_balance warning", "names error"]),
    "unused class": (
        data_yaml("names:\n", "names:\n  4: bolt\n"),
        ["class_balance warning"],
    ),
    "never trained": (without_class("train", 2), ["class_balance warning"]),
    "never evaluated": (without_class("val", 2), ["class_balance info"]),
    "classes.txt": (
        lambda root: (root / "labels/classes.txt").write_text("screw\nnut\nwasher\nbracket\n"),
        ["classes_file warning"],
    ),
    # files
    "no label file": (lambda root: (root / LABEL).unlink(), ["missing_label warning"]),
    "no image": (lambda root: (root / IMAGE).unlink(), ["unreferenced_label warning"]),
    "no labels": (
        lambda root: (root / "labels").rename(root / "annotation"),
        ["no_labels error"],
    ),
    "unlabelled val": (
        lambda root: [path.write_text("") for path in (root / "labels/val").iterdir()],
        ["splits error"],
    ),
    "binary": (content(lambda raw: bytes(range(64)), LABEL), ["encoding error"]),
    "utf-16": (
        lambda root: (root / LABEL).write_bytes((root / LABEL).read_text().encode("utf-16")),
        ["encoding error"],
    ),
    "latin": (
        lambda root: (root / "data.yaml").write_bytes(
            (root / "data.yaml").read_text().replace("nut", "écrou").encode("latin-1")
        ),
        ["encoding error"],
    ),
    "mark": (content(lambda raw: b"\xef\xbb\xbf" + raw, LABEL), ["byte_order_mark warning"]),
    "crlf": (content(lambda raw: raw.replace(b"\n", b"\r\n"), LABEL), ["line_ends info"]),
    "letters": (
        both(
            copied(LABEL, "labels/train/größe.txt"),
            lambda root: (root / LABEL).unlink(),
            lambda root: (root / IMAGE).rename(root / "images/train/größe.jpg"),
        ),
        ["path_letters info"],
    ),
    "spaces": (
        both(
            copied(LABEL, "labels/train/a b.txt"),
            lambda root: (root / LABEL).unlink(),
            lambda root: (root / IMAGE).rename(root / "images/train/a b.jpg"),
        ),
        ["path_spaces info"],
    ),
    "one label file for two": (
        both(
            copied("images/train/00001.jpg", "images/train/00003.PNG"),
            content(lambda raw: synthetic_png(), "images/train/00003.PNG"),
        ),
        ["shared_label warning"],
    ),
    "lost entry": (listed("./images/train/gone.jpg\n"), ["list_entry error"]),
    "entry twice": (listed("./images/train/00001.jpg\n"), ["listed_twice warning"]),
    "entry twice, as CVAT has it": (
        listed("data/images/train/00001.jpg\n"),
        ["listed_twice warning"],
    ),
    "lost folder": (
        data_yaml("train: images/train", "train: [images/train, images/more]"),
        ["entry error"],
    ),
    "lost test": (data_yaml("names:", "test: images/test\nnames:"), ["test_entry info"]),
    # splits
    "leak": (
        both(copied(IMAGE, "images/val/x.jpg"), copied(LABEL, "labels/val/x.txt")),
        ["leak error"],
    ),
    "leak, other file": (
        lambda root: (
            cv2.imwrite(str(root / "images/val/x.png"), cv2.imread(str(root / IMAGE))),
            (root / "labels/val/x.txt").write_text("1 .5 .5 .2 .2\n"),
        ),
        ["leak error"],
    ),
    "leak, smaller": (
        lambda root: (
            Image.open(root / IMAGE).resize((120, 90)).save(root / "images/val/x.jpg"),
            (root / "labels/val/x.txt").write_text("1 .5 .5 .2 .2\n"),
        ),
        ["near_leak warning"],
    ),
    "leak, mirrored": (
        lambda root: (
            Image.open(root / IMAGE).transpose(0).save(root / "images/val/x.jpg"),
            (root / "labels/val/x.txt").write_text("1 .5 .5 .2 .2\n"),
        ),
        ["near_leak warning"],
    ),
    "leak, turned": (
        lambda root: (
            Image.open(root / IMAGE).transpose(2).save(root / "images/val/x.jpg"),
            (root / "labels/val/x.txt").write_text("1 .5 .5 .2 .2\n"),
        ),
        ["near_leak warning"],
    ),
    "class last": (
        lambda root: (root / LABEL).write_text(".5 .5 .2 .2 1\n"),
        ["class_number error"],
    ),
    "upper case": (
        lambda root: (root / LABEL).rename((root / LABEL).with_suffix(".TXT")),
        ["label_name error"],
    ),
    "twice in train": (
        both(copied(IMAGE, "images/train/x.jpg"), copied(LABEL, "labels/train/x.txt")),
        ["twice_in_split warning"],
    ),
    "one split": (
        data_yaml("val: images/val", "val: images/train"),
        ["unreferenced_image info", "same_splits warning"],
    ),
    "no val": (data_yaml("val: images/val", ""), ["unreferenced_image info", "splits error"]),
    "valid": (
        data_yaml("val: images/val", "valid: images/val"),
        ["splits warning"],
    ),
}


def synthetic_png() -> bytes:
    return bytes(cv2.imencode(".png", scenes.scene(99, (120, 160)).image)[1].tobytes())


def found(root: Path) -> list[str]:
    return sorted(f"{f.check} {f.severity}" for f in examine(root).findings)


@pytest.mark.parametrize("form", ["clean_yolo", "clean_voc", "clean_coco"])
def test_clean_data_have_no_findings(form: str, request: pytest.FixtureRequest) -> None:
    report = examine(request.getfixturevalue(form))
    assert report.findings == ()
    assert [s["images"] for s in report.summary["splits"].values()] == [9, 5]
    assert sum(len(p.labels) for p in report.scan.entries) > 30


@pytest.mark.parametrize("name", YOLO)
def test_each_defect_gives_its_finding(name: str, yolo: Path) -> None:
    plant, expected = YOLO[name]
    plant(yolo)
    assert found(yolo) == sorted(expected)


def test_finding_has_file_line_and_message(yolo: Path) -> None:
    count = len((yolo / LABEL).read_text().splitlines())
    line("9 .5 .5 .2 .2")(yolo)
    (finding,) = examine(yolo).findings
    assert finding.file == yolo / LABEL
    assert finding.line == count + 1
    assert finding.image == yolo / IMAGE
    assert "expected a class from 0 to 3, found 9" in finding.message
    assert "correct the line" in finding.message


def annotation(old: str, new: str) -> Plant:
    def plant(root: Path) -> None:
        path = root / "annotations/train00003.xml"
        text = path.read_text()
        changed = re.sub(old, new, text, count=1)
        assert changed != text
        path.write_text(changed)

    return plant


VOC: dict[str, tuple[Plant, list[str]]] = {
    "other size": (annotation("<width>160", "<width>300"), ["size error"]),
    "same shape": (
        annotation("<width>160</width><height>120", "<width>320</width><height>240"),
        ["rescaled warning"],
    ),
    "exchanged": (
        annotation("<width>160</width><height>120", "<width>120</width><height>160"),
        ["size error"],
    ),
    "no size": (annotation("<width>160", "<width>0"), ["size warning"]),
    "stored frame": (
        lambda root: Image.open(root / "images/train00003.jpg").save(
            root / "images/train00003.jpg", exif=exif(6)
        ),
        ["rotation error"],
    ),
    "cut XML": (annotation("</annotation>", ""), ["annotation error"]),
    "entity": (
        annotation("^", '<!DOCTYPE a [<!ENTITY b "c">]>'),
        ["annotation error"],
    ),
    "nameless": (annotation(r"<name>\w+", "<name>"), ["name_empty error"]),
    "not a number": (annotation(r"<xmin>[\d.]+", "<xmin>left"), ["number error"]),
    "no corner": (annotation(r"<xmin>[\d.]+</xmin>", ""), ["columns error"]),
    "slip": (annotation(r"<name>(\w+)</name>", r"<name>\1 </name>"), []),
    "no annotation": (
        lambda root: (root / "annotations/train00003.xml").unlink(),
        ["missing_label error"],
    ),
    "no image": (
        lambda root: (root / "images/train00003.jpg").unlink(),
        ["list_entry error", "unreferenced_label warning"],
    ),
    "unlisted": (
        lambda root: (root / "train.txt").write_text(
            (root / "train.txt").read_text().replace("train00003\n", "")
        ),
        ["unreferenced_image info"],
    ),
    "listed in both": (
        lambda root: (root / "val.txt").write_text((root / "val.txt").read_text() + "train00003\n"),
        ["leak error"],
    ),
    "other name": (
        annotation("<filename>train00003", "<filename>IMG_1"),
        ["other_name info"],
    ),
}


def exif(orientation: int) -> Image.Exif:
    note = Image.Exif()
    note[0x0112] = orientation
    return note


@pytest.mark.parametrize("name", VOC)
def test_voc_defects(name: str, voc: Path) -> None:
    plant, expected = VOC[name]
    plant(voc)
    assert found(voc) == sorted(expected)


def test_misspelt_voc_class(voc: Path) -> None:
    for path in (voc / "annotations").glob("*.xml"):
        path.write_text(path.read_text().replace("washer", "screw").replace("nut", "screw"))
    annotation("<name>screw</name>", "<name>screws</name>")(voc)
    report = examine(voc)
    assert {f.check for f in report.findings if f.severity == "warning"} == {"name_rare"}


def of_json(change: Callable[[dict], object]) -> Plant:
    def plant(root: Path) -> None:
        path = root / "annotations/instances_train.json"
        whole = json.loads(path.read_text())
        change(whole)
        path.write_text(json.dumps(whole))

    return plant


def box(index: int, value: float) -> Plant:
    return of_json(lambda c: c["annotations"][5]["bbox"].__setitem__(index, value))


COCO: dict[str, tuple[Plant, list[str]]] = {
    "no width": (box(2, 0.0), ["no_area error"]),
    "negative width": (box(2, -20.0), ["negative error"]),
    "outside": (box(0, 500.0), ["outside error"]),
    "nan": (box(0, float("nan")), ["not_finite error"]),
    "word": (of_json(lambda c: c["annotations"][5]["bbox"].__setitem__(0, "a")), ["number error"]),
    "no box": (of_json(lambda c: c["annotations"][5].pop("bbox")), ["columns error"]),
    "category": (
        of_json(lambda c: c["annotations"][5].update(category_id=2)),
        ["class_range error"],
    ),
    "image": (
        of_json(lambda c: c["annotations"][5].update(image_id=999)),
        ["unreferenced_label error"],
    ),
    "image twice": (of_json(lambda c: c["images"][1].update(id=0)), ["ids error"]),
    "lost image": (
        lambda root: (root / "images/train/00003.jpg").unlink(),
        ["list_entry error"],
    ),
    "no entry": (of_json(lambda c: c["images"][3].pop("file_name")), ["annotation error"]),
    "size": (of_json(lambda c: c["images"][3].update(width=400)), ["size error"]),
    "id twice": (of_json(lambda c: c["annotations"][5].update(id=0)), ["ids error"]),
    "shares": (
        of_json(lambda c: c["annotations"][5].update(bbox=[0.2, 0.2, 0.3, 0.3])),
        ["twice error"],
    ),
}


@pytest.mark.parametrize("name", COCO)
def test_coco_defects(name: str, coco: Path) -> None:
    plant, expected = COCO[name]
    plant(coco)
    # A missing image also gives findings for its labels.
    follows = {"unreferenced_image info", "unreferenced_label error"} - set(expected)
    assert [x for x in found(coco) if x not in follows] == sorted(expected)


@pytest.mark.parametrize("content", ["[1, 2", "names: [a", "- 1\n- 2"])
def test_unparsable_description(content: str, tmp_path: Path) -> None:
    path = tmp_path / ("data.json" if content == "[1, 2" else "data.yaml")
    path.write_text(content)
    with pytest.raises(DataError, match=path.name):
        examine(path)


def test_folder_and_list_without_data_yaml(yolo: Path) -> None:
    (yolo / "data.yaml").unlink()
    assert found(yolo) == ["undescribed error"]
    (yolo / "train.txt").write_text(f"{yolo / IMAGE}\n")
    report = examine(yolo / "train.txt")
    assert len(report.scan.entries) == 1
    # Training needs a data.yaml and a split val.
    assert {f.check for f in report.findings if f.severity == "error"} == {"undescribed", "splits"}
