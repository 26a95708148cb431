"""Colour jitter: hue, saturation and brightness times random factors around 1."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from y7edge.preprocess import PAD
from y7edge.train.augment_settings import Augmentation
from y7edge.train.scratch import scratch

# OpenCV's hue of 8-bit pictures goes round at 180, and its way back takes larger ones as they come.
_HUES = 180
_LARGEST = 255


class Jitter:
    """Changes of colour by fixed factors of hue, saturation and brightness."""

    def __init__(self, hue: float = 1.0, saturation: float = 1.0, brightness: float = 1.0) -> None:
        self.factors = (hue, saturation, brightness)
        # The published tables are products cut to whole numbers. OpenCV rounds products, so half is
        # taken off; a little less, for those that are whole. It is several times faster.
        self._matrix = np.array(
            [(hue, 0, 0, -0.499), (0, saturation, 0, -0.499), (0, 0, brightness, -0.499)]
        )

    @classmethod
    def draw(cls, settings: Augmentation, rng: Generator) -> Jitter:
        """Factors from 1 - strength to 1 + strength."""
        hue, saturation, brightness = rng.uniform(-1, 1, 3).tolist()
        return cls(
            1 + hue * settings.hsv_h,
            1 + saturation * settings.hsv_s,
            1 + brightness * settings.hsv_v,
        )

    def apply(
        self, image: NDArray[np.uint8], out: NDArray[np.uint8], mirror: int | None = None
    ) -> None:
        """Write a BGR image in other colours.

        Args:
            image: uint8 (h, w, 3); it may be a view of a larger one.
            out: The same, where the result goes; may be ``image``.
            mirror: ``cv2.flip``'s code, to mirror it as well.
        """
        height, width = image.shape[:2]
        spare = scratch("colour", height, width)
        if self.factors == (1.0, 1.0, 1.0):
            out[:] = image if mirror is None else cv2.flip(image, mirror, dst=spare)
            return
        old = cv2.cvtColor(image, cv2.COLOR_BGR2HSV, dst=spare)
        new = scratch("new colour", height, width)
        if self.factors[0] * (_HUES - 1) <= _LARGEST:
            cv2.transform(old, self._matrix, dst=new)
        else:
            cv2.LUT(old, self.table(), dst=new)
        if mirror is not None:
            new = np.asarray(cv2.flip(new, mirror, dst=spare), np.uint8)
        cv2.cvtColor(new, cv2.COLOR_HSV2BGR, dst=out)

    def table(self) -> NDArray[np.uint8]:
        """New hue, saturation and brightness for each old one: uint8 (1, 256, 3)."""
        table = np.outer(np.arange(_LARGEST + 1), self.factors)
        table[:, 0] %= _HUES
        return np.asarray(np.clip(table, 0, _LARGEST)[None], np.uint8)

    def grey(self) -> int:
        """What becomes of the padding, which has no hue and no saturation."""
        return min(int(PAD * self.factors[2]), _LARGEST)
