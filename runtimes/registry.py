"""Which runtimes exist, and which of them opens a file.

A runtime is found by being in this folder; packages of others add theirs with an entry point of
the group ``y7edge.runtimes``. Several engines read the same suffix, so the manifest decides first.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import cast

import y7edge.runtimes
from y7edge.artifact.artifact import Artifact
from y7edge.errors import ArtifactError, ArtifactMissing, ConfigError, RuntimeMissing
from y7edge.runtimes.base import Runtime, Session, SessionOptions, require

GROUP = "y7edge.runtimes"
_NOT_ENGINES = ("base", "registry")


@cache
def _own() -> tuple[str, ...]:
    found = (module.name for module in pkgutil.iter_modules(y7edge.runtimes.__path__))
    return tuple(sorted(n for n in found if n not in _NOT_ENGINES and not n.startswith("_")))


@cache
def _installed() -> dict[str, EntryPoint]:
    """Runtimes of other packages; one of our names is never replaced."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in _own()}


def names() -> list[str]:
    """All runtimes, engine installed or not: the folder's, then other packages'."""
    return [*_own(), *sorted(_installed())]


def get(name: str) -> Runtime:
    """The runtime module ``name``.

    Raises:
        ConfigError: there is none of this name.
        RuntimeMissing: another package promises it and cannot be imported.
    """
    if name in _own():
        return cast(Runtime, import_module(f"{GROUP}.{name}"))
    if name not in _installed():
        raise ConfigError(f"there is no backend {name!r}; choose from auto, {', '.join(names())}")
    point = _installed()[name]
    try:
        return cast(Runtime, point.load())
    except (ImportError, AttributeError) as error:
        raise RuntimeMissing(
            f"backend {name!r} is announced by an installed package as {point.value}, which cannot "
            f"be imported ({error}): reinstall that package"
        ) from error


def name_of(runtime: Runtime) -> str:
    """The name under which ``get`` knows a runtime."""
    return next(name for name in names() if get(name) is runtime)


def find(path: Path | str, backend: str = "auto") -> Runtime:
    """The runtime that opens ``path``: the one asked for, else by manifest, then by suffix.

    Raises:
        ArtifactMissing: no such file.
        ArtifactError: no runtime reads this kind of file.
        ConfigError: ``backend`` does not exist or does not read this kind of file.
    """
    path = Path(path)
    if not path.exists():
        raise ArtifactMissing(f"there is no file {path}: export one with `y7edge export`")
    if backend != "auto":
        runtime = get(backend)
        if path.suffix.lower() not in runtime.FORMATS:
            formats = ", ".join(runtime.FORMATS)
            raise ConfigError(f"backend {backend!r} reads {formats}, not {path.name}")
        return runtime
    candidates = [r for r in map(get, names()) if path.suffix.lower() in r.FORMATS]
    if not candidates:
        formats = ", ".join(sorted({form for name in names() for form in get(name).FORMATS}))
        raise ArtifactError(f"no runtime reads {path.name}; files that can be opened: {formats}")
    if len(candidates) == 1:
        return candidates[0]
    target = candidates[0].read_manifest(path).target
    return next((r for r in candidates if target in r.TARGETS), candidates[0])


def load(path: Path | str, backend: str = "auto") -> Artifact:
    """Read a file's manifest and check its digest; the payload is not read and no engine imported.

    Raises:
        ArtifactError: not an artifact of ours, or damaged.
        DigestError: the manifest was changed after it was proved.
    """
    path = Path(path)
    return Artifact(path, find(path, backend).read_manifest(path))


def open_session(
    artifact: Artifact, options: SessionOptions | None = None, backend: str = "auto"
) -> Session:
    """Open an artifact in its engine.

    Raises:
        RuntimeMissing: the engine's package is not installed; the message says what to install.
        DeviceError: the device asked for does not exist or the engine refuses the file.
    """
    runtime = find(artifact.path, backend)
    require(runtime.NEEDS, f"opening {artifact.path.name}")
    return runtime.open(artifact, options or SessionOptions())
