"""Convert a Pascal VOC folder, or any data set that y7edge reads, to YOLO format.

    python examples/voc_to_yolo.py VOC_FOLDER OUT_FOLDER

Training reads VOC folders directly. Use this script for other tools, or to edit labels by hand.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from y7edge.data.dataset import load
from y7edge.errors import Y7EdgeError


def convert(source: Path, target: Path) -> Path:
    """Copy images, write labels and ``data.yaml``; return the path of ``data.yaml``."""
    data = load(source)
    for split, samples in data.splits.items():
        images, labels = target / "images" / split, target / "labels" / split
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        for sample in samples:
            shutil.copy2(sample.path, images)
            lines = [
                f"{class_id} " + " ".join(f"{value:.6f}" for value in box)
                for class_id, box in zip(sample.class_id, sample.boxes, strict=True)
            ]
            text = "".join(f"{line}\n" for line in lines)
            (labels / f"{sample.path.stem}.txt").write_text(text, encoding="utf-8")
    splits = "".join(f"{split}: images/{split}\n" for split in data.splits)
    # JSON is valid YAML, and quotes the names.
    description = f"{splits}names: {json.dumps(data.names)}\n"
    (target / "data.yaml").write_text(description, encoding="utf-8")
    return target / "data.yaml"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/voc_to_yolo.py VOC_FOLDER OUT_FOLDER")
    try:
        print(convert(Path(sys.argv[1]), Path(sys.argv[2])))
    except (Y7EdgeError, OSError) as error:
        sys.exit(f"error: {error}")
