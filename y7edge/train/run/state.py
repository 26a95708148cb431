"""The state of a run on disk, from which a killed run is resumed.

A safetensors file, never a pickle: arrays under dotted names (``model.rows.0.conv.weight``,
``optimizer.0.momentum_buffer``), and one JSON entry for everything else. The file before the last
is kept beside it.
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
    """Arrays by dotted name, and JSON-able facts."""

    facts: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)

    def put(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Add tensors under ``prefix.``; CPU memory is shared: save before the next step."""
        for name, tensor in tensors.items():
            self.arrays[f"{prefix}.{name}"] = tensor.detach().cpu().contiguous().numpy()

    def take(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under ``prefix.``, by the rest of their names."""
        start = f"{prefix}."
        return {
            name.removeprefix(start): torch.from_numpy(array)
            for name, array in self.arrays.items()
            if name.startswith(start)
        }


def position(state: State) -> str:
    """Where in the run a state was taken, in words."""
    return f"epoch {state.facts['epoch']}, after {state.facts['batch']} batches"


def save(state: State, folder: Path) -> Path:
    """Write a state, whole or not at all; the one before is kept as ``state-previous``.

    Raises:
        TrainingError: the disk takes no more; the message says what is still there.
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
        raise TrainingError(f"{path} cannot be written ({reason}): {_what_is_left(folder)}") from (
            error
        )
    return path


def load(folder: Path, *, say: Callable[[str], None]) -> State:
    """The last whole state of a run.

    Args:
        folder: of the run.
        say: is called if the last one is damaged and the one before is taken.

    Raises:
        CheckpointError: there is none, or none is whole; the message says what else is usable.
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
            # Else the next write would put the damaged file in the place of the whole one.
            (folder / STATE).unlink()
            say(f"{problems[0]}; resuming from {name} ({position(state)})")
        return state
    found = "; ".join(problems) or f"{folder}: no {STATE}, so there is no run to resume"
    raise CheckpointError(f"{found}; {_weights_left(folder)}")


def read(path: Path) -> State:
    """One state file.

    Raises:
        CheckpointError: it is cut short, altered, or not ours.
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
            f"{path}: not a whole state of a run ({' '.join(str(error).split())}): cut short, "
            "damaged or of another tool"
        ) from error
    if checksum != _checksum(arrays):
        raise CheckpointError(f"{path}: altered after it was written: its checksum doesn't fit")
    return State(facts, arrays)


def mark_finished(folder: Path, identity: Mapping[str, Any], epochs: int) -> None:
    """Put a state without arrays in the place of the last one: there is nothing to resume.

    Raises:
        TrainingError: the disk takes no more.
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


def _what_is_left(folder: Path) -> str:
    """What a run can resume from after a write that failed."""
    for name in (STATE, PREVIOUS):
        try:
            state = read(folder / name)
        except CheckpointError:
            continue
        return (
            f"the state before it ({position(state)}) is kept in {name}; make room, then "
            f"resume with y7edge train --resume {folder}"
        )
    return f"no state was kept; {_weights_left(folder)}"


def _weights_left(folder: Path) -> str:
    left = [name for name in (LAST, BEST) if (folder / name).exists()]
    if not left:
        return "nor are there weights of a finished epoch: train anew"
    return f"start a new run from its weights with --weights {folder / left[0]}"
