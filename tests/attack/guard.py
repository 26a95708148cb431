"""Detect actions that inputs must not cause: run code, open connections, write elsewhere.

An audit hook (PEP 578) records and prevents such actions of Python code. Files written by C code
are found afterwards, in the folder around the input.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# Hostile inputs contain this word in all code that they try to execute.
MARK = "y7edge_canary"

_PROGRAMS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn")
_NETWORK = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto")
# Audit events, and the indices of arguments that are written to.
_CHANGES = {
    "os.rename": (0, 1),
    "os.remove": (0,),
    "os.mkdir": (0,),
    "os.rmdir": (0,),
    "os.link": (1,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "os.chmod": (0,),
    "os.chown": (0,),
    "shutil.rmtree": (0,),
    "shutil.copyfile": (1,),
}
# Index of the argument with the folder of a relative path.
_FOLDERS = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.symlink": 2, "os.chmod": 2}
_DANGEROUS = {"os", "posix", "nt", "subprocess", "sys", "runpy", "shutil", "importlib", "pty"}
_CALLS = {"eval", "exec", "compile", "__import__", "open", "getattr", "breakpoint"}
_ALWAYS = ("/dev/null", "/dev/shm", "/dev/tty", "/proc/self")


def arm(allowed: Path, seen: list[tuple[str, str]]) -> None:
    """Install the guard; ``seen`` collects pairs of ``executed`` or ``outside`` and the action."""
    roots = (os.path.realpath(allowed), *_ALWAYS)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        found = _executed(event, arguments)
        kind = "executed"
        if found is None:
            kind, found = "outside", _outside(event, arguments, roots)
        if found is not None:
            seen.append((kind, f"{event}: {found[:200]}"))
            raise PermissionError(f"prevented: {event}")

    sys.addaudithook(hook)


def _executed(event: str, arguments: tuple[Any, ...]) -> str | None:
    if event in _PROGRAMS or event in _NETWORK:
        return repr(arguments)
    if event == "exec":
        code = arguments[0]
        constants = repr(getattr(code, "co_consts", "")) + repr(getattr(code, "co_names", ""))
        return constants if MARK in constants else None
    if event == "compile":
        return repr(arguments[0]) if arguments[0] and MARK in str(arguments[0]) else None
    if event == "import":
        return str(arguments[0]) if MARK in str(arguments[0]) else None
    if event == "pickle.find_class":
        module, name = map(str, arguments[:2])
        harmful = module.split(".")[0] in _DANGEROUS or (module == "builtins" and name in _CALLS)
        return f"{module}.{name}" if harmful or MARK in module + name else None
    return None


def _outside(event: str, arguments: tuple[Any, ...], roots: tuple[str, ...]) -> str | None:
    if event == "open":
        path, mode, flags = arguments[:3]
        writes = isinstance(mode, str) and any(letter in mode for letter in "wax+")
        writes |= isinstance(flags, int) and bool(
            flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        )
        return _beyond(path, None, roots) if writes else None
    places = _CHANGES.get(event, ())
    folder = arguments[_FOLDERS[event]] if event in _FOLDERS else None
    found = (_beyond(arguments[place], folder, roots) for place in places)
    return next((path for path in found if path is not None), None)


def _beyond(path: Any, folder: Any, roots: tuple[str, ...]) -> str | None:
    """Return the path if it is not below one of ``roots``."""
    if isinstance(path, int) or path is None:
        return None
    text = os.fsdecode(path)
    if isinstance(folder, int) and folder >= 0 and not text.startswith("/"):
        text = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)  # noqa: PTH115, PTH118
    parent, name = os.path.split(os.path.abspath(text))  # noqa: PTH100
    try:
        whole = os.path.join(os.path.realpath(parent), name)  # noqa: PTH118
    except (OSError, ValueError):
        return None
    inside = any(whole == root or whole.startswith(root + os.sep) for root in roots)
    return None if inside else whole
