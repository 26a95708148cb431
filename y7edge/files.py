"""Atomic writes of files and folders, and digests."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from y7edge.errors import OutputError


@contextmanager
def writing(what: str, path: Path | str) -> Iterator[None]:
    """Re-raise an OSError of the block as an OutputError that names the destination."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot write {what}: {error.strerror or error}") from error


@contextmanager
def atomic_write(path: Path | str, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it into place if the block succeeds.

    The file is synced before the rename, so that after a power cut ``path`` has its old content or
    the new one; ``durable=False`` skips that, for files that are checked when read and can be made
    again. After an exception ``path`` is unchanged. A missing folder is created.
    """
    destination = Path(path)
    destination.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept because writers (onnx, cv2) choose their format by it.
    handle, name = tempfile.mkstemp(
        dir=destination.parent, prefix=f".{destination.stem[:32]}-", suffix=destination.suffix
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes the file private; use the permissions of a plain open().
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        if durable:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        temporary.replace(destination)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        _sync_folder(destination.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system can open folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder(kind: str) -> Path:
    """Return the cache folder of one kind: in ``$Y7EDGE_CACHE``, else ``~/.cache/y7edge``.

    For a user without a home directory it lasts as long as the process.
    """
    chosen = os.environ.get("Y7EDGE_CACHE")
    try:
        return (Path(chosen) if chosen else Path.home() / ".cache" / "y7edge") / kind
    except RuntimeError:
        return _private_folder() / kind


@cache
def _private_folder() -> Path:
    """Make a folder that others cannot have prepared, removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="y7edge-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def sha256_file(path: Path | str) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def replace_files(
    pairs: Sequence[tuple[Path, Path]], check: Callable[[], None] = lambda: None
) -> None:
    """Copy files or folders to their destinations: all of them, or none.

    ``pairs`` of (source, destination) are copied beside their destinations first, then renamed into
    place in the order given. If that or ``check`` raises, the former files are restored. A kill
    between two renames leaves some of them done, so the file that readers open first goes last. Of
    two calls for one folder the second waits.

    Raises:
        OSError: a copy or a rename failed; the destinations are as they were.
    """
    with ExitStack() as stack:
        copies = []
        for source, destination in pairs:
            folder = stack.enter_context(
                TemporaryDirectory(dir=destination.parent, prefix=f".{destination.stem[:32]}-")
            )
            copies.append((_copy(source, Path(folder) / "new"), Path(folder) / "old", destination))
        for parent in sorted({destination.parent for _, destination in pairs}):
            stack.enter_context(_locked(parent))
        done: list[tuple[Path, Path, bool]] = []
        try:
            for new, old, destination in copies:
                done.append((old, destination, os.path.lexists(destination)))
                _set_aside(destination, old)
                new.replace(destination)
            check()
        except BaseException:
            for old, destination, existed in reversed(done):
                _restore(old, destination, existed)
            raise
    for parent in {destination.parent for _, destination in pairs}:
        _sync_folder(parent)


def _copy(source: Path, destination: Path) -> Path:
    """Copy and sync a file or folder, with plain permissions."""
    if source.is_dir():
        shutil.copytree(source, destination, copy_function=shutil.copyfile)
        written = [path for path in destination.rglob("*") if path.is_file()]
    else:
        shutil.copyfile(source, destination)
        written = [destination]
    for path in written:
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    return destination


def _set_aside(destination: Path, old: Path) -> None:
    """Keep ``destination`` as ``old``; a file also stays in place until it is replaced."""
    if destination.is_dir() and not destination.is_symlink():
        destination.rename(old)
    elif destination.exists():
        try:
            old.hardlink_to(destination)
        except OSError:  # the file system has no hard links
            shutil.copyfile(destination, old)


def _restore(old: Path, destination: Path, existed: bool) -> None:
    """Restore the former file or folder, or remove a new one."""
    if existed and not old.exists():
        return  # not set aside yet
    if destination.is_dir() and not destination.is_symlink():
        shutil.rmtree(destination)
    if existed:
        old.replace(destination)
    else:
        destination.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder among processes, where the system has such locks."""
    descriptor = None
    try:
        with suppress(ImportError, AttributeError, OSError):
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
