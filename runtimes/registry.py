"""Which runtimes exist, and which of them opens an artifact.

A runtime is found by being in this folder; other packages add theirs with an entry point of the
group ``y7edge.runtimes``. Several engines may read one suffix: the manifest decides between them.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import cast

from y7edge.artifact.artifact import Artifact, read_sidecar, require_files, sidecar
from y7edge.artifact.schema import checked
from y7edge.errors import (
    ArtifactError,
    ArtifactMissing,
    ConfigError,
    DigestError,
    RuntimeMissing,
)
from y7edge.files import is_file, is_utf8
from y7edge.plugins import Plugins
from y7edge.runtimes.base import Runtime, Session, SessionOptions, missing, require

RUNTIMES = Plugins("y7edge.runtimes", "y7edge.runtimes", "backend")


def names() -> list[str]:
    """All runtimes, engine installed or not: the folder's, then other packages'."""
    return RUNTIMES.names()


@checked
def get(name: str) -> Runtime:
    """The runtime module ``name``.

    Raises:
        ConfigError: no runtime has this name.
        RuntimeMissing: another package announces it and it cannot be imported.
    """
    return cast(Runtime, RUNTIMES.get(name))


def name_of(runtime: Runtime) -> str:
    """The name under which ``get`` knows a runtime."""
    for name in names():
        with suppress(RuntimeMissing):
            if get(name) is runtime:
                return name
    raise ConfigError(f"{runtime} is not a registered runtime")


def loadable() -> list[Runtime]:
    """All runtimes but those that another package announces and cannot deliver."""
    return [cast(Runtime, module) for module in RUNTIMES.loadable()]


def devices() -> list[str]:
    """Every device name that some runtime understands, for help texts."""
    return sorted({device for runtime in loadable() for device in runtime.DEVICES})


@checked
def find(path: Path | str, backend: str = "auto") -> Runtime:
    """The runtime that opens ``path``: the one asked for, else by suffix and manifest.

    Raises:
        ArtifactMissing: no such file.
        ArtifactError: no runtime reads this kind of file.
        ConfigError: ``backend`` does not exist or does not read this kind of file.
    """
    path = Path(path)
    require_files((path,))
    suffix = path.suffix.lower()
    if backend != "auto":
        runtime = get(backend)
        if suffix not in runtime.FORMATS:
            formats = ", ".join(runtime.FORMATS)
            raise ConfigError(f"backend {backend!r} reads {formats}, not {path.name}")
        return runtime
    candidates = [runtime for runtime in loadable() if suffix in runtime.FORMATS]
    if not candidates:
        formats = ", ".join(sorted({form for runtime in loadable() for form in runtime.FORMATS}))
        raise ArtifactError(f"no runtime reads {path}; files that can be opened: {formats}")
    if len(candidates) == 1:
        return candidates[0]
    return min(candidates, key=lambda runtime: _rank(runtime, path))


def _rank(runtime: Runtime, path: Path) -> int:
    """How well a runtime fits a file whose suffix it reads; 0 is best."""
    try:
        target = runtime.read_manifest(path).target
    except DigestError:
        return 3  # its format, and changed since: what it says about that is worth hearing
    except ArtifactError:
        return 4  # another format of the same suffix
    if target not in runtime.TARGETS:
        return 2
    return 1 if missing(runtime.NEEDS) else 0


@checked
def load(path: Path | str, backend: str = "auto") -> Artifact:
    """Read an artifact's manifest and check its digest; no payload is read, no engine imported.

    A file that no runtime here reads is described by the manifest beside it, if there is one.

    Raises:
        ArtifactMissing: no such file.
        ArtifactError: not an artifact of ours, or damaged.
        DigestError: the manifest was changed after it was proved.
    """
    path = Path(path)
    try:
        runtime = find(path, backend)
    except ArtifactMissing:
        raise
    except ArtifactError:
        if not is_file(sidecar(path)):
            raise
        return Artifact(path, read_sidecar(path))
    return Artifact(path, runtime.read_manifest(path), runtime.files(path)[1:])


def check_payload(artifact: Artifact, backend: str = "auto") -> str:
    """Compute the payload digest from the files.

    Raises:
        ArtifactMissing: a file of the artifact does not exist.
        DigestError: the digest is not the manifest's: graph or weights were changed, or files of
            two artifacts were mixed up.
    """
    require_files(artifact.files)
    digest = find(artifact.path, backend).payload_digest(artifact.files)
    expected = artifact.manifest.payload_digest
    if digest != expected:
        mixed = f" or {artifact.path.name} and its side files do not belong together"
        raise DigestError(
            f"the graph or the weights of {artifact.path} were changed after it was proved"
            f"{mixed if artifact.side_files else ''}: its payload digest is {digest[:16]}, "
            f"expected {expected[:16]}; take the original, or export it again"
        )
    return digest


@checked
def open_session(
    artifact: Artifact, options: SessionOptions | None = None, backend: str = "auto"
) -> Session:
    """Open an artifact in its engine.

    Raises:
        ArtifactMissing: a file of the artifact does not exist.
        ArtifactError: its path is not UTF-8.
        RuntimeMissing: the engine's package is not installed; the message says what to install.
        DigestError: the payload was checked (``SessionOptions.check_payload``) and has changed.
        DeviceError: the device asked for does not exist or the engine refuses the file.
    """
    options = options or SessionOptions()
    runtime = find(artifact.path, backend)
    require_files(artifact.files)
    if not is_utf8(artifact.path):
        raise ArtifactError(f"{artifact.path}: engines open no path that is not UTF-8: rename it")
    require(runtime.NEEDS, f"opening {artifact.path.name}")
    if options.check_payload or (options.check_payload is None and artifact.side_files):
        check_payload(artifact, backend)
    return runtime.open(artifact, options)
