"""Read and write recipes and run configurations as YAML files.

A recipe is a flat file with the published names (``lr0``, ``box``, ``hsv_h``, ``mosaic``, ...), so
that published hyper-parameter files can be read. A run's ``config.yaml`` has every field of
``y7edge.train.settings.config.TrainConfig``, and is read when the run is resumed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from y7edge.artifact.schema import decode, nearest
from y7edge.data.formats.plain_yaml import as_value, read_yaml
from y7edge.errors import ConfigError, needing
from y7edge.files import is_file, write_text
from y7edge.train.settings.config import TrainConfig
from y7edge.train.settings.qat import QatConfig
from y7edge.train.settings.recipe import Recipe
from y7edge.train.settings.recipes import RECIPES, NamedRecipe, named_for

# Keys of published files that have no effect here, with the reason.
UNUSED = {
    "iou_t": "unused, also in the published program",
    "loss_ota": "positives are always chosen by SimOTA",
    "anchors": "taken from the model, the weights or the search for anchors",
}
SUFFIXES = (".yaml", ".yml")
_PATHS = ("data", "weights", "checkpoint", "out")
_log = logging.getLogger(__name__)


def choose(text: str | None, model: str) -> NamedRecipe:
    """Return the recipe that ``--recipe`` selects, by name or as a file.

    None selects the published recipe of the model. The values that a file lacks are also taken from
    the published recipe of the model.

    Raises:
        ConfigError: the name is unknown, or the file cannot be read, is not YAML, or has a
            duplicate key, an unknown key or a value out of range.
        RuntimeMissing: PyYAML is not installed.
    """
    family = named_for(model)
    if text is None:
        return family
    if text in RECIPES:
        return RECIPES[text]
    path = Path(text)
    if not is_file(path) and path.suffix.lower() not in SUFFIXES:
        hint = nearest(text, RECIPES)
        raise ConfigError(f"no recipe or file is called {text!r}{hint}")
    values = _mapping(path)
    unused = {key: values.pop(key) for key in UNUSED if key in values}
    if unused:
        reasons = "; ".join(f"{key} ({UNUSED[key]})" for key in unused)
        _log.warning("%s: keys without effect: %s", path, reasons)
    try:
        changed = family.changed(values, str(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return replace(changed, name=str(path), purpose=f"read from {path}")


def recipe_text(recipe: NamedRecipe) -> str:
    """Format a recipe as YAML, with the source of each value in a comment."""
    values = recipe.recipe.to_dict()
    lines = {key: _dump({key: value}).rstrip() for key, value in values.items()}
    width = max(map(len, lines.values()))
    rows = [f"{line.ljust(width)}  # {recipe.sources[key]}" for key, line in lines.items()]
    return "\n".join((f"# {recipe.name}: {recipe.purpose}", *rows, ""))


def write(config: TrainConfig | QatConfig, path: Path | str) -> None:
    """Write a run's configuration with its complete recipe; paths are made absolute."""
    values = config.to_dict()
    for name in _PATHS:
        if values.get(name) is not None:
            values[name] = str(Path(os.path.abspath(values[name])))  # noqa: PTH100 - keeps links
    if isinstance(config, TrainConfig):
        values["recipe"] = config.hyper.to_dict()
    write_text(path, f"# Configuration of a training run of y7edge.\n{_dump(values)}")


def read(path: Path | str) -> TrainConfig:
    """Read a run's configuration, and check it.

    Raises:
        ConfigError: the file cannot be read, it has an invalid key or value, or it is that of a
            quantisation-aware training.
        RuntimeMissing: PyYAML is not installed.
    """
    config = read_any(path)
    if isinstance(config, TrainConfig):
        return config
    raise ConfigError(f"{path}: expected a training with labels, found one with --qat")


def read_any(path: Path | str) -> TrainConfig | QatConfig:
    """Read a run's configuration of either kind; see ``read`` for the errors."""
    values = _mapping(Path(path))
    if "checkpoint" in values:
        return decode(QatConfig, values, origin=str(path), error=ConfigError)
    recipe = values.get("recipe")
    if isinstance(recipe, dict):  # flat, under the published names
        try:
            values["recipe"] = Recipe().changed(recipe)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    return decode(TrainConfig, values, origin=str(path), error=ConfigError)


def _mapping(path: Path) -> dict[str, Any]:
    """Read the top-level mapping of a YAML file; raise ConfigError for duplicate keys."""
    try:
        tree = read_yaml(path, as_value)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not tree.text.encoding.startswith("utf-8"):
        raise ConfigError(f"{path}: cannot be read: expected UTF-8, found {tree.text.encoding}")
    if not isinstance(tree.content, dict):
        found = "nothing" if tree.content is None else f"a {type(tree.content).__name__}"
        raise ConfigError(f"{path}: expected lines of `name: value`, found {found}")
    for name, first, again in tree.repeated:
        words = f"{name!r} is in line {first} and again in line {again}; keep one"
        raise ConfigError(f"{path}: {words}")
    return tree.content


def _dump(values: Mapping[str, Any]) -> str:
    with needing("PyYAML", "train", "writing YAML"):
        import yaml
    return str(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=1000))
