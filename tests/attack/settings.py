"""Inputs: YAML files of recipes and run configurations."""

from __future__ import annotations

import random
from pathlib import Path

from tests.attack import mutate
from tests.attack.base import Attack, Make, Place
from tests.attack.sets import YAML, _yaml_tree, write

VALUES = (
    *(
        "1e400",
        "-1",
        "nan",
        ".nan",
        ".inf",
        "-.inf",
        "null",
        "true",
        "[]",
        "{}",
        "''",
        "x",
        "!!bool x",
    ),
    *("9" * 5000, "0x" + "f" * 300, "1:59:59", "2001-01-01", "!!timestamp x", "!!binary x", "1_0"),
    *(
        "&a [*a]",
        "'\\0'",
        '"\\u0000"',
        '"\\ud800"',
        '"\\x1b[2J"',
        "1e-400",
        "0.1.2",
        "+",
        "~",
        "!!int x",
    ),
    *(
        "!!float x",
        "!!null x",
        "!!str",
        "!!set {1}",
        "!!omap []",
        "!!python/none",
        "=",
        "<<",
        "yes",
    ),
)


def _recipe_text(place: Place | None = None) -> str:
    from y7edge.train.settings.configfile import recipe_text
    from y7edge.train.settings.recipes import RECIPES

    return recipe_text(RECIPES["p5"])


def _recipe(text: str) -> Make:
    def make(place: Place) -> Path:
        path = place.inside / "recipe.yaml"
        write(path, text)
        return path

    return make


def _one_value(place: Place) -> Path:
    """Write a valid recipe with one unusual value."""
    lines = _recipe_text().splitlines()
    at = place.rng.randrange(1, len(lines))
    lines[at] = f"{lines[at].split(':')[0]}: {place.rng.choice(VALUES)}"
    return _recipe("\n".join(lines))(place)


def _mutated_recipe(place: Place) -> Path:
    path = _one_value(place) if place.rng.random() < 0.5 else _recipe(_recipe_text())(place)
    mutate.file(place.rng, path, mutate.text, mutate.text, _yaml_tree, mutate.raw)
    return path


def _config_path(place: Place) -> Path:
    return place.copy("run") / "config.yaml"


def _config(key: str, value: str) -> Make:
    def make(place: Place) -> Path:
        path = _config_path(place)
        lines = path.read_text(encoding="utf-8").splitlines()
        lines = [line for line in lines if not line.startswith(f"{key}:")]
        write(path, "\n".join([*lines, f"{key}: {value}"]) + "\n")
        return path

    return make


def _whole_config(text: str) -> Make:
    def make(place: Place) -> Path:
        path = _config_path(place)
        write(path, text)
        return path

    return make


def _mutated_config(place: Place) -> Path:
    path = _config_path(place)
    ways = (mutate.text, _yaml_tree, _yaml_tree, _yaml_tree, mutate.raw)
    mutate.file(place.rng, path, *ways)
    return path


def choose(path: Path) -> None:
    """Read a recipe."""
    from y7edge.train.settings.configfile import choose as read
    from y7edge.train.settings.configfile import recipe_text

    text = recipe_text(read(str(path), "yolov7"))
    path.with_name("again.yaml").write_text(text, encoding="utf-8")
    read(str(path.with_name("again.yaml")), "yolov7")


def read(path: Path) -> None:
    """Read a configuration and apply it."""
    from y7edge.train.settings.configfile import read as read_config

    config = read_config(path)
    assert config.validation_interval > 0
    assert config.to_dict()
    if config.spec is not None:
        from y7edge.models.shapes import weight_shapes

        weight_shapes(config.spec)


_KEYS = (
    "imgsz",
    "epochs",
    "batch",
    "width",
    "model",
    "data",
    "spec",
    "recipe",
    "freeze",
    "device",
    "seed",
    "workers",
    "nominal_batch",
    "out",
    "precision",
    "licence",
    "weights",
)
_rng = random.Random(0)
CONFIGS: dict[str, Make] = {
    **{
        f"{key}: {value[:20]}": _config(key, value)
        for key in _KEYS
        for value in _rng.sample(VALUES, 4)
    },
    "imgsz of 10**9": _config("imgsz", "1000000000"),
    "epochs of 10**30": _config("epochs", "1" + "0" * 30),
    "width of 10**9": _config("width", "1e9"),
    "width of 10**-9": _config("width", "1e-9"),
    "data is a device": _config("data", "/dev/zero"),
    **{k: _whole_config(v) for k, v in YAML.items() if len(v) < 2_000_000},
}
ATTACKS = (
    Attack(
        "recipe",
        320,
        {k: _recipe(v) for k, v in YAML.items()} | {f"values {i}": _one_value for i in range(60)},
        _mutated_recipe,
        {"choose": choose},
        (
            "train --print-recipe --recipe {}",
            "train --print-recipe --json --recipe {}",
            "train --data {material}/yolo --profile 1 --imgsz 32 --width 0.125 --recipe {}",
        ),
    ),
    Attack("config", 320, CONFIGS, _mutated_config, {"read": read}),
)
