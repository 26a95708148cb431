"""Open a checkpoint by its path, or create one from a model's name."""

from __future__ import annotations

from pathlib import Path

from y7edge.models import registry, weights
from y7edge.models.checkpoint import Checkpoint
from y7edge.nn.random_weights import random_checkpoint


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Load a checkpoint from a file (``.safetensors``, published ``.pt``), or create one by name.

    The name of a variant gives seeded random weights (``y7edge.nn.random_weights``).

    Raises:
        CheckpointError: the file is missing, damaged, or not a checkpoint.
    """
    if isinstance(source, str) and registry.split(source) and not Path(source).is_file():
        return random_checkpoint(source)
    return weights.load(Path(source))
