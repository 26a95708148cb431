"""Images that a proof is made with: the user's, else the data set's, else synthetic scenes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.manifest import InputInfo
from y7edge.data import dataset
from y7edge.data.images import read_image
from y7edge.data.synthetic import scenes
from y7edge.errors import DataError, RuntimeMissing

COUNT = 8
"""How many images a proof uses at most."""

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
_SCENE_SIZE = (480, 640)  # like a camera's: the letterbox is exercised too

Images = str | Path | Sequence[str | Path]
"""An image, a folder of them, or a list of paths."""


@dataclass(frozen=True)
class ProofImages:
    """Images and where they came from.

    ``frames`` are as they were read, (h, w, 3) BGR uint8; ``inputs`` the same letterboxed, each
    (1, 3, H, W) float32 RGB 0..1.
    """

    frames: tuple[NDArray[np.uint8], ...]
    inputs: tuple[NDArray[np.float32], ...]
    source: str


def gather(images: Images | None, meta: Mapping[str, Any], image: InputInfo) -> ProofImages:
    """Take up to 8 images and letterbox them to the model's input.

    Args:
        images: the user's; None: those of the data set that ``meta`` records, if it is still where
            it was, else scenes made by the package.
        meta: of the checkpoint.
        image: the model's input.

    Raises:
        DataError: ``images`` holds no image, or one cannot be read.
    """
    if images is not None:
        paths = _listed(images)
        return _prepare([partial(read_image, p) for p in paths], f"{images}", image)
    recorded, paths = _recorded(meta)
    if paths:
        return _prepare([partial(read_image, p) for p in paths], f"data set {recorded}", image)
    source = "scenes made by y7edge"
    if recorded is not None:
        source += f" (the recorded data set {recorded} is not here)"
    return _prepare([partial(_scene, seed) for seed in range(COUNT)], source, image)


def _scene(seed: int) -> NDArray[np.uint8]:
    return scenes.scene(seed, _SCENE_SIZE).image


def _prepare(
    readers: Sequence[Callable[[], NDArray[np.uint8]]], source: str, image: InputInfo
) -> ProofImages:
    frames = tuple(read() for read in readers)
    return ProofImages(frames, tuple(_letterboxed(frame, image) for frame in frames), source)


def placement(frame_hw: tuple[int, int], image: InputInfo) -> tuple[int, int, int, int]:
    """Top, left, height and width of a resized image in the input."""
    factor = min(image.height / frame_hw[0], image.width / frame_hw[1])
    rows, columns = (max(1, round(side * factor)) for side in frame_hw)
    spare = image.height - rows, image.width - columns
    return round(spare[0] / 2 - 0.1), round(spare[1] / 2 - 0.1), rows, columns


def _letterboxed(frame: NDArray[np.uint8], image: InputInfo) -> NDArray[np.float32]:
    """Independent of the Detector's pre-processing, which the proof compares with this one."""
    top, left, rows, columns = placement((frame.shape[0], frame.shape[1]), image)
    canvas = np.full((image.height, image.width, 3), image.letterbox.pad, np.uint8)
    canvas[top : top + rows, left : left + columns] = cv2.resize(
        frame, (columns, rows), interpolation=cv2.INTER_LINEAR
    )
    planes = (canvas[..., ::-1] if image.color == "rgb" else canvas).transpose(2, 0, 1)
    return np.ascontiguousarray(planes[None], np.float32) / np.float32(1 / image.scale)


def _listed(images: Images) -> list[Path]:
    """The images that the user named, 8 of them spread evenly over a longer list."""
    given = [images] if isinstance(images, str | Path) else list(images)
    found: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
        else:
            found.append(path)
    if not found:
        raise DataError(f"no images in {images}: expected a folder of {', '.join(_SUFFIXES)}")
    return _spread(found)


def _recorded(meta: Mapping[str, Any]) -> tuple[str | None, list[Path]]:
    """(path of the data set that the checkpoint was trained on, images of it if it is here)."""
    data = meta.get("data")
    path = data.get("path") if isinstance(data, Mapping) else None
    if not isinstance(path, str):
        return None, []
    if not Path(path).exists():
        return path, []
    try:
        splits = dataset.load(path).splits
    except (DataError, RuntimeMissing):  # it was changed since; the report says so
        return path, []
    held_out = splits.get("val") or splits.get("test") or splits.get("train") or ()
    return path, _spread([sample.path for sample in held_out])


def _spread(paths: list[Path]) -> list[Path]:
    if len(paths) <= COUNT:
        return paths
    return [paths[i * len(paths) // COUNT] for i in range(COUNT)]
