"""16-bit images are scaled by the levels of the data.yaml, in training and inference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from y7edge.artifact.description import describe
from y7edge.artifact.manifest import InputInfo
from y7edge.data.dataset import load
from y7edge.data.images import read_image, to_bytes
from y7edge.detect.preprocess import Preprocessor
from y7edge.errors import ArtifactError, DataError
from y7edge.models import registry
from y7edge.models.checkpoint import Checkpoint
from y7edge.sources.uri import open_source
from y7edge.train.loading.image_cache import open_cache

LEVELS = (2000, 3000)
DEEP = np.random.default_rng(0).integers(1900, 3100, (64, 64, 3)).astype(np.uint16)


@pytest.fixture
def deep(yolo: Path) -> Path:
    for path in sorted((yolo / "images").rglob("*.jpg")):
        cv2.imwrite(str(path.with_suffix(".png")), DEEP)
        path.unlink()
    with (yolo / "data.yaml").open("a") as stream:
        stream.write(f"levels: {list(LEVELS)}\n")
    return yolo


@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
def test_training_and_evaluation_scale_by_levels(
    cache: str, deep: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("Y7EDGE_CACHE", str(tmp_path / "cache"))
    samples = load(deep).split("train")
    plain = [replace(sample, levels=None) for sample in samples]
    np.testing.assert_array_equal(open_cache(cache, plain, 64)[0], read_image(samples[0].path))
    np.testing.assert_array_equal(open_cache(cache, samples, 64)[0], to_bytes(DEEP, LEVELS))
    image = read_image(samples[0].path, samples[0].levels)
    np.testing.assert_array_equal(image, to_bytes(DEEP, LEVELS))


def test_predict_scales_16_bits_only(deep: Path, tmp_path: Path) -> None:
    (found,) = open_source(sorted((deep / "images/train").iterdir())[0], levels="2000-3000")
    np.testing.assert_array_equal(found.image, to_bytes(DEEP, LEVELS))
    cv2.imwrite(str(tmp_path / "a.png"), to_bytes(DEEP, LEVELS))
    (found,) = open_source(tmp_path / "a.png", levels="2000-3000")
    np.testing.assert_array_equal(found.image, to_bytes(DEEP, LEVELS))


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [([2000, 3000], LEVELS), (None, None), ("x", None), ([1], None), ([1.5, 2], None)],
)
def test_artifact_has_levels_of_checkpoint(recorded: object, expected: object) -> None:
    spec = registry.get("yolov7-tiny", nc=1)
    meta = {"data": {"levels": recorded}}
    checkpoint = Checkpoint(spec, {}, ("a",), meta=meta)
    manifest = describe(checkpoint, spec, (64, 64), tools={})
    assert manifest.input.levels == expected
    assert type(manifest).from_json(manifest.to_json()) == manifest


def test_preprocessor_scales_16_bit_frames() -> None:
    knows = Preprocessor(InputInfo("images", 1, 64, 64, levels=LEVELS))
    plain = Preprocessor(InputInfo("images", 1, 64, 64))
    plain(to_bytes(DEEP, LEVELS))
    knows(DEEP)
    np.testing.assert_array_equal(knows.tensor, plain.tensor)
    with pytest.raises(DataError, match=r"to_bytes\(frame"):
        plain(DEEP)


@pytest.mark.parametrize("levels", [(5, 5), (9, 2), (-1, 5), (0, 65536)])
def test_invalid_levels(levels: tuple[int, int]) -> None:
    with pytest.raises(ArtifactError, match="levels are"):
        InputInfo("images", 1, 64, 64, levels=levels)
