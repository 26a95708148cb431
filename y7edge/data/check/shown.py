"""Paths as people are shown them."""

from __future__ import annotations

from pathlib import Path


def readable(path: Path, root: Path) -> str:
    """A path for people, in one line: relative to the data set where it lies in it."""
    shown = within(path, root) if path != root else path.name or str(path)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)


def within(path: Path, root: Path) -> str:
    """A path relative to the data set where it lies in it."""
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
