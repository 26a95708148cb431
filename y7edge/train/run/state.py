"""The state of a run on disk, for resuming.

A safetensors file without pickle: arrays under dotted names (``model.rows.0.conv.weight``,
``optimizer.0.momentum_buffer``), and a JSON entry for the rest. The previous file is kept.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from y7edge.errors import CheckpointError, TrainingError
from y7edge.files import atomic_write
from y7edge.train.output.folder import BEST, LAST, PREVIOUS, STATE

SCHEMA = 3
HEADER = "y7edge-state"


@dataclass(frozen=True, slots=True)
class State:
    """Arrays by dotted name, and JSON values."""

    facts: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)

    def put(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Add tensors under ``prefix.``; they share CPU memory: save before the next step."""
        for name, tensor in tensors.items():
            self.arrays[f"{prefix}.{name}"] = tensor.detach().cpu().contiguous().numpy()

    def take(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors under ``prefix.``, by the rest of their names."""
        start = f"{prefix}."
        return {
            name.removeprefix(start): torch.from_numpy(array)
            for name, array in self.arrays.items()
            if name.startswith(start)
        }


def position(state: State) -> str:
    """Describe where in the run a state was captured."""
    return f"epoch {state.facts['epoch']}, after {state.facts['batch']} batches"


def save(state: State, folder: Path) -> Path:
    """Write a state atomically; keep the previous one as ``state-previous``.

    Raises:
        TrainingError: the disk is full; the message states what is left.
    """
    import safetensors
    from safetensors.numpy import save_file

    path = folder / STATE
    text = json.dumps({"schema": SCHEMA, "facts": state.facts, "checksum": _checksum(state.arrays)})
    try:
        with atomic_write(path) as temporary:
            save_file(state.arrays, temporary, metadata={HEADER: text})
            if path.exists():
                path.replace(folder / PREVIOUS)
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise TrainingError(f"{path} cannot be written ({reason}): {_resumable(folder)}") from (
            error
        )
    return path


def load(folder: Path, *, log: Callable[[str], None]) -> State:
    """Read the last complete state of a run; ``log`` reports a damaged one that is skipped.

    Raises:
        CheckpointError: no complete state; the message states what else is usable.
    """
    problems = []
    for name in (STATE, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            state = read(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            # Otherwise the next write would replace the complete file by the damaged one.
            (folder / STATE).unlink()
            log(f"{problems[0]}; resuming from {name} ({position(state)})")
        return state
    found = "; ".join(problems) or f"{folder}: no {STATE}, expected the folder of a run"
    raise CheckpointError(f"{found}; {_usable_weights(folder)}")


def read(path: Path) -> State:
    """Read one state file.

    Raises:
        CheckpointError: it is truncated, altered, or another format.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {})[HEADER]
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        header = json.loads(text)
        schema, facts, checksum = header["schema"], header["facts"], header["checksum"]
        if schema != SCHEMA or not isinstance(facts, dict):
            raise ValueError(f"schema {schema!r}, expected {SCHEMA}")
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: not a complete state of a run ({' '.join(str(error).split())}): truncated, "
            "damaged or another format"
        ) from error
    if checksum != _checksum(arrays):
        raise CheckpointError(f"{path}: altered after it was written: wrong checksum")
    return State(facts, arrays)


def mark_finished(folder: Path, identity: Mapping[str, Any], epochs: int) -> None:
    """Replace the state with one without arrays: there is nothing to resume.

    Raises:
        TrainingError: the disk is full.
    """
    facts = {"finished": True, "epoch": epochs, "batch": 0, "identity": dict(identity)}
    save(State(facts), folder)
    (folder / PREVIOUS).unlink(missing_ok=True)


def _checksum(arrays: Mapping[str, NDArray[Any]]) -> int:
    """CRC-32 over all names and bytes: detects corruption, not tampering."""
    value = 0
    for name in sorted(arrays):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(np.ascontiguousarray(arrays[name]).reshape(-1).data, value)
    return value


def _resumable(folder: Path) -> str:
    """Describe what a run can resume from after a failed write."""
    for name in (STATE, PREVIOUS):
        try:
            state = read(folder / name)
        except CheckpointError:
            continue
        return (
            f"the previous state ({position(state)}) is in {name}; free disk space, then resume "
            f"with y7edge train --resume {folder}"
        )
    return f"no state was saved; {_usable_weights(folder)}"


def _usable_weights(folder: Path) -> str:
    left = [name for name in (LAST, BEST) if (folder / name).exists()]
    if not left:
        return "nor weights of a finished epoch: start again"
    return f"start a new run with --weights {folder / left[0]}"
