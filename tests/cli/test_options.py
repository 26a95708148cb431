"""Options that several commands share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import typer

from y7edge.cli import train
from y7edge.cli.options import ImageSize
from y7edge.errors import ConfigError
from y7edge.train.config import TINY


@pytest.mark.parametrize(
    ("text", "pair"),
    [("640", (640, 640)), ("384x640", (384, 640)), ("384X640", (384, 640)), (" 64 ", (64, 64))],
)
def test_image_size_is_height_by_width(text: str, pair: tuple[int, int]) -> None:
    assert ImageSize.parse(text).pair == pair


@pytest.mark.parametrize("text", ["", "x", "64x", "x64", "0", "64x0", "-64", "64.5", "1x2x3"])
def test_image_size_refuses_the_rest(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="384x640"):
        ImageSize.parse(text)


def test_changes_of_the_recipe() -> None:
    changed = train.changed(TINY, ["lr0=0.02", "mosaic = 0"])
    assert changed == replace(TINY, lr0=0.02, augmentation=replace(TINY.augmentation, mosaic=0.0))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("lr0", "NAME=NUMBER"),
        ("lr0=", "NAME=NUMBER"),
        ("lr0=fast", "NAME=NUMBER"),
        ("=1", "the recipe has"),
        ("lr=1", "the recipe has"),
        ("mosaic=2", "mosaic"),
    ],
)
def test_changes_of_the_recipe_that_cannot_be(change: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        train.changed(TINY, [change])
