"""Images for a proof: the user's, else the data set's, else synthetic scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from y7edge.files import is_file, is_folder, reason, require_regular

COUNT = 8
"""The most images that a proof uses."""

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
_SCENE_SIZE = (480, 640)  # as from a camera: tests the letterbox too

Images = str | Path | Sequence[str | Path]
"""An image, a folder of them, or a list of paths."""


@dataclass(frozen=True)
class ProofImages:
    """Images and their source.

    ``frames``: as read, (h, w, 3) BGR uint8; ``inputs``: letterboxed, each
    (1, 3, H, W) float32 RGB 0..1.
    """

    frames: tuple[NDArray[np.uint8], ...]
    inputs: tuple[NDArray[np.float32], ...]
    source: str


def gather(images: Images | None, meta: Mapping[str, Any], image: InputInfo) -> ProofImages:
    """Read up to 8 images and letterbox them to the input ``image``.

    ``images`` None: those of the data set in the checkpoint's ``meta`` if it still exists, else
    synthetic scenes.

    Raises:
        DataError: ``images`` holds no image, or one cannot be read.
    """
    if images is not None:
        paths, source = _listed(images), f"{images}"
    else:
        recorded, paths = _recorded(meta)
        source = f"data set {recorded}"
        if not paths:
            source = "scenes made by y7edge"
            if recorded is not None:
                source += f" (the recorded data set {recorded} is not here)"
    chosen = [paths[i * len(paths) // COUNT] for i in range(COUNT)] if paths[COUNT:] else paths
    if paths:
        frames = tuple(map(read_image, chosen))
    else:
        frames = tuple(scenes.scene(seed, _SCENE_SIZE).image for seed in range(COUNT))
    return ProofImages(frames, tuple(_letterboxed(frame, image) for frame in frames), source)


def placement(frame_hw: tuple[int, int], image: InputInfo) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a resized image in the input."""
    factor = min(image.height / frame_hw[0], image.width / frame_hw[1])
    rows, columns = (max(1, round(side * factor)) for side in frame_hw)
    spare = image.height - rows, image.width - columns
    return round(spare[0] / 2 - 0.1), round(spare[1] / 2 - 0.1), rows, columns


def _letterboxed(frame: NDArray[np.uint8], image: InputInfo) -> NDArray[np.float32]:
    """Letterbox independently of the Detector's pre-processing, which the proof checks."""
    top, left, rows, columns = placement((frame.shape[0], frame.shape[1]), image)
    canvas = np.full((image.height, image.width, 3), image.letterbox.pad, np.uint8)
    canvas[top : top + rows, left : left + columns] = cv2.resize(
        frame, (columns, rows), interpolation=cv2.INTER_LINEAR
    )
    planes = (canvas[..., ::-1] if image.color == "rgb" else canvas).transpose(2, 0, 1)
    return np.ascontiguousarray(planes[None], np.float32) / np.float32(1 / image.scale)


def _listed(images: Images) -> list[Path]:
    """Return the images that the user named."""
    given = [images] if isinstance(images, str | Path) else list(images)
    found: list[Path] = []
    for path in map(Path, given):
        try:
            if is_folder(path):
                found += sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
            else:
                require_regular(path)
                found.append(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {reason(error)}") from error
    if not found:
        raise DataError(f"no images in {images}: expected a folder of {', '.join(_SUFFIXES)}")
    return found


def _recorded(meta: Mapping[str, Any]) -> tuple[str | None, list[Path]]:
    """Return the data set that the checkpoint was trained on, and its images if it exists."""
    data = meta.get("data")
    path = data.get("path") if isinstance(data, Mapping) else None
    if not isinstance(path, str):
        return None, []
    if not is_file(path) and not is_folder(path):
        return path, []
    try:
        splits = dataset.load(path).splits
    except (DataError, RuntimeMissing):  # changed since; the report says so
        return path, []
    held_out = splits.get("val") or splits.get("test") or splits.get("train") or ()
    return path, [sample.path for sample in held_out]
