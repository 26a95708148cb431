"""Whole files or none: atomic writes, and digests of what was written."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    """Give a temporary path beside ``path``; rename it into place if the block succeeds.

    The file is flushed to disk before the rename, so that after a power cut ``path`` holds either
    its old content or the whole new one; ``durable=False`` leaves that to the system, for files
    that are checked when read and can be made again. On any exception the temporary file is removed
    and ``path`` stays as it was. The folder of ``path`` is made if missing.
    """
    destination = Path(path)
    destination.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept because writers (onnx, cv2) choose their format by it.
    handle, name = tempfile.mkstemp(
        dir=destination.parent, prefix=f".{destination.stem}-", suffix=destination.suffix
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes the file private; what we hand over has the permissions of a plain open().
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
    """Make the rename itself durable, where the system can open folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder(kind: str) -> Path:
    """Where things of one kind are kept between runs: in ``$Y7EDGE_CACHE``, or ~/.cache/y7edge."""
    chosen = os.environ.get("Y7EDGE_CACHE")
    return (Path(chosen) if chosen else Path.home() / ".cache" / "y7edge") / kind


def sha256_file(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
