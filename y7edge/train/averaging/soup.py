"""Make a uniform soup: the mean of the weights of several trained models.

"Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time" (arXiv 2203.05482). A soup works only for runs that began with the same weights, so
its result is evaluated before it is saved. Folded checkpoints are an error: folding is not linear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from y7edge import __version__
from y7edge.data.dataset import Dataset
from y7edge.errors import CheckpointError, ConfigError, DataError
from y7edge.evaluation.evaluate import Metrics
from y7edge.models import weights
from y7edge.models.checkpoint import COUNTER, Checkpoint
from y7edge.nn.build import from_checkpoint, to_checkpoint
from y7edge.train.averaging.statistics import letterboxed_batches, reestimate
from y7edge.train.loading.dataset import TrainingSet
from y7edge.train.output.writer import weighted
from y7edge.train.run.validate import Validation

_BATCH = 16  # images per forward pass for the statistics


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one model."""

    name: str  # of its file, or "average"
    map50: float
    map50_95: float
    fitness: float  # 0.1 mAP@0.5 + 0.9 mAP@0.5:0.95, as in training


@dataclass(frozen=True, slots=True)
class Soup:
    """An average with its scores and those of the models that it was made from."""

    ingredients: tuple[Scores, ...]
    average: Scores
    checkpoint: Checkpoint

    @property
    def best(self) -> Scores:
        """The best ingredient; the first if several are equal."""
        return max(self.ingredients, key=lambda one: one.fitness)

    @property
    def better(self) -> bool:
        """Whether the average is better than every ingredient."""
        return self.average.fitness > self.best.fitness


def make_soup(
    checkpoints: Mapping[str, Checkpoint],
    data: Dataset,
    *,
    split: str = "val",
    train_split: str = "train",
    imgsz: int | None = None,
    device: torch.device | str = "cpu",
    log: Callable[[str], None] = lambda line: None,
) -> Soup:
    """Average checkpoints, estimate the average's BatchNorm statistics, and evaluate the models.

    The checkpoints and the average are evaluated on ``split``. Statistics are estimated on
    ``train_split``. ``imgsz`` is the side of the square input in pixels; None: that of the
    training. ``log`` is called with the description of each step.

    Raises:
        ConfigError: see ``require_alike``; or the checkpoints have different input sizes.
        CheckpointError: a checkpoint is folded.
        DataError: the number of classes differs from the checkpoints', or an image cannot be read.
    """
    require_alike(checkpoints)
    side = imgsz or _side(checkpoints)
    first = next(iter(checkpoints.values()))
    if len(data.names) != first.spec.nc:
        raise DataError(
            f"{data.source} has {len(data.names)} classes, but the checkpoints have "
            f"{first.spec.nc}: use the data that the checkpoints were trained on"
        )
    evaluate = Validation(data.split(split), data.names, side)
    train_set = TrainingSet(data.split(train_split), side, cache="none")
    ingredients = []
    for name, checkpoint in checkpoints.items():
        log(f"evaluating {name}")
        ingredients.append(_scores(name, evaluate(from_checkpoint(checkpoint).to(device))))
    log("estimating statistics of the average")
    model = from_checkpoint(mean(list(checkpoints.values()))).to(device)
    reestimate(model, (i.to(device).float() / 255 for i in letterboxed_batches(train_set, _BATCH)))
    log("evaluating the average")
    metrics = evaluate(model)
    average = _scores("average", metrics)
    meta = {"imgsz": side, **_meta(checkpoints, ingredients, average, metrics, data, split)}
    return Soup(tuple(ingredients), average, to_checkpoint(model, first.names, meta))


def mean(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """Average all floating-point entries in float64; keep the counters of the first checkpoint."""
    first = checkpoints[0]
    arrays = dict(first.arrays)
    for key in arrays:
        if not key.endswith(COUNTER):
            stacked = np.stack([c.arrays[key] for c in checkpoints])
            arrays[key] = stacked.mean(axis=0, dtype=np.float64).astype(np.float32)
    return Checkpoint(first.spec, arrays, first.names)


def require_alike(checkpoints: Mapping[str, Checkpoint]) -> None:
    """Check that checkpoints can be averaged.

    Raises:
        ConfigError: there are fewer than two checkpoints, two have equal weights, or two have
            different rows, classes or anchors.
        CheckpointError: a checkpoint is folded.
    """
    if len(checkpoints) < 2:
        raise ConfigError("a soup needs at least two checkpoints of one model")
    for name, checkpoint in checkpoints.items():
        if checkpoint.form == "folded":
            raise CheckpointError(
                f"{name} is folded: folding is not linear, so folded weights cannot be averaged; "
                "give the checkpoint that it was folded from"
            )
    (one, first), *others = checkpoints.items()
    seen = {first.digest: one}
    for name, checkpoint in others:
        if difference := _difference(first, checkpoint):
            raise ConfigError(
                f"{name} cannot be averaged with {one}: {difference}; a soup needs models "
                "trained from the same weights"
            )
        if checkpoint.digest in seen:
            raise ConfigError(f"{name} and {seen[checkpoint.digest]} have the same weights")
        seen[checkpoint.digest] = name


def _difference(first: Checkpoint, other: Checkpoint) -> str | None:
    """Describe the first difference between two models; return None if there is none."""
    mine, theirs = first.spec, other.spec
    for what in ("name", "form", "nc", "activation", "strides", "anchors"):
        old, new = getattr(mine, what), getattr(theirs, what)
        if old != new:
            return f"{what} {_short(new)}, expected {_short(old)}"
    if len(mine.rows) != len(theirs.rows):
        return f"{len(theirs.rows)} rows, expected {len(mine.rows)}"
    for old, new in zip(mine.rows, theirs.rows, strict=True):
        if old != new:
            pairs = zip(asdict(new).items(), asdict(old).values(), strict=True)
            changes = [
                f"{key} {value!r}, expected {was!r}" for (key, value), was in pairs if value != was
            ]
            return f"row {old.index} has {', '.join(changes)}"
    if first.names != other.names:
        pair = next(p for p in zip(other.names, first.names, strict=True) if p[0] != p[1])
        return f"class name {pair[0]!r}, expected {pair[1]!r}"
    return None


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _side(checkpoints: Mapping[str, Checkpoint]) -> int:
    """Return the input size of the training; raise ConfigError if the checkpoints' sizes differ."""
    sides = {name: max(c.imgsz) for name, c in checkpoints.items()}
    if len(set(sides.values())) > 1:
        listed = ", ".join(f"{name} {side}" for name, side in sides.items())
        raise ConfigError(f"expected checkpoints of one input size, found {listed}: set imgsz")
    return next(iter(sides.values()))


def _scores(name: str, metrics: Metrics) -> Scores:
    return Scores(name, metrics.map50, metrics.map50_95, weighted(metrics.map50, metrics.map50_95))


def _meta(
    checkpoints: Mapping[str, Checkpoint],
    ingredients: Sequence[Scores],
    average: Scores,
    metrics: Metrics,
    data: Dataset,
    split: str,
) -> dict[str, Any]:
    """Return the metadata of the average."""
    listed = [
        {**asdict(one), "digest": checkpoint.digest, "epoch": checkpoint.meta.get("epoch")}
        for one, checkpoint in zip(ingredients, checkpoints.values(), strict=True)
    ]
    sources = ", ".join(f"{entry['name']} (digest {entry['digest'][:16]})" for entry in listed)
    licences = sorted({str(c.meta.get("licence", "unspecified")) for c in checkpoints.values()})
    return {
        "data": {"path": str(data.source), "digest": data.digest},
        "metrics": {"split": split, **asdict(average)},
        "thresholds": {} if metrics.conf is None else {"conf": metrics.conf},
        "provenance": f"y7edge {__version__}, uniform soup of {sources}",
        "ingredients": listed,
        "licence": " and ".join(licences),
    }


def load_all(paths: Sequence[Path]) -> dict[str, Checkpoint]:
    """Load checkpoints, keyed by file name if those are unique, else by path.

    Raises:
        ConfigError: a path is given twice.
        CheckpointError: a checkpoint cannot be read.
    """
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{twice} is given twice: a soup needs different checkpoints")
    return {name: weights.load(path) for name, path in zip(names, paths, strict=True)}


def check_out(out: Path, paths: Sequence[Path]) -> None:
    """Check that an output path can be written.

    Raises:
        ConfigError: the suffix is wrong, the folder does not exist, or the file is an ingredient.
    """
    if out.suffix != ".safetensors":
        raise ConfigError(f"{out}: --out must end in .safetensors")
    if not out.parent.is_dir():
        raise ConfigError(f"{out}: no folder {out.parent}: create it, or give another --out")
    if any(path.exists() and out.exists() and path.samefile(out) for path in paths):
        raise ConfigError(f"{out} is one of the ingredients: give another --out")
