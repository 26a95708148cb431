"""File access: regular files only, atomic writes, locks, temporary files, digests."""

from __future__ import annotations

import atexit
import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from y7edge.errors import OutputError

# Prefix of temporary files and folders, which stay locked while their process runs: see `_sweep`.
_TEMPORARY = ".y7edge-"
_OLD = "old"  # subfolder of a temporary folder, with the files that are being replaced
_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_WORDS = {
    errno.ENOSPC: "the disk is full: free some space, or write elsewhere",
    errno.EDQUOT: "the disk quota is used up: free some space, or write elsewhere",
    errno.EFBIG: "the file is larger than the system allows: raise `ulimit -f`, or write elsewhere",
    errno.EMFILE: "too many files are open: raise `ulimit -n`",
}
_INVALID_NAME = "a file name cannot contain NUL or a lone surrogate"
_NO_MEMORY = "not enough memory: close other programs, or use smaller images or batches"
# Messages of engines and OpenCV, which have no exception class for lack of memory.
_OUT_OF_MEMORY = re.compile(
    r"bad.?alloc|out of memory|insufficient memory|(unable|failed|not|n't) (to )?allocate"
    "|failed to map segment",  # when a shared library is loaded
    re.I,
)
_IN_RUST = re.compile(r"\(os error (\d{1,4})\)")  # an errno in a message of safetensors


# --- reading --------------------------------------------------------------------------------------


def require_regular(path: Path | str) -> None:
    """Check that a path is a regular file: not a folder, pipe, socket or device.

    Raises:
        OSError: the path does not exist, or is something else; ``strerror`` says what was found.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - Path.stat costs twice as much
    except ValueError as error:
        raise OSError(errno.EINVAL, _INVALID_NAME, str(path)) from error
    _require_regular(found, path)


def _require_regular(found: os.stat_result, path: Path | str) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise OSError(errno.EINVAL, f"expected a regular file, found {kind}", str(path))


def open_regular(path: Path | str) -> BinaryIO:
    """Open a regular file for reading bytes, without blocking on pipes.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
    """
    require_regular(path)
    stream = open(path, "rb", opener=_opener)  # noqa: SIM115 - Path.open has no opener
    try:
        _require_regular(os.fstat(stream.fileno()), path)  # in case it was replaced meanwhile
    except OSError:
        stream.close()
        raise
    return stream


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_regular(path: Path | str, most: int) -> bytes:
    """Read a regular file of at most ``most`` bytes.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is larger.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        # read(n) allocates n bytes, even for a shorter file.
        content = stream.read(min(size, most) + 1)
        if size < len(content) <= most:  # the file has grown, or its size reads 0, as in /proc
            content += stream.read(most + 1 - len(content))
    if len(content) > most:
        size = max(size, len(content))
        words = f"expected at most {most:,} bytes, found {size:,}"
        raise OSError(errno.EFBIG, words, str(path))
    return content


def is_file(path: Path | str) -> bool:
    """Return whether a path is an existing file; do not raise, unlike `Path.is_file`."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path | str) -> bool:
    """Return whether a path is an existing folder; do not raise, unlike `Path.is_dir`."""
    return os.path.isdir(path)  # noqa: PTH112


def is_utf8(path: Path | str) -> bool:
    """Return whether a path is valid UTF-8; engines and OpenCV's video classes require it."""
    try:
        str(path).encode()
    except UnicodeError:
        return False
    return True


def reason(error: BaseException) -> str:
    """Describe the cause of an error in reading or writing, in a few words."""
    if is_out_of_memory(error):
        return _NO_MEMORY
    if isinstance(error, RecursionError):
        return "nested too deeply"
    words = str(error)
    if found := _IN_RUST.search(words):
        error = OSError(int(found[1]), os.strerror(int(found[1])))
    if isinstance(error, OSError):
        words = error.strerror or words
        if error.errno in _WORDS and words == os.strerror(error.errno):
            words = _WORDS[error.errno]
    return " ".join(words.split()) or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error (of Python, the system, OpenCV, an engine) means out of memory."""
    is_known = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    return is_known or bool(_OUT_OF_MEMORY.search(str(error)))


# --- writing --------------------------------------------------------------------------------------


@contextmanager
def writing(what: str, path: Path | str) -> Iterator[None]:
    """Re-raise an OSError in a ``with`` statement as an OutputError that names the destination."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot write {what}: {reason(error)}") from error


def require_replaceable(path: Path | str, *, file: bool = True, folder: bool = True) -> None:
    """Check that a destination does not exist, or is a file or folder that may be replaced.

    ``file`` and ``folder``: whether an existing file or folder may be replaced.

    Raises:
        OSError: the destination must not be replaced; ``strerror`` says what was found.
    """
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except ValueError as error:
        raise OSError(errno.EINVAL, _INVALID_NAME, str(path)) from error
    if not (file and stat.S_ISREG(mode)) and not (folder and stat.S_ISDIR(mode)):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        words = f"{kind} exists there; remove it or choose another name"
        raise OSError(errno.EEXIST, words, str(path))


@contextmanager
def atomic_write(path: Path | str, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` after the ``with`` statement.

    If the ``with`` statement raises an exception, ``path`` is unchanged. A missing folder is
    created. ``durable``: sync the file to disk before the rename, so that after a power failure
    ``path`` has either the old or the new content. Caches that are validated when they are read do
    not need this.

    Raises:
        OSError: the file cannot be written, or ``path`` is a folder, link, pipe or device.
    """
    destination = Path(path)
    require_replaceable(destination, folder=False)
    destination.parent.mkdir(parents=True, exist_ok=True)
    _sweep(destination.parent)
    with _temporary(lambda: _make_file(destination)) as temporary:
        try:
            yield temporary
            if durable:
                _sync(temporary)
            # mkstemp makes the file private; use the permissions of a plain open().
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(destination)
        finally:
            temporary.unlink(missing_ok=True)
    if durable:
        _sync_folder(destination.parent)


def write_text(path: Path | str, content: str) -> None:
    """Write a UTF-8 text file atomically; lone surrogates are escaped."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.encode("utf-8", "backslashreplace"))


def _make_file(destination: Path) -> Path:
    # Keep the suffix, because onnx and cv2 derive the format from it.
    handle, name = tempfile.mkstemp(
        dir=destination.parent,
        prefix=f"{_TEMPORARY}{destination.stem[:32]}-",
        suffix=destination.suffix[:16],
    )
    os.close(handle)
    return Path(name)


@contextmanager
def temporary_folder(parent: Path | str | None = None) -> Iterator[Path]:
    """Yield a new private folder in ``parent``, and remove it at the end.

    ``parent``: None for the system's temporary folder. First, temporary files and folders that
    killed processes left in ``parent`` are removed.

    Raises:
        OSError: the folder cannot be created, or the system's temporary folder is not UTF-8.
    """
    place = Path(tempfile.gettempdir() if parent is None else parent)
    if parent is None and not is_utf8(place):
        words = "engines open UTF-8 paths only: set TMPDIR to another folder"
        raise OSError(errno.EINVAL, words, str(place))
    _sweep(place)
    with _temporary(lambda: Path(tempfile.mkdtemp(dir=place, prefix=_TEMPORARY))) as folder:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _temporary(make: Callable[[], Path]) -> Iterator[Path]:
    """Yield the path that ``make`` creates; a lock protects it from `_sweep` in other processes."""
    while True:
        path = make()
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(path, wait=False))
            except (FileNotFoundError, BlockingIOError):  # another process is removing it
                continue
            if path.exists():
                yield path
                return


_next_sweep: dict[Path, float] = {}


def _sweep(folder: Path) -> None:
    """Remove temporary files and folders of killed processes.

    Only unlocked files and folders of this user are removed; links are not followed. After a sweep
    that took t seconds, calls for the same folder do nothing for 100 t seconds.
    """
    place, begun = folder.absolute(), time.monotonic()
    if begun < _next_sweep.get(place, 0):
        return
    with suppress(OSError), os.scandir(place) as entries:
        for left in [Path(entry) for entry in entries if entry.name.startswith(_TEMPORARY)]:
            with suppress(OSError):
                _remove_left(left)
    if len(_next_sweep) > 1000:
        _next_sweep.clear()
    now = time.monotonic()
    _next_sweep[place] = now + 100 * (now - begun)


def _remove_left(path: Path) -> None:
    """Remove a temporary file or folder unless it is locked or belongs to another user."""
    found = path.lstat()
    is_own = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
    if not is_own or not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        return
    with locked(path, wait=False) as is_locked:
        if not is_locked:
            return
        if not path.is_dir():
            path.unlink()
            return
        kept = path / _OLD
        # If `replace_files` was killed between two renames, restore the replaced files.
        for old in () if kept.is_symlink() else kept.glob("*"):
            if not os.path.lexists(path.parent / old.name):
                old.rename(path.parent / old.name)
        shutil.rmtree(path)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Lock a file or folder against other processes and threads during a ``with`` statement.

    Yields True if it is locked, False on Windows and on file systems without locks.

    Raises:
        BlockingIOError: ``wait`` is False and the path is already locked.
        OSError: ``wait`` is False and the path cannot be opened.
    """
    with ExitStack() as stack:
        yield _lock(path, wait, stack)


def _lock(path: Path, wait: bool, stack: ExitStack) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        # On NFS a lock requires a file that is open for writing; folders cannot be locked.
        way = os.O_RDONLY if is_folder(path) else os.O_RDWR
        descriptor = os.open(path, way | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        if wait:
            return False
        raise
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:  # ENOLCK, ENOTSUP; EBADF and EINVAL on network file systems
        return False
    stack.callback(_unlock, descriptor, os.getpid())
    return True


def _unlock(descriptor: int, owner: int) -> None:
    """Release a lock. Do nothing in a forked child: the lock belongs to its parent too."""
    import fcntl

    if os.getpid() == owner:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _sync(path: Path) -> None:
    with path.open("rb+") as written:
        os.fsync(written.fileno())


def _sync_folder(folder: Path) -> None:
    """Sync a folder to make a rename durable; do nothing if the system does not support it."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL, errno.ENOTSUP):
            raise


def cache_folder(kind: str) -> Path:
    """Return the folder ``$Y7EDGE_CACHE/KIND``, by default ``~/.cache/y7edge/KIND``.

    If there is no home directory, return a temporary folder of this process.
    """
    chosen = os.environ.get("Y7EDGE_CACHE")
    try:
        return (Path(chosen) if chosen else Path.home() / ".cache" / "y7edge") / kind
    except RuntimeError:
        return _private_folder() / kind


@cache
def _private_folder() -> Path:
    """Create a private temporary folder, which is removed when the process ends."""
    stack = ExitStack()
    folder = stack.enter_context(temporary_folder())
    atexit.register(stack.close)
    return folder


def sha256_file(path: Path | str) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open_regular(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def replace_files(
    pairs: Sequence[tuple[Path, Path]], check: Callable[[], None] = lambda: None
) -> None:
    """Copy files or folders to their destinations: all of them, or none.

    Sources are first copied beside their destinations, then renamed into place in the given order.
    If a step or ``check`` raises an exception, the previous files are restored. If the process is
    killed between two renames, only some files are replaced; so pass the file that readers open
    first as the last pair. Concurrent calls for one folder run one after the other.

    Args:
        pairs: (source, destination) of each file or folder.
        check: called after the last rename, to check the result.

    Raises:
        OSError: a copy or a rename failed; the destinations are unchanged.
    """
    with ExitStack() as stack:
        copies = []
        for source, destination in pairs:
            require_replaceable(destination)
            folder = stack.enter_context(temporary_folder(destination.parent))
            (folder / _OLD).mkdir()
            old = folder / _OLD / destination.name
            copies.append((_copy(source, folder / "new"), old, destination))
        for parent in sorted({destination.parent for _, destination in pairs}):
            stack.enter_context(locked(parent))
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
    """Copy and sync a file or folder, with default permissions."""
    if source.is_dir():
        shutil.copytree(source, destination, copy_function=shutil.copyfile)
        written = [path for path in destination.rglob("*") if path.is_file()]
    else:
        shutil.copyfile(source, destination)
        written = [destination]
    for path in written:
        _sync(path)
    return destination


def _set_aside(destination: Path, old: Path) -> None:
    """Back up a destination as ``old``: rename a folder; hard-link or copy a file."""
    if destination.is_dir() and not destination.is_symlink():
        destination.rename(old)
    elif destination.exists():
        try:
            old.hardlink_to(destination)
        except OSError:  # the file system has no hard links
            shutil.copyfile(destination, old)


def _restore(old: Path, destination: Path, existed: bool) -> None:
    """Restore the previous file or folder; if there was none, remove the new one."""
    if existed and not old.exists():
        return  # the destination was not replaced yet
    if destination.is_dir() and not destination.is_symlink():
        shutil.rmtree(destination)
    if existed:
        old.replace(destination)
    else:
        destination.unlink(missing_ok=True)
