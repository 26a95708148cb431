"""Settings of augmentation, with the names of the published hyper-parameter files."""

from __future__ import annotations

from dataclasses import dataclass, replace

from y7edge.train.settings.ranges import (
    BELOW_ONE,
    FRACTION,
    NOT_NEGATIVE,
    Range,
    check_ranges,
    within,
)

_TURN = Range("a number from 0 to 180", high=180)
_TILT = Range("a number from 0 to 0.01", high=0.01)
_SHEAR = Range("0 or more and less than 45", high=45, open_high=True)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Strengths of augmentation; the defaults are the published ones for yolov7-tiny.

    Raises:
        ConfigError: a value is out of its range.
    """

    mosaic: float = within(FRACTION, 1.0)  # probability of joining several images
    mosaic9: float = within(FRACTION, 0.2)  # fraction of mosaics that join nine images, not four
    mixup: float = within(FRACTION, 0.05)  # probability that a mosaic is blended with a second one
    copy_paste: float = within(FRACTION, 0.0)  # fraction of objects with polygons that is copied
    paste_in: float = within(FRACTION, 0.05)  # probability of pasting objects from other images
    hsv_h: float = within(NOT_NEGATIVE, 0.015)  # largest relative change of hue
    hsv_s: float = within(NOT_NEGATIVE, 0.7)  # largest relative change of saturation
    hsv_v: float = within(NOT_NEGATIVE, 0.4)  # largest relative change of brightness
    degrees: float = within(_TURN, 0.0)  # largest rotation in either direction, in degrees
    translate: float = within(NOT_NEGATIVE, 0.1)  # largest shift, as a fraction of the image
    scale: float = within(BELOW_ONE, 0.5)  # factors are drawn from 1 - scale to 1.1 + scale; 0: off
    shear: float = within(_SHEAR, 0.0)  # largest shear angle in either direction, in degrees
    perspective: float = within(_TILT, 0.0)  # largest perspective coefficient, per pixel
    flipud: float = within(FRACTION, 0.0)  # probability of mirroring top to bottom
    fliplr: float = within(FRACTION, 0.5)  # probability of mirroring left to right

    def __post_init__(self) -> None:
        check_ranges(self)

    def closed(self) -> Augmentation:
        """Return these settings without mosaic, mixup, copy-paste and paste-in."""
        return replace(self, mosaic=0.0, mixup=0.0, copy_paste=0.0, paste_in=0.0)
