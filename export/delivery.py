"""Move the files of an artifact to the destination: either all of them or none.

If an export fails, the files at the destination stay as they are. Files that do not belong to an
artifact are never replaced. This module needs neither torch nor onnx.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from y7edge.artifact.artifact import Artifact, digest_files, read_sidecar, sidecar, write_sidecar
from y7edge.errors import ArtifactError, ConfigError, DigestError, ExportError, Y7EdgeError
from y7edge.export.targets.base import Target, runtime_of
from y7edge.files import is_file, is_folder, is_utf8, reason, replace_files, require_replaceable
from y7edge.runtimes import handover, registry


def require_destination(destination: Path, name: str, target: Target) -> None:
    """Check that the destination can be written, before the export begins. Creates no files.

    Args:
        destination: path of the main file.
        name: name of the target, for messages.
        target: the target module.

    Raises:
        ConfigError: the suffix is not the target's, the folder is not writable, or a file of the
            same name, or in a hand-over of this name, does not belong to the artifact.
    """
    if not destination.name.endswith(target.SUFFIX):
        better = f"{destination.stem}{target.SUFFIX}" if destination.name else "a name"
        raise ConfigError(
            f"target {name} writes {target.SUFFIX} files; got {destination}: use {better}"
        )
    files: tuple[Path, ...] = (destination, sidecar(destination))
    if runtime := runtime_of(target):
        files = registry.get(runtime).files(destination)
    if not is_utf8(destination):
        raise ConfigError(f"{destination} is not a usable name: engines open UTF-8 paths only")
    try:
        for file in files:
            require_replaceable(file)
        above = destination.absolute().parents
        folder = next(path for path in above if os.path.lexists(path))
        writable = is_folder(folder) and os.access(folder, os.W_OK | os.X_OK)
        require_own(destination, files)
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        name = str(destination)[:200]
        raise ConfigError(f"{name!r} is not a usable name: {reason(error)}") from error
    if not writable:
        raise ConfigError(f"{destination} cannot be written: {folder} is not a writable folder")


def require_own(destination: Path, files: Iterable[Path]) -> None:
    """Raise ConfigError if a non-empty file exists that does not belong to this artifact.

    Files that somebody has added to a hand-over do not belong to it.
    """
    for file in files:
        empty = is_file(file) and not file.stat().st_size
        if os.path.lexists(file) and not empty and not _owns(destination, file):
            raise ConfigError(
                f"{file} exists and does not belong to the artifact {destination.name}: "
                "remove it, or choose another name"
            )
        if is_folder(file) and file.name.endswith(handover.FORMATS):
            _require_nothing_added(file)


def _require_nothing_added(folder: Path) -> None:
    """Raise ConfigError if a hand-over contains files of others, such as compiled models."""
    try:
        added = handover.added_files(folder)
    except ArtifactError as error:
        raise ConfigError(f"{error}: remove the folder, or choose another name") from error
    if added:
        more = f" and {len(added) - 1} more" if len(added) > 1 else ""
        raise ConfigError(
            f"{folder} also contains {added[0]}{more}, which the export did not write: move them "
            "elsewhere, or choose another name"
        )


def _owns(destination: Path, file: Path) -> bool:
    """Return whether ``file`` is a file of the artifact at ``destination``."""
    try:
        registry.load(destination)
    except DigestError:
        pass  # an artifact that was changed may be replaced
    except Y7EdgeError:
        return False
    try:
        return file in registry.find(destination).files(destination)
    except ArtifactError:  # no runtime reads this format, so the manifest is a separate file
        return file.name.startswith(f"{destination.stem}.")


def seal(artifact: Artifact, target: Target) -> Artifact:
    """Return the artifact with the payload digest of its files in the manifest."""
    runtime = runtime_of(target)
    if runtime is None:
        digest = digest_files(artifact.files)
    else:
        digest = registry.get(runtime).payload_digest(artifact.files)
    return replace(artifact, manifest=replace(artifact.manifest, payload_digest=digest))


def deliver(artifact: Artifact, target: Target, destination: Path) -> Artifact:
    """Write the manifest, move all files to the destination, and read them back.

    Args:
        artifact: the artifact in a temporary folder. Its main file has the name of ``destination``.
        target: the target module that built it.
        destination: path of the main file; side files are moved into the same folder.

    Returns:
        The artifact, as read from the destination.

    Raises:
        ConfigError: a file at the destination does not belong to an artifact.
        ExportError: a file cannot be written, or differs when read back. The destination is
            unchanged.
    """
    try:
        runtime = runtime_of(target)
        if runtime is None:
            write_sidecar(artifact)
            files = (*artifact.files, sidecar(artifact.path))
        else:
            registry.get(runtime).write_manifest(artifact)
            files = registry.get(runtime).files(artifact.path)
        moves = [(file, destination.parent / file.name) for file in files]
        require_own(destination, [there for _, there in moves])
        _read_back(artifact, target, artifact.path)
        destination.parent.mkdir(parents=True, exist_ok=True)
        found: list[Artifact] = []
        # The main file goes last, because readers open it first.
        replace_files(
            [*moves[1:], moves[0]],
            lambda: found.append(_read_back(artifact, target, destination)),
        )
    except OSError as error:
        raise ExportError(f"cannot write {destination}: {reason(error)}") from error
    return found[0]


def _read_back(artifact: Artifact, target: Target, path: Path) -> Artifact:
    """Read the artifact at ``path``; raise ExportError if it differs from ``artifact``."""
    try:
        runtime = runtime_of(target)
        if runtime is None:
            side = tuple(path.parent / file.name for file in artifact.side_files)
            found = Artifact(path, read_sidecar(path), side)
        else:
            found = registry.load(path, runtime)
        same = found.manifest == artifact.manifest == seal(found, target).manifest
    except ArtifactError as error:
        raise ExportError(f"{path} cannot be read back: {error}") from error
    if not same:
        raise ExportError(f"{path} differs from what was written: check the disk, export again")
    return found
