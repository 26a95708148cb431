"""Planted faults, one for each outcome that the harness distinguishes."""

from __future__ import annotations

import ctypes
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.attack.base import Attack, Attempt, Input, Place
from tests.attack.guard import MARK
from y7edge.errors import DataError


class _Message(DataError):
    def __str__(self) -> str:
        return ""


class _Harmful:
    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, (f"touch {MARK}",)


def _refuse(error: BaseException) -> None:
    raise error


def _deaf() -> None:
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    while True:
        time.sleep(1)


def _spin() -> None:
    while True:
        pass


def _allocate() -> None:
    held = []
    while True:
        held.append(bytearray(b"x") * (64 << 20))


def _from_c(path: Path) -> None:
    """Write to standard output from C code."""
    libc = ctypes.CDLL(None)
    handle = libc.open(os.fsencode(path), os.O_CREAT | os.O_WRONLY, 0o644)
    libc.write(handle, b"x", 1)


def _copy(place: Place) -> None:
    made = place.inside / "made"
    made.mkdir()
    shutil.copyfile(place.outside / "secret.jpg", made / "a.jpg")


def _hidden() -> None:
    with suppress(Exception):
        os.system(f"touch {MARK}")


def _says(out: str = "", err: str = "", code: int = 0) -> Callable[[], int]:
    def say() -> int:
        sys.stdout.write(out)
        sys.stderr.write(err)
        return code

    return say


def _raise() -> int:
    raise KeyError("x")


def _calls(place: Place) -> dict[str, Callable[[], object]]:
    outside = place.outside
    return {
        "returns": lambda: None,
        "typed error": lambda: _refuse(DataError("a.txt: expected numbers, found words")),
        "raises ValueError": lambda: _refuse(ValueError("x")),
        "exits": lambda: sys.exit(3),
        "sleeps": lambda: time.sleep(1000),
        "computes without end": _spin,
        "deaf to signals": _deaf,
        "allocates": _allocate,
        "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "leaves without a word": lambda: os._exit(0),
        "writes outside": lambda: (outside / "x").write_text("x"),
        "removes outside": lambda: (outside / "secret.txt").unlink(),
        "writes outside from C": lambda: _from_c(outside / "x"),
        "copies the secret": lambda: _copy(place),
        "os system": lambda: os.system(f"touch {MARK}"),
        "subprocess": lambda: subprocess.run(["true"], check=False),
        "eval of the mark": lambda: eval(f"'{MARK}'"),
        "import of the mark": lambda: __import__(MARK),
        "unpickles": lambda: pickle.loads(pickle.dumps(_Harmful())),  # noqa: S301
        "connects": lambda: socket.create_connection(("127.0.0.1", 1)),
        "hides the error": _hidden,
        "empty message": lambda: _refuse(_Message()),
    }


COMMANDS: dict[str, tuple[Callable[[], int], str]] = {
    "traceback in a command": (_raise, "info"),
    "internal error in a command": (_says(err="error: internal error: KeyError\n", code=1), "info"),
    "exit code 7": (_says(err="error: x\n", code=7), "info"),
    "escapes on stdout": (_says(out="\x1b[2J\n"), "info"),
    "two error lines": (_says(err="error: x\nerror: y\n", code=1), "info"),
    "silent failure": (_says(code=1), "info"),
    "a line without end": (_says(err=f"error: {'x' * 5000}\n", code=1), "info"),
    "JSON with NaN": (_says(out='{"a": NaN}\n'), "info --json"),
}
NAMES = (*_calls(Place(Path(), Path(), None)), "cannot be prepared", *COMMANDS)  # type: ignore[arg-type]


def inputs() -> list[Input]:
    """Return one input for each planted fault."""
    attack = Attack("planted", 1, {}, None, {})
    return [Input(attack, "hand", number) for number in range(len(NAMES))]


def prepare(one: Input, place: Place) -> Attempt:
    """Prepare a planted fault."""
    name = NAMES[one.number]
    if name in COMMANDS:
        import y7edge.cli

        say, argv = COMMANDS[name]
        y7edge.cli.main = lambda argv=None: say()
        return Attempt(name, place.inside, argv=tuple(argv.split()))
    return Attempt(name, place.inside, _calls(place)[name])  # KeyError: cannot be prepared
