"""How an artifact reaches its destination: all of its files, or none, and nothing of others.

Artifacts are built and proved in a temporary folder. The destination is touched once, at the end: a
failed export leaves there what was there before. Needs neither torch nor onnx.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
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
    suffix = destination.suffix.lower()
    if suffix != target.SUFFIX:
        raise ConfigError(
            f"target {name} writes {target.SUFFIX} files; got {destination}: "
            f"use {destination.with_suffix(target.SUFFIX).name if destination.name else 'a name'}"
        )
    folder = next(path for path in destination.absolute().parents if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{destination} cannot be written: {folder} is not a writable folder")
    files: tuple[Path, ...] = (destination, sidecar(destination))
    if isinstance(target.RUNTIME, str):
        files = registry.get(target.RUNTIME).files(destination)
    require_replaceable(destination, files)


def require_replaceable(destination: Path, files: Iterable[Path]) -> None:
    """Refuse to overwrite what does not belong to an artifact at ``destination``.

    The main file itself is replaced like any output file; a folder or a side file only if the
    manifest of the artifact there says that it is ours.

    Raises:
        ConfigError: a file or folder is in the way.
    """
    for file in files:
        exposed = file.is_dir() if file == destination else file.exists()
        if exposed and not _owns(destination, file):
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
        ExportError: something could not be written, or did not arrive as it was.
    """
    files = artifact.files
    try:
        if isinstance(target.RUNTIME, Unprovable):
            write_sidecar(artifact)
            files = (*files, sidecar(artifact.path))
        else:
            registry.get(target.RUNTIME).write_manifest(artifact)
        moves = [(file, destination.parent / file.name) for file in files]
        require_replaceable(destination, [there for _, there in moves])
        destination.parent.mkdir(parents=True, exist_ok=True)
        replace_files([*moves[1:], moves[0]])  # the main file last: it is what makes it an artifact
    except OSError as error:
        raise ExportError(f"cannot write {destination}: {error.strerror or error}") from error
    return _read_back(artifact, target, destination)


def _read_back(artifact: Artifact, target: Target, destination: Path) -> Artifact:
    if isinstance(target.RUNTIME, Unprovable):
        side = tuple(destination.parent / file.name for file in artifact.side_files)
        found = Artifact(destination, read_sidecar(destination), side)
        digest = digest_files(found.files)
    else:
        found = registry.load(destination, target.RUNTIME)
        digest = registry.get(target.RUNTIME).payload_digest(found.files)
    if found.manifest != artifact.manifest or digest != artifact.manifest.payload_digest:
        raise ExportError(f"{destination} did not arrive as it was written: check the disk")
    return found
