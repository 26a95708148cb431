"""Colour jitter: hue, saturation and brightness times random factors around 1."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from y7edge.preprocess import PAD
from y7edge.train.augment_settings import Augmentation

# OpenCV's hue of 8-bit pictures goes round at 180, and its way back takes larger ones as they come.
_HUES = 180
_LARGEST = 255


@dataclass(frozen=True, slots=True)
class Jitter:
    """Factors of hue, saturation and brightness; 8-bit values are cut to whole numbers."""

    factors: tuple[float, float, float]

    @classmethod
    def draw(cls, settings: Augmentation, rng: Generator) -> Jitter:
        """Factors from 1 - strength to 1 + strength."""
        strengths = np.array((settings.hsv_h, settings.hsv_s, settings.hsv_v))
        hue, saturation, brightness = 1 + rng.uniform(-1, 1, 3) * strengths
        return cls((float(hue), float(saturation), float(brightness)))

    def apply(self, image: NDArray[np.uint8], out: NDArray[np.uint8] | None = None) -> None:
        """Jitter a BGR image, in place or into ``out``; both may be views of larger ones."""
        out = image if out is None else out
        if self.factors == (1.0, 1.0, 1.0):
            if out is not image:
                out[:] = image
            return
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        if self.factors[0] * (_HUES - 1) <= _LARGEST:
            # The published tables are products cut to whole numbers. OpenCV rounds, so that half is
            # taken off; a little less, for products that are whole.
            matrix = np.column_stack((np.diag(self.factors), np.full(3, -0.499)))
            cv2.transform(hsv, matrix, dst=hsv)
        else:
            cv2.LUT(hsv, self.table(), dst=hsv)
        cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR, dst=out)

    def grey(self) -> NDArray[np.uint8]:
        """What the padding becomes: uint8 (3,)."""
        pixel = np.full((1, 1, 3), PAD, np.uint8)
        self.apply(pixel)
        return pixel[0, 0]

    def table(self) -> NDArray[np.uint8]:
        """New hue, saturation and brightness for each old one: uint8 (1, 256, 3)."""
        table = np.outer(np.arange(_LARGEST + 1), self.factors)
        table[:, 0] %= _HUES
        return np.clip(table, 0, _LARGEST).astype(np.uint8)[None]
