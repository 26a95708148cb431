"""Dump the batch that produced a non-finite loss."""

from __future__ import annotations

import json
from pathlib import Path

from y7edge.files import atomic_write
from y7edge.train.loading.dataset import TrainingSet, collate
from y7edge.train.loading.sampling import BatchPlan

NAME = "nan_batch.safetensors"
HEADER = "y7edge-batch"


def write_batch(
    folder: Path, shown: TrainingSet, plan: BatchPlan, *, epoch: int, batch: int, reason: str
) -> Path:
    """Make a batch of all ranks again, and write it to ``folder``.

    The file has ``images`` uint8 (B, 3, H, W) RGB and ``targets`` float32 (n, 6), and in its
    header, as JSON, the images' paths, ``epoch`` (from 1), ``batch`` (from 0) and ``reason``.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.torch import save_file

    whole = BatchPlan(plan.length, plan.batch, seed=plan.seed, shuffle=plan.shuffle, rect=plan.rect)
    whole.weights = plan.weights
    whole.set_epoch(epoch, batch)
    keys = next(iter(whole))
    images, targets = collate([shown[key] for key in keys])
    facts = {
        "reason": reason,
        "epoch": epoch,
        "batch": batch,
        "pictures": [str(shown.samples[key.index].path) for key in keys],
    }
    path = folder / NAME
    with atomic_write(path) as temporary:
        save_file(
            {"images": images, "targets": targets}, temporary, metadata={HEADER: json.dumps(facts)}
        )
    return path
