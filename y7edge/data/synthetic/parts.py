"""Render small metal parts, seen from above.

A part is an outline with holes, and a height map. The origin of its coordinates is the centre of
the part, and its longest side is about 1. Rendering lights the height map from one side. All
classes use the same materials, so they can only be distinguished by shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Polygon = NDArray[np.float64]  # (k, 2) x, y
Field = NDArray[np.float32]

# Base colour (B, G, R) and strength of highlights.
MATERIALS: tuple[tuple[tuple[int, int, int], float], ...] = (
    ((196, 198, 196), 0.55),  # zinc
    ((150, 150, 146), 0.45),  # steel
    ((92, 168, 198), 0.50),  # brass
    ((52, 50, 50), 0.30),  # black oxide
)

_OVERSAMPLING = 2


@dataclass(frozen=True, slots=True)
class Part:
    """The shape of a part, in its own coordinates.

    Attributes:
        outline: The outer polygon, then the holes; each is an array (k, 2) of x, y.
        relief: Function of coordinates (u, v) that returns the height above the flat part.
    """

    outline: tuple[Polygon, ...]
    relief: Callable[[Field, Field], Field]


@dataclass(frozen=True, slots=True)
class Sprite:
    """A rendered part, to be drawn over an image.

    Attributes:
        origin: Column and row of the sprite's first pixel in the image; may be negative.
        colour: float32 (n, n, 3) BGR, 0 to 255.
        alpha: float32 (n, n), the fraction of each pixel that the part covers.
        extent: Bounding box x1, y1, x2, y2 of the outline in the image; pixel i spans i to i + 1.
    """

    origin: tuple[int, int]
    colour: Field
    alpha: Field
    extent: tuple[float, float, float, float]


def _ring(radius: float, corners: int = 48) -> Polygon:
    """Return a regular polygon around the origin."""
    angles = np.linspace(0.0, 2 * np.pi, corners, endpoint=False)
    return radius * np.stack((np.cos(angles), np.sin(angles)), axis=1)


def nut(rng: Generator) -> Part:
    """Generate a nut: a hexagon with chamfered corners and a threaded hole."""
    hole = rng.uniform(0.21, 0.30)

    def relief(u: Field, v: Field) -> Field:
        radius = np.hypot(u, v)
        thread = 0.02 * np.sin(radius * 150)
        inner = np.where(radius < hole + 0.06, radius - hole - 0.06 + thread, 0.0)
        return (inner - np.maximum(radius - 0.42, 0.0)).astype(np.float32)

    return Part((_ring(0.5, corners=6), _ring(hole)), relief)


def washer(rng: Generator) -> Part:
    """Generate a washer: a ring, slightly conical."""
    dish = rng.uniform(-0.08, 0.08)

    def relief(u: Field, v: Field) -> Field:
        return (dish * np.hypot(u, v)).astype(np.float32)

    return Part((_ring(0.5), _ring(rng.uniform(0.20, 0.32))), relief)


def screw(rng: Generator) -> Part:
    """Generate a screw, seen from the side: a head, maybe countersunk, and a threaded shaft."""
    head_length, head = rng.uniform(0.13, 0.20), rng.uniform(0.17, 0.22)
    shaft, pitch = rng.uniform(0.08, 0.11), rng.uniform(0.045, 0.065)
    neck = -0.5 + head_length
    top = head * (rng.uniform(0.8, 1.0) if rng.random() < 0.6 else 1.0)
    bottom = shaft if rng.random() < 0.4 else head  # countersunk or not
    along = np.arange(neck, 0.44, pitch / 2)
    teeth = shaft + 0.014 * np.where(np.arange(len(along)) % 2, 1.0, -1.0)
    side = np.concatenate(
        (
            [[-0.5, 0.6 * top], [-0.48, top], [neck, bottom]],
            np.stack((along, teeth), axis=1),
            [[0.45, shaft], [0.5, 0.4 * shaft]],
        )
    )
    outline = np.concatenate((side, side[::-1] * (1, -1)))

    def relief(u: Field, v: Field) -> Field:
        thread = 0.012 * np.sin((u + 0.15 * v) * (2 * np.pi / pitch))
        body = np.sqrt(np.maximum(shaft**2 - v**2, 0.0)) + np.where(u > neck, thread, 0.0)
        cap = np.sqrt(np.maximum(head**2 - v**2, 0.0))
        return np.asarray(np.where(u > neck, body, cap), np.float32)

    return Part((outline,), relief)


def bracket(rng: Generator) -> Part:
    """Generate a bracket: a flat L with holes in its arms."""
    width, arm = rng.uniform(0.26, 0.36), rng.uniform(0.65, 1.0)
    corners = np.array([[0, 0], [1, 0], [1, width], [width, width], [width, arm], [0, arm]])
    spots = [[0.85, width / 2], [width / 2, arm - 0.15]]
    if rng.random() < 0.6:
        spots.append([width / 2, width / 2])
    mirror = np.array((1.0, rng.choice((-1.0, 1.0))))
    middle = np.array((0.5, arm / 2))
    hole = _ring(rng.uniform(0.055, 0.08), corners=20)
    holes = (hole + (np.array(spot) - middle) * mirror for spot in spots)

    def relief(u: Field, v: Field) -> Field:
        return np.zeros_like(u)

    return Part(((corners - middle) * mirror, *holes), relief)


def render(
    part: Part,
    centre: tuple[float, float],
    size: float,
    angle: float,
    light: tuple[float, float],
    rng: Generator,
) -> Sprite:
    """Render a part as a sprite.

    Args:
        part: The part.
        centre: Position of the part's centre in the image, x and y in pixels.
        size: Length of the part's longest side in pixels, approximately.
        angle: Rotation in radians.
        light: Direction towards the light source in the image (unit vector x, y).
        rng: Random generator for material and reflections.
    """
    turn = size * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    outline = [polygon @ turn + centre for polygon in part.outline]
    low, high = outline[0].min(axis=0), outline[0].max(axis=0)
    origin = np.floor(low).astype(int) - 1
    side = int(np.ceil((high - origin).max())) + 1
    mask = _mask(outline, origin, side)
    grid = (np.arange(side * _OVERSAMPLING, dtype=np.float32) + 0.5) / _OVERSAMPLING
    x, y = np.meshgrid(
        grid + np.float32(origin[0] - centre[0]), grid + np.float32(origin[1] - centre[1])
    )
    cos, sin = float(np.cos(angle) / size), float(np.sin(angle) / size)
    u, v = np.asarray(x * cos + y * sin, np.float32), np.asarray(y * cos - x * sin, np.float32)
    height = part.relief(u, v) * np.float32(size * _OVERSAMPLING)
    base, gloss = MATERIALS[rng.integers(len(MATERIALS))]
    shade = _shade(mask, height, size, light, gloss)
    wave = np.float32(rng.uniform(2, 5)) * u + np.float32(rng.uniform(2, 5)) * v
    shade += np.float32(0.10) * np.sin(wave + np.float32(rng.uniform(0, 6.3)))
    tint = np.array(base, np.float32) * np.float32(rng.uniform(0.85, 1.12))
    shade = np.asarray(cv2.resize(shade, (side, side), interpolation=cv2.INTER_AREA), np.float32)
    colour = cv2.merge([shade * channel for channel in tint])
    alpha = cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA)
    return Sprite(
        (int(origin[0]), int(origin[1])),
        np.asarray(np.clip(colour, 0, 255), np.float32),
        np.asarray(alpha, np.float32) / np.float32(255),
        (float(low[0]), float(low[1]), float(high[0]), float(high[1])),
    )


def _mask(outline: list[Polygon], origin: NDArray[np.int_], side: int) -> NDArray[np.uint8]:
    """Draw a part without its holes as a mask (even-odd rule), oversampled and anti-aliased."""
    mask = np.zeros((side * _OVERSAMPLING, side * _OVERSAMPLING), np.uint8)
    # OpenCV's coordinates refer to pixel centres, ours to pixel edges. The last 4 bits are
    # the fraction.
    polygons = [
        np.round(((polygon - origin) * _OVERSAMPLING - 0.5) * 16).astype(np.int32)
        for polygon in outline
    ]
    cv2.fillPoly(mask, polygons, 255, cv2.LINE_AA, 4)
    return mask


def _shade(
    mask: NDArray[np.uint8], height: Field, size: float, light: tuple[float, float], gloss: float
) -> Field:
    """Return the brightness of a height map with rounded edges, lit at 45 degrees."""
    bevel = max(2.0, 0.035 * size * _OVERSAMPLING)
    inward = np.minimum(cv2.distanceTransform(mask, cv2.DIST_L2, 3) / bevel, 1.0)
    rounded = height + (bevel * 0.7 * np.sqrt(inward * (2 - inward))).astype(np.float32)
    rounded = cv2.GaussianBlur(rounded, (3, 3), 0)
    slope_x = cv2.Sobel(rounded, cv2.CV_32F, 1, 0, scale=0.125)
    slope_y = cv2.Sobel(rounded, cv2.CV_32F, 0, 1, scale=0.125)
    toward = 1.0 - slope_x * light[0] - slope_y * light[1]
    facing = np.maximum(toward / np.sqrt(2 * (1 + slope_x**2 + slope_y**2)), 0.0)
    highlight = np.maximum(facing - 0.8, 0.0) * (5 * gloss)
    return np.asarray(0.35 + 0.85 * facing + highlight, np.float32)
