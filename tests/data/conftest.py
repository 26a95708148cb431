"""Fixtures: a small clean data set in each of the three formats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from y7edge.data.synthetic import scenes

TRAIN, VAL = 9, 5


@pytest.fixture(scope="session")
def clean_yolo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clean") / "yolo"
    scenes.generate(root, train=TRAIN, val=VAL, seed=3, size=(120, 160))
    return root


def boxes_of(label: Path, width: int = 160, height: int = 120) -> list[tuple[int, list[float]]]:
    """Return class and pixel corners of each line of a label file."""
    found = []
    for line in label.read_text().splitlines():
        kind, cx, cy, w, h = map(float, line.split())
        corners = [(cx - w / 2) * width, (cy - h / 2) * height]
        corners += [(cx + w / 2) * width, (cy + h / 2) * height]
        found.append((int(kind), [round(value, 1) for value in corners]))
    return found


@pytest.fixture(scope="session")
def clean_voc(clean_yolo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clean") / "voc"
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        stems = []
        for image in sorted((clean_yolo / "images" / split).iterdir()):
            stem = f"{split}{image.stem}"
            stems.append(stem)
            shutil.copy(image, root / "images" / f"{stem}.jpg")
            objects = "".join(
                f"<object>\n<name>{scenes.NAMES[kind]}</name><bndbox><xmin>{x1}</xmin>"
                f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>\n"
                for kind, (x1, y1, x2, y2) in boxes_of(
                    clean_yolo / "labels" / split / f"{image.stem}.txt"
                )
            )
            (root / "annotations" / f"{stem}.xml").write_text(
                f"<annotation>\n<filename>{stem}.jpg</filename>\n<size><width>160</width>"
                f"<height>120</height><depth>3</depth></size>\n{objects}</annotation>\n"
            )
        (root / f"{split}.txt").write_text("\n".join(stems) + "\n")
    return root


@pytest.fixture(scope="session")
def clean_coco(clean_yolo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clean") / "coco"
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        shutil.copytree(clean_yolo / "images" / split, root / "images" / split)
        images, annotations = [], []
        for number, image in enumerate(sorted((root / "images" / split).iterdir())):
            width, height = Image.open(image).size
            images.append({"id": number, "file_name": image.name, "width": width, "height": height})
            labels = clean_yolo / "labels" / split / f"{image.stem}.txt"
            for kind, (x1, y1, x2, y2) in boxes_of(labels):
                entry = {"id": len(annotations), "image_id": number, "category_id": kind * 3 + 1}
                entry["bbox"] = [x1, y1, x2 - x1, y2 - y1]
                annotations.append({**entry, "iscrowd": 0})
        categories = [{"id": i * 3 + 1, "name": name} for i, name in enumerate(scenes.NAMES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def yolo(clean_yolo: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean_yolo, tmp_path / "data"))


@pytest.fixture
def voc(clean_voc: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean_voc, tmp_path / "voc"))


@pytest.fixture
def coco(clean_coco: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean_coco, tmp_path / "coco"))
