"""docs/concepts.md: its drawings are as the script makes them, and what it names is there."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TEXT = (DOCS / "concepts.md").read_text(encoding="utf-8")
FILES = sorted(set(re.findall(r"`((?:\w+/)+\w+\.py)`", TEXT)))
PLACES = sorted(set(re.findall(r"\| `(\w+)`, `((?:\w+/)+\w+\.py)` \|", TEXT)))
LINKS = sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT)))


@pytest.fixture(scope="module")
def drawings():
    spec = importlib.util.spec_from_file_location("drawings", DOCS / "drawings.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["drawings"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["drawings"]


def test_drawings_are_as_the_script_makes_them(drawings):
    """Run docs/drawings.py if this fails."""
    for name, draw in drawings.DRAWINGS.items():
        drawn = draw()
        ElementTree.fromstring(drawn)
        assert (drawings.IMAGES / f"{name}.svg").read_text(encoding="utf-8") == drawn
        assert f"images/{name}.svg" in LINKS


def test_files_and_links_are_there():
    assert len(FILES) > 15
    assert [name for name in FILES if not (ROOT / name).is_file()] == []
    assert [link for link in LINKS if not (DOCS / link).is_file()] == []


@pytest.mark.parametrize(("name", "path"), PLACES)
def test_named_places_are_there(name, path):
    source = (ROOT / path).read_text(encoding="utf-8")
    assert re.search(rf"^(?:def|class) {name}\b|^{name}\b.* = ", source, re.MULTILINE)


def test_tables_name_places():
    assert len(PLACES) > 10
