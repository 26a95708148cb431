"""List the runtimes, choose one for an artifact, and open the artifact in it.

Runtimes are the modules of this folder and the entry points of the group ``y7edge.runtimes``. If
several runtimes read files with a suffix, the target in the file's manifest decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

from y7edge.artifact.artifact import Artifact, read_sidecar, require_files, sidecar
from y7edge.artifact.schema import checked
from y7edge.errors import (
    ArtifactError,
    ArtifactMissing,
    ConfigError,
    DeviceError,
    DigestError,
    RuntimeMissing,
    Y7EdgeError,
)
from y7edge.files import is_file, is_utf8
from y7edge.packages import hidden_behind
from y7edge.plugins import Plugins
from y7edge.runtimes.base import (
    ReadsForeign,
    Runtime,
    Session,
    SessionOptions,
    missing,
    one_line,
    require,
)

RUNTIMES = Plugins("y7edge.runtimes", "y7edge.runtimes", "backend")


def names() -> list[str]:
    """Return the names of all runtimes, whether their engines are installed or not."""
    return RUNTIMES.names()


@checked
def get(name: str) -> Runtime:
    """Return the runtime module ``name``, which may also be the name of its engine or target.

    Raises:
        ConfigError: no runtime has this name.
        RuntimeMissing: the entry point of another package names this runtime, but its module cannot
            be imported.
    """
    known = names()
    if name not in known:
        wanted = str(name).lower()
        for runtime in loadable():
            if wanted in (*(need.lower() for need in runtime.NEEDS), *runtime.TARGETS):
                return runtime
    return cast(Runtime, RUNTIMES.get(name))


def name_of(runtime: Runtime) -> str:
    """Return the registered name of a runtime module."""
    for name in names():
        with suppress(RuntimeMissing):
            if get(name) is runtime:
                return name
    raise ConfigError(f"{runtime} is not a registered runtime")


def loadable() -> list[Runtime]:
    """Return all runtime modules that can be imported, whether the engines are installed or not."""
    return [cast(Runtime, module) for module in RUNTIMES.loadable()]


def devices() -> list[str]:
    """Return the device names of all runtimes, for help texts."""
    return sorted({device for runtime in loadable() for device in runtime.DEVICES})


@checked
def find(path: Path | str, backend: str = "auto") -> Runtime:
    """Return the runtime for a file; see ``choose``."""
    return choose(path, backend)[0]


@checked
def choose(path: Path | str, backend: str = "auto") -> tuple[Runtime, str]:
    """Return the runtime for a file, and why it was chosen.

    ``backend`` is the name of a runtime, or "auto". With "auto", the runtimes that read files with
    this suffix are compared. The best one is chosen, in this order:

    1. It runs the manifest's target, and its engine is installed.
    2. It runs the manifest's target.
    3. It can read the manifest.
    4. It can read the file, although the manifest was changed.

    Raises:
        ArtifactMissing: the file does not exist.
        ArtifactError: no runtime reads this kind of file.
        ConfigError: ``backend`` does not exist or does not read this kind of file.
    """
    path = Path(path)
    require_files((path,))
    name = path.name.lower()
    if backend != "auto":
        runtime = get(backend)
        if not name.endswith(runtime.FORMATS):
            formats = ", ".join(runtime.FORMATS)
            raise ConfigError(f"backend {backend!r} reads {formats}, not {path.name}")
        return runtime, f"backend {backend!r} was given"
    candidates = [runtime for runtime in loadable() if name.endswith(runtime.FORMATS)]
    if not candidates:
        formats = ", ".join(sorted({form for runtime in loadable() for form in runtime.FORMATS}))
        raise ArtifactError(f"no runtime reads {path}; files that can be opened: {formats}")
    suffix = path.suffix.lower()
    if len(candidates) == 1:
        return candidates[0], f"no other runtime reads {suffix} files"
    best = min(candidates, key=lambda runtime: _rank(runtime, path))
    return best, f"of {len(candidates)} runtimes for {suffix} files, {_RANKS[_rank(best, path)]}"


_RANKS = (
    "this one runs the file's target, and its engine is installed",
    "this one runs the file's target, but its engine is not installed",
    "this one reads the manifest, but does not run the file's target",
    "this one reads the format, but the file is damaged",
    "none reads the manifest",
)


def _rank(runtime: Runtime, path: Path) -> int:
    """Return the rank of a runtime for a file with a supported suffix; 0 is best."""
    try:
        target = runtime.read_manifest(path).target
    except DigestError:
        return 3  # the runtime reads this format, but the file is damaged
    except ArtifactError:
        return 4  # another format with the same suffix
    if target not in runtime.TARGETS:
        return 2
    return 1 if missing(runtime.NEEDS) else 0


@checked
def load(path: Path | str, backend: str = "auto") -> Artifact:
    """Read an artifact's manifest, and check the manifest's digest.

    Neither the payload nor the engine is loaded. If no runtime reads this kind of file, the
    manifest is read from ``NAME.SUFFIX.json`` beside it.

    Raises:
        ArtifactMissing: the file does not exist.
        ArtifactError: the file was not made by y7edge, or is damaged.
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
    try:
        manifest = runtime.read_manifest(path)
    except ArtifactMissing:
        require_files(runtime.files(path))  # names all files, not only the manifest
        raise
    return Artifact(path, manifest, runtime.files(path)[1:])


@checked
def load_any(
    path: Path | str,
    backend: str = "auto",
    *,
    names: Sequence[str] | None = None,
    imgsz: tuple[int, int] | None = None,
) -> Artifact:
    """Read an artifact, or a file of another exporter, which has no proof.

    Args:
        path: the file.
        backend: a runtime's name; "auto": chosen by the file.
        names: class names, for a file of another exporter only.
        imgsz: input size (height, width). If the file has a fixed size, ``imgsz`` must equal it.

    Raises:
        ArtifactMissing, ArtifactError, DigestError: as for ``load``.
        ConfigError: ``names`` or ``imgsz`` is missing or does not fit the file.
    """
    path = Path(path)
    try:
        artifact = load(path, backend)
    except (ArtifactMissing, DigestError):
        raise
    except ArtifactError:
        runtime = find(path, backend)  # raises the same error if no runtime reads it
        found = None
        if isinstance(runtime, ReadsForeign):
            found = runtime.read_foreign(path, names, imgsz)
        if found is None:  # the file has a manifest that cannot be used
            raise
        return Artifact(path, found.manifest, foreign=found)
    image = artifact.manifest.input
    if names is not None:
        raise ConfigError(
            f"names were given, but {path} has its own: omit names (--names), which are for files "
            "of other exporters"
        )
    if imgsz is not None and imgsz != (image.height, image.width):
        raise ConfigError(
            f"{path} has a fixed input size, expected imgsz {image.height}x{image.width}, found "
            f"{imgsz[0]}x{imgsz[1]}: omit imgsz, or export again with --imgsz {imgsz[0]}x{imgsz[1]}"
        )
    return artifact


def check_payload(artifact: Artifact, backend: str = "auto") -> str:
    """Compute the payload digest of the files, compare it with the manifest, and return it.

    Raises:
        ArtifactMissing: a file of the artifact does not exist.
        DigestError: the digests differ: the graph or the weights were changed, or files of two
            artifacts were mixed up.
    """
    require_files(artifact.files)
    digest = find(artifact.path, backend).payload_digest(artifact.files)
    expected = artifact.manifest.payload_digest
    if digest != expected:
        mixed = f", or {artifact.path.name} and its side files do not belong together"
        raise DigestError(
            f"the graph or the weights of {artifact.path} were changed after it was proved"
            f"{mixed if artifact.side_files else ''}: the payload digest is {digest[:16]}, "
            f"expected {expected[:16]}; use the original file, or export the model again"
        )
    return digest


@checked
def open_session(
    artifact: Artifact, options: SessionOptions | None = None, backend: str = "auto"
) -> Session:
    """Open an artifact in its engine.

    Raises:
        ArtifactMissing: a file of the artifact does not exist.
        ArtifactError: the path is not UTF-8.
        RuntimeMissing: the engine's package is not installed, cannot be imported, or is hidden by
            another file; the message says what to install or rename.
        DigestError: the payload was changed; checked according to ``options.check_payload``.
        DeviceError: the device does not exist, or the engine refuses the file.
    """
    options = options or SessionOptions()
    runtime, why = choose(artifact.path, backend)
    require_files(artifact.files)
    if not is_utf8(artifact.path):
        raise ArtifactError(f"{artifact.path}: engines open UTF-8 paths only: rename it")
    advice = getattr(runtime, "misplaced", None)
    require(runtime.NEEDS, f"opening {artifact.path.name}", advice)
    if options.check_payload or (options.check_payload is None and artifact.side_files):
        check_payload(artifact, backend)
    try:
        runtime.load_engine()
    except Exception as error:  # of any kind, if a library or an instruction is missing
        raise RuntimeMissing(
            f"the engine for {artifact.path.name} is installed, but cannot be imported: "
            f"{one_line(error)}; see `y7edge check`"
        ) from error
    try:
        session = runtime.open(artifact, options)
    except Exception as error:
        if problem := hidden_behind(error):
            raise problem from error
        if isinstance(error, Y7EdgeError):
            raise
        raise DeviceError(f"{artifact.path} cannot be opened: {one_line(error)}") from error
    session.backend, session.why = name_of(runtime), why
    return session
