"""Where files of the package go on machines that lack something."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from y7edge.files import cache_folder


def test_a_user_without_a_home_has_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container run as any number, with HOME unset."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("Y7EDGE_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    folder = cache_folder("labels")
    assert folder.name == "labels"
    assert folder.is_relative_to(tempfile.gettempdir())
