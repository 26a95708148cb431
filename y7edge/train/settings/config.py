"""Configure a training run.

The configuration contains a :class:`~y7edge.train.settings.recipe.Recipe` of hyper-parameters; the
named ones are in ``recipes.py``. The published recipe was tuned for 300 epochs on the 118,000
images of COCO, and fails on small sets. Three rules differ therefore (see ``schedule.py``); the
configuration can override all of them:

* the warm-up is a fraction of the run (published: at least 1000 iterations);
* the nominal batch depends on the length of the run (published: always 64);
* gradients left at the end of an epoch go into the next step (published: discarded).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from y7edge.artifact.schema import require_fit
from y7edge.errors import ConfigError
from y7edge.models.spec import Spec
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
from y7edge.train.settings.recipes import P5, TINY, recipe_for

__all__ = ["P5", "TINY", "Recipe", "TrainConfig", "recipe_for"]

PRECISIONS = ("auto", "32-true", "16-mixed", "bf16-mixed")  # names of Lightning Fabric
ASSIGNERS = ("auto", "coarse-to-fine", "lead-guided", "independent", "lead")
CACHES = ("auto", "ram", "disk", "none")
_MAYBE = replace(FROM_ONE, optional=True)
_WORKERS = replace(FROM_ZERO, optional=True)
_SEED = Range("a whole number from 0, below 2**63", high=2**63 - 1, whole=True)


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Configuration of one run.

    Raises:
        ConfigError: a field is out of its range, or two fields contradict each other.
    """

    # What
    data: Path | str  # data.yaml, or a folder of a known format
    model: str = "yolov7-tiny"  # name of a published variant
    spec: Spec | None = None  # custom rows instead of the variant's
    width: float = within(POSITIVE, 1.0)  # multiplies every channel (y7edge.models.scaling)
    weights: Path | str | None = None  # initial checkpoint; entries that fit are copied
    imgsz: int = within(FROM_ONE, 640)  # side of the square network input, pixels
    train_split: str = "train"
    val_split: str = "val"
    single_cls: bool = False  # train all classes as one
    autoanchor: bool = True  # fit new anchors if the old ones miss objects

    # How
    recipe: Recipe | None = None  # None: the published one of the model's family
    assigner: str = "auto"  # auto: coarse-to-fine with auxiliary heads, lead without
    rect: bool = False  # batches of similar aspect, little padding; no mosaic
    multi_scale: bool = False  # random input size per batch, 0.5 to 1.5 times imgsz
    image_weights: bool = False  # draw images of rare or badly detected classes more often
    freeze: tuple[int, ...] = ()  # indices of frozen rows

    # How long
    epochs: int = within(FROM_ONE, 300)
    batch: int = within(FROM_ONE, 16)  # images per iteration, over all devices
    nominal_batch: int | None = within(_MAYBE, None)  # images per step; None: the recipe's
    patience: int = within(FROM_ZERO, 0)  # stop after epochs without better fitness; 0: never
    val_every: int | None = within(_MAYBE, None)  # epochs; None: a twentieth of the run

    # Where
    device: str = "auto"  # auto, cpu, cuda, cuda:N, mps
    devices: int = within(FROM_ONE, 1)  # processes on this machine, one per device
    nodes: int = within(FROM_ONE, 1)  # machines
    sync_bn: bool = False  # BatchNorm statistics over all devices
    precision: str = "auto"  # auto, 32-true, 16-mixed, bf16-mixed (names of Lightning Fabric)
    compile: bool = False  # torch.compile
    workers: int | None = within(_WORKERS, None)  # processes that load images; None: by device
    cache: str = "auto"  # decoded images: ram, disk, none, or auto
    out: Path | str | None = None  # folder of the run; None: the next free runs/trainN
    checkpoint_minutes: float = within(POSITIVE, 10.0)  # between states inside an epoch
    report: bool = True  # curves, images and report.html at the end of the run
    profile: int = within(FROM_ZERO, 0)  # iterations to measure; 0: off
    seed: int = within(_SEED, 0)

    licence: str = "unspecified"  # of the weights; saved with them
    command: str = ""  # command line of the run

    def __post_init__(self) -> None:
        require_fit(TrainConfig, {f.name: getattr(self, f.name) for f in fields(self)})
        check_ranges(self)
        choices = {"precision": PRECISIONS, "assigner": ASSIGNERS, "cache": CACHES}
        for name, known in choices.items():
            value = getattr(self, name)
            require(value in known, name, f"one of {', '.join(known)}", value)
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
                f"batch must be a multiple of the {parts} devices, not {self.batch}: use {up}"
            )
        if self.devices > 1 and ":" in self.device:
            raise ConfigError(
                f"device {self.device!r} is one device, devices is {self.devices}: "
                f"use {self.device.partition(':')[0]!r}"
            )
        if self.rect and self.image_weights:
            raise ConfigError(
                "rect and image_weights contradict each other: rect groups images by shape, "
                "image_weights draws them at random; use one of them"
            )

    @property
    def hyper(self) -> Recipe:
        """The recipe in use: the given one, else the published one of the model's family.

        ``nominal_batch`` of the run overrides the recipe's; ``rect`` turns mosaic and mixing off.
        """
        recipe = self.recipe or recipe_for(self.spec or self.model)
        if self.nominal_batch is not None:
            recipe = replace(recipe, nominal_batch=self.nominal_batch)
        return replace(recipe, augmentation=recipe.augmentation.closed()) if self.rect else recipe

    @property
    def validation_interval(self) -> int:
        """Epochs between validations; by default about twenty in a run, as they may be slow.

        The last epoch is always evaluated.
        """
        return self.val_every or max(1, round(self.epochs / 20))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values for the checkpoint's header."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["recipe"] = asdict(self.hyper)
        values["spec"] = self.spec.to_dict() if self.spec else None
        values["freeze"] = list(self.freeze)
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}
