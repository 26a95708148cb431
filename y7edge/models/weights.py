"""Save and load checkpoints: safetensors files with a JSON header.

The header is the safetensors metadata entry ``y7edge``: schema version, rows, class names,
metadata, and a digest of rows, names and weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact import bounds
from y7edge.artifact.schema import decode, parse
from y7edge.errors import CheckpointError, needing
from y7edge.files import atomic_write, reason
from y7edge.models.checkpoint import (
    COUNTER,
    SUFFIXES,
    Checkpoint,
    canonical_json,
    check,
    check_description,
    default_names,
    opened,
)
from y7edge.models.published import official
from y7edge.models.spec import Spec

__all__ = ["Checkpoint", "default_names", "load", "save"]

SCHEMA = 1
HEADER = "y7edge"


@dataclass(frozen=True)
class _Header:
    """The content of the metadata entry ``y7edge``."""

    schema: int
    spec: Spec
    names: tuple[str, ...]
    meta: Mapping[str, Any]
    digest: str

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise CheckpointError(f"schema is {self.schema}, expected {SCHEMA}")


def save(checkpoint: Checkpoint, path: Path | str) -> None:
    """Write a checkpoint atomically, with floats as float32.

    Equal checkpoints give equal bytes.

    Raises:
        CheckpointError: the checkpoint is invalid (see ``y7edge.models.checkpoint.check``),
            its metadata is not valid JSON, or the file cannot be written.
        RuntimeMissing: safetensors is not installed.
    """
    safetensors = _safetensors()
    source = str(path)
    arrays = {key: _stored(key, array) for key, array in checkpoint.arrays.items()}
    stored = replace(checkpoint, arrays=arrays, names=tuple(checkpoint.names))
    check(stored, source)
    header = _Header(SCHEMA, stored.spec, stored.names, dict(stored.meta), stored.digest)
    try:
        text = canonical_json(asdict(header))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{source} was not written: the metadata is not valid JSON ({error}); "
            "use strings, finite numbers, lists and dictionaries"
        ) from error
    try:
        with atomic_write(path) as temporary:
            safetensors.numpy.save_file(dict(stored.arrays), temporary, metadata={HEADER: text})
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{source}: cannot be written: {reason(error)}") from error


def _stored(key: str, array: NDArray[Any]) -> NDArray[Any]:
    if key.endswith(COUNTER):
        return np.asarray(array)
    # Values beyond float32 become infinity, which ``check`` reports with the key.
    with np.errstate(over="ignore"):
        return np.asarray(array, dtype=np.float32, order="C")


def load(path: Path | str) -> Checkpoint:
    """Read a checkpoint: a ``.safetensors`` file of y7edge, or a published ``.pt`` or ``.pth``.

    Raises:
        CheckpointError: the file is missing, damaged, changed, unsafe, or not a checkpoint that
            this version can read.
        RuntimeMissing: safetensors is not installed.
    """
    path = Path(path)
    if path.suffix.lower() in SUFFIXES[1:]:
        return official.load(path)
    with opened(path) as stream:
        header, arrays = _read(path, stream)
    checkpoint = Checkpoint(header.spec, arrays, header.names, header.meta)
    check(checkpoint, str(path))
    if checkpoint.digest != header.digest:
        raise CheckpointError(
            f"{path}: the digest of rows, names and weights is {checkpoint.digest[:12]}..., "
            f"expected {header.digest[:12]}... from the header: the file was changed after it was "
            "written; restore a copy"
        )
    return checkpoint


def _read(path: Path, stream: BinaryIO) -> tuple[_Header, dict[str, NDArray[Any]]]:
    """Return the header and all tensors of a safetensors file.

    The file is not memory-mapped: if another program truncated it, the process would be killed.
    At most as many bytes are read as the rows in the header need.
    """
    safetensors = _safetensors()
    try:
        length = int.from_bytes(stream.read(8), "little")
        if length > bounds.MAX_HEADER:
            raise ValueError(f"its header has {length} bytes, expected at most {bounds.MAX_HEADER}")
        entries = parse(stream.read(length))
        if not isinstance(entries, dict):
            raise ValueError("its header is not a JSON object")
        metadata = entries.get("__metadata__")
        text = metadata.get(HEADER) if isinstance(metadata, dict) else None
        if not isinstance(text, str):
            raise CheckpointError(
                f"{path}: a safetensors file without the metadata entry {HEADER!r}; expected a "
                "checkpoint that y7edge saved"
            )
        header = _header(path, text)
        shapes = check_description(
            Checkpoint(header.spec, {}, header.names, header.meta), str(path)
        )
        most = 8 + length + 8 * sum(map(math.prod, shapes.values()))
        stream.seek(0)
        content = stream.read(most + 1)
        if len(content) > most:
            raise ValueError(f"it is longer than the {most} bytes that its rows need")
        return header, safetensors.numpy.load(content)
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        found = "truncated, damaged or another format; copy or download it again"
        if path.suffix.lower() not in SUFFIXES:
            found = "expected a checkpoint, a .safetensors or .pt file"
        raise CheckpointError(
            f"{path}: not a complete safetensors file ({error}): {found}"
        ) from error


def _header(path: Path, text: str) -> _Header:
    """Decode the header's text."""
    damaged = f"{path}: the {HEADER} header is damaged, restore a copy of the file"
    try:
        values = parse(text)
    except ValueError as error:
        raise CheckpointError(f"{damaged}: {error}") from error
    schema = values.get("schema") if isinstance(values, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise CheckpointError(
            f"{path}: the header has schema {schema}, this y7edge reads up to {SCHEMA}; update "
            "y7edge"
        )
    return decode(_Header, values, origin=damaged, error=CheckpointError)


def _safetensors() -> Any:
    with needing("safetensors", "export", "a checkpoint"):
        import safetensors
        import safetensors.numpy
    return safetensors
