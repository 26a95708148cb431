"""Draw the background of synthetic scenes (tray, scraps, cable), and simulate the camera."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Canvas = NDArray[np.float32]  # (h, w, 3) BGR, 0 to 255

_TRAYS = (
    (168, 160, 150),
    (120, 118, 112),
    (205, 205, 200),
    (72, 66, 60),
    (112, 92, 70),
    (84, 104, 84),
)
_CABLES = ((35, 35, 38), (40, 40, 170), (150, 80, 40), (60, 150, 190), (200, 200, 200))


def tray(rng: Generator, height: int, width: int) -> Canvas:
    """Draw an empty tray of uneven colour, sometimes with ribs, scratches and dust."""
    colour = np.array(_TRAYS[rng.integers(len(_TRAYS))], np.float32) * rng.uniform(0.85, 1.15)
    blotches = _smooth(rng, height, width, cells=6) * rng.uniform(2, 8)
    grain = _smooth(rng, height, width, cells=80) * rng.uniform(1, 4)
    canvas = grey(np.asarray(blotches + grain, np.float32))
    canvas += colour
    if rng.random() < 0.3:
        _ribs(canvas, rng)
    for _ in range(rng.integers(0, 12)):
        _scratch(canvas, rng)
    for _ in range(rng.integers(0, 30)):
        spot = rng.uniform(0, (width, height))
        radius = rng.uniform(0.3, 1.4)
        _stroke(canvas, spot[None], radius * 2, _near(canvas, spot) + rng.uniform(-50, 30))
    return canvas


def _smooth(rng: Generator, height: int, width: int, cells: int) -> NDArray[np.float32]:
    """Return smooth noise (height, width) from a grid of cells x cells random numbers."""
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(
        cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.float32
    )


def _near(canvas: Canvas, spot: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the colour (3,) of the pixel that is nearest to ``spot`` (x, y)."""
    height, width = canvas.shape[:2]
    x, y = int(np.clip(spot[0], 0, width - 1)), int(np.clip(spot[1], 0, height - 1))
    return np.array(canvas[y, x])


def _stroke(
    canvas: Canvas, points: NDArray[np.float64], thickness: float, colour: NDArray[np.float32]
) -> None:
    """Draw a line through ``points`` (k, 2) in place, anti-aliased."""
    height, width = canvas.shape[:2]
    margin = thickness + 2
    x1, y1 = np.maximum(np.floor(points.min(axis=0) - margin), 0).astype(int)
    x2, y2 = np.minimum(np.ceil(points.max(axis=0) + margin), (width, height)).astype(int)
    if x2 <= x1 or y2 <= y1:
        return
    # Draw at four times the size, because OpenCV's line thickness is an integer.
    mask = np.zeros(((y2 - y1) * 4, (x2 - x1) * 4), np.uint8)
    line = np.round((points - (x1, y1)) * 4).astype(np.int32)
    cv2.polylines(mask, [line], False, 255, max(1, round(thickness * 4)))
    small = cv2.resize(mask, (x2 - x1, y2 - y1), interpolation=cv2.INTER_AREA)
    alpha = np.asarray(small, np.float32) / np.float32(255)
    blend(canvas[y1:y2, x1:x2], np.asarray(colour, np.float32), alpha)


def blend(area: Canvas, colour: NDArray[np.float32], alpha: NDArray[np.float32]) -> None:
    """Blend ``colour`` (3,) or (h, w, 3) over ``area`` in place, by ``alpha`` (h, w)."""
    area += (colour - area) * grey(alpha)


def grey(values: NDArray[np.float32]) -> Canvas:
    """Repeat ``values`` (h, w) as three channels; faster than broadcasting (h, w, 1) in numpy."""
    return np.asarray(cv2.merge((values, values, values)), np.float32)


def _ribs(canvas: Canvas, rng: Generator) -> None:
    """Draw parallel ridges in place."""
    height, width = canvas.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    across = columns * np.float32(np.cos(angle)) + rows * np.float32(np.sin(angle))
    pitch = np.float32(rng.uniform(0.08, 0.2) * min(height, width))
    wave = np.cos(across * (2 * np.float32(np.pi) / pitch))
    canvas += grey(np.maximum(wave - 0.9, 0) * np.float32(rng.choice((-150, 150))))


def _scratch(canvas: Canvas, rng: Generator) -> None:
    height, width = canvas.shape[:2]
    start = rng.uniform(0, (width, height))
    points = start + np.cumsum(rng.normal(0, 0.05 * width, (3, 2)), axis=0)
    _stroke(canvas, points, rng.uniform(0.3, 0.9), _near(canvas, start) + rng.uniform(-25, 35))


def scraps(canvas: Canvas, rng: Generator, count: int) -> None:
    """Draw metal scraps in place: curls and slivers in the colours of the parts."""
    height, width = canvas.shape[:2]
    unit = min(height, width)
    for _ in range(count):
        middle = rng.uniform(0, (width, height))
        colour = np.array(
            rng.choice(((185, 185, 182), (130, 130, 128), (90, 160, 188))), np.float32
        )
        shadow = np.array((1.5, 1.5))
        if rng.random() < 0.5:
            turns = np.linspace(0, rng.uniform(3, 9), 40)
            radius = rng.uniform(0.006, 0.016) * unit * (0.4 + turns / 4)
            drift = np.outer(turns, rng.normal(0, 0.004 * unit, 2))
            points = middle + drift + radius[:, None] * np.stack((np.cos(turns), np.sin(turns)), 1)
        else:
            points = middle + np.cumsum(rng.normal(0, 0.02 * unit, (3, 2)), axis=0)
        thickness = rng.uniform(0.8, 2.5)
        _stroke(canvas, points + shadow, thickness, _near(canvas, middle) * np.float32(0.6))
        _stroke(canvas, points, thickness, colour * np.float32(rng.uniform(0.8, 1.25)))


def cable(canvas: Canvas, rng: Generator) -> None:
    """Draw a cable across the tray in place."""
    height, width = canvas.shape[:2]
    unit = min(height, width)
    ends = rng.uniform(-0.2, 1.2, (4, 2)) * (width, height)
    t = np.linspace(0, 1, 60)[:, None]
    curve = (
        (1 - t) ** 3 * ends[0]
        + 3 * (1 - t) ** 2 * t * ends[1]
        + 3 * (1 - t) * t**2 * ends[2]
        + t**3 * ends[3]
    )
    thickness = rng.uniform(0.012, 0.026) * unit
    colour = np.array(_CABLES[rng.integers(len(_CABLES))], np.float32)
    _stroke(canvas, curve + 0.4 * thickness, thickness * 1.1, np.full(3, 40, np.float32))
    _stroke(canvas, curve, thickness, colour)
    _stroke(canvas, curve - 0.15 * thickness, thickness * 0.25, np.minimum(colour * 1.5 + 25, 255))


def photograph(canvas: Canvas, rng: Generator) -> NDArray[np.uint8]:
    """Apply light fall-off, white balance, blur and noise; return (h, w, 3) uint8.

    The content of ``canvas`` is overwritten.
    """
    height, width = canvas.shape[:2]
    rows, columns = np.linspace(-1, 1, height), np.linspace(-1, 1, width)
    tilt, vignette = rng.uniform(-0.22, 0.22, 2), rng.uniform(0, 0.18)
    light = 1 + np.add.outer(
        tilt[1] * rows - vignette * rows**2, tilt[0] * columns - vignette * columns**2
    )
    # Limit the exposure of bright trays, so that parts on them keep their shading.
    exposure = min(rng.uniform(0.75, 1.2), 210 / float(canvas.mean()))
    balance = rng.uniform(0.94, 1.06, 3) * exposure
    image = canvas
    image *= grey(light.astype(np.float32))
    image *= balance.astype(np.float32)
    blur = rng.uniform(0, 1.1) * min(height, width) / 320
    if blur > 0.3:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), blur), np.float32)
    if rng.random() < 0.15:
        image = np.asarray(cv2.filter2D(image, -1, _motion(rng)), np.float32)
    # The noise is equal in all channels, because cameras remove colour noise.
    noise = rng.standard_normal((height, width), dtype=np.float32)
    image += grey(noise * np.float32(rng.uniform(1, 7)))
    np.rint(image, out=image)
    return np.asarray(np.clip(image, 0, 255, out=image).astype(np.uint8))


def _motion(rng: Generator) -> NDArray[np.float32]:
    """Return the kernel of a short linear motion blur."""
    kernel = np.zeros((5, 5), np.float32)
    angle = rng.uniform(0, np.pi)
    step = 32 * np.array((np.cos(angle), np.sin(angle)))
    start, end = (32 - step).astype(int), (32 + step).astype(int)
    cv2.line(kernel, tuple(map(int, start)), tuple(map(int, end)), 1.0, 1, cv2.LINE_AA, 4)
    return np.asarray(kernel / kernel.sum(), np.float32)
