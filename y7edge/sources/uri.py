"""Open a source by its URI."""

from __future__ import annotations

from pathlib import Path

from y7edge.errors import SourceError
from y7edge.sources.base import Source


def open_source(uri: str | int | Path, **options: str | int | float) -> Source:
    """Open a camera, a network stream, a video, a folder, or a test pattern."""
    raise SourceError(f"{uri}: unknown kind of source; options: {options}")
