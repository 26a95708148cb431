"""Hyper-parameters of training, each with its range.

They have the names of the published hyper-parameter files (YOLOv7, arXiv 2207.02696). Named recipes
are in ``recipes.py``; ``configfile.py`` reads and writes files.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from y7edge.artifact.schema import nearest
from y7edge.errors import ConfigError
from y7edge.train.augment.settings import Augmentation
from y7edge.train.settings.ranges import (
    BELOW_ONE,
    FRACTION,
    FROM_ZERO,
    NOT_NEGATIVE,
    POSITIVE,
    Range,
    check_ranges,
    ranges,
    within,
)

AVERAGES = ("ema", "swa", "none")
_MOMENTUM = Range("above 0 and below 1", high=1.0, open_low=True, open_high=True)
_NOMINAL = Range("a whole number from 1 to 65536, or null", 1, 65536, whole=True, optional=True)
# Augmentation of the recipe p5: larger models benefit from more augmentation than tiny ones.
STRONG = Augmentation(translate=0.2, scale=0.9, mixup=0.15, paste_in=0.15)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyper-parameters of optimizer, warm-up, loss, augmentation and weight averaging.

    The defaults are those of ``yolov7`` at 640 px (the recipe ``p5``).

    Raises:
        ConfigError: a value is out of its range.
    """

    # Optimizer: SGD with Nesterov momentum
    lr0: float = within(POSITIVE, 0.01)  # learning rate at the end of the warm-up
    lrf: float = within(FRACTION, 0.1)  # last learning rate as a fraction of lr0 (cosine decay)
    momentum: float = within(_MOMENTUM, 0.937)
    weight_decay: float = within(NOT_NEGATIVE, 0.0005)  # of convolution weights, per nominal batch
    # Images per optimizer step; None: depends on the length of the run (schedule.nominal_batch)
    nominal_batch: int | None = within(_NOMINAL, None)
    clip_norm: float = within(NOT_NEGATIVE, 0.0)  # largest norm of a step's gradient; 0: off

    # Warm-up
    warmup_epochs: float = within(NOT_NEGATIVE, 3.0)  # at most this many epochs ...
    warmup_share: float = within(FRACTION, 0.1)  # ... and at most this fraction of the run
    warmup_momentum: float = within(BELOW_ONE, 0.8)  # momentum at the first iteration
    warmup_bias_lr: float = within(NOT_NEGATIVE, 0.1)  # initial learning rate of biases

    # Loss; box, cls and obj are gains for 3 levels, 80 classes and 640 px
    box: float = within(NOT_NEGATIVE, 0.05)
    cls: float = within(NOT_NEGATIVE, 0.3)
    cls_pw: float = within(POSITIVE, 1.0)  # weight of positives in the class loss
    obj: float = within(NOT_NEGATIVE, 0.7)
    obj_pw: float = within(POSITIVE, 1.0)  # weight of positives in the objectness loss
    # An anchor fits an object if their widths and heights differ by a factor below this
    anchor_t: float = within(Range("above 1", low=1.0, open_low=True), 4.0)
    fl_gamma: float = within(NOT_NEGATIVE, 0.0)  # focal loss: exponent, 0 is off
    label_smoothing: float = within(BELOW_ONE, 0.0)  # 0.1: classes are trained as 0.95 and 0.05

    # Augmentation
    augmentation: Augmentation = STRONG
    close_mosaic: int = within(FROM_ZERO, 0)  # number of last epochs without mosaic and mixup

    # Averaging of the weights
    average: str = "ema"  # ema, swa or none
    ema_decay: float = within(BELOW_ONE, 0.9999)  # largest decay of the moving average
    ema_tau: float = within(POSITIVE, 2000.0)  # updates until the decay is 63 % of ema_decay
    swa_start: float = within(BELOW_ONE, 0.75)  # fraction of the run before averaging

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.average not in AVERAGES:
            raise ConfigError(f"average must be one of {', '.join(AVERAGES)}, not {self.average!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return all values under their published names, as a flat dict."""
        values: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            values |= asdict(value) if entry.name == "augmentation" else {entry.name: value}
        return values

    def changed(self, changes: Mapping[str, Any]) -> Recipe:
        """Return a copy with the values of ``changes``: numbers or strings (``"1e-3"``) by name.

        Raises:
            ConfigError: a name is unknown, or a value has the wrong type or is out of range.
        """
        known = keys()
        for name in changes:
            if name not in known:
                raise ConfigError(f"unknown key {name!r}{nearest(name, known)}")
        flat = self.to_dict() | {name: _value(name, value) for name, value in changes.items()}
        inner = {f.name: flat.pop(f.name) for f in fields(Augmentation)}
        return Recipe(**flat, augmentation=Augmentation(**inner))


_RANGES = ranges(Recipe) | ranges(Augmentation)


def keys() -> tuple[str, ...]:
    """Return the published names of all hyper-parameters, in the order of files."""
    return tuple(Recipe().to_dict())


def _value(name: str, value: object) -> object:
    """Convert a value to the type of its hyper-parameter, without checking its range."""
    if name == "average":
        return "none" if value is None else value
    bounds = _RANGES[name]
    if isinstance(value, str):
        if bounds.optional and value.strip().lower() in ("", "null", "none", "~"):
            return None
        try:
            value = float(value)
        except ValueError as error:
            raise ConfigError(f"{name} must be a number, not {value!r}") from error
    if value is None and bounds.optional:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} must be a number, not {value!r}")
    if not abs(value) <= sys.float_info.max:
        found = "a number with hundreds of digits" if isinstance(value, int) else repr(value)
        raise ConfigError(f"{name} must be a finite number, not {found}")
    if bounds.whole and float(value).is_integer():
        return int(value)
    return value
