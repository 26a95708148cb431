"""Generate a conveyor belt with trays of small parts, as seen by a camera above it.

The belt is drawn once, and a frame is a window of it. It is a loop, so it can run forever. Labels
of every frame are exact: they depend only on the arguments and on how far the belt has moved.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from y7edge.data.synthetic.parts import Sprite, render
from y7edge.data.synthetic.scenes import CLASSES, LEAST_VISIBLE, NAMES, SMALLEST_SIDE, lay
from y7edge.data.synthetic.tray import Canvas, grey, scraps, tray
from y7edge.errors import ConfigError

LARGEST_SIDE = 4096
_TRAYS = 8  # on the belt; more if the image is wide
_ROWS = 2  # parts are placed in a grid of 2 x 2 cells, and some cells are empty
_FILLED = 0.8  # probability that a cell contains a part
_GAP = 0.06  # between trays, as a fraction of the image's height
_RUBBER = 46  # brightness of the belt
_TRIES = 20  # to place a part
_SEED = 37  # the demo's model finds and names all parts of seed 0 (tests)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A frame of the belt and its labels.

    Attributes:
        image: uint8 (h, w, 3), BGR; a part of the belt, which must not be changed.
        boxes: float32 (n, 4) x1, y1, x2, y2 in pixels, clipped to the image.
        class_id: int32 (n,), index into ``NAMES``.
        part_id: int64 (n,); each part that enters the image has a new number.
        whole: bool (n,): the part is entirely in the image.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    class_id: NDArray[np.int32]
    part_id: NDArray[np.int64]
    whole: NDArray[np.bool_]


class Conveyor:
    """A belt that moves from left to right.

    Args:
        seed: a non-negative number.
        size: height and width of a frame in pixels.

    Attributes:
        length: pixels after which the belt repeats.
        boxes: float64 (N, 4), all parts, x1, y1, x2, y2 in pixels of the frame before the belt
            moves. No two parts overlap.
        class_id: int32 (N,), index into ``NAMES``.

    Raises:
        ConfigError: the size is too small or too large, or the seed is negative.
    """

    def __init__(self, seed: int = 0, size: tuple[int, int] = (480, 640)) -> None:
        height, width = size
        if not SMALLEST_SIDE <= min(size) <= max(size) <= LARGEST_SIDE:
            raise ConfigError(
                f"expected a frame of {SMALLEST_SIDE} to {LARGEST_SIDE} pixels in width and "
                f"height, found {width}x{height}"
            )
        if seed < 0:
            raise ConfigError(f"expected a seed of 0 or more, found {seed}")
        self.size = size
        gap = round(_GAP * height)
        pitch = height + 2 * gap  # trays are square
        trays = max(_TRAYS, -(-2 * width // pitch))
        self.length = trays * pitch
        # A frame can start anywhere, so the start of the belt is repeated behind its end.
        belt = np.full((height, self.length + width, 3), _RUBBER, np.uint8)
        rng = np.random.default_rng((_SEED, seed))
        kinds = iter(rng.permutation(np.arange(trays * _ROWS**2) % len(NAMES)))
        boxes, class_id = [], []
        for left in range(gap, self.length, pitch):
            image, parts = _tray(rng, height, [int(next(kinds)) for _ in range(_ROWS**2)])
            belt[:, left : left + height] = image
            for kind, part in parts:
                class_id.append(kind)
                boxes.append(np.add(part.extent, (left, 0, left, 0)))
        self.boxes = np.array(boxes, np.float64).reshape(-1, 4)
        self.class_id = np.array(class_id, np.int32)
        belt[:, self.length :] = belt[:, :width]
        belt.flags.writeable = False
        self._belt = belt

    def view(self, moved: int) -> View:
        """Return the frame after the belt has moved by ``moved`` pixels, 0 or more."""
        height, width = self.size
        start = -moved % self.length
        # In each lap a part passes once: choose the lap in which its right edge is between 0 and
        # `length`. The belt is longer than an image and a part, so no other lap shows it.
        lap = np.ceil((self.boxes[:, 2] + moved) / self.length).astype(np.int64) - 1
        boxes = self.boxes.copy()
        boxes[:, ::2] += (moved - lap * self.length)[:, None]
        clipped = np.clip(boxes, 0, (width, height, width, height))
        visible = (clipped[:, 2] - clipped[:, 0]) / (boxes[:, 2] - boxes[:, 0])
        chosen = visible >= LEAST_VISIBLE
        return View(
            self._belt[:, start : start + width],
            clipped[chosen].astype(np.float32),
            self.class_id[chosen],
            (lap * len(lap) + np.arange(len(lap)))[chosen],
            visible[chosen] == 1,
        )

    def crossings(self, x: float, since: int, until: int) -> NDArray[np.int64]:
        """Count the parts of each class whose centre passes a vertical line.

        Args:
            x: position of the line in the image, in pixels.
            since: how far the belt had moved before, in pixels.
            until: how far it has moved in the end.

        Returns:
            int64 (4,), counts in the order of ``NAMES``.
        """
        ahead = self.boxes[:, ::2].mean(axis=1) - x
        laps = np.floor((ahead + until) / self.length) - np.floor((ahead + since) / self.length)
        return np.bincount(self.class_id, laps, len(NAMES)).astype(np.int64)


def _tray(
    rng: Generator, side: int, kinds: list[int]
) -> tuple[NDArray[np.uint8], list[tuple[int, Sprite]]]:
    """Draw a tray; return its image, and the class and sprite of each part on it."""
    canvas = tray(rng, side, side)
    scraps(canvas, rng, count=int(rng.integers(0, 4)))
    toward = rng.uniform(0, 2 * np.pi)
    light = (float(np.cos(toward)), float(np.sin(toward)))
    parts = []
    for index, kind in enumerate(kinds):
        if rng.random() > _FILLED:
            continue
        if (sprite := _fitted(rng, side, divmod(index, _ROWS), kind, light)) is not None:
            lay(canvas, sprite, light)
            parts.append((kind, sprite))
    return _exposed(canvas, rng), parts


def _fitted(
    rng: Generator, side: int, cell: tuple[int, int], kind: int, light: tuple[float, float]
) -> Sprite | None:
    """Render a random part that fits into a cell (row, column); None if none was found."""
    make, _, largest = CLASSES[kind]
    size = side / _ROWS
    low = size * np.array(cell[::-1])
    for _ in range(_TRIES):
        # Large parts, because images of cameras are wide: letterboxed, parts are smaller than in
        # square scenes.
        length = rng.uniform(0.9, 1.15) * largest * side
        x, y = low + size / 2 + rng.uniform(-0.1, 0.1, 2) * size
        angle = float(rng.uniform(0, 2 * np.pi))
        sprite = render(make(rng), (float(x), float(y)), float(length), angle, light, rng)
        corners = np.reshape(sprite.extent, (2, 2))
        if (corners[0] > low + 1).all() and (corners[1] < low + size - 1).all():
            return sprite
    return None


def _exposed(canvas: Canvas, rng: Generator) -> NDArray[np.uint8]:
    """Apply exposure, blur and noise; no light fall-off, which does not move with the belt."""
    side = len(canvas)
    canvas *= np.float32(min(1.0, 190 / float(canvas.mean())))
    image = np.asarray(cv2.GaussianBlur(canvas, (0, 0), side / 640), np.float32)
    image += grey(rng.standard_normal((side, side), dtype=np.float32) * np.float32(2))
    return np.asarray(np.clip(np.rint(image), 0, 255), np.uint8)
