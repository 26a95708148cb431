"""What ``import y7edge`` gives, and what it doesn't cost."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import y7edge

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", y7edge.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(y7edge, name) is not None
    assert name in dir(y7edge)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Detektor"):
        _ = y7edge.Detektor


def test_import_brings_no_library_at_all():
    code = "import sys, y7edge; print([m for m in ('numpy', 'cv2', 'torch') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_version_is_the_package_s():
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert y7edge.__version__ == declared[1]


NAMES = {
    "y7edge.nn": ["create"],
    "y7edge.models": ["names"],
    "y7edge.models.official": ["load", "convert"],
    "y7edge.export": ["fold", "export", "export_all", "verify", "build"],
    "y7edge.train": ["train", "resume", "for_terminal", "TrainConfig"],
    "y7edge.data.dataset": ["load"],
}


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, names in NAMES.items() for n in names])
def test_names_that_scripts_rely_on_stay_importable(module, name):
    assert callable(getattr(importlib.import_module(module), name))


def test_without_opencv_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['cv2'] = None\nfrom y7edge import Detector"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "RuntimeMissing: y7edge.Detector needs OpenCV" in done.stderr
    assert "pip install 'y7edge[cpu]'" in done.stderr


def test_the_package_is_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "y7edge", "--version"], capture_output=True)
    assert done.stdout.startswith(b"y7edge ")
