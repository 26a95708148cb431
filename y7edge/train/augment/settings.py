"""How strongly training pictures are changed: one number each, under the published names."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from y7edge.errors import ConfigError

_PROBABILITIES = ("mosaic", "mosaic9", "mixup", "copy_paste", "paste_in", "flipud", "fliplr")
_STRENGTHS = ("hsv_h", "hsv_s", "hsv_v", "translate")


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How strongly pictures are changed; the defaults are the published ones for yolov7-tiny.

    Raises:
        ConfigError: A probability outside 0..1, a strength that is negative or not finite, a shear
            that folds pictures up, or a scale at which they vanish.
    """

    mosaic: float = 1.0  # probability of joining several pictures
    mosaic9: float = 0.2  # share of the mosaics that join nine pictures, not four
    mixup: float = 0.05  # probability that a mosaic is blended with a second one
    copy_paste: float = 0.0  # share of a mosaic's outlined objects that get a mirrored copy
    paste_in: float = 0.05  # probability of pasting outlined objects of other pictures
    hsv_h: float = 0.015  # largest relative change of hue,
    hsv_s: float = 0.7  # of saturation
    hsv_v: float = 0.4  # and of brightness
    degrees: float = 0.0  # largest turn either way
    translate: float = 0.1  # largest shift, as a share of the picture
    scale: float = 0.5  # factors are drawn from 1 - scale to 1.1 + scale
    shear: float = 0.0  # largest shear angle either way, in degrees
    perspective: float = 0.0  # largest perspective coefficient (per pixel); 0.001 is much
    flipud: float = 0.0  # probability of mirroring top to bottom
    fliplr: float = 0.5  # probability of mirroring left to right

    def __post_init__(self) -> None:
        for name in _PROBABILITIES:
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"{name}: expected a probability from 0 to 1, found {value}")
        for name in _STRENGTHS:
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name}: expected a finite number from 0, found {value}")
        for name, limit in (("degrees", 180), ("perspective", 0.01)):
            value = getattr(self, name)
            if not 0 <= value <= limit:
                raise ConfigError(f"{name}: expected 0 to {limit}, found {value}")
        if not 0 <= self.scale < 1:
            raise ConfigError(f"scale: expected 0 or more and less than 1, found {self.scale}")
        if not 0 <= self.shear < 45:
            raise ConfigError(f"shear: expected 0 or more and less than 45, found {self.shear}")

    def closed(self) -> Augmentation:
        """The same without what joins pictures: mosaic, mixup, copy-paste, paste-in.

        For the last epochs, so that training ends on pictures as the detector will see them.
        """
        return replace(self, mosaic=0.0, mixup=0.0, copy_paste=0.0, paste_in=0.0)
