"""What users name on the command line, as a checkpoint: a model's name, or a file of weights."""

from __future__ import annotations

from pathlib import Path

from y7edge.models import registry, weights
from y7edge.models.checkpoint import Checkpoint
from y7edge.nn.random_weights import random_checkpoint


def open_checkpoint(source: str | Path, nc: int = 80, seed: int = 0) -> Checkpoint:
    """A checkpoint from a path (``.safetensors`` of ours, published ``.pt``) or a model's name.

    A name gives seeded random weights (:mod:`y7edge.nn.random_weights`), with ``nc`` classes, so
    that every command can be tried without training; ``meta["provenance"]`` says so.

    Raises:
        CheckpointError: the file is missing, damaged, or no checkpoint.
    """
    if isinstance(source, str) and source in registry.names() and not Path(source).is_file():
        return random_checkpoint(source, nc=nc, seed=seed)
    return weights.load(Path(source))
