"""Define the named recipes, with the source of each value.

``p5``, ``p6`` and ``tiny`` are the published hyper-parameter files of YOLOv7 (arXiv 2207.02696),
completed with constants of the published program. ``finetune`` is the published file for custom
data (``custom``) with some values changed. ``small-data`` is ``tiny`` with some values changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from y7edge.models import registry
from y7edge.models.spec import Spec
from y7edge.train.settings.recipe import Recipe

FILES = ("p5", "p6", "tiny", "custom")  # the published hyper-parameter files

# For each key, the values in the files p5, p6, tiny and custom
PUBLISHED: dict[str, tuple[float, float, float, float]] = {
    "lr0": (0.01, 0.01, 0.01, 0.01),
    "lrf": (0.1, 0.2, 0.01, 0.1),
    "momentum": (0.937, 0.937, 0.937, 0.937),
    "weight_decay": (0.0005, 0.0005, 0.0005, 0.0005),
    "warmup_epochs": (3.0, 3.0, 3.0, 3.0),
    "warmup_momentum": (0.8, 0.8, 0.8, 0.8),
    "warmup_bias_lr": (0.1, 0.1, 0.1, 0.1),
    "box": (0.05, 0.05, 0.05, 0.05),
    "cls": (0.3, 0.3, 0.5, 0.3),
    "cls_pw": (1.0, 1.0, 1.0, 1.0),
    "obj": (0.7, 0.7, 1.0, 0.7),
    "obj_pw": (1.0, 1.0, 1.0, 1.0),
    "anchor_t": (4.0, 4.0, 4.0, 4.0),
    "fl_gamma": (0.0, 0.0, 0.0, 0.0),
    "hsv_h": (0.015, 0.015, 0.015, 0.015),
    "hsv_s": (0.7, 0.7, 0.7, 0.7),
    "hsv_v": (0.4, 0.4, 0.4, 0.4),
    "degrees": (0.0, 0.0, 0.0, 0.0),
    "translate": (0.2, 0.2, 0.1, 0.2),
    "scale": (0.9, 0.9, 0.5, 0.5),
    "shear": (0.0, 0.0, 0.0, 0.0),
    "perspective": (0.0, 0.0, 0.0, 0.0),
    "flipud": (0.0, 0.0, 0.0, 0.0),
    "fliplr": (0.5, 0.5, 0.5, 0.5),
    "mosaic": (1.0, 1.0, 1.0, 1.0),
    "mixup": (0.15, 0.15, 0.05, 0.0),
    "copy_paste": (0.0, 0.0, 0.0, 0.0),
    "paste_in": (0.15, 0.15, 0.05, 0.0),
}

# For each key that is not in the files, its value and the source of the value
NOT_IN_FILES: dict[str, tuple[Any, str]] = {
    "label_smoothing": (0.0, "published: default of the command line"),
    "mosaic9": (0.2, "published: constant of the program, a fifth of the mosaics has nine images"),
    "ema_decay": (0.9999, "published: constant of the program"),
    "ema_tau": (2000.0, "published: constant of the program"),
    "average": ("ema", "published: the only average"),
    "nominal_batch": (None, "ours: by the length of the run; published: 64"),
    "clip_norm": (0.0, "published: gradients are not clipped"),
    "warmup_share": (0.1, "ours: the published minimum of 1000 iterations can exceed a run"),
    "close_mosaic": (0, "published: mosaic stays on to the last epoch"),
    "swa_start": (0.75, "SWA (arXiv 1803.05407): averages the last quarter of the run"),
}

# Recipe finetune: small changes to a trained model
FINETUNE_CHANGES: dict[str, tuple[Any, str]] = {
    "lr0": (0.002, "ours: a fifth of the published rate, so that trained features are kept"),
    "warmup_bias_lr": (0.01, "ours: 0.1 destroys trained biases in a few steps"),
    "warmup_epochs": (1.0, "ours: only the head's outputs for new classes are untrained"),
    "close_mosaic": (10, "ours: the last epochs use unmixed images, as in deployment"),
    "ema_decay": (0.999, "ours: a fine-tuning run is too short for an average over 10,000 steps"),
    "ema_tau": (500.0, "ours: lower, to match ema_decay"),
}

# Recipe small-data: training from scratch on a few hundred images, about an hour on a CPU
SMALL_DATA_CHANGES: dict[str, tuple[Any, str]] = {
    "nominal_batch": (8, "ours: more steps in a short run (docs/small_data.md)"),
    "ema_decay": (0.995, "ours: averages 200 steps; such a run has fewer than 10,000"),
    "ema_tau": (100.0, "ours: lower, to match ema_decay"),
    "close_mosaic": (15, "ours: the last epochs use unmixed images, as in deployment"),
}


@dataclass(frozen=True, slots=True)
class NamedRecipe:
    """A recipe with its name, its purpose, and the source of each value."""

    name: str
    purpose: str
    recipe: Recipe
    sources: Mapping[str, str]

    def changed(self, changes: Mapping[str, Any], source: str) -> NamedRecipe:
        """Return a copy with changed values (see ``Recipe.changed``) from ``source``."""
        recipe = self.recipe.changed(changes)
        return replace(
            self, recipe=recipe, sources={**self.sources, **dict.fromkeys(changes, source)}
        )


def _named(
    name: str, purpose: str, file: str, changes: Mapping[str, tuple[Any, str]] | None = None
) -> NamedRecipe:
    """Create a recipe from a published file, ``NOT_IN_FILES``, and changes."""
    column = FILES.index(file)
    rows: dict[str, tuple[Any, str]] = {
        key: (values[column], f"published: file {file}") for key, values in PUBLISHED.items()
    }
    rows |= NOT_IN_FILES | dict(changes or {})
    recipe = Recipe().changed({key: value for key, (value, _) in rows.items()})
    return NamedRecipe(name, purpose, recipe, {key: source for key, (_, source) in rows.items()})


RECIPES: dict[str, NamedRecipe] = {
    named.name: named
    for named in (
        _named("p5", "yolov7 and yolov7x from scratch at 640 px", "p5"),
        _named("p6", "yolov7-w6, -e6, -d6 and -e6e from scratch at 1280 px", "p6"),
        _named("tiny", "yolov7-tiny and yolov7-tiny-silu from scratch", "tiny"),
        _named("finetune", "any model from trained weights", "custom", FINETUNE_CHANGES),
        _named("small-data", "a few hundred images, on a CPU", "tiny", SMALL_DATA_CHANGES),
    )
}
P5 = RECIPES["p5"].recipe
P6 = RECIPES["p6"].recipe
TINY = RECIPES["tiny"].recipe


def named_for(model: str | Spec) -> NamedRecipe:
    """Return the published recipe of a model: ``tiny``, ``p6`` (if it has stride 64), or ``p5``."""
    name = model if isinstance(model, str) else model.name
    if name.startswith("yolov7-tiny"):
        return RECIPES["tiny"]
    # build_spec raises an error for unknown names.
    found = registry.split(name)
    known = (registry.VARIANTS[found[0]] if found else None) if isinstance(model, str) else model
    return RECIPES["p6" if known and max(known.strides) >= 64 else "p5"]
