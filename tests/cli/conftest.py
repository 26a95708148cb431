"""A checkpoint in a file, and a small data set with its classes."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from y7edge.data.synthetic import scenes
from y7edge.models import weights
from y7edge.models.checkpoint import Checkpoint


@pytest.fixture(scope="session")
def checkpoint_path(narrow_tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that the artifact of ``artifact_path`` came from."""
    path = tmp_path_factory.mktemp("checkpoint") / "narrow.safetensors"
    weights.save(narrow_tiny, path)
    return path


@pytest.fixture(scope="session")
def data(narrow_tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images to train on and three to evaluate on, each with one object of each class."""
    root = tmp_path_factory.mktemp("data")
    for split, seeds in (("train", range(6)), ("val", range(6, 9))):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for seed in seeds:
            image = scenes.scene(seed, (96, 128)).image
            cv2.imwrite(str(root / "images" / split / f"{seed}.png"), image)
            lines = [f"{c} 0.{c + 3} 0.5 0.2 0.3\n" for c in range(len(narrow_tiny.names))]
            (root / "labels" / split / f"{seed}.txt").write_text("".join(lines))
    names = "".join(f"  - {name}\n" for name in narrow_tiny.names)
    text = f"train: images/train\nval: images/val\nnames:\n{names}"
    (root / "data.yaml").write_text(text, encoding="utf-8")
    return root / "data.yaml"
