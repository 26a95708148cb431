"""docs/live.md: its options, numbers and images are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from y7edge.cli import main
from y7edge.detect.ages import WINDOW
from y7edge.live import loop
from y7edge.live.feed import Limits

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "live.md").read_text(encoding="utf-8")
IMAGES = re.findall(r'(?:\]\(|src=")(images/\w+\.png)', TEXT)


def test_options_and_defaults(capsys):
    main(["live", "--help"])
    printed = capsys.readouterr().out
    named = set(re.findall(r"`(--[a-z-]+)", TEXT))
    assert "--save-hard" in named
    assert {name for name in named if f"{name} " not in printed} == set()
    limits = Limits()
    for name, value in (
        ("width", limits.width),
        ("quality", limits.quality),
        ("rate", limits.rate),
    ):
        assert f"| `--web-{name}` | {value:g} |" in TEXT
    assert f"At most {limits.viewers} viewers" in TEXT
    assert f"a confidence of\n{loop.FLOOR}" in TEXT
    assert f"last {WINDOW} frames" in TEXT


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_there_and_small(name):
    assert (DOCS / name).stat().st_size < 300_000


def test_there_are_images_of_a_computer_and_a_phone():
    assert {"images/live.png", "images/live_phone.png"} <= set(IMAGES)
