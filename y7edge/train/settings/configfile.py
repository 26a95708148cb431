"""Recipes and runs as YAML: read with checks, written so that they read back exactly.

A recipe is a flat file under the published names (``lr0``, ``box``, ``hsv_h``, ``mosaic``, ...): a
published hyper-parameter file is read as it is. A run's ``config.yaml`` holds every field of
:class:`~y7edge.train.settings.config.TrainConfig`, the recipe included; a run is resumed from
it.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from y7edge.artifact.schema import decode, nearest
from y7edge.errors import ConfigError, RuntimeMissing
from y7edge.files import atomic_write
from y7edge.train.settings.config import TrainConfig
from y7edge.train.settings.recipe import Recipe
from y7edge.train.settings.recipes import RECIPES, NamedRecipe, named_for

# Keys of published files that mean nothing here, with the reason.
UNUSED = {
    "iou_t": "nothing reads it, in the published program neither",
    "loss_ota": "positives are always chosen by SimOTA",
    "anchors": "they come from the model, the weights or the check of anchors",
}
SUFFIXES = (".yaml", ".yml")
_PATHS = ("data", "weights", "out")
_log = logging.getLogger(__name__)


def choose(text: str | None, model: str) -> NamedRecipe:
    """The recipe that ``--recipe`` asks for.

    Args:
        text: a recipe's name, or a file; None is the published one of the model's family.
        model: name of the variant; its family's recipe fills in what a file leaves out.

    Raises:
        ConfigError: neither a name nor a file, or a file that cannot be read, is not YAML, or has
            a key twice, an unknown one (with the nearest), or a value out of its range.
        RuntimeMissing: PyYAML is not installed.
    """
    family = named_for(model)
    if text is None:
        return family
    if text in RECIPES:
        return RECIPES[text]
    path = Path(text)
    if not path.is_file() and path.suffix.lower() not in SUFFIXES:
        hint = nearest(text, RECIPES)
        raise ConfigError(f"there is no recipe {text!r}, nor a file of this name{hint}")
    values = _mapping(path)
    unused = {key: values.pop(key) for key in UNUSED if key in values}
    if unused:
        reasons = "; ".join(f"{key} ({UNUSED[key]})" for key in unused)
        _log.warning("%s: without effect here: %s", path, reasons)
    try:
        changed = family.changed(values, str(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return replace(changed, name=str(path), purpose=f"read from {path}")


def recipe_text(recipe: NamedRecipe) -> str:
    """A recipe as YAML, with the source of each value in a comment behind it."""
    values = recipe.recipe.to_dict()
    lines = {key: _dump({key: value}).rstrip() for key, value in values.items()}
    width = max(map(len, lines.values()))
    rows = [f"{line.ljust(width)}  # {recipe.sources[key]}" for key, line in lines.items()]
    return "\n".join((f"# {recipe.name}: {recipe.purpose}", *rows, ""))


def write(config: TrainConfig, path: Path | str) -> None:
    """Write a run's configuration, its recipe in full; paths are made absolute.

    So that a run can be resumed from another folder, and that it doesn't change with the named
    recipes of a later version.
    """
    values = config.to_dict()
    for name in _PATHS:
        if values[name] is not None:
            values[name] = str(Path(os.path.abspath(values[name])))  # noqa: PTH100 - keeps links
    values["recipe"] = config.hyper.to_dict()
    _write(f"# A training run of y7edge, with everything that decides it.\n{_dump(values)}", path)


def read(path: Path | str) -> TrainConfig:
    """A run's configuration, checked as if it were new.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong; the message names both.
        RuntimeMissing: PyYAML is not installed.
    """
    values = _mapping(Path(path))
    recipe = values.get("recipe")
    if isinstance(recipe, dict):  # flat, under the published names
        try:
            values["recipe"] = Recipe().changed(recipe)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    return decode(TrainConfig, values, origin=str(path), error=ConfigError)


def _mapping(path: Path) -> dict[str, Any]:
    """The top-level mapping of a YAML file, refused if a key stands in it twice."""
    yaml = _yaml()
    try:
        loader = _number_loader(yaml)(path.read_text(encoding="utf-8"))
        tree = loader.get_single_node()
        if isinstance(tree, yaml.MappingNode):
            _refuse_doubles(tree, path, yaml)
        content = None if tree is None else loader.construct_document(tree)
    except ConfigError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigError(f"{path}: expected lines of `name: value`, found {found}")
    return content


def _number_loader(yaml: Any) -> Any:
    """PyYAML's safe loader, which also reads 1e-3 as a number: YAML 1.1 asks for a dot."""
    loader: Any = type("Loader", (yaml.SafeLoader,), {})
    number = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
    loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return loader


def _refuse_doubles(tree: Any, path: Path, yaml: Any) -> None:
    """PyYAML takes the last of equal keys without a word: here they are an error, at any depth."""
    seen: dict[str, int] = {}
    for key, value in tree.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in seen:
            raise ConfigError(
                f"{path}: {name!r} stands in line {seen[name]} and again in line {line}; keep one"
            )
        seen[name] = line
        if isinstance(value, yaml.MappingNode):
            _refuse_doubles(value, path, yaml)


def _dump(values: Mapping[str, Any]) -> str:
    return str(_yaml().safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=1000))


def _write(text: str, path: Path | str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise RuntimeMissing(
            'reading and writing YAML needs PyYAML: pip install "y7edge[train]"'
        ) from error
    return yaml
