"""Build the parts of a run from its configuration: data, model, loader, optimiser, files."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from y7edge.data.dataset import Dataset, load
from y7edge.errors import ConfigError, RuntimeMissing
from y7edge.evaluation.evaluate import Metrics
from y7edge.models import registry, weights
from y7edge.models.scaling import scale
from y7edge.models.spec import Anchors, Spec
from y7edge.nn.build import Model
from y7edge.train.averaging.average import average_for
from y7edge.train.averaging.statistics import whole_pictures
from y7edge.train.loading.dataset import TrainingSet, loader
from y7edge.train.loading.memory import Item
from y7edge.train.loading.sampling import BatchPlan, image_weights, rect_plan
from y7edge.train.loss.loss import TrainingLoss
from y7edge.train.output import folder as files
from y7edge.train.output.writer import RunWriter
from y7edge.train.run.distributed import Ranks, open_fabric
from y7edge.train.run.optim import build_optimizer, scaled_weight_decay
from y7edge.train.run.schedule import Schedule, nominal_batch, warmup_iterations
from y7edge.train.run.steps import Steps
from y7edge.train.run.timing import Timing
from y7edge.train.run.validate import Validation, require_labels
from y7edge.train.settings.config import TrainConfig
from y7edge.train.setup.anchors import choose
from y7edge.train.setup.finetune import carry_over
from y7edge.train.setup.freeze import freeze_rows

# Some are first used after hours: what is missing is reported before the first epoch.
_NEEDED = [
    "cv2",
    "faster_coco_eval",
    "lightning_fabric",
    "matplotlib",
    "safetensors",
    "tensorboard",
]


@dataclass(frozen=True, slots=True)
class Start:
    """The model to train, where its weights come from (one line), and remarks."""

    model: Model
    origin: str
    notes: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """What :func:`start_again` needs, as JSON-able values."""
        anchors = self.model.spec.anchors
        return {"origin": self.origin, "notes": list(self.notes), "anchors": anchors}


@dataclass
class Parts:
    """What a run is made of, in one of its processes."""

    config: TrainConfig
    fabric: Any  # Lightning Fabric, launched
    ranks: Ranks
    data: Dataset  # with the two splits of the run
    shown: TrainingSet  # training images, augmented
    plan: BatchPlan  # which images make up which batch
    loader: DataLoader[Item]  # the batches of the plan
    validation: Validation | None  # None on all ranks but the first
    start: Start
    steps: Steps  # what happens to each batch; holds model, optimiser and average
    writer: RunWriter | None  # writes the files; None on all ranks but the first
    folder: Path

    def introduction(self) -> str:
        """One line about what is trained on what."""
        config, schedule, world = self.config, self.steps.schedule, self.ranks.world
        return (
            f"{self.steps.model.spec.name}, {len(self.data.names)} classes, {self.start.origin}: "
            f"{len(self.shown)} training images, {len(self.data.split(config.val_split))} "
            f"validation images, {config.epochs} epochs at {config.imgsz} px, batch "
            f"{config.batch}, a step every {schedule.nominal} images, warm-up over "
            f"{schedule.warmup} iterations, on {f'{world} x ' if world > 1 else ''}"
            f"{self.fabric.device}; {self.folder}"
        )

    def whole_images(self) -> Iterator[Tensor]:
        """Training images as they are evaluated, for statistics; the same on every rank."""
        workers = self.loader.num_workers
        for images in whole_pictures(self.shown, self.config.batch, workers):
            yield self.steps.prepared(images)

    def weigh_images(self, metrics: Metrics | None) -> None:
        """Draw images of badly detected classes more often from the next epoch on.

        Args:
            metrics: of the evaluation; the first rank's count. Without ``image_weights`` in the
                configuration nothing happens.
        """
        if not self.config.image_weights:
            return
        weights = None
        if metrics is not None:
            scores = [np.nan if c.ap50_95 is None else c.ap50_95 for c in metrics.per_class]
            weights = image_weights(self.shown.samples, self.start.model.spec.nc, np.array(scores))
        self.plan.set_weights(self.ranks.from_first(weights))


def build(
    config: TrainConfig,
    *,
    say: Callable[[str], None] = lambda line: None,
    fabric: Any = None,
    ranks: Ranks | None = None,
    folder: Path | None = None,
    again: Mapping[str, Any] | None = None,
    timing: Timing | None = None,
) -> Parts:
    """Build all parts of a run; everything that can be wrong is found now.

    Args:
        config: what to train on what.
        say: is called with remarks, line by line.
        fabric: Lightning Fabric, launched; None opens one for a single process.
        ranks: the processes of the run; None: this one alone.
        folder: of a run that is resumed; None makes the one that the configuration names.
        again: facts of the first start of a run that is resumed.
        timing: measures the parts of an iteration.

    Raises:
        ConfigError, DataError, CheckpointError, DeviceError: see :func:`loop.train`.
    """
    fabric, ranks = fabric or open_fabric(config), ranks or Ranks()
    with ranks.together():
        # Other splits, which may have faults of their own, are not read.
        data = load(config.data, splits=tuple({config.train_split: 0, config.val_split: 0}))
        data = data.single_class() if config.single_cls else data
        require_labels(data.split(config.train_split), "train on")
        names = data.names
        start = start_again(config, names, again) if again else make_model(config, data)
        for note in start.notes:
            say(note)
        shown, plan = _training_images(config, data, start.model.spec, ranks)
        workers = loading_workers(config.workers, fabric.device)
        pictures = loader(shown, plan, workers=workers, pin=fabric.device.type == "cuda")
        validation = (
            Validation(data.split(config.val_split), names, config.imgsz) if ranks.first else None
        )
    steps = _steps(config, fabric, ranks, start.model, len(shown), len(plan), timing)
    writer = None
    with ranks.together():
        if ranks.first:
            writer = RunWriter(
                folder or files.claim(config.out),
                config,
                data,
                origin=start.origin,
                nominal=steps.schedule.nominal,
                notes=start.notes,
            )
    folder = cast(Path, ranks.from_first(writer and writer.folder))
    parts = Parts(
        *(config, fabric, ranks, data, shown, plan, pictures, validation, start, steps, writer),
        folder,
    )
    say(parts.introduction())
    return parts


def check_packages() -> None:
    """Find out before the first epoch whether everything for the last one is installed.

    Raises:
        RuntimeMissing: a package is not there; the message says how to install it.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeMissing(f'training needs {", ".join(missing)}: pip install "y7edge[train]"')


def make_model(config: TrainConfig, data: Dataset) -> Start:
    """The model that a run starts with, with anchors that fit its data unless weights come along.

    Raises:
        ConfigError, CheckpointError: see :func:`start_model`.
    """
    torch.manual_seed(config.seed)
    names, fitting = data.names, None
    notes: tuple[str, ...] = ()
    if config.autoanchor and config.weights is None:
        train, spec = data.split(config.train_split), build_spec(config, len(names))
        fitting, found = choose(train, spec, config.imgsz, config.hyper.anchor_t, config.seed)
        notes = (found,)
    start = start_model(config, names, anchors=fitting)
    return replace(start, notes=notes + start.notes)


def _training_images(
    config: TrainConfig, data: Dataset, spec: Spec, ranks: Ranks
) -> tuple[TrainingSet, BatchPlan]:
    """Training images, and which of them this rank gets when."""
    recipe, samples = config.hyper, data.split(config.train_split)
    last = recipe.close_mosaic
    shown = TrainingSet(
        samples,
        config.imgsz,
        recipe.augmentation,
        seed=config.seed,
        cache=config.cache,
        close_at=config.epochs - last + 1 if last else None,
    )
    rect = rect_plan(samples, config.imgsz, spec.max_stride) if config.rect else None
    plan = BatchPlan(
        len(shown), config.batch, seed=config.seed, rank=ranks.rank, world=ranks.world, rect=rect
    )
    if config.image_weights:
        plan.set_weights(image_weights(samples, spec.nc))
    return shown, plan


def _steps(
    config: TrainConfig,
    fabric: Any,
    ranks: Ranks,
    model: Any,
    images: int,
    batches: int,
    timing: Timing | None,
) -> Steps:
    """Loss, schedule, optimiser and average around a model that is moved to its device."""
    # Channels-last is 1.4 times faster on a CPU, and the layout that tensor cores want.
    model = model.to(fabric.device).train().to(memory_format=torch.channels_last)
    recipe = config.hyper
    nominal = recipe.nominal_batch or nominal_batch(images, config.epochs, config.batch)
    warmup = warmup_iterations(batches, config.epochs, recipe)
    anchors = model.head.anchors
    loss = TrainingLoss(model.spec, anchors, recipe, config.imgsz, config.assigner, ranks)
    decay = scaled_weight_decay(recipe.weight_decay, config.batch, nominal)
    optimizer = build_optimizer(model, recipe, decay)
    average = average_for(recipe, model, config.epochs)
    if config.sync_bn and ranks.world > 1:
        if fabric.device.type != "cuda":
            raise ConfigError("sync_bn needs GPUs: leave it out on a CPU")
        # After optimiser and average, which tell BatchNorms by their class.
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return Steps(
        fabric,
        model,
        optimizer,
        loss=loss,
        schedule=Schedule(recipe, config.epochs, batches, config.batch, nominal, warmup),
        average=average,
        clip_norm=recipe.clip_norm,
        compiled=config.compile,
        timing=timing,
    )


def build_spec(config: TrainConfig, classes: int, anchors: Anchors | None = None) -> Spec:
    """The rows that a run trains: those of the named variant, or its own (``config.spec``).

    Raises:
        ConfigError: unknown model, folded rows, a width that cannot be, or an input
            size that the strides don't divide or that is a single cell of the largest.
    """
    if config.spec is None:
        spec = registry.get(config.model, nc=classes, anchors=anchors)
    elif config.spec.form == "folded":
        raise ConfigError(
            f"spec: {config.spec.name} is folded: without BatchNorm it cannot be trained; expected "
            "the training form, or the deploy form to do without implicit knowledge"
        )
    else:
        spec = replace(config.spec, nc=classes, anchors=anchors or config.spec.anchors)
    if config.assigner == "lead" and spec.has_aux:
        spec = registry.without_auxiliary(spec)
    if config.imgsz % spec.max_stride:
        up = -(-config.imgsz // spec.max_stride) * spec.max_stride
        raise ConfigError(
            f"imgsz must be a multiple of {spec.max_stride} for {spec.name}, "
            f"not {config.imgsz}: take {up}"
        )
    if config.imgsz < 2 * spec.max_stride:
        # BatchNorm has no statistics of the single cell that a batch of one would leave.
        raise ConfigError(
            f"imgsz must be {2 * spec.max_stride} or more to train {spec.name}, not {config.imgsz}"
        )
    return scale(spec, width=config.width)


def start_model(
    config: TrainConfig, names: Sequence[str], *, anchors: Anchors | None = None
) -> Start:
    """The model to train, its frozen rows frozen.

    With ``config.weights``, everything that fits is copied (:mod:`y7edge.train.setup.finetune`),
    the anchors too, as weights predict offsets from them.

    Args:
        config: the run.
        names: class names of the data, in order.
        anchors: in pixels, finest level first; None: the weights', else the published ones.

    Raises:
        ConfigError: the model cannot be trained (see :func:`build_spec`), rows to freeze that it
            does not have, or a model's name where a file of weights is expected.
        CheckpointError: the weights are folded, or most of them don't fit.
    """
    if config.weights is None:
        start = Start(_model(config, names, anchors), "trained from random weights")
    else:
        start = _from_weights(config, Path(config.weights), names, anchors)
    if not config.freeze:
        return start
    return replace(start, notes=(*start.notes, _frozen_note(config, start.model)))


def start_again(config: TrainConfig, names: Sequence[str], facts: Mapping[str, Any]) -> Start:
    """The model of a run that is resumed; a state of the run has its weights.

    Neither the file of weights that it began with nor a search for anchors is needed.

    Args:
        config: the run.
        names: class names of the data, in order.
        facts: of its first start.
    """
    anchors = tuple(tuple((w, h) for w, h in level) for level in facts["anchors"])
    model = _model(config, names, anchors)
    return Start(model, facts["origin"], tuple(facts["notes"]))


def _model(config: TrainConfig, names: Sequence[str], anchors: Anchors | None) -> Model:
    """The model of a run with random weights, its frozen rows frozen."""
    # Rows of one's own may break the plan for RepConv's identity branch: that is what they are for.
    own = config.spec is not None
    model = Model(build_spec(config, len(names), anchors), allow_identity=own)
    freeze_rows(model, config.freeze)
    return model


def _from_weights(
    config: TrainConfig, path: Path, names: Sequence[str], anchors: Anchors | None
) -> Start:
    """A model with what a checkpoint can give it."""
    if str(path) in registry.names() and not path.exists():
        raise ConfigError(
            f"no weights come with the package: give --weights a file, .safetensors or .pt; "
            f"--model {path} alone trains {path} from scratch"
        )
    checkpoint = weights.load(path)
    if anchors is None:
        usual = config.spec or registry.get(config.model)
        old = checkpoint.spec.anchors
        alike = len(old) == len(usual.anchors) and len(old[0]) == len(usual.anchors[0])
        anchors = old if alike else None
    model = _model(config, names, anchors)
    carried = carry_over(model, checkpoint, names, str(path))
    source = f"{path.name} (digest {checkpoint.digest[:16]})"
    origin = f"fine-tuned from {source}, {carried.entries} of {carried.total} entries"
    return Start(model, origin, carried.notes)


def _frozen_note(config: TrainConfig, model: Model) -> str:
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    still = sum(count for count, trained in counts if not trained)
    note = (
        f"{len(config.freeze)} of {len(model.rows)} rows are frozen, "
        f"{still / sum(count for count, _ in counts):.0%} of the parameters"
    )
    return note if config.weights else f"{note}; they are random: freeze is meant for weights"


def loading_workers(asked: int | None, device: torch.device) -> int:
    """Processes that load images: as asked, else what the device leaves free.

    On a CPU the network itself keeps all cores busy, and a process that loads only competes with
    it; a GPU leaves the cores to loading.
    """
    if asked is not None:
        return asked
    return 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)
