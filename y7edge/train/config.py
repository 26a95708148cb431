"""What a training run is: one frozen dataclass, and the two published recipes as data.

A :class:`Recipe` holds the published hyper-parameters (YOLOv7, arXiv 2207.02696; the values of its
hyper-parameter files, per model family). A :class:`TrainConfig` says what to train on what, and
carries a recipe. Three rules depart from the published recipe, because it was tuned for COCO's
118,000 pictures and 300 epochs and breaks on small sets; each is a function in ``schedule.py``
with its reason, and each can be overridden here:

* the warm-up is a share of the run (published: at least 1000 iterations, however short the run);
* the nominal batch follows the length of the run (published: always 64);
* gradients left over at the end of an epoch go into the next step (published: discarded).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from y7edge.errors import ConfigError
from y7edge.train.augment import Augmentation


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(fine: bool, name: str, expected: str, found: object) -> None:
    if not fine:
        raise ConfigError(f"{name} must be {expected}, not {found!r}")


STRONG = Augmentation(translate=0.2, scale=0.9)
MILD = Augmentation(translate=0.1, scale=0.5)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyper-parameters of optimiser, loss and augmentation."""

    # Optimiser: SGD with Nesterov momentum
    lr0: float = 0.01  # initial learning rate, at the end of the warm-up
    lrf: float = 0.1  # the last learning rate as a share of lr0 (cosine in between)
    momentum: float = 0.937
    weight_decay: float = 0.0005  # of convolution weights, for one step of the nominal batch
    ema_decay: float = 0.9999  # limit of the moving average's decay
    ema_tau: float = 2000.0  # updates until the decay has come to 63 % of its limit

    # Warm-up
    warmup_epochs: float = 3.0  # at most this many epochs ...
    warmup_share: float = 0.1  # ... and at most this share of the run
    warmup_momentum: float = 0.8  # momentum at the first iteration
    warmup_bias_lr: float = 0.1  # learning rate of the biases at the first iteration

    # Loss gains, before the scaling by levels, classes and picture size
    box: float = 0.05
    obj: float = 0.7
    cls: float = 0.3
    anchor_t: float = 4.0  # an anchor takes part if no side is this many times off the object's

    # How pictures are changed; tiny models, which have less to spare, get milder changes
    augmentation: Augmentation = STRONG

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self) if f.name != "augmentation"):
            value = getattr(self, name)
            _require(math.isfinite(value), name, "a finite number", value)
        for name in ("lr0", "lrf", "ema_tau", "anchor_t"):
            _require(getattr(self, name) > 0, name, "a positive number", getattr(self, name))
        for name in ("momentum", "warmup_momentum", "warmup_share"):
            value = getattr(self, name)
            _require(0 <= value <= 1, name, "a number from 0 to 1", value)
        _require(0 <= self.ema_decay < 1, "ema_decay", "from 0 to below 1", self.ema_decay)
        for name in ("weight_decay", "warmup_epochs", "warmup_bias_lr", "box", "obj", "cls"):
            _require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))


# The published hyper-parameter files, where they differ from the defaults above.
P5 = Recipe()
TINY = Recipe(lrf=0.01, obj=1.0, cls=0.5, augmentation=MILD)


def recipe_for(model: str) -> Recipe:
    """The published recipe of a model's family: ``tiny`` for the tiny ones, else ``p5``."""
    return TINY if model.startswith("yolov7-tiny") else P5


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One training run.

    Raises:
        ConfigError: a field is out of its range; the message names field, range and value.
    """

    # What
    data: Path | str  # data.yaml, or a folder that a reader of y7edge.data knows
    model: str = "yolov7-tiny"  # name of a published variant
    width: float = 1.0  # multiplies every channel (y7edge.models.scaling)
    weights: Path | str | None = None  # checkpoint to start from; entries that fit are copied
    imgsz: int = 640  # side of the square network input, pixels
    train_split: str = "train"
    val_split: str = "val"

    # How long
    epochs: int = 300
    batch: int = 16  # pictures per forward pass
    nominal_batch: int | None = None  # pictures per optimiser step; None: by schedule.nominal_batch
    patience: int = 0  # stop after so many epochs without a better fitness; 0: never
    val_every: int | None = None  # epochs between validations; None: a twentieth of the run

    # Where
    device: str = "auto"  # auto, cpu, cuda, cuda:N, mps
    precision: str = "auto"  # auto, 32-true, 16-mixed, bf16-mixed (names of Lightning Fabric)
    workers: int | None = None  # processes that load pictures; None: by loading_workers
    out: Path | str | None = None  # folder of the run; None: the next free runs/trainN
    seed: int = 0

    recipe: Recipe | None = None  # None: the published one of the model's family
    licence: str = "unspecified"  # of the weights, kept with them; yours to choose

    def __post_init__(self) -> None:
        for name in ("imgsz", "epochs", "batch", "nominal_batch", "val_every"):
            value = getattr(self, name)
            if value is not None:
                _require(_is_whole(value) and value >= 1, name, "a whole number from 1", value)
        for name in ("patience", "workers", "seed"):
            value = getattr(self, name)
            if value is not None:
                _require(_is_whole(value) and value >= 0, name, "a whole number from 0", value)
        _require(self.seed < 2**63, "seed", "below 2**63", self.seed)
        _require(self.width > 0, "width", "a positive number", self.width)
        known = ("auto", "32-true", "16-mixed", "bf16-mixed")
        _require(self.precision in known, "precision", f"one of {', '.join(known)}", self.precision)

    @property
    def hyper(self) -> Recipe:
        """The recipe in force: the one given, else the published one of the model's family."""
        return self.recipe or recipe_for(self.model)

    @property
    def validation_interval(self) -> int:
        """Epochs between validations.

        Judging a small set can cost a third of an epoch, so by default about twenty looks are
        spread over the run, however long it is; the last epoch is always judged.
        """
        return self.val_every or max(1, round(self.epochs / 20))

    def to_dict(self) -> dict[str, Any]:
        """The run as JSON-able values, for the checkpoint's header."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["recipe"] = asdict(self.hyper)
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}
