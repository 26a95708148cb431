"""Other interpreters: which packages and versions they must have."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from y7edge import interpreters
from y7edge.errors import RuntimeMissing


@pytest.fixture
def python(tmp_path):
    """An interpreter that answers that it has onnx 1.9.2."""
    path = tmp_path / "python"
    path.write_text('#!/bin/sh\necho \'{"onnx": "1.9.2"}\'\n')
    path.chmod(0o755)
    interpreters._versions.cache_clear()
    return path


@pytest.mark.parametrize("least", ["onnx", "onnx>=1.9", "onnx>=1.9.2", "onnx>=1.8.10"])
def test_versions_are_those_of_the_interpreter(python, least):
    assert interpreters.require_packages(python, [least], "recipe") == {"onnx": "1.9.2"}


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("onnx>=1.10", r"has onnx 1\.9\.2, expected 1\.10 or later: pip install onnx==1\.10"),
        ("torch>=2", r"does not have torch: pip install"),
    ],
)
def test_packages_that_are_missing_or_too_old(python, package, message):
    with pytest.raises(RuntimeMissing, match=message):
        interpreters.require_packages(python, [package], "pip install onnx==1.10")


def test_what_is_no_interpreter(tmp_path):
    with pytest.raises(RuntimeMissing, match="is not a Python interpreter"):
        interpreters.require_packages(tmp_path / "none", ["onnx"], "recipe")


def test_packages_of_this_interpreter():
    found = interpreters.require_packages(Path(sys.executable), ["numpy>=1.20"], "recipe")
    assert interpreters.version_numbers(found["numpy"]) >= [1, 20]
