"""Colour jitter: multiply hue, saturation and brightness by random factors around 1.

As published for YOLOv7 (arXiv 2207.02696), saturation and brightness (S and V of OpenCV's HSV) are
multiplied and clipped at 255. This module computes the result without a conversion to HSV. Let V be
the largest and m the smallest of a pixel's three channels, s the factor of the saturation and v the
factor of the brightness. Each channel c becomes

    V' - (V - c) k    where  V' = min(v V, 255)  and  k = min(s V' / V, V' / (V - m))

If neither s nor v is above 1, k is s v. At the published strengths, results are within two grey
levels of exact HSV. The published code deviates more, because it rounds HSV to 8 bits.

The published code multiplies the hue h (0 to 180) too: a factor of 1.015 shifts it by 0.015 h.
Here, all hues are shifted by the mean shift, 90 x 0.015, with a linear map of the channels. For
hue factors that are not close to 1, the published lookup tables are used.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from y7edge.train.augment.labelled import scratch
from y7edge.train.augment.settings import Augmentation

_HUES = 180  # number of hues in OpenCV's 8-bit HSV
_LARGEST = 255

_LINEAR = 0.02  # the linear map is used for hue factors from 0.98 to 1.02
ROWS = 160  # rows processed at a time; they fit into the CPU cache


class Jitter:
    """Colour jitter with fixed factors of hue, saturation and brightness."""

    def __init__(self, hue: float = 1.0, saturation: float = 1.0, brightness: float = 1.0) -> None:
        self.factors = (hue, saturation, brightness)
        # First-order rotation of the channels about the grey axis; hue 180 is a full turn.
        turn = (hue - 1) * math.pi / math.sqrt(3)
        self._turn = np.array([(1, turn, -turn), (-turn, 1, turn), (turn, -turn, 1)])  # B, G, R

    @property
    def linear(self) -> bool:
        """Whether the hue is shifted by the linear map, not by tables."""
        return abs(self.factors[0] - 1) <= _LINEAR

    @classmethod
    def draw(cls, settings: Augmentation, rng: Generator) -> Jitter:
        """Draw each factor uniformly from 1 - strength to 1 + strength."""
        strengths = np.array((settings.hsv_h, settings.hsv_s, settings.hsv_v))
        return cls(*(1 + (2 * rng.random(3) - 1) * strengths).tolist())

    def apply(
        self, image: NDArray[np.uint8], planes: NDArray[np.uint8], mirror: int | None = None
    ) -> None:
        """Change the colours of a BGR image (h, w, 3), and write it to RGB ``planes`` (3, h, w).

        Both may be views of larger arrays. ``mirror`` is a flip code of ``cv2.flip``, by which the
        result is mirrored; None does not mirror it.
        """
        hue, saturation, brightness = self.factors
        linear = self.linear
        if not linear:
            image = self.by_table(image)
        height = len(image)
        for top in range(0, height, ROWS):
            rows = image[top : top + ROWS]
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
        """Change a BGR image (h, w, 3) by lookup tables of HSV, as published."""
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
    # `new` is V'. `factor` is k divided by its largest possible value, s v, as a fraction of 255;
    # cv2.divide saturates at 255.
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
