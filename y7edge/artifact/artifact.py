"""Artifacts: the files of one exported model, and their manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from y7edge.artifact.foreign import Foreign
from y7edge.artifact.manifest import MAX_BYTES, Manifest
from y7edge.errors import ArtifactError, ArtifactMissing
from y7edge.files import (
    is_folder,
    open_regular,
    read_regular,
    reason,
    require_regular,
    write_text,
)

_BLOCK = 1 << 20
_LARGEST = 4 << 30  # bytes per file; yolov7-e6e has 0.7 GB


@dataclass(frozen=True)
class Artifact:
    """An exported model for one engine."""

    path: Path  # the main file or folder
    manifest: Manifest
    side_files: tuple[Path, ...] = ()  # further files; empty for most formats
    foreign: Foreign | None = None  # how its outputs are converted, if another exporter made it

    @property
    def files(self) -> tuple[Path, ...]:
        """All files, the main one first."""
        return (self.path, *self.side_files)

    @property
    def size(self) -> int:
        """Total size of all files in bytes."""
        return sum(file.stat().st_size for file, _ in _flat(self.files))


def require_files(files: Sequence[Path]) -> None:
    """Check that all files of an artifact can be read.

    Raises:
        ArtifactMissing: one of them does not exist.
        ArtifactError: one of them is a pipe, socket or device, or has an impossible name.
    """
    for file in files:
        try:
            if not is_folder(file):
                require_regular(file)
        except FileNotFoundError as error:
            *others, last = (f.name for f in files)
            hint = f"{files[0].name} needs it, copy {', '.join(others)} and {last} together"
            if file == files[0]:
                hint = "export one with `y7edge export`"
            raise ArtifactMissing(f"there is no file {file}: {hint}") from error
        except OSError as error:
            raise ArtifactError(f"{file} cannot be read: {reason(error)}") from error


def digest_files(files: Iterable[Path], first: bytes | None = None) -> str:
    """Return the SHA-256 over the length and the content of each file, in the given order.

    A folder is replaced by all files in it, sorted by path, each after its path in the folder.
    ``first``: the content to use for the first file instead of its own.

    Raises:
        ArtifactError: a file cannot be read, or is too large.
    """
    digest = hashlib.sha256()
    for index, (file, inside) in enumerate(_flat(files)):
        if inside is not None:
            name = os.fsencode(inside)
            digest.update(len(name).to_bytes(8, "little") + name)
        try:
            size = file.stat().st_size if index or first is None else len(first)
            if size > _LARGEST:
                words = f"expected at most {_LARGEST:,} bytes of an artifact, found {size:,}"
                raise ArtifactError(f"{file}: {words}")
            digest.update(size.to_bytes(8, "little"))
            if not index and first is not None:
                digest.update(first)
                continue
            with open_regular(file) as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
        except OSError as error:
            raise ArtifactError(f"cannot read {file}: {reason(error)}") from error
    return digest.hexdigest()


def _flat(files: Iterable[Path]) -> Iterator[tuple[Path, str | None]]:
    """Yield the given files, and all files in the given folders, sorted by path.

    With each file in a folder, also yield its path in the folder; with others None.
    """
    for file in files:
        if is_folder(file):
            found = (path for path in file.rglob("*") if not is_folder(path))
            named = {path.relative_to(file).as_posix(): path for path in found}
            yield from ((named[name], name) for name in sorted(named))
        else:
            yield file, None


# --- sidecar: a manifest beside the artifact, for formats that cannot contain it ------------------


def sidecar(path: Path) -> Path:
    """Return the path of the manifest beside an artifact."""
    return path.parent / f"{path.name}.json"


def read_sidecar(path: Path) -> Manifest:
    """Read the manifest beside an artifact.

    Raises:
        ArtifactMissing: the artifact or the manifest does not exist.
        ArtifactError, DigestError: the manifest cannot be used, or was changed.
    """
    file = sidecar(path)
    require_files((path, file))
    try:
        text = read_regular(file, MAX_BYTES)
    except OSError as error:
        raise ArtifactError(f"cannot read {file}: {reason(error)}") from error
    return Manifest.from_json(text, str(path))


def write_sidecar(artifact: Artifact) -> None:
    """Write the manifest beside an artifact."""
    write_text(sidecar(artifact.path), artifact.manifest.to_json())
