"""Checkpoints: rows, weights, class names and metadata of a model, and their validation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact import bounds
from y7edge.artifact.schema import decode, texts
from y7edge.errors import CheckpointError, ConfigError
from y7edge.files import open_regular, reason
from y7edge.models.shapes import require_affordable, weight_shapes
from y7edge.models.spec import Form, Spec
from y7edge.text import is_printable

SUFFIXES = (".safetensors", ".pt", ".pth")  # of checkpoint files
COUNTER = "num_batches_tracked"  # of BatchNorm: int64; all other weights are floats


@dataclass(frozen=True)
class Checkpoint:
    """Rows, weights, class names and metadata of a model.

    Attributes:
        spec: the rows.
        arrays: weights by key, see ``y7edge.models.shapes.weight_shapes``. They are float32 (in
            the proof of folding float64); the counters of BatchNorm are int64.
        names: class names, by class id.
        meta: JSON values such as imgsz, epoch, metrics, data, provenance, licence.
    """

    spec: Spec
    arrays: Mapping[str, NDArray[Any]]
    names: tuple[str, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def form(self) -> Form:
        """Form of the weights: ``training``, ``deploy`` or ``folded``."""
        return self.spec.form

    @property
    def imgsz(self) -> tuple[int, int]:
        """Input size (height, width) in training; if it is unknown, that of the published variant.

        Raises:
            CheckpointError: an entry of ``meta`` has the wrong type.
        """
        size = _known(self.meta, "meta").imgsz or self.spec.imgsz
        return size if isinstance(size, tuple) else (size, size)

    @cached_property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of rows, names and weights, without ``meta``."""
        state = hashlib.sha256(canonical_json([self.spec.to_dict(), self.names]).encode())
        for key in sorted(self.arrays):
            array = self.arrays[key]
            little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
            state.update(canonical_json([key, little.dtype.str, little.shape]).encode())
            state.update(little.tobytes())
        return state.hexdigest()


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a checkpoint file for a ``with`` statement.

    An OSError or MemoryError that is raised inside it is re-raised as a CheckpointError.
    """
    try:
        with open_regular(path) as stream:
            yield stream
    except FileNotFoundError as error:
        expected = "expected a .safetensors or .pt checkpoint"
        raise CheckpointError(f"{path}: no such file; {expected}") from error
    except (OSError, MemoryError) as error:
        raise CheckpointError(f"{path}: cannot be read: {reason(error)}") from error


def canonical_json(value: Any) -> str:
    """Return deterministic JSON: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def default_names(nc: int) -> tuple[str, ...]:
    """Return "0", "1", ... as class names."""
    return tuple(str(index) for index in range(nc))


@dataclass(frozen=True)
class _Known:
    """The entries of ``meta`` whose types are checked."""

    imgsz: int | tuple[int, int] | None = None
    epoch: int | None = None
    licence: str | None = None
    thresholds: Mapping[str, Any] | None = None
    data: Mapping[str, Any] | None = None


def _known(meta: Mapping[str, Any], origin: str) -> _Known:
    """Decode the entries of ``meta`` that ``_Known`` lists; CheckpointError if a type is wrong."""
    present = {entry.name: meta[entry.name] for entry in fields(_Known) if entry.name in meta}
    return decode(_Known, present, origin=origin, error=CheckpointError)


def check(checkpoint: Checkpoint, source: str) -> None:
    """Check that weights, class names and metadata are valid and fit the rows.

    ``source``: name of the checkpoint in messages.

    Raises:
        CheckpointError: keys are missing or unexpected, a shape or dtype is wrong, a value is NaN
            or infinite, the number of names is not ``nc``, an entry of ``meta`` has the wrong type,
            or the model exceeds a limit of ``y7edge.artifact.bounds``.
    """
    spec, arrays = checkpoint.spec, checkpoint.arrays
    expected = check_description(checkpoint, source)
    check_keys(arrays, expected, f"{source} ({spec.name}, {spec.form} form)")
    for key, shape in expected.items():
        array = arrays[key]
        if array.shape != shape:
            raise CheckpointError(
                f"{source}: {key} has shape {array.shape}, expected {shape} for {spec.name} with "
                f"{spec.nc} classes in {spec.form} form; the header does not match the weights"
            )
        kinds = ("int64",) if key.endswith(COUNTER) else ("float32", "float64")
        if array.dtype.name not in kinds:
            raise CheckpointError(
                f"{source}: {key} is {array.dtype}, expected {' or '.join(kinds)}: convert it"
            )
        if not np.isfinite(array).all():
            raise CheckpointError(
                f"{source}: {key} contains NaN or infinity, probably because training diverged; "
                "use an earlier checkpoint"
            )
    _check_anchors(checkpoint, source)


def check_description(checkpoint: Checkpoint, source: str) -> dict[str, tuple[int, ...]]:
    """Check everything except the weights; return the expected shape of each weight by key.

    Raises:
        CheckpointError: see ``check``.
    """
    spec = checkpoint.spec
    check_names(checkpoint.names, spec.nc, source)
    try:
        _known(checkpoint.meta, f"{source}: meta")
        list(texts(checkpoint.meta))  # raises ValueError if nested too deeply
        sides = checkpoint.imgsz
        if not all(bounds.MIN_SIDE <= side <= bounds.MAX_SIDE for side in sides):
            raise ConfigError(f"imgsz is {sides}, expected {bounds.MIN_SIDE} to {bounds.MAX_SIDE}")
        require_affordable(spec, *sides)
        return weight_shapes(spec)
    except (ConfigError, ValueError) as error:
        raise CheckpointError(f"{source}: {error}") from error


def _check_anchors(checkpoint: Checkpoint, source: str) -> None:
    """Check that the anchors in the weights, which torch uses, are equal to those in the spec."""
    spec = checkpoint.spec
    grid = checkpoint.arrays[f"rows.{spec.head.index}.anchors"]
    pixels = grid * np.array(spec.strides, dtype=np.float64)[:, None, None]
    if not np.allclose(pixels, np.array(spec.anchors), rtol=1e-3, atol=0.0):
        raise CheckpointError(
            f"{source}: expected equal anchors in weights and header, found "
            f"{pixels.round(2).tolist()} pixels in the weights, "
            f"{np.array(spec.anchors).tolist()} in the header"
        )


def check_names(names: Sequence[str], nc: int, source: str) -> None:
    """Raise CheckpointError unless ``names`` are ``nc`` printable strings of bounded length."""
    if len(names) != nc or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"{source}: {len(names)} class names for {nc} classes; expected one string per class"
        )
    for name in names:
        if len(name) > bounds.MAX_NAME or not is_printable(name):
            raise CheckpointError(
                f"{source}: class name {name[:64]!r}: expected at most {bounds.MAX_NAME} printable "
                "characters; train with another name"
            )


def check_keys(found: Mapping[str, Any], expected: Mapping[str, Any], source: str) -> None:
    """Raise CheckpointError for missing or unexpected keys."""
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    if missing or unexpected:
        faults = [("missing", missing), ("unexpected", unexpected)]
        listed = "; ".join(f"{word} {_some(keys)}" for word, keys in faults if keys)
        raise CheckpointError(
            f"{source}: {listed}; expected {len(expected)} entries, found {len(found)}: the file "
            "is damaged or belongs to another model"
        )


def _some(keys: Sequence[str]) -> str:
    # repr escapes control characters, which keys of a hostile file may contain.
    shown = ", ".join(repr(key)[1:-1][:80] for key in keys[:3])
    return shown + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
