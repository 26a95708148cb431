"""Save and load the state of a run, for resuming.

A state is a safetensors file. It has arrays under dotted names (``model.rows.0.conv.weight``,
``optimizer.0.momentum_buffer``) and a JSON entry for other values. The previous state is kept in a
second file.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from y7edge.artifact.schema import decode
from y7edge.errors import CheckpointError, TrainingError
from y7edge.files import atomic_write, is_folder, read_regular, reason
from y7edge.models.spec import Anchors
from y7edge.train.averaging.average import Counts
from y7edge.train.output.folder import BEST, LAST, PREVIOUS, STATE
from y7edge.train.output.results import Written
from y7edge.train.run.distributed import Ranks

SCHEMA = 4
HEADER = "y7edge-state"
CHECKSUM = "checksum"
_MOST = 16 << 30  # maximum file size in bytes; states of yolov7-e6e have 2.7 GB

T = TypeVar("T")


@dataclass
class Position:
    """Progress of a run."""

    epoch: int = 1  # the current epoch
    batch: int = 0  # finished batches of the epoch
    closed: bool = False  # all batches are finished, and the averaged weights are updated
    sums: tuple[float, ...] = (0.0, 0.0, 0.0)  # of box, obj and cls losses of these batches
    seconds: float = 0.0  # training time of these batches

    def __post_init__(self) -> None:
        if self.epoch < 1 or self.batch < 0 or self.seconds < 0 or len(self.sums) != 3:
            raise CheckpointError(f"expected a position within a run, found {self}")

    def __str__(self) -> str:
        return f"epoch {self.epoch}, after {self.batch} batches"


@dataclass(frozen=True)
class Identity:
    """Properties of a run that must not change for a resumed run to give the same result."""

    settings: Mapping[str, Any]
    data: str  # digest
    torch: str
    threads: int
    processes: int
    device: str
    machine: str


@dataclass(frozen=True)
class Began:
    """Start of a run: the origin of its weights, remarks for the report, and its anchors."""

    origin: str
    notes: tuple[str, ...]
    anchors: Anchors


@dataclass(frozen=True)
class Facts:
    """Values of a state that are not arrays. A finished run has only the first three."""

    position: Position
    identity: Identity
    finished: bool = False
    began: Began | None = None
    average: Counts = field(default_factory=Counts)
    scaler: Mapping[str, int | float] = field(default_factory=dict)  # of fp16
    gathered: int = 0  # backward passes since the last optimizer step
    written: Written = field(default_factory=Written)

    def __post_init__(self) -> None:
        if not self.finished and self.began is None:
            raise CheckpointError("expected an entry 'began', found none")
        if not 0 <= self.gathered < 2**31:
            raise CheckpointError(f"gathered: expected a number of batches, found {self.gathered}")


@dataclass(frozen=True, slots=True)
class State:
    """State of a run: facts, and arrays by dotted name."""

    facts: Facts
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)

    def put(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Add each tensor as an array named ``prefix.name``.

        Arrays share the memory of tensors on the CPU: save the state before the next training step.
        """
        for name, tensor in tensors.items():
            self.arrays[f"{prefix}.{name}"] = tensor.detach().cpu().contiguous().numpy()

    def take(self, prefix: str) -> dict[str, Tensor]:
        """Return the arrays added by ``put`` with this prefix, as tensors by name."""
        start = f"{prefix}."
        return {
            name.removeprefix(start): torch.from_numpy(array)
            for name, array in self.arrays.items()
            if name.startswith(start)
        }


def save(state: State, folder: Path) -> Path:
    """Write a state atomically; keep the previous one as ``state-previous``.

    Raises:
        TrainingError: the file cannot be written; the message says how to continue the run.
    """
    import safetensors
    from safetensors.numpy import save_file

    path = folder / STATE
    text = json.dumps({"schema": SCHEMA, "facts": asdict(state.facts)})
    checksum = str(_checksum(text, state.arrays))
    try:
        with atomic_write(path) as temporary:
            save_file(state.arrays, temporary, metadata={HEADER: text, CHECKSUM: checksum})
            if path.exists():
                path.replace(folder / PREVIOUS)
    except (OSError, safetensors.SafetensorError) as error:
        raise TrainingError(
            f"{path} cannot be written ({reason(error)}): {_resumable(folder)}"
        ) from error
    return path


def load(
    folder: Path,
    use: Callable[[State], T],
    *,
    log: Callable[[str], None],
    ranks: Ranks | None = None,
) -> T:
    """Return ``use(state)`` for the last state of a run, or the previous one; call on all ranks.

    The previous state is used, and a message logged, if the last one is damaged or if ``use``
    raises CheckpointError for it.

    Raises:
        CheckpointError: both states failed; the message names weights to start from, if any.
    """
    ranks, problems = ranks or Ranks(), list[str]()
    for name in (STATE, PREVIOUS):
        path = folder / name
        if not ranks.from_first(os.path.lexists(path) and not is_folder(path)):
            continue
        try:
            with ranks.together():
                state = read(path)
            made = use(state)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems and ranks.first:
            # Otherwise the next save would overwrite the complete state with the damaged one.
            (folder / STATE).unlink()
            log(f"{problems[0]}; resuming from {name} ({state.facts.position})")
        return made
    found = "; ".join(problems) or f"{folder}: no {STATE}, expected the folder of a run"
    raise CheckpointError(f"{found}; {_usable_weights(folder)}")


def read(path: Path) -> State:
    """Read one state file.

    Raises:
        CheckpointError: the file is truncated, altered, or has another format.
    """
    import safetensors.numpy

    broken = (
        *(safetensors.SafetensorError, OSError, MemoryError, RecursionError),
        *(ValueError, KeyError, TypeError, AttributeError),
    )
    try:
        # Not memory-mapped: the process would die if another program truncated the file.
        content = read_regular(path, _MOST)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        text, checksum = metadata[HEADER], metadata[CHECKSUM]
        arrays = safetensors.numpy.load(content)
        header = json.loads(text)
        schema, facts = header["schema"], header["facts"]
        if schema != SCHEMA:
            raise ValueError(f"schema {schema!r}, expected {SCHEMA}")
    except broken as error:
        raise CheckpointError(
            f"{path}: not a complete state of a run ({reason(error)}): truncated, damaged or "
            "another format"
        ) from error
    if checksum != str(_checksum(text, arrays)):
        raise CheckpointError(f"{path}: altered after it was written: wrong checksum")
    return State(decode(Facts, facts, origin=str(path), error=CheckpointError), arrays)


def mark_finished(folder: Path, identity: Identity, epochs: int) -> None:
    """Replace both states of a run with one state without arrays, marked as finished.

    Raises:
        TrainingError: the file cannot be written.
    """
    save(State(Facts(Position(epochs), identity, finished=True)), folder)
    (folder / PREVIOUS).unlink(missing_ok=True)


def _checksum(text: str, arrays: Mapping[str, NDArray[Any]]) -> int:
    """Compute a CRC-32 of the header and of all arrays; it detects corruption, not tampering."""
    value = zlib.crc32(text.encode())
    for name, array in sorted(arrays.items()):
        value = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), value)
        value = zlib.crc32(np.ascontiguousarray(array).reshape(-1).data, value)
    return value


def _resumable(folder: Path) -> str:
    """Say how to continue a run whose state could not be written."""
    for name in (STATE, PREVIOUS):
        try:
            state = read(folder / name)
        except CheckpointError:
            continue
        return (
            f"the previous state ({state.facts.position}) is in {name}; free disk space, then "
            f"resume with y7edge train --resume {folder}"
        )
    return f"no state was saved; {_usable_weights(folder)}"


def _usable_weights(folder: Path) -> str:
    """Say how to continue a run that has no usable state."""
    left = [name for name in (LAST, BEST) if (folder / name).exists()]
    if not left:
        return "no weights of a finished epoch were saved: start again"
    return f"start a new run with --weights {folder / left[0]}"
