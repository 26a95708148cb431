"""Colour jitter: multiply hue, saturation and brightness by random factors around 1.

As published for YOLOv7 (arXiv 2207.02696), saturation and brightness of OpenCV's HSV are multiplied
and clipped at 255. This does not need a conversion to HSV: with the largest of a pixel's three
values, V, the smallest, m, and factors s and v, each value c becomes

    V' - (V - c) k    where  V' = min(v V, 255)  and  k = min(s V' / V, V' / (V - m))

and k is s v unless s or v exceeds 1. Results lie within two grey levels of exact HSV at the
published strengths; the published code, which rounds to 8-bit HSV, deviates more.

The published code multiplies hue too: a factor of 1.015 shifts hue h (of 180) by up to 0.015 h,
truncated. Here all hues are shifted by the mean of that over the circle (90 times the factor's
distance from 1), as a linear map of the colour. Factors too far from 1 use the published tables.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from y7edge.train.augment.labelled import scratch
from y7edge.train.augment.settings import Augmentation

_HUES = 180  # OpenCV's hues in 8 bits
_LARGEST = 255

_LINEAR = 0.02  # largest distance of the hue's factor from 1 for the linear map
_ROWS = 160  # processed at a time, so that they stay in the processor's cache


class Jitter:
    """Change colours by fixed factors of hue, saturation and brightness."""

    def __init__(self, hue: float = 1.0, saturation: float = 1.0, brightness: float = 1.0) -> None:
        self.factors = (hue, saturation, brightness)
        # Rotation about the grey axis, to first order; the circle is 180 of hue.
        turn = (hue - 1) * math.pi / math.sqrt(3)
        self._turn = np.array([(1, turn, -turn), (-turn, 1, turn), (turn, -turn, 1)])  # of B, G, R

    @classmethod
    def draw(cls, settings: Augmentation, rng: Generator) -> Jitter:
        """Draw factors from 1 - strength to 1 + strength."""
        hue, saturation, brightness = rng.random(3).tolist()
        return cls(
            1 + (2 * hue - 1) * settings.hsv_h,
            1 + (2 * saturation - 1) * settings.hsv_s,
            1 + (2 * brightness - 1) * settings.hsv_v,
        )

    def apply(
        self, image: NDArray[np.uint8], planes: NDArray[np.uint8], mirror: int | None = None
    ) -> None:
        """Write a BGR image (h, w, 3) in changed colours into uint8 RGB ``planes`` (3, h, w).

        Both may be views of larger arrays. ``mirror`` is a code for ``cv2.flip``; None: don't
        mirror.
        """
        hue, saturation, brightness = self.factors
        linear = abs(hue - 1) <= _LINEAR
        if not linear:
            image = self.by_table(image)
        height = len(image)
        for top in range(0, height, _ROWS):
            rows = image[top : top + _ROWS]
            end = height - top if mirror in (0, -1) else top + len(rows)
            target = planes[:, end - len(rows) : end]
            if linear and hue != 1:
                turned = cv2.transform(rows, self._turn, dst=scratch("turned", *rows.shape))
                rows = np.asarray(turned, np.uint8)
            cv2.split(rows, (target[2], target[1], target[0]))
            if linear:
                _scale(target, max(saturation, 0.0), max(brightness, 0.0))
            if mirror is not None:
                for plane in target:
                    cv2.flip(plane, mirror, dst=plane)

    def by_table(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Convert BGR (h, w, 3) to HSV, apply the table and convert back, as published."""
        table = np.outer(np.arange(_LARGEST + 1), self.factors)
        table[:, 0] %= _HUES
        table = np.asarray(np.clip(table, 0, _LARGEST)[None], np.uint8)
        hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), table)
        return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR), np.uint8)


def _scale(planes: NDArray[np.uint8], saturation: float, brightness: float) -> None:
    """Multiply saturation and brightness of RGB planes (3, h, w), in place."""
    red, green, blue = planes
    largest, new, factor, spare = scratch("colour", 4, *red.shape)
    cv2.max(cv2.max(red, green, dst=largest), blue, dst=largest)
    overexposed = brightness > 1 and brightness * int(largest.max()) > _LARGEST
    fraction = brightness * saturation
    if not fraction or (saturation <= 1 and not overexposed):
        for plane in planes:
            cv2.addWeighted(largest, brightness - fraction, plane, fraction, 0, dst=plane)
        return
    # V', and k relative to its largest possible value, in 8 bits: both bounds of k are quotients
    # of V', and division saturates.
    cv2.convertScaleAbs(largest, dst=new, alpha=brightness)
    if saturation > 1:
        cv2.min(cv2.min(red, green, dst=spare), blue, dst=spare)
        cv2.subtract(largest, spare, dst=spare)
        cv2.divide(new, spare, dst=factor, scale=_LARGEST / fraction)
    if overexposed:
        bound = spare if saturation > 1 else factor
        cv2.divide(new, largest, dst=bound, scale=_LARGEST / brightness)
        if saturation > 1:
            cv2.min(factor, spare, dst=factor)
    for plane in planes:
        cv2.subtract(largest, plane, dst=plane)
        cv2.multiply(plane, factor, dst=plane, scale=fraction / _LARGEST)
        cv2.subtract(new, plane, dst=plane)
