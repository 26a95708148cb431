"""How an artifact reaches its destination: all of its files, or none, and nothing of others.

Artifacts are built and proved in a temporary folder. The destination is touched once, at the end: a
failed export leaves there what was there before. Needs neither torch nor onnx.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from y7edge.artifact.artifact import Artifact, digest_files, read_sidecar, sidecar, write_sidecar
from y7edge.errors import ArtifactError, ConfigError, DigestError, ExportError, Y7EdgeError
from y7edge.export.targets.base import Target, Unprovable
from y7edge.files import replace_files
from y7edge.runtimes import registry


def require_destination(destination: Path, name: str, target: Target) -> None:
    """Check before the work begins that an artifact may be written; nothing is made yet.

    Raises:
        ConfigError: the name does not fit the target, the folder cannot be written into, or files
            of others are in the way.
    """
    if destination.suffix != target.SUFFIX:
        raise ConfigError(
            f"target {name} writes {target.SUFFIX} files; got {destination}: "
            f"use {destination.with_suffix(target.SUFFIX).name if destination.name else 'a name'}"
        )
    files: tuple[Path, ...] = (destination, sidecar(destination))
    if isinstance(target.RUNTIME, str):
        files = registry.get(target.RUNTIME).files(destination)
    try:
        str(destination).encode()  # engines take names as UTF-8
        for file in files:
            with suppress(FileNotFoundError, NotADirectoryError):
                os.lstat(file)  # names too long, or with a zero in them
        above = destination.absolute().parents
        folder = next(path for path in above if os.path.lexists(path))
        fit = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
        require_replaceable(destination, files)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{str(destination)[:200]!r} is not a usable name: {error}") from error
    if not fit:
        raise ConfigError(f"{destination} cannot be written: {folder} is not a writable folder")


def require_replaceable(destination: Path, files: Iterable[Path]) -> None:
    """Refuse to overwrite what does not belong to an artifact at ``destination``.

    An empty file is in nobody's way.

    Raises:
        ConfigError: a file or folder is in the way.
    """
    for file in files:
        empty = file.is_file() and not file.stat().st_size
        if os.path.lexists(file) and not empty and not _owns(destination, file):
            raise ConfigError(
                f"{file} exists and does not belong to an artifact {destination.name}: "
                "remove it, or choose another name"
            )


def _owns(destination: Path, file: Path) -> bool:
    """Whether ``file`` belongs to the artifact that stands at ``destination``, if one does."""
    try:
        registry.load(destination)
    except DigestError:
        pass  # an artifact of ours that was changed since
    except Y7EdgeError:
        return False
    try:
        return file in registry.find(destination).files(destination)
    except ArtifactError:  # no runtime reads it: it is described by the manifest beside it
        return file.name.startswith(f"{destination.stem}.")


def seal(artifact: Artifact, target: Target) -> Artifact:
    """Compute the payload digest of files that a target has just built."""
    if isinstance(target.RUNTIME, Unprovable):
        digest = digest_files(artifact.files)
    else:
        digest = registry.get(target.RUNTIME).payload_digest(artifact.files)
    return replace(artifact, manifest=replace(artifact.manifest, payload_digest=digest))


def deliver(artifact: Artifact, target: Target, destination: Path) -> Artifact:
    """Write the manifest, move all files, and check what arrived.

    Args:
        artifact: in a temporary folder, its main file called like the destination.
        target: that built it.
        destination: where its main file goes; side files go beside it.

    Returns:
        The artifact as it was read back from its destination.

    Raises:
        ConfigError: files of others are in the way.
        ExportError: something could not be written, or cannot be read back as it was; what stood
            at the destination before still stands there.
    """
    try:
        if isinstance(target.RUNTIME, Unprovable):
            write_sidecar(artifact)
            files = (*artifact.files, sidecar(artifact.path))
        else:
            registry.get(target.RUNTIME).write_manifest(artifact)
            files = registry.get(target.RUNTIME).files(artifact.path)
        moves = [(file, destination.parent / file.name) for file in files]
        require_replaceable(destination, [there for _, there in moves])
        _require_readable(artifact, target, artifact.path)
        destination.parent.mkdir(parents=True, exist_ok=True)
        # The main file last: it is what makes it an artifact.
        replace_files(
            [*moves[1:], moves[0]], lambda: _require_readable(artifact, target, destination)
        )
    except OSError as error:
        raise ExportError(f"cannot write {destination}: {error.strerror or error}") from error
    return _read(artifact, target, destination)


def _read(artifact: Artifact, target: Target, path: Path) -> Artifact:
    """The artifact as its files at ``path`` say."""
    if isinstance(target.RUNTIME, Unprovable):
        side = tuple(path.parent / file.name for file in artifact.side_files)
        return Artifact(path, read_sidecar(path), side)
    return registry.load(path, target.RUNTIME)


def _require_readable(artifact: Artifact, target: Target, path: Path) -> None:
    """Raise ExportError unless ``artifact`` can be read at ``path`` as it is."""
    try:
        found = _read(artifact, target, path)
        same = found.manifest == artifact.manifest == seal(found, target).manifest
    except ArtifactError as error:
        raise ExportError(f"{path} cannot be read back: {error}") from error
    if not same:
        raise ExportError(f"{path} is not what was written: check the disk, and export again")
