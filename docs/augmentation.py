"""Draw the images of docs/augmentation.md.

    python docs/augmentation.py        # writes docs/images/augmentation/*.jpg

Each image has a synthetic scene of parts on a tray, and three augmented images with boxes. Each
file shows one setting of the augmentation.
"""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from y7edge.data.synthetic.parts import bracket, nut, render, screw, washer
from y7edge.data.synthetic.tray import blend, photograph, tray
from y7edge.files import atomic_write
from y7edge.train.augment.labelled import LabelledImage
from y7edge.train.augment.mosaic import paint, single
from y7edge.train.augment.pipeline import augmented
from y7edge.train.augment.settings import Augmentation

IMAGES = Path(__file__).parent / "images" / "augmentation"
SIZE = 320  # side of the augmented images, in pixels
SHOWN = 224  # side of each image in the strip
SHAPES = ((SIZE, 240), (240, SIZE), (SIZE, SIZE), (260, SIZE))  # (height, width) of the scenes
COLOURS = ((60, 60, 255), (255, 160, 0), (0, 220, 255), (60, 230, 60))  # of boxes, by class, BGR

STILL = Augmentation(mosaic9=0, hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0).closed()
JOINED = replace(STILL, mosaic=1.0, scale=0.4)

# The augmentation for each setting; values are strong enough to be visible.
SHOWCASE: dict[str, Augmentation] = {
    "mosaic": JOINED,
    "mosaic9": replace(JOINED, mosaic9=1.0),
    "mixup": replace(JOINED, mixup=1.0),
    "copy_paste": replace(JOINED, copy_paste=1.0),
    "paste_in": replace(STILL, paste_in=1.0),
    "hsv_h": replace(STILL, hsv_h=0.6),
    "hsv_s": replace(STILL, hsv_s=0.9),
    "hsv_v": replace(STILL, hsv_v=0.5),
    "degrees": replace(STILL, degrees=30.0),
    "translate": replace(STILL, translate=0.25),
    "scale": replace(STILL, scale=0.5),
    "shear": replace(STILL, shear=15.0),
    "perspective": replace(STILL, perspective=0.001),
    "flipud": replace(STILL, flipud=1.0),
    "fliplr": replace(STILL, fliplr=1.0),
}


def scene(seed: int) -> LabelledImage:
    """Generate an image of parts on a tray that do not overlap, with boxes and outlines."""
    rng = np.random.default_rng((7, seed))
    height, width = SHAPES[seed % len(SHAPES)]
    canvas = tray(rng, height, width)
    boxes, kinds, outlines = [], [], []
    for column in range(2):
        for row in range(2):
            if column == row == seed % 3:
                continue
            kind = int(rng.integers(4))
            centre = (width * (1 + 2 * column) / 4, height * (1 + 2 * row) / 4)
            box, outline = _lay(canvas, rng, kind, centre, min(height, width) * 0.36)
            boxes.append(box)
            kinds.append(kind)
            outlines.append(outline)
    return LabelledImage(photograph(canvas, rng), np.array(boxes), np.array(kinds), tuple(outlines))


def _lay(
    canvas: NDArray[np.float32],
    rng: Generator,
    kind: int,
    centre: tuple[float, float],
    length: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw a part on the canvas; return its box (4,) and its outline (N, 2), in pixels."""
    part = (nut, washer, screw, bracket)[kind](rng)
    sprite = render(part, centre, length, float(rng.uniform(0, 6.28)), (0.7, 0.7), rng)
    side = sprite.alpha.shape[0]
    left, top = sprite.origin
    rows = slice(max(top, 0), min(top + side, canvas.shape[0]))
    columns = slice(max(left, 0), min(left + side, canvas.shape[1]))
    own = (
        slice(rows.start - top, rows.stop - top),
        slice(columns.start - left, columns.stop - left),
    )
    blend(canvas[rows, columns], sprite.colour[own], sprite.alpha[own])
    solid = (sprite.alpha > 0.5).astype(np.uint8)
    contours, _ = cv2.findContours(solid, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = max(contours, key=len)[:, 0] + np.array((left + 0.5, top + 0.5))
    size = (canvas.shape[1], canvas.shape[0])
    return np.clip(np.array(sprite.extent), 0, size * 2), np.clip(outline, 0, size)


def strip(name: str) -> NDArray[np.uint8]:
    """Return the strip for one setting: the original, and three augmented images."""
    images = [scene(seed) for seed in range(12)]
    settings = SHOWCASE[name]
    made = [
        augmented(images, 0, SIZE, settings, np.random.default_rng((seed, 12)))
        for seed in range(1 if name.startswith("flip") else 12)
    ]
    made.sort(key=lambda labelled: -len(labelled.boxes))  # most boxes first
    sights = [paint(single(images[0], SIZE, SIZE)), *made[:3]]
    gap = np.full((SHOWN, 6, 3), 255, np.uint8)
    row = [part for sight in sights for part in (_drawn(sight), gap)][:-1]
    return np.hstack(row)


def _drawn(labelled: LabelledImage) -> NDArray[np.uint8]:
    factor = SHOWN / SIZE
    image = cv2.resize(labelled.image, (SHOWN, SHOWN), interpolation=cv2.INTER_AREA)
    for box, kind in zip(
        (labelled.boxes * factor).round().astype(int), labelled.class_id, strict=True
    ):
        first, last = box[:2].tolist(), (box[2:] - 1).tolist()
        cv2.rectangle(image, first, last, COLOURS[kind], 1)
    return np.asarray(image, np.uint8)


def main() -> int:
    """Write a strip for each setting; return the exit code."""
    missing = {field.name for field in fields(Augmentation)} ^ set(SHOWCASE)
    if missing:
        print(f"no image, or no setting, for {', '.join(sorted(missing))}", file=sys.stderr)
        return 1
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name in SHOWCASE:
        encoded = cv2.imencode(".jpg", strip(name), (cv2.IMWRITE_JPEG_QUALITY, 85))[1]
        with atomic_write(IMAGES / f"{name}.jpg") as temporary:
            temporary.write_bytes(encoded.tobytes())
        print(IMAGES / f"{name}.jpg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
