"""Build the parts of a run from its configuration."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from y7edge.artifact.manifest import MAX_BYTES
from y7edge.data.dataset import Dataset, load
from y7edge.errors import ArtifactError, CheckpointError, ConfigError, DataError, RuntimeMissing
from y7edge.evaluation.evaluate import Metrics
from y7edge.models import registry, weights
from y7edge.models.scaling import scale
from y7edge.models.shapes import require_affordable
from y7edge.models.spec import Anchors, Spec
from y7edge.nn.build import Model, to_checkpoint
from y7edge.nn.eager import describe
from y7edge.train.averaging.average import average_for
from y7edge.train.averaging.statistics import letterboxed_batches
from y7edge.train.loading.dataset import TrainingSet, loader
from y7edge.train.loading.memory import Item
from y7edge.train.loading.sampling import BatchPlan, image_weights, rect_plan
from y7edge.train.loss.loss import TrainingLoss
from y7edge.train.output import folder as files
from y7edge.train.output.writer import RunWriter
from y7edge.train.run.distributed import Ranks, open_fabric
from y7edge.train.run.optim import build_optimizer, scaled_weight_decay
from y7edge.train.run.schedule import Schedule, nominal_batch, warmup_iterations
from y7edge.train.run.state import Began
from y7edge.train.run.steps import Steps, scaler_of
from y7edge.train.run.timing import Timing
from y7edge.train.run.validate import Validation, require_labels
from y7edge.train.settings.config import UNSPECIFIED, TrainConfig
from y7edge.train.setup.anchors import choose
from y7edge.train.setup.finetune import copy_matching
from y7edge.train.setup.freeze import freeze_rows

# Packages that a run imports; they are checked first, because some are needed only at its end.
NEEDS = ("cv2", "faster_coco_eval", "lightning_fabric", "matplotlib", "safetensors", "tensorboard")


@dataclass(frozen=True, slots=True)
class Start:
    """The initial model of a run."""

    model: Model
    origin: str  # of the weights, such as "trained from random weights"
    notes: tuple[str, ...] = ()  # messages for the log
    licence: str = UNSPECIFIED  # of the weights that the run starts from

    def began(self) -> Began:
        """Return the values from which ``resume_model`` creates the model again."""
        return Began(self.origin, self.notes, self.model.spec.anchors)


@dataclass
class Parts:
    """The parts of a run, in one of its processes."""

    config: TrainConfig
    fabric: Any  # Lightning Fabric, launched
    ranks: Ranks
    data: Dataset  # with the splits of the run
    train_set: TrainingSet  # augmented
    plan: BatchPlan
    loader: DataLoader[Item]
    validation: Validation | None  # None on all ranks but the first
    start: Start
    steps: Steps  # has model, optimizer and average
    writer: RunWriter | None  # None on all ranks but the first
    folder: Path

    def introduction(self) -> str:
        """Describe the run in one line."""
        config, schedule, world = self.config, self.steps.schedule, self.ranks.world
        # A profile trains in a temporary folder, and ends after some iterations.
        length = f"{config.epochs} epochs"
        folder = f"; {self.folder}"
        if config.profile:
            length, folder = f"a profile of {config.profile} iterations", "; nothing is saved"
        return (
            f"{self.steps.model.spec.name}, {len(self.data.names)} classes, {self.start.origin}: "
            f"{len(self.train_set)} training images, {len(self.data.split(config.val_split))} "
            f"validation images, {length} at {config.imgsz} px, batch "
            f"{config.batch}, a step every {schedule.nominal} images, warm-up over "
            f"{schedule.warmup} iterations, on {f'{world} x ' if world > 1 else ''}"
            f"{self.fabric.device}{folder}"
        )

    def letterboxed_images(self) -> Iterator[Tensor]:
        """Iterate over input batches for BatchNorm statistics; they are the same on every rank."""
        workers = self.loader.num_workers
        for images in letterboxed_batches(self.train_set, self.config.batch, workers):
            yield self.steps.to_input(images)

    def update_image_weights(self, metrics: Metrics | None) -> None:
        """If ``image_weights`` is set, draw images of badly detected classes more often.

        ``metrics`` is the first rank's evaluation; None on other ranks or without evaluation.
        """
        if not self.config.image_weights:
            return
        weights = None
        if metrics is not None:
            scores = [np.nan if c.ap50_95 is None else c.ap50_95 for c in metrics.per_class]
            weights = image_weights(
                self.train_set.samples, self.start.model.spec.nc, np.array(scores)
            )
        self.plan.set_weights(self.ranks.from_first(weights))


def build(
    config: TrainConfig,
    *,
    log: Callable[[str], None] = lambda line: None,
    fabric: Any = None,
    ranks: Ranks | None = None,
    folder: Path | None = None,
    resumed: Began | None = None,
    timing: Timing | None = None,
    held: ExitStack | None = None,
) -> Parts:
    """Build all parts of a run; raise every error that can be found before training.

    ``log`` is called with messages. ``fabric`` is a launched Fabric; None: one is opened. ``ranks``
    None: a single process. To resume a run, pass its ``folder``, and its ``Start.began`` as
    ``resumed``. The folder of a new run is locked until ``held`` is closed.

    Raises:
        ConfigError, DataError, CheckpointError, DeviceError: see ``loop.train``.
    """
    fabric, ranks = fabric or open_fabric(config), ranks or Ranks()
    with ranks.together():
        # Only these splits are loaded, so that errors in other splits do not stop the run.
        data = load(config.data, splits=tuple({config.train_split: 0, config.val_split: 0}))
        data = data.single_class() if config.single_cls else data
        require_labels(data.split(config.train_split), "train on")
        names = data.names
        start = resume_model(config, names, resumed) if resumed else make_model(config, data)
        if config.licence == UNSPECIFIED:
            config = replace(config, licence=start.licence)
        _require_exportable(start.model, config, data)
        for note in start.notes:
            log(note)
        train_set, plan = _training_images(config, data, start.model.spec, ranks)
        workers = loading_workers(config.workers, fabric.device)
        # On a GPU, colour jitter and mirror are applied there (`Steps.prepared`).
        gpu = fabric.device.type == "cuda"
        images = loader(train_set, plan, workers=workers, pin=gpu, in_part=gpu)
        validation = (
            Validation(data.split(config.val_split), names, config.imgsz) if ranks.first else None
        )
    steps = _steps(config, fabric, ranks, start.model, len(train_set), len(plan), timing)
    writer = None
    with ranks.together():
        if ranks.first:
            writer = RunWriter(
                folder or files.create(config.out, held or ExitStack()),
                config,
                data,
                origin=start.origin,
                nominal=steps.schedule.nominal,
                notes=start.notes,
            )
    folder = cast(Path, ranks.from_first(writer and writer.folder))
    parts = Parts(
        *(config, fabric, ranks, data, train_set, plan, images, validation, start, steps, writer),
        folder,
    )
    log(parts.introduction())
    return parts


def check_packages() -> None:
    """Check that all packages of a run are installed.

    Raises:
        RuntimeMissing: a package is missing; the message states how to install it.
    """
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeMissing(f'training needs {", ".join(missing)}: pip install "y7edge[train]"')


def make_model(config: TrainConfig, data: Dataset) -> Start:
    """Create the initial model of a new run; fit its anchors if it has random weights.

    Raises:
        ConfigError, CheckpointError: see ``start_model``.
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


def _require_exportable(model: Model, config: TrainConfig, data: Dataset) -> None:
    """Check before training that the model could be exported.

    Raises:
        DataError: the model is too large, or a manifest cannot store its class names or licence.
    """
    meta = {"licence": config.licence}
    try:
        # Checkpoints have the same limit.
        require_affordable(model.spec, config.imgsz, config.imgsz)
        checkpoint = to_checkpoint(model, data.names, meta)
        size = len(describe(checkpoint, (config.imgsz, config.imgsz)).to_json().encode())
    except (ArtifactError, ConfigError) as error:
        raise DataError(
            f"{data.source}: a model trained on this data could not be exported: {error}"
        ) from error
    if size > MAX_BYTES // 2:  # the other half is for the proof
        raise DataError(
            f"{data.source}: a model trained on this data could not be exported: its "
            f"{len(data.names)} class names take {size:,} bytes, expected at most "
            f"{MAX_BYTES // 2:,}"
        )


def _training_images(
    config: TrainConfig, data: Dataset, spec: Spec, ranks: Ranks
) -> tuple[TrainingSet, BatchPlan]:
    """Create the training set, and the batch plan of this rank."""
    recipe, samples = config.hyper, data.split(config.train_split)
    last = recipe.close_mosaic
    train_set = TrainingSet(
        samples,
        config.imgsz,
        recipe.augmentation,
        seed=config.seed,
        cache=config.cache,
        close_at=config.epochs - last + 1 if last else None,
    )
    rect = rect_plan(samples, config.imgsz, spec.max_stride) if config.rect else None
    plan = BatchPlan(
        len(train_set),
        config.batch,
        seed=config.seed,
        rank=ranks.rank,
        world=ranks.world,
        rect=rect,
    )
    if config.image_weights:
        plan.set_weights(image_weights(samples, spec.nc))
    return train_set, plan


def _steps(
    config: TrainConfig,
    fabric: Any,
    ranks: Ranks,
    model: Any,
    images: int,
    batches: int,
    timing: Timing | None,
) -> Steps:
    """Move a model to its device, and create loss, schedule, optimizer and average."""
    # Channels-last is 1.4 times faster on a CPU, and faster on tensor cores.
    model = model.to(fabric.device).train().to(memory_format=torch.channels_last)
    recipe = config.hyper
    nominal = recipe.nominal_batch or nominal_batch(images, config.epochs, config.batch)
    warmup = warmup_iterations(batches, config.epochs, recipe)
    anchors = model.head.anchors
    loss = TrainingLoss(model.spec, anchors, recipe, config.imgsz, config.assigner, ranks)
    decay = scaled_weight_decay(recipe.weight_decay, config.batch, nominal)
    scaled = scaler_of(fabric) is not None
    optimizer = build_optimizer(model, recipe, decay, scaled=scaled)
    average = average_for(recipe, model, config.epochs)
    if config.sync_bn and ranks.world > 1:
        if fabric.device.type != "cuda":
            raise ConfigError("sync_bn needs GPUs: omit it on a CPU")
        # Converted last, because the optimizer and the average recognize BatchNorms by class.
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
    """Return the description of the model that a run trains.

    ``classes`` is the number of classes; ``anchors`` as for ``start_model``.

    Raises:
        ConfigError: the model is unknown or folded, the width is invalid, or the input size is not
            a multiple of the largest stride, or is smaller than two such strides.
    """
    if config.spec is None:
        spec = registry.get(config.model, nc=classes, anchors=anchors)
    elif config.spec.form == "folded":
        raise ConfigError(
            f"spec: {config.spec.name} is folded and cannot be trained; expected the training "
            "form, or the deploy form, which has no implicit knowledge"
        )
    else:
        spec = replace(config.spec, nc=classes, anchors=anchors or config.spec.anchors)
    if config.act is not None:
        spec = registry.with_activation(spec, config.act)
    if config.assigner == "lead" and spec.has_aux:
        spec = registry.without_auxiliary(spec)
    if config.imgsz % spec.max_stride:
        up = -(-config.imgsz // spec.max_stride) * spec.max_stride
        raise ConfigError(
            f"imgsz must be a multiple of {spec.max_stride} for {spec.name}, "
            f"not {config.imgsz}: take {up}"
        )
    if config.imgsz < 2 * spec.max_stride:
        # With a single cell, BatchNorm cannot compute a variance.
        raise ConfigError(
            f"imgsz must be {2 * spec.max_stride} or more to train {spec.name}, not {config.imgsz}"
        )
    return scale(spec, width=config.width)


def start_model(
    config: TrainConfig, names: Sequence[str], *, anchors: Anchors | None = None
) -> Start:
    """Create the model to train, with initial weights and frozen rows.

    Entries of ``config.weights`` that fit are copied (``y7edge.train.setup.finetune``).
    ``anchors`` are in pixels, finest level first; None: those of the weights, else the published
    ones.

    Raises:
        ConfigError: the model is invalid (see ``build_spec``), a row to freeze is not in the
            model, or ``config.weights`` is the name of a variant.
        CheckpointError: the weights are folded, or most of them don't fit.
    """
    if config.weights is None:
        start = Start(_model(config, names, anchors), "trained from random weights")
    else:
        start = _from_weights(config, Path(config.weights), names, anchors)
    if not config.freeze:
        return start
    return replace(start, notes=(*start.notes, _frozen_note(config, start.model)))


def resume_model(config: TrainConfig, names: Sequence[str], began: Began) -> Start:
    """Create the model of a resumed run; its weights are loaded later, from the run's state.

    Raises:
        CheckpointError: the anchors do not fit the model.
    """
    build_spec(config, len(names))  # raises ConfigError for an invalid configuration
    try:
        model = _model(config, names, began.anchors)
    except ConfigError as error:
        raise CheckpointError(f"invalid anchors in the state of the run: {error}") from error
    return Start(model, began.origin, began.notes)


def _model(config: TrainConfig, names: Sequence[str], anchors: Anchors | None) -> Model:
    """Create a model with random weights, and freeze rows."""
    # Custom rows may place RepConv's identity branch anywhere, for ablations.
    custom = config.spec is not None
    model = Model(build_spec(config, len(names), anchors), allow_identity=custom)
    freeze_rows(model, config.freeze)
    return model


def _from_weights(
    config: TrainConfig, path: Path, names: Sequence[str], anchors: Anchors | None
) -> Start:
    """Create a model, and copy the entries of a checkpoint that fit."""
    if registry.split(str(path)) and not path.exists():
        raise ConfigError(
            f"--weights {path}: expected a .safetensors or .pt file, found a model's name; to "
            f"train from scratch, give only --model {path}"
        )
    checkpoint = weights.load(path)
    if anchors is None:
        usual = config.spec or registry.get(config.model)
        old = checkpoint.spec.anchors
        alike = len(old) == len(usual.anchors) and len(old[0]) == len(usual.anchors[0])
        anchors = old if alike else None
    model = _model(config, names, anchors)
    copied = copy_matching(model, checkpoint, names, str(path))
    source = f"{path.name} (digest {checkpoint.digest[:16]})"
    origin = f"fine-tuned from {source}, {copied.entries} of {copied.total} entries"
    licence, notes = str(checkpoint.meta.get("licence") or UNSPECIFIED), copied.notes
    if UNSPECIFIED != licence != config.licence:
        stated = config.licence if config.licence != UNSPECIFIED else "the same"
        notes += (f"licence of {path.name}: {licence}; stored for the trained weights: {stated}",)
    return Start(model, origin, notes, licence)


def _frozen_note(config: TrainConfig, model: Model) -> str:
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    still = sum(count for count, trained in counts if not trained)
    note = (
        f"{len(config.freeze)} of {len(model.rows)} rows are frozen, "
        f"{still / sum(count for count, _ in counts):.0%} of the parameters"
    )
    return note if config.weights else f"{note}; the frozen weights are random"


def loading_workers(number: int | None, device: torch.device) -> int:
    """Return the number of processes that load images; None: choose by device.

    On a CPU the network uses all cores; with a GPU the cores are free for loading.
    """
    if number is not None:
        return number
    return 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)
