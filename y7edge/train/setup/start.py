"""What a run begins with: packages, device, model."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from y7edge.errors import ConfigError, RuntimeMissing
from y7edge.models import registry, weights
from y7edge.models.scaling import scale
from y7edge.models.spec import Anchors, Spec
from y7edge.nn.build import Model
from y7edge.train.settings.config import TrainConfig
from y7edge.train.setup.finetune import carry_over
from y7edge.train.setup.freeze import freeze_rows

# Needed at the end of the first validated epoch at the latest: better missed before the first one.
_NEEDED = (
    "cv2",
    "faster_coco_eval",
    "lightning_fabric",
    "matplotlib",
    "safetensors",
    "tensorboard",
)


def check_packages() -> None:
    """Find out before the first epoch whether everything for the last one is installed.

    Raises:
        RuntimeMissing: a package is not there; the message says how to install it.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeMissing(f'training needs {", ".join(missing)}: pip install "y7edge[train]"')


@dataclass(frozen=True, slots=True)
class Start:
    """The model to train, one line about where its weights come from, and what else to know."""

    model: Model
    origin: str
    notes: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """What :func:`start_again` needs, as JSON-able values."""
        anchors = self.model.spec.anchors
        return {"origin": self.origin, "notes": list(self.notes), "anchors": anchors}


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

    With ``config.weights``, everything that fits is copied (see
    :mod:`y7edge.train.setup.finetune`), and the anchors come along, as weights predict
    offsets from them.

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
    """The model of a run that is gone on with; a state of the run has its weights.

    What it once began with is not needed any more: neither a file of weights nor a search for
    anchors.

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
    """Processes that load pictures: as asked, else what the device leaves free.

    On a CPU the network itself keeps all cores busy, and a process that loads only competes with
    it; a GPU leaves the cores to loading.
    """
    if asked is not None:
        return asked
    return 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)
