"""Configure a training run.

The configuration contains a ``y7edge.train.settings.recipe.Recipe`` of hyper-parameters. The
published recipes were tuned for 300 epochs on the 118,000 images of COCO, and fail on small data
sets. Therefore three rules differ from the published training (see ``schedule.py``):

* The warm-up is at most a fraction of the run (published: at least 1000 iterations).
* The nominal batch depends on the length of the run (published: always 64).
* Gradients that are left at the end of an epoch are kept for the next step (published: discarded).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from y7edge.artifact.schema import require_fit
from y7edge.errors import ConfigError
from y7edge.models.spec import ACTS, Spec
from y7edge.train.settings.ranges import (
    FROM_ONE,
    FROM_ZERO,
    POSITIVE,
    Range,
    check_ranges,
    require,
    within,
)
from y7edge.train.settings.recipe import Recipe
from y7edge.train.settings.recipes import P5, TINY, named_for

__all__ = ["P5", "TINY", "Recipe", "TrainConfig"]

PRECISIONS = ("auto", "32-true", "16-mixed", "bf16-mixed")  # names of Lightning Fabric
ASSIGNERS = ("auto", "coarse-to-fine", "lead-guided", "independent", "lead")
CACHES = ("auto", "ram", "disk", "none")
UNSPECIFIED = "unspecified"
"""Licence of weights for which none was stated."""
_MAYBE = replace(FROM_ONE, optional=True)
_WORKERS = replace(FROM_ZERO, optional=True)
_SEED = Range("a whole number from 0, below 2**63", high=2**63 - 1, whole=True)


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Configuration of one run.

    Raises:
        ConfigError: a field is out of its range, or two fields exclude each other.
    """

    # What
    data: Path | str  # data.yaml, or a folder of a known format
    model: str = "yolov7-tiny"  # name of a variant
    act: str | None = None  # activation: relu, leaky, silu or hardswish; None: the model's
    spec: Spec | None = None  # custom model, instead of a variant
    width: float = within(POSITIVE, 1.0)  # factor of all channel numbers (y7edge.models.scaling)
    weights: Path | str | None = None  # initial checkpoint; entries that fit are copied
    imgsz: int = within(FROM_ONE, 640)  # side of the square network input, pixels
    train_split: str = "train"  # name of the split to train on
    val_split: str = "val"  # name of the split to evaluate
    single_cls: bool = False  # train all classes as one
    autoanchor: bool = True  # search new anchors if those of the model fit too few objects

    # How
    recipe: Recipe | None = None  # None: the published one of the model's family
    assigner: str = "auto"  # auto: coarse-to-fine with auxiliary heads, lead without
    rect: bool = False  # batches of similar aspect ratio, with little padding; no mosaic
    multi_scale: bool = False  # random input size per batch, 0.5 to 1.5 times imgsz
    image_weights: bool = False  # draw images of rare or badly detected classes more often
    freeze: tuple[int, ...] = ()  # indices of frozen rows

    # How long
    epochs: int = within(FROM_ONE, 300)  # passes over the training split
    batch: int = within(FROM_ONE, 16)  # images per iteration, over all devices
    nominal_batch: int | None = within(_MAYBE, None)  # images per step; None: the recipe's
    patience: int = within(FROM_ZERO, 0)  # stop after so many epochs without improvement; 0: never
    val_every: int | None = within(_MAYBE, None)  # epochs between evaluations; None: epochs / 20

    # Where
    device: str = "auto"  # auto, cpu, cuda, cuda:N, mps
    devices: int = within(FROM_ONE, 1)  # processes on this machine, one per device
    nodes: int = within(FROM_ONE, 1)  # machines
    sync_bn: bool = False  # BatchNorm statistics over all devices
    precision: str = "auto"  # auto, 32-true, 16-mixed, bf16-mixed (names of Lightning Fabric)
    compile: bool = False  # torch.compile
    workers: int | None = within(_WORKERS, None)  # processes that load images; None: by device
    cache: str = "auto"  # where decoded images are kept: auto, ram, disk, none
    out: Path | str | None = None  # folder of the run; None: the next free runs/trainN
    checkpoint_minutes: float = within(POSITIVE, 10.0)  # between saved states within an epoch
    report: bool = True  # curves, images and report.html at the end of the run
    profile: int = within(FROM_ZERO, 0)  # iterations to measure; 0: off
    seed: int = within(_SEED, 0)  # of the initial weights and of the order of images

    # Of the weights; saved with them. By default, that of the initial weights, if they state one.
    licence: str = UNSPECIFIED
    command: str = ""  # command line of the run

    def __post_init__(self) -> None:
        require_fit(TrainConfig, {f.name: getattr(self, f.name) for f in fields(self)})
        check_ranges(self)
        choices = {"precision": PRECISIONS, "assigner": ASSIGNERS, "cache": CACHES}
        for name, known in choices.items():
            value = getattr(self, name)
            require(value in known, name, f"one of {', '.join(known)}", value)
        if self.act is not None:
            require(self.act in ACTS, "act", f"one of {', '.join(ACTS)}", self.act)
        self._check_together()

    def _check_together(self) -> None:
        """Check fields that depend on each other."""
        rows = self.freeze
        fine = isinstance(rows, tuple) and all(row in FROM_ZERO for row in rows)
        require(fine, "freeze", "a tuple of row indices from 0", rows)
        parts = self.devices * self.nodes
        if self.batch % parts:
            up = -(-self.batch // parts) * parts
            raise ConfigError(
                f"batch must be a multiple of {parts} (the number of devices), not {self.batch}: "
                f"use {up}"
            )
        if self.devices > 1 and ":" in self.device:
            raise ConfigError(
                f"device {self.device!r} is a single device, but devices is {self.devices}: "
                f"use {self.device.partition(':')[0]!r}"
            )
        if self.rect and self.image_weights:
            raise ConfigError(
                "rect and image_weights exclude each other: rect groups images by shape, "
                "image_weights draws them at random; use one of them"
            )

    @property
    def hyper(self) -> Recipe:
        """The recipe in use: ``recipe``, else the published one of the model's family.

        ``nominal_batch`` overrides the value of the recipe; ``rect`` turns mosaic and mixing off.
        """
        recipe = self.recipe or named_for(self.spec or self.model).recipe
        if self.nominal_batch is not None:
            recipe = replace(recipe, nominal_batch=self.nominal_batch)
        return replace(recipe, augmentation=recipe.augmentation.closed()) if self.rect else recipe

    @property
    def validation_interval(self) -> int:
        """Number of epochs between evaluations; the last epoch is always evaluated.

        By default, there are about twenty evaluations in a run, because they may be slow.
        """
        return self.val_every or max(1, round(self.epochs / 20))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values for the checkpoint's header."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["recipe"] = asdict(self.hyper)
        values["spec"] = self.spec.to_dict() if self.spec else None
        values["freeze"] = list(self.freeze)
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}
