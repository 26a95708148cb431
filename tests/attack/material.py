"""Small valid files of every kind, which mutations start from."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

Entry = dict[str, Any]
SIZE = (64, 96)
CLASSES = ("nut", "washer", "schraube mit Öse")


def make_all(folder: Path) -> None:
    """Write all material in a fork, which keeps engines and threads out of this process."""
    os.environ["Y7EDGE_CACHE"] = str(folder / "cache")
    for make in (_sets, _images, _videos, _models, _official, _run):
        make(folder)


def forked(work: Callable[[Path], None], folder: Path) -> None:
    """Run a function in a child process and wait for it."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            work(folder)
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the valid files could not be made")


def _sets(folder: Path) -> None:
    """Write one data set as YOLO, COCO and Pascal VOC."""
    yolo = folder / "yolo"
    boxes = [(0, 0.3, 0.4, 0.2, 0.3), (1, 0.6, 0.5, 0.25, 0.25), (2, 0.5, 0.7, 0.4, 0.2)]
    width, height = 96, 64
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for kind in ("images", "labels"):
            (yolo / kind / split).mkdir(parents=True)
        images: list[Entry] = []
        annotations: list[Entry] = []
        for index in range(count):
            name = f"{split}{index}"
            coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
            image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(yolo / "images" / split / f"{name}.jpg"), image)
            lines = [" ".join(map(str, box)) for box in boxes[: 2 + index % 2]]
            (yolo / "labels" / split / f"{name}.txt").write_text("\n".join(lines) + "\n")
            images.append({"id": index, "file_name": f"{name}.jpg", "width": 96, "height": 64})
            for number, cx, cy, w, h in boxes[: 2 + index % 2]:
                left, top = (cx - w / 2) * width, (cy - h / 2) * height
                corners = [left, top, left + w * width, top, left + w * width, top + h * height]
                annotations.append(
                    {
                        "id": len(annotations),
                        "image_id": index,
                        "category_id": 1 + 3 * number,
                        "bbox": [left, top, w * width, h * height],
                        "area": w * h * width * height,
                        "iscrowd": 0,
                        "segmentation": [[*corners, left, top + h * height]],
                    }
                )
        categories = [{"id": 1 + 3 * i, "name": name} for i, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        _as_coco(folder, yolo, split, content)
        _as_voc(folder, yolo, split, content)
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(CLASSES))
    (yolo / "data.yaml").write_text(
        f"path: .\ntrain: images/train\nval: images/val\nnc: 3\nnames:\n{names}", encoding="utf-8"
    )


def _as_coco(folder: Path, yolo: Path, split: str, content: dict[str, list[Entry]]) -> None:
    coco = folder / "coco"
    (coco / "annotations").mkdir(parents=True, exist_ok=True)
    shutil.copytree(yolo / "images" / split, coco / "images" / split)
    (coco / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _as_voc(folder: Path, yolo: Path, split: str, content: dict[str, list[Entry]]) -> None:
    voc = folder / "voc"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (voc / name).mkdir(parents=True, exist_ok=True)
    stems = []
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    for image in content["images"]:
        stem = str(image["file_name"])[:-4]
        stems.append(stem)
        shutil.copy(yolo / "images" / split / f"{stem}.jpg", voc / "JPEGImages")
        objects = ""
        for entry in content["annotations"]:
            if entry["image_id"] == image["id"]:
                x, y, w, h = entry["bbox"]
                sides = zip(("xmin", "ymin", "xmax", "ymax"), (x, y, x + w, y + h), strict=True)
                box = "".join(f"<{name}>{value:.1f}</{name}>" for name, value in sides)
                objects += (
                    f"<object>\n<name>{names[entry['category_id']]}</name>"
                    f"<difficult>0</difficult><bndbox>{box}</bndbox></object>\n"
                )
        (voc / "Annotations" / f"{stem}.xml").write_text(
            f"<annotation>\n<folder>JPEGImages</folder><filename>{stem}.jpg</filename>\n<size>"
            f"<width>96</width><height>64</height><depth>3</depth></size>\n{objects}</annotation>\n",
            encoding="utf-8",
        )
    (voc / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")


def _images(folder: Path) -> None:
    images = folder / "images"
    images.mkdir()
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    for suffix in ("jpg", "png", "bmp", "tif", "webp", "gif", "ppm"):
        image.save(images / f"a.{suffix}")
    exif = Image.Exif()
    exif[274] = 6
    image.save(images / "turned.jpg", exif=exif)
    image.convert("CMYK").save(images / "cmyk.jpg")
    image.convert("P").save(images / "palette.png")
    Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 200).save(images / "deep.png")
    image.save(images / "progressive.jpg", progressive=True)


def _videos(folder: Path) -> None:
    videos = folder / "videos"
    videos.mkdir()
    frames = np.random.default_rng(2).integers(0, 256, (5, 48, 64, 3), dtype=np.uint8)
    for suffix, code in (("avi", "MJPG"), ("mp4", "mp4v"), ("mkv", "mp4v")):
        writer = cv2.VideoWriter(
            str(videos / f"v.{suffix}"), cv2.VideoWriter.fourcc(*code), 10, (64, 48)
        )
        for frame in frames:
            writer.write(frame)
        writer.release()
    stills = [Image.fromarray(frame) for frame in frames]
    stills[0].save(videos / "v.gif", save_all=True, append_images=stills[1:], duration=100)
    stills[0].save(videos / "v.apng", save_all=True, append_images=stills[1:], format="PNG")


def _models(folder: Path) -> None:
    """Write a checkpoint of each form and an artifact of each target."""
    from y7edge.export import export
    from y7edge.export.folding import fold_checkpoint
    from y7edge.models import registry, weights
    from y7edge.models.scaling import scale
    from y7edge.nn.random_weights import random_weights

    spec = scale(registry.get("yolov7-tiny", nc=len(CLASSES)), width=0.125)
    meta = {"imgsz": [64, 96], "epoch": 3, "licence": "MIT", "thresholds": {"conf": 0.3}}
    checkpoint = replace(random_weights(spec, seed=1), names=CLASSES, meta=meta)
    weights.save(checkpoint, folder / "model.safetensors")
    weights.save(fold_checkpoint(checkpoint), folder / "folded.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for target, name in (("onnx", "model.onnx"), ("openvino", "model.xml")):
            export(checkpoint, folder / name, target=target, imgsz=SIZE)


def _official(folder: Path) -> None:
    """Write published files in both containers, and files with weights only."""
    from tests.models.published import published_files as published
    from y7edge.models import registry

    spec = registry.get("yolov7-tiny", nc=3)
    values = published.values(spec)
    model = published.Layout(spec).model(values, list(CLASSES))
    for name, legacy in (("zip.pt", False), ("legacy.pt", True)):
        published.write(folder / name, published.stripped(model), legacy=legacy)
    published.write(folder / "weights.pt", {"model": values})


def _run(folder: Path) -> None:
    """Write a run that was interrupted after its first epoch."""
    from y7edge.train.output import folder as files
    from y7edge.train.run import state
    from y7edge.train.run.loop import train
    from y7edge.train.run.progress import Progress
    from y7edge.train.settings.config import TrainConfig

    class Stop(Progress):
        def step(self, status: object) -> None:
            if getattr(status, "epoch", 0) == 2:
                raise KeyboardInterrupt

    config = TrainConfig(
        data=folder / "yolo",
        width=0.125,
        imgsz=64,
        epochs=2,
        batch=2,
        workers=0,
        report=False,
        autoanchor=False,
        out=folder / "run",
    )
    try:
        train(config, progress=Stop())
    except KeyboardInterrupt:
        state.read(folder / "run" / files.STATE)
    else:
        raise RuntimeError("the run was not interrupted")
