"""Published ``.pt`` files (being written)."""

from __future__ import annotations

from pathlib import Path

from y7edge.errors import CheckpointError
from y7edge.models.checkpoint import Checkpoint


def load(path: Path | str) -> Checkpoint:
    """Read a published file."""
    raise CheckpointError(f"{path}: not readable yet")
