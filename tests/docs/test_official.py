"""The commands of docs/official.md, with a file of the published form and a folder of COCO's."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.models.published import published_files
from y7edge.cli import main
from y7edge.data.formats.coco_names import COCO_IDS, COCO_NAMES

TEXT = (Path(__file__).parents[2] / "docs" / "official.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^y7edge (.+)$", TEXT, re.MULTILINE)
IMAGES, CROWD, EMPTY = 5, 2, 3  # number of images; those with a crowd region, without objects


def write_weights(path: Path) -> None:
    """Random weights of yolov7-tiny, as the published training writes them, in half precision."""
    import torch

    from y7edge.models import registry
    from y7edge.models.published.keys import published_key
    from y7edge.nn.random_weights import random_weights

    spec = registry.get("yolov7-tiny", nc=len(COCO_NAMES))
    tensors = published_files.values(spec)
    for key, value in random_weights(spec, seed=1).arrays.items():
        tensor = torch.from_numpy(np.array(value))
        tensors[published_key(key)] = tensor.half() if tensor.is_floating_point() else tensor
    model = published_files.Layout(spec).model(tensors, names=list(COCO_NAMES))
    published_files.write(path, published_files.stripped(model))


def write_coco(folder: Path) -> dict[str, object]:
    """A folder as after unpacking val2017 and the annotations: images of train2017 are missing."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2017").mkdir()
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(IMAGES):
        number, (height, width) = 139 + 7 * index, (480, 640) if index % 2 else (640, 427)
        name = f"{number:012d}.jpg"
        image = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "val2017" / name), image)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for category in COCO_IDS[index * 16 : index * 16 + 16] if index != EMPTY else ():
            x, y, w, h = (round(float(value), 2) for value in generator.uniform(20, 200, 4))
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": category}
            shape = {"bbox": [x, y, w, h], "area": w * h, "segmentation": [corners], "iscrowd": 0}
            annotations.append(annotation | shape)
        if index == CROWD:
            lengths = {"counts": [10, 100, width * height - 110], "size": [height, width]}
            annotation = {"id": 900100000139, "image_id": number, "category_id": 1, "iscrowd": 1}
            annotations.append(annotation | {"bbox": [5, 5, 60, 60], "segmentation": lengths})
    categories = [
        {"supercategory": "thing", "id": number, "name": name}
        for number, name in zip(COCO_IDS, COCO_NAMES, strict=True)
    ]
    content = {"info": {"year": 2017}, "images": images, "annotations": annotations}
    content["categories"] = categories
    missing = [image | {"file_name": f"{image['id'] + 1:012d}.jpg"} for image in images]
    files = {
        "instances_val2017": content,
        "instances_train2017": content | {"images": missing},
        "person_keypoints_val2017": content | {"categories": categories[:1]},
        "captions_val2017": {"images": images, "annotations": [{"image_id": 139, "caption": "a"}]},
    }
    for name, value in files.items():
        (folder / "annotations" / f"{name}.json").write_text(json.dumps(value))
    return content


@pytest.mark.slow
def test_the_commands_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_weights(tmp_path / "yolov7.pt")
    content = write_coco(tmp_path / "coco")
    printed = {}
    assert len(COMMANDS) == 7
    for command in COMMANDS:
        assert main(shlex.split(command)) == 0, (command, capsys.readouterr())
        printed[command] = capsys.readouterr().out
    assert "GPL-3.0" in printed["info yolov7.pt"]
    assert main(["info", "yolov7.onnx"]) == 0
    assert "GPL-3.0" in capsys.readouterr().out

    results = []
    for model in ("yolov7.pt", "yolov7.onnx"):
        assert main(["val", model, "--data", "coco", "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["map50"] == pytest.approx(results[1]["map50"], abs=1e-3)
    labelled = {entry["name"]: entry["labels"] for entry in results[0]["per_class"]}
    assert list(labelled) == list(COCO_NAMES)
    expected = [0 if 16 * EMPTY <= i < 16 * EMPTY + 16 else 1 for i in range(len(COCO_NAMES))]
    assert list(labelled.values()) == expected  # the crowd region is not a person to be found

    detections = json.loads(Path("evaluation/predictions.json").read_text())
    assert {one["image_id"] for one in detections} <= {one["id"] for one in content["images"]}
    assert {one["category_id"] for one in detections} <= set(COCO_IDS)
    assert max(one["category_id"] for one in detections) > len(COCO_IDS)
    assert len(Path("found.jsonl").read_text().splitlines()) > IMAGES
