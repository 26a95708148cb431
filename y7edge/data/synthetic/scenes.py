"""Generate images of small parts on a tray, with exact labels, from a seed.

Nuts, washers, screws and brackets are scattered among litter under uneven light, and may overlap.
The classes share materials and sizes, so a detector must learn shapes. The same seed always gives
the same image; artifacts therefore store only the seeds of their probe images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from y7edge.boxes import centred
from y7edge.data.synthetic.parts import Part, Sprite, bracket, nut, render, screw, washer
from y7edge.data.synthetic.tray import Canvas, blend, cable, grey, photograph, scraps, tray
from y7edge.errors import ConfigError
from y7edge.files import write_text

NAMES = ("nut", "washer", "screw", "bracket")

# For each class: its generator, and the range of its longest side as a fraction of the image's
# shorter side.
CLASSES: tuple[tuple[Callable[[Generator], Part], float, float], ...] = (
    (nut, 0.19, 0.34),
    (washer, 0.19, 0.34),
    (screw, 0.26, 0.42),
    (bracket, 0.22, 0.38),
)

LEAST_VISIBLE = 0.4  # parts with a smaller visible fraction are not labelled
SMALLEST_SIDE = 96


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """An image and its labels.

    Attributes:
        image: uint8 (h, w, 3), BGR.
        boxes: float32 (n, 4) x1, y1, x2, y2 in pixels: the bounding box of each part, including
            areas hidden by other parts, clipped to the image.
        class_id: int32 (n,), index into ``NAMES``.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    class_id: NDArray[np.int32]


def scene(seed: int | Sequence[int], size: tuple[int, int] = (320, 320)) -> Scene:
    """Generate one image.

    Args:
        seed: A seed for `numpy.random.default_rng`: a non-negative number, or several.
        size: Height and width in pixels.

    Raises:
        ConfigError: The size is too small.
    """
    height, width = size
    if min(size) < SMALLEST_SIDE:
        raise ConfigError(
            f"expected a scene of at least {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels, "
            f"found {height}x{width}"
        )
    rng = np.random.default_rng(seed)
    canvas = tray(rng, height, width)
    scraps(canvas, rng, count=int(rng.integers(0, 10)))
    if rng.random() < 0.35:
        cable(canvas, rng)
    toward = rng.uniform(0, 2 * np.pi)
    light = (float(np.cos(toward)), float(np.sin(toward)))
    sprites, class_id = _place(rng, height, width, light)
    owner = np.full((height, width), -1, np.int32)
    for index, sprite in enumerate(sprites):
        lay(canvas, sprite, light)
        here, there = _window(owner.shape, sprite)
        owner[here][sprite.alpha[there] > 0.5] = index
    scraps(canvas, rng, count=int(rng.integers(0, 4)))
    labelled = [
        index
        for index, sprite in enumerate(sprites)
        if (owner == index).sum() >= LEAST_VISIBLE * (sprite.alpha > 0.5).sum()
    ]
    extents = np.array([sprites[index].extent for index in labelled], np.float32).reshape(-1, 4)
    return Scene(
        photograph(canvas, rng),
        np.clip(extents, 0, np.array((width, height, width, height), np.float32)),
        np.array([class_id[index] for index in labelled], np.int32),
    )


def _place(
    rng: Generator, height: int, width: int, light: tuple[float, float]
) -> tuple[list[Sprite], list[int]]:
    """Place and render random parts with little overlap; return sprites and class ids.

    Later sprites are drawn over earlier ones.
    """
    unit = min(height, width)
    sprites: list[Sprite] = []
    class_id: list[int] = []
    taken: list[tuple[NDArray[np.float64], float]] = []
    for _ in range(rng.integers(2, 8)):
        kind = int(rng.integers(len(NAMES)))
        make, smallest, largest = CLASSES[kind]
        length = float(rng.uniform(smallest, largest) * unit)
        apart = 0.3 if rng.random() < 0.12 else 0.8
        for _ in range(12):
            centre = rng.uniform(0.3 * length, np.array((width, height)) - 0.3 * length)
            if all(
                np.hypot(*(centre - other)) > apart * (length + size) / 2 for other, size in taken
            ):
                break
        else:
            continue
        taken.append((centre, length))
        angle = float(rng.uniform(0, 2 * np.pi))
        where = (float(centre[0]), float(centre[1]))
        sprites.append(render(make(rng), where, length, angle, light, rng))
        class_id.append(kind)
    return sprites, class_id


def _window(
    shape: tuple[int, ...], sprite: Sprite, shift: tuple[int, int] = (0, 0)
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return where an image and a sprite overlap: slices of the image and of the sprite.

    The sprite is moved by ``shift`` (x, y) pixels first.
    """
    side = sprite.alpha.shape[0]
    here, there = [], []
    for axis in (1, 0):  # rows, then columns
        start = sprite.origin[axis] + shift[axis]
        low, high = max(start, 0), min(start + side, shape[1 - axis])
        high = max(high, low)
        here.append(slice(low, high))
        there.append(slice(low - start, high - start))
    return (here[0], here[1]), (there[0], there[1])


def lay(canvas: Canvas, sprite: Sprite, light: tuple[float, float]) -> None:
    """Draw a sprite and its shadow."""
    side = sprite.alpha.shape[0]
    reach = 1 + 0.03 * side
    shift = (round(-light[0] * reach), round(-light[1] * reach))
    shadow = cv2.GaussianBlur(sprite.alpha, (0, 0), 1 + 0.015 * side)
    here, there = _window(canvas.shape, sprite, shift)
    canvas[here] *= grey(1 - np.float32(0.55) * shadow[there])
    here, there = _window(canvas.shape, sprite)
    blend(canvas[here], sprite.colour[there], sprite.alpha[there])


def generate(
    folder: Path | str,
    train: int = 300,
    val: int = 100,
    seed: int = 0,
    size: tuple[int, int] = (320, 320),
) -> Path:
    """Write a data set in YOLO format and return the path of its ``data.yaml``.

    Images are generated from ``seed``, split and index, so the splits differ. ``data.yaml`` is
    written last: a folder without it is incomplete.

    Args:
        folder: The folder for ``images/``, ``labels/`` and ``data.yaml``; created if missing.
        train: Number of training images.
        val: Number of validation images; 0: no split val.
        seed: Seed of the data set.
        size: Height and width of the images.
    """
    root = Path(folder)
    counts = {"train": train, "val": val}
    for number, (split, count) in enumerate(counts.items()):
        if not count:
            continue
        images, labels = root / "images" / split, root / "labels" / split
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            made = scene((seed, number, index), size)
            encoded = cv2.imencode(".jpg", made.image, (cv2.IMWRITE_JPEG_QUALITY, 92))[1]
            (images / f"{index:05d}.jpg").write_bytes(encoded.tobytes())
            (labels / f"{index:05d}.txt").write_text(_label_lines(made), encoding="utf-8")
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(NAMES))
    splits = "".join(f"{split}: images/{split}\n" for split, count in counts.items() if count)
    text = f"# Parts on a tray, seed {seed}\n{splits}names:\n{names}"
    write_text(root / "data.yaml", text)
    return root / "data.yaml"


def _label_lines(made: Scene) -> str:
    """Return the content of a YOLO label file."""
    height, width = made.image.shape[:2]
    corners = made.boxes.astype(np.float64) / (width, height, width, height)
    return "".join(
        f"{kind} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n"
        for kind, (x, y, w, h) in zip(made.class_id, centred(corners), strict=True)
    )
