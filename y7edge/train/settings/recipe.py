"""What a recipe is: the hyper-parameters of one training, each with the range it may have.

The names are those of the published hyper-parameter files (YOLOv7, arXiv 2207.02696), so that such
a file and a :class:`Recipe` say the same. The named recipes and where their values come from are in
``recipes.py``; files are read and written by ``configfile.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
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
# That of the recipe p5: larger models have more to spare than tiny ones.
STRONG = Augmentation(translate=0.2, scale=0.9, mixup=0.15, paste_in=0.15)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyper-parameters of optimiser, warm-up, loss, augmentation and average.

    The defaults are those of ``yolov7`` at 640 px (the recipe ``p5``).

    Raises:
        ConfigError: a value out of its range; the message names key, range and value.
    """

    # Optimiser: SGD with Nesterov momentum
    lr0: float = within(POSITIVE, 0.01)  # initial learning rate, at the end of the warm-up
    lrf: float = within(FRACTION, 0.1)  # the last learning rate as a fraction of lr0; cosine
    momentum: float = within(
        Range("above 0 and below 1", high=1.0, open_low=True, open_high=True), 0.937
    )
    weight_decay: float = within(NOT_NEGATIVE, 0.0005)  # of convolution weights, per nominal batch
    # Pictures per optimiser step; None: by the length of the run (schedule.nominal_batch)
    nominal_batch: int | None = within(
        Range(
            "a whole number from 1 to 65536, or null", low=1, high=65536, whole=True, optional=True
        ),
        None,
    )

    # Largest norm of the gradient of a step; 0: any. Steps sum over the pictures of a batch
    clip_norm: float = within(NOT_NEGATIVE, 0.0)

    # Warm-up
    warmup_epochs: float = within(NOT_NEGATIVE, 3.0)  # at most this many epochs ...
    warmup_share: float = within(FRACTION, 0.1)  # ... and at most this share of the run
    warmup_momentum: float = within(BELOW_ONE, 0.8)  # momentum at the first iteration
    warmup_bias_lr: float = within(NOT_NEGATIVE, 0.1)  # of the biases at the first iteration

    # Loss; gains before the scaling by levels, classes and picture size
    box: float = within(NOT_NEGATIVE, 0.05)
    cls: float = within(NOT_NEGATIVE, 0.3)
    cls_pw: float = within(POSITIVE, 1.0)  # weight of positives in the class loss
    obj: float = within(NOT_NEGATIVE, 0.7)
    obj_pw: float = within(POSITIVE, 1.0)  # weight of positives in the objectness loss
    # An anchor takes part if no side is this many times off the object's
    anchor_t: float = within(Range("above 1", low=1.0, open_low=True), 4.0)
    fl_gamma: float = within(NOT_NEGATIVE, 0.0)  # focal loss: exponent, 0 is off
    label_smoothing: float = within(BELOW_ONE, 0.0)  # 0.1: classes are learnt as 0.95 and 0.05

    # How pictures are changed
    augmentation: Augmentation = STRONG
    close_mosaic: int = within(FROM_ZERO, 0)  # so many last epochs without mosaic and mixup

    # The average of the weights, which is evaluated and saved
    average: str = "ema"  # ema, swa or none
    ema_decay: float = within(BELOW_ONE, 0.9999)  # limit of the moving average's decay
    ema_tau: float = within(POSITIVE, 2000.0)  # updates until it has come to 63 % of the limit
    swa_start: float = within(BELOW_ONE, 0.75)  # share of the run before SWA begins to average

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.average not in AVERAGES:
            raise ConfigError(f"average must be {', '.join(AVERAGES)}, not {self.average!r}")

    def to_dict(self) -> dict[str, Any]:
        """All values under their published names, flat, in the order of the keys."""
        values: dict[str, Any] = {}
        for entry in fields(self):
            if entry.name == "augmentation":
                values |= {f.name: getattr(self.augmentation, f.name) for f in fields(Augmentation)}
            else:
                values[entry.name] = getattr(self, entry.name)
        return values

    def changed(self, changes: Mapping[str, Any]) -> Recipe:
        """A recipe with some values replaced, given flat under their published names.

        Values may be text, as YAML and command lines have it (``1e-3``, ``null``).

        Raises:
            ConfigError: a name that no recipe has (with the nearest one), a value of another kind
                or out of its range.
        """
        known = keys()
        for name in changes:
            if name not in known:
                raise ConfigError(f"there is no {name!r}{nearest(name, known)}")
        flat = self.to_dict() | {name: _value(name, value) for name, value in changes.items()}
        inner = {f.name: flat.pop(f.name) for f in fields(Augmentation)}
        return Recipe(**flat, augmentation=Augmentation(**inner))


_RANGES = ranges(Recipe) | ranges(Augmentation)


def keys() -> tuple[str, ...]:
    """Every key of a recipe, in the order in which files have them."""
    return tuple(Recipe().to_dict())


def _value(name: str, value: object) -> object:
    """A value of the kind that a key has; what cannot be one stays, and its range refuses it."""
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
        raise ConfigError(f"{name} must be a finite number, not {_short(value)}")
    if bounds.whole and float(value).is_integer():
        return int(value)
    return value


def _short(value: float) -> str:
    return "one of hundreds of digits" if isinstance(value, int) else repr(value)
