"""Regular files only, whole files only, and what killed processes leave behind."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from y7edge import files
from y7edge.errors import OutputError

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def sweep_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_next_sweep", {})


# --- reading --------------------------------------------------------------------------------------


def _make(path: Path, kind: str) -> Path:
    if kind.startswith("link to "):
        target = _make(path.with_name("target"), kind.removeprefix("link to "))
        path.symlink_to(target)
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as listener:
            before = Path.cwd()
            os.chdir(path.parent)  # the path of a socket has at most 107 letters
            listener.bind(path.name)
            os.chdir(before)
    elif kind == "a device":
        return Path("/dev/zero")
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a file":
        path.write_text("older")
    return path


SPECIAL = ["a pipe", "a socket", "a device", "a folder"]


@pytest.mark.parametrize("kind", [*SPECIAL, *(f"link to {kind}" for kind in SPECIAL)])
@pytest.mark.parametrize(
    "read",
    [files.open_regular, files.require_regular, files.sha256_file,
     lambda path: files.read_regular(path, 9)],
    ids=["open", "require", "digest", "read"],
)  # fmt: skip
def test_only_regular_files_are_read(
    kind: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    path = _make(tmp_path / "x", kind)
    started = time.monotonic()
    with pytest.raises(OSError, match=f"found {kind.removeprefix('link to ')}") as caught:
        read(path)
    assert time.monotonic() - started < 1
    assert caught.value.filename == str(path)
    assert not files.is_file(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a\0b", "NUL or a lone surrogate"),
        ("\ud800", "NUL or a lone surrogate"),
        ("x" * 300, "File name too long"),
        ("gone", "No such file"),
        ("file/below", "Not a directory"),
        ("loop", "symbolic links"),
    ],
    ids=ascii,
)
def test_invalid_names(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    path = tmp_path / name
    with pytest.raises(OSError, match=words):
        files.open_regular(path)
    assert not files.is_file(path)
    assert not files.is_folder(path)


def test_file_replaced_by_a_pipe_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    os.mkfifo(path)
    monkeypatch.setattr(files, "require_regular", lambda _: None)  # as if it came after that
    with pytest.raises(OSError, match="found a pipe"):
        files.open_regular(path)


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 10_000])
def test_reading_is_bounded(size: int, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x" * size)
    if size <= 10:
        assert files.read_regular(path, 10) == b"x" * size
    else:
        with pytest.raises(OSError, match=f"at most 10 bytes, found {size:,}"):
            files.read_regular(path, 10)


def test_reading_short_files_takes_little_memory(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    assert files.read_regular(tmp_path / "x", 1 << 60) == b"x"
    assert len(files.read_regular("/proc/self/maps", 1 << 20)) > 100  # its size reads 0
    with pytest.raises(OSError, match="found 5"):
        files.read_regular("/proc/self/maps", 4)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "not enough memory"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "not enough memory"),
        (RuntimeError("std::bad_alloc"), "not enough memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate "
                      "memory: you tried to allocate 4000000000000 bytes."), "not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "not enough memory"),
        (RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bad allocation"),
         "not enough memory"),
        (RuntimeError("Failed to allocate memory for requested buffer of size 9"),
         "not enough memory"),
        (ValueError("(-4:Insufficient memory) Failed to allocate 9 bytes"), "not enough memory"),
        (ImportError("libtorch.so: failed to map segment from shared object"), "not enough memory"),
        (FULL, "the disk is full"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "the disk quota is used up"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "too many files are open"),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG)), "the file is larger than the system"),
        (OSError(errno.EFBIG, "expected at most 9 bytes"), "expected at most 9 bytes"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "Read-only file system"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), "Input/output error"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (OSError("words"), "words"),
        (OSError(), "OSError"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (ValueError("a\nb"), "a b"),
    ],
    ids=lambda value: str(value)[:30] or type(value).__name__,
)  # fmt: skip
def test_reasons(error: Exception, words: str) -> None:
    assert files.reason(error).startswith(words)


# --- writing --------------------------------------------------------------------------------------


def _left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(".y7edge-"))


@pytest.mark.parametrize(
    "kind",
    ["a pipe", "a socket", "a folder", "link to a file", "link to a folder", "link to nothing"],
)  # fmt: skip
def test_only_files_are_replaced(kind: str, tmp_path: Path) -> None:
    path = _make(tmp_path / "x", kind)
    before = sorted((p.name, p.lstat().st_ino) for p in tmp_path.iterdir())
    words = "a link" if kind.startswith("link") else kind
    with (
        pytest.raises(OutputError, match=f"cannot write it: {words} exists there; remove it"),
        files.writing("it", path),
        files.atomic_write(path),
    ):
        pytest.fail("entered")
    assert sorted((p.name, p.lstat().st_ino) for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("where", ["block", "_sync", "chmod", "replace"])
@pytest.mark.parametrize("exists", [True, False])
def test_failed_write_changes_nothing(
    where: str, exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    if exists:
        path.write_text("older")

    def fail(*_: object) -> None:
        raise FULL

    if where == "_sync":
        monkeypatch.setattr(files, "_sync", fail)
    elif where != "block":
        monkeypatch.setattr(Path, where, fail)
    with (
        pytest.raises(OutputError, match="x: cannot write it: the disk is full"),
        files.writing("it", path),
        files.atomic_write(path) as temporary,
    ):
        temporary.write_text("newer")
        if where == "block":
            fail()
    monkeypatch.undo()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x", "older")] * exists


@pytest.mark.parametrize(
    "name", ["a.png", "ä" * 120 + ".txt", "x" * 255, "a." + "x" * 253, "\udcff"]
)
def test_every_name_that_a_file_can_have_is_written(name: str, tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        files.write_text(tmp_path / "new" / name, "content")
    finally:
        os.umask(umask)
    (made,) = (tmp_path / "new").iterdir()
    assert (made.name, made.read_text(), made.stat().st_mode & 0o777) == (name, "content", 0o640)


@pytest.mark.parametrize("error", [errno.EACCES, errno.EINVAL])
def test_a_folder_that_cannot_be_synced(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that may be written and not read; a network's file system."""

    def fail(*_: object) -> int:
        raise OSError(error, "no")

    monkeypatch.setattr(os, "open", fail) if error == errno.EACCES else None
    monkeypatch.setattr(os, "fsync", fail)
    files._sync_folder(tmp_path)


# --- leftovers ------------------------------------------------------------------------------------

_WRITER = """
import sys, time
from y7edge import files
from pathlib import Path
place = Path(sys.argv[1])
with files.atomic_write(place / "x.txt") as file, files.temporary_folder(place) as folder:
    file.write_text("half")
    (folder / "sub").mkdir()
    (folder / "sub" / "half").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def _start(script: str, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, words)]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    return owner


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    owner = _start(_WRITER, tmp_path)
    try:
        assert len(_left(tmp_path)) == 2
        files.write_text(tmp_path / "y.txt", "y")
        assert len(_left(tmp_path)) == 2, "the owner lives"
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.communicate()
    assert len(_left(tmp_path)) == 2
    time.sleep(0.2)  # a sweep takes at most a hundredth of the time
    files.write_text(tmp_path / "y.txt", "y")
    assert _left(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["y.txt"]


def test_temporary_files_of_other_threads_and_forks_stay(tmp_path: Path) -> None:
    with files.temporary_folder(tmp_path) as folder, files.atomic_write(tmp_path / "x") as file:
        sweeper = threading.Thread(target=files._sweep, args=(tmp_path,))
        sweeper.start()
        sweeper.join()
        child = os.fork()
        if not child:
            with suppress(BaseException):
                files._next_sweep.clear()
                files._sweep(tmp_path)
            os._exit(0)
        os.waitpid(child, 0)
        assert file.exists()
        assert folder.exists()
        file.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_many_threads_write_into_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Never(dict[Path, float]):
        def get(self, *_: object) -> float:  # type: ignore[override]
            return 0  # every write sweeps

    monkeypatch.setattr(files, "_next_sweep", Never())

    def write(name: str) -> None:
        for count in range(40):
            with files.atomic_write(tmp_path / name, durable=False) as temporary:
                temporary.write_text(str(count))

    threads = [threading.Thread(target=write, args=(str(n),)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted((p.name, p.read_text()) for p in tmp_path.iterdir()) == [
        (str(n), "39") for n in range(6)
    ]


def test_sweep_keeps_links_and_files_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, other = tmp_path / "place", tmp_path / "other"
    for folder in (place, other, other / "sub"):
        folder.mkdir()
    for path in (other / "mine", other / "sub" / "mine"):
        path.write_text("mine")
    (place / ".y7edge-link").symlink_to(other)
    (place / ".y7edge-file").symlink_to(other / "mine")
    (place / ".y7edge-gone").symlink_to("gone")
    os.mkfifo(place / ".y7edge-pipe")
    (place / ".y7edge-folder").mkdir()
    (place / ".y7edge-folder" / "link").symlink_to(other)
    (place / ".y7edge-folder" / "old").symlink_to(other)
    (place / ".y7edge").write_text("not ours")
    files.write_text(place / "x", "x")
    assert sorted(p.name for p in place.iterdir()) == [
        *(".y7edge", ".y7edge-file", ".y7edge-gone", ".y7edge-link", ".y7edge-pipe", "x"),
    ]
    assert (other / "mine").read_text() == (other / "sub" / "mine").read_text() == "mine"
    (place / ".y7edge-theirs").write_text("theirs")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    files._next_sweep.clear()
    files.write_text(place / "x", "x")
    assert (place / ".y7edge-theirs").exists()


_REPLACER = """
import os, signal, sys
from pathlib import Path
from y7edge import files
place = Path(sys.argv[1])
real = files._set_aside
def killed(destination, old):
    real(destination, old)
    os.kill(os.getpid(), signal.SIGKILL)
files._set_aside = killed
files.replace_files([(place / "new", place / "model"), (place / "new.txt", place / "m.txt")])
"""


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_kill_between_two_renames_loses_nothing(kind: str, tmp_path: Path) -> None:
    for name in ("new", "model"):
        if kind == "folder":
            (tmp_path / name).mkdir()
            (tmp_path / name / "content").write_text(name)
        else:
            (tmp_path / name).write_text(name)
    (tmp_path / "new.txt").write_text("new")
    command = [sys.executable, "-c", _REPLACER, str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    files.write_text(tmp_path / "x", "x")
    assert _left(tmp_path) == []
    kept = tmp_path / "model" / "content" if kind == "folder" else tmp_path / "model"
    assert kept.read_text() == "model"


@pytest.mark.parametrize("code", ["ENOLCK", "ENOTSUP", "ENOSYS", "EINVAL", "EBADF", "EOPNOTSUPP"])
def test_a_file_system_without_locks(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(getattr(errno, code), "no locks")

    (tmp_path / ".y7edge-left").write_text("of whom?")
    monkeypatch.setattr(fcntl, "flock", fail)
    for wait in (True, False):
        with files.locked(tmp_path, wait=wait) as is_locked:
            assert not is_locked
    files.write_text(tmp_path / "x", "x")
    with files.temporary_folder(tmp_path) as folder:
        assert folder.is_dir()
    (tmp_path / "y").write_text("y")
    files.replace_files([(tmp_path / "y", tmp_path / "x")])
    assert (tmp_path / "x").read_text() == "y"
    assert _left(tmp_path) == [".y7edge-left"], "it may be in use"


def test_a_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_DIRECTORY", "geteuid"):
        monkeypatch.delattr(os, name)
    files.write_text(tmp_path / "x", "x")
    assert files.read_regular(tmp_path / "x", 9) == b"x"


def test_locked(tmp_path: Path) -> None:
    with files.locked(tmp_path) as is_locked:
        assert is_locked
        with pytest.raises(BlockingIOError), files.locked(tmp_path, wait=False):
            pytest.fail("locked twice")
    with files.locked(tmp_path, wait=False) as is_locked:
        assert is_locked
    with files.locked(tmp_path / "gone") as is_locked:
        assert not is_locked
    with pytest.raises(FileNotFoundError), files.locked(tmp_path / "gone", wait=False):
        pytest.fail("entered")
    with pytest.raises(KeyError), files.locked(tmp_path):
        raise KeyError  # what the block raises passes
    waited = []
    with files.locked(tmp_path):
        thread = threading.Thread(target=lambda: waited.append(_seconds_for_lock(tmp_path)))
        thread.start()
        time.sleep(0.2)
    thread.join()
    assert waited[0] > 0.1


def _seconds_for_lock(path: Path) -> float:
    started = time.monotonic()
    with files.locked(path) as is_locked:
        assert is_locked
        return time.monotonic() - started


def test_no_file_stays_open(tmp_path: Path) -> None:
    _make(tmp_path / "pipe", "a pipe")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        files.write_text(tmp_path / "x", "x")
        with files.temporary_folder(tmp_path):
            pass
        with suppress(OSError):
            files.read_regular(tmp_path / "pipe", 9)
        with suppress(OSError):
            files.read_regular(tmp_path / "x", 0)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- the cache ------------------------------------------------------------------------------------


def test_a_user_without_a_home_has_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container run as any number, with HOME unset."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("Y7EDGE_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    folder = files.cache_folder("labels")
    assert folder.name == "labels"
    assert folder.is_relative_to(tempfile.gettempdir())
