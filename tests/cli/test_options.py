"""Options that several commands share."""

from __future__ import annotations

import pytest
import typer

from y7edge.cli.options import ImageSize


@pytest.mark.parametrize(
    ("text", "pair"),
    [("640", (640, 640)), ("384x640", (384, 640)), ("384X640", (384, 640)), (" 64 ", (64, 64))],
)
def test_image_size_is_height_by_width(text: str, pair: tuple[int, int]) -> None:
    assert ImageSize.parse(text) == pair


@pytest.mark.parametrize("text", ["", "x", "64x", "x64", "0", "64x0", "-64", "64.5", "1x2x3"])
def test_image_size_refuses_the_rest(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="384x640"):
        ImageSize.parse(text)
