"""Collect images for a proof: from the user, from the data set, or synthetic scenes."""

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
"""Largest number of images in a proof."""

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
_SCENE_SIZE = (480, 640)  # not square, so that letterboxing is tested

Images = str | Path | Sequence[str | Path]
"""An image, a folder of them, or a list of paths."""

Named = tuple[str, Sequence[Path]]
"""What images are called in reports, and their paths."""


@dataclass(frozen=True)
class ProofImages:
    """Images of a proof.

    Attributes:
        frames: Original images, each (h, w, 3) uint8, BGR.
        inputs: Letterboxed images, each (1, 3, H, W) float32, RGB, 0 to 1.
        source: Where the images come from, for reports.
    """

    frames: tuple[NDArray[np.uint8], ...]
    inputs: tuple[NDArray[np.float32], ...]
    source: str


def gather(
    images: Images | None,
    meta: Mapping[str, Any],
    image: InputInfo,
    *,
    evaluated: Named | None = None,
    calibrated: Named | None = None,
) -> ProofImages:
    """Read up to 8 images and letterbox them to the input ``image``.

    The first of these that is there: ``images``; ``evaluated``, the images of the mAP; those of the
    data set recorded in the checkpoint's ``meta``; ``calibrated``, the images of the calibration;
    synthetic scenes.

    Raises:
        DataError: ``images`` contains no image, or an image cannot be read.
    """
    if images is not None:
        paths, source = _listed(images), f"{images}"
    elif evaluated is not None:
        source, paths = evaluated[0], list(evaluated[1])
    else:
        recorded, paths = _recorded(meta)
        source = f"data set {recorded}"
        if not paths and calibrated is not None:
            source, paths = calibrated[0], list(calibrated[1])
        elif not paths:
            source = "synthetic scenes"
            if recorded is not None:
                source += (
                    f" (the recorded data set {recorded} does not exist here: pass --data DATA or "
                    "--images FOLDER to compare on other images)"
                )
    chosen = [paths[i * len(paths) // COUNT] for i in range(COUNT)] if paths[COUNT:] else paths
    if paths:
        frames = tuple(map(read_image, chosen))
    else:
        frames = tuple(scenes.scene(seed, _SCENE_SIZE).image for seed in range(COUNT))
    return ProofImages(frames, tuple(_letterboxed(frame, image) for frame in frames), source)


def placement(frame_hw: tuple[int, int], image: InputInfo) -> tuple[int, int, int, int]:
    """Return top, left, height and width, in pixels, of the resized image in the input."""
    factor = min(image.height / frame_hw[0], image.width / frame_hw[1])
    rows, columns = (max(1, round(side * factor)) for side in frame_hw)
    spare = image.height - rows, image.width - columns
    return round(spare[0] / 2 - 0.1), round(spare[1] / 2 - 0.1), rows, columns


def _letterboxed(frame: NDArray[np.uint8], image: InputInfo) -> NDArray[np.float32]:
    """Letterbox an image without the Detector's preprocessing, which the proof checks."""
    top, left, rows, columns = placement((frame.shape[0], frame.shape[1]), image)
    canvas = np.full((image.height, image.width, 3), image.letterbox.pad, np.uint8)
    canvas[top : top + rows, left : left + columns] = cv2.resize(
        frame, (columns, rows), interpolation=cv2.INTER_LINEAR
    )
    planes = (canvas[..., ::-1] if image.color == "rgb" else canvas).transpose(2, 0, 1)
    return np.ascontiguousarray(planes[None], np.float32) / np.float32(255)


def _listed(images: Images) -> list[Path]:
    """List the images that the user gave."""
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
        raise DataError(f"{images}: no images found, expected files {', '.join(_SUFFIXES)}")
    return found


def _recorded(meta: Mapping[str, Any]) -> tuple[str | None, list[Path]]:
    """Return the path of the checkpoint's data set, and its images if it still exists."""
    data = meta.get("data")
    path = data.get("path") if isinstance(data, Mapping) else None
    if not isinstance(path, str):
        return None, []
    if not is_file(path) and not is_folder(path):
        return path, []
    try:
        splits = dataset.load(path).splits
    except (DataError, RuntimeMissing):  # the data set was changed, or its reader is missing
        return path, []
    held_out = splits.get("val") or splits.get("test") or splits.get("train") or ()
    return path, [sample.path for sample in held_out]
