"""The cleaned copy has no errors or warnings, and the original is not changed."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from y7edge.data.check import fix as fixing
from y7edge.data.check.examine import examine
from y7edge.data.check.fix import write_copy
from y7edge.data.dataset import load
from y7edge.data.images import read_image
from y7edge.errors import DataError, OutputError

_spec = importlib.util.spec_from_file_location("defects", Path(__file__).parent / "test_defects.py")
assert _spec is not None
defects = importlib.util.module_from_spec(_spec)
sys.modules["defects"] = defects
_spec.loader.exec_module(defects)

# One defect of each kind of error, and the warnings that change the copy most.
FIRST: dict[str, tuple[str, str]] = {}
for _form in ("YOLO", "VOC", "COCO"):
    for _name, (_, _expected) in getattr(defects, _form).items():
        for _found in _expected:
            if _found.endswith("error"):
                FIRST.setdefault(_found, (_form, _name))
CASES = [*dict.fromkeys(FIRST.values()), ("YOLO", "turned"), ("YOLO", "png in jpg")]
CASES += [("YOLO", "one split"), ("YOLO", "twice in train"), ("VOC", "other size")]
HOPELESS = {"no labels"}
NOT_FIXED = {"unlabelled val": "not fixed: splits"}


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(("form", "name"), CASES)
def test_copy_is_clean(
    form: str, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = request.getfixturevalue(form.lower())
    getattr(defects, form)[name][0](root)
    before = digests(root)
    out = tmp_path / "out"
    report = examine(root)
    if name in HOPELESS:
        with pytest.raises(DataError, match="expected labels that can be copied"):
            write_copy(report, out)
        assert not [path for path in tmp_path.iterdir() if path != root]
    else:
        cleaned = write_copy(report, out)
        if name in NOT_FIXED:
            assert cleaned.losses == (NOT_FIXED[name],)
            return
        assert cleaned.after.count("error") == 0
        assert load(out / "data.yaml").warnings == ()
        if report.count("error"):
            assert cleaned.changes
    assert digests(root) == before


def test_clean_data_are_copied(yolo: Path, tmp_path: Path) -> None:
    cleaned = write_copy(examine(yolo), tmp_path / "out")
    assert cleaned.changes == ()
    assert cleaned.unchanged == ()
    first, second = load(yolo), load(tmp_path / "out")
    for split in ("train", "val"):
        for one, other in zip(first.split(split), second.split(split), strict=True):
            assert one.path.read_bytes() == other.path.read_bytes()
            np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-6)
            assert (one.class_id == other.class_id).all()


@pytest.mark.parametrize("orientation", range(2, 9))
def test_boxes_are_rotated_with_image(orientation: int, voc: Path, tmp_path: Path) -> None:
    """Check that the box in the copy matches a dark square labelled on the stored image."""
    pixels = np.full((120, 160, 3), 220, np.uint8)
    pixels[20:50, 90:140] = 20
    path = voc / "images/train00003.jpg"
    Image.fromarray(pixels).save(path, quality=95, exif=defects.exif(orientation))
    (voc / "annotations/train00003.xml").write_text(
        "<annotation><size><width>160</width><height>120</height></size><object><name>nut</name>"
        "<bndbox><xmin>90</xmin><ymin>20</ymin><xmax>140</xmax><ymax>50</ymax></bndbox></object>"
        "</annotation>"
    )
    write_copy(examine(voc), tmp_path / "out")
    sample = next(s for s in load(tmp_path / "out").split("train") if s.path.stem == "train00003")
    with Image.open(sample.path) as opened:
        assert opened.getexif().get(0x0112, 1) == 1
    image = read_image(sample.path)
    dark = np.argwhere(image.mean(axis=2) < 100)
    (y1, x1), (y2, x2) = dark.min(axis=0), dark.max(axis=0) + 1
    height, width = image.shape[:2]
    cx, cy, w, h = sample.boxes[0] * (width, height, width, height)
    drawn = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    if orientation >= 5:  # only these swap width and height, which shows the frame of the boxes
        np.testing.assert_allclose(drawn, (x1, y1, x2, y2), atol=1.5)


@pytest.mark.parametrize("name", ["pixels", "twice", "negative size"])
def test_unambiguous_repairs(name: str, yolo: Path, tmp_path: Path) -> None:
    stem = Path(defects.LABEL).stem
    right = next(s for s in load(yolo).split("train") if s.path.stem == stem)
    defects.YOLO[name][0](yolo)
    write_copy(examine(yolo), tmp_path / "out")
    boxes = next(s for s in load(tmp_path / "out").split("train") if s.path.stem == stem).boxes
    np.testing.assert_allclose(boxes[: len(right.boxes)], right.boxes, atol=1e-5)
    assert len(boxes) == len(right.boxes) + (name == "negative size")


def test_leaks_are_removed_from_train(yolo: Path, tmp_path: Path) -> None:
    defects.YOLO["leak"][0](yolo)
    write_copy(examine(yolo), tmp_path / "out")
    data = load(tmp_path / "out")
    assert len(data.split("train")) == 8
    assert len(data.split("val")) == 6


def test_changes_csv(yolo: Path, tmp_path: Path) -> None:
    for name in ("nan", "class beyond", "sticks out", "twin"):
        defects.YOLO[name][0](yolo)
    defects.YOLO["turned"][0](yolo)
    cleaned = write_copy(examine(yolo), tmp_path / "out")
    with (tmp_path / "out/changes.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(cleaned.changes) == 5
    done = " ".join(row["done"] for row in rows)
    assert all(word in done for word in ("not_finite", "class '4'", "clipped", "once", "upright"))
    assert {row["file"] for row in rows} == {defects.LABEL, defects.IMAGE}
    assert all(int(row["line"]) > 0 for row in rows if row["file"] == defects.LABEL)


@pytest.mark.parametrize("where", ["data/out", "data/images/train/out", "full"])
def test_invalid_destinations(where: str, yolo: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    before = digests(tmp_path)
    with pytest.raises(DataError, match="folder"):
        write_copy(examine(yolo), tmp_path / where)
    assert digests(tmp_path) == before


def test_interrupted_copy_leaves_no_files(
    yolo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fixing, "_write_description", fail)
    with pytest.raises(OutputError, match="out: cannot write the cleaned copy: the disk is full"):
        write_copy(examine(yolo), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_equal_image_names_are_made_unique(yolo: Path, tmp_path: Path) -> None:
    defects.YOLO["one label file for two"][0](yolo)
    cleaned = write_copy(examine(yolo), tmp_path / "out")
    assert len(load(tmp_path / "out").split("train")) == 10
    assert any("00003_2" in change.done for change in cleaned.changes)


def test_voc_split_folders_are_fixed(voc: Path, tmp_path: Path) -> None:
    exported = tmp_path / "exported"
    for split, name in (("train", "train"), ("val", "valid")):
        (exported / name).mkdir(parents=True)
        for stem in (voc / f"{split}.txt").read_text().split():
            shutil.copy(voc / "annotations" / f"{stem}.xml", exported / name)
            shutil.copy(next((voc / "images").glob(f"{stem}.*")), exported / name)
    clean = examine(exported)
    assert {finding.check for finding in clean.findings} == {
        finding.check for finding in examine(voc).findings
    }
    bare = sorted((exported / "train").glob("*.xml"))[0]
    shutil.move(bare, bare.with_stem("unused"))
    found = examine(exported).by_check()
    assert [f.file.name for f in found["unreferenced_label", "warning"]] == ["unused.xml"]
    assert [f.file.stem for f in found["missing_label", "error"]] == [bare.stem]
    write_copy(examine(exported), tmp_path / "out")
    assert len(load(tmp_path / "out").split("val")) == len(load(exported, ["val"]).split("val"))
