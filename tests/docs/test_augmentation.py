"""docs/augmentation.md: it shows every setting, by images that its script makes."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import pytest

from y7edge.train.augment.settings import Augmentation

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "augmentation.md").read_text(encoding="utf-8")
SETTINGS = [field.name for field in fields(Augmentation)]
SHOWN = re.findall(r"!\[(\w+)\]\(([^)]+)\)", TEXT)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("augmentation", DOCS / "augmentation.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["augmentation"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["augmentation"]


def test_every_setting_is_named_and_shown():
    assert sorted(name for name, _ in SHOWN) == sorted(SETTINGS)
    assert set(SETTINGS) <= set(re.findall(r"`(\w+)`", TEXT))


@pytest.mark.parametrize(("name", "path"), SHOWN, ids=[name for name, _ in SHOWN])
def test_images_are_there_and_small(name, path):
    file = DOCS / path
    assert file.name == f"{name}.jpg"
    assert file.stat().st_size < 60_000


@pytest.mark.parametrize("name", ["mosaic", "paste_in", "degrees"])
def test_images_are_as_the_script_makes_them(script, name):
    """Run docs/augmentation.py if this fails."""
    stored = cv2.imread(str(script.IMAGES / f"{name}.jpg")).astype(float)
    made = script.strip(name).astype(float)
    assert stored.shape == made.shape
    assert np.abs(stored - made).mean() < 6  # JPEG's loss, and OpenCV's from version to version


def test_every_setting_has_its_own_image(script):
    assert list(script.SHOWCASE) == SETTINGS
