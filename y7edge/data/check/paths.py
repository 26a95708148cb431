"""Format paths for reports, and refuse output paths that would overwrite other files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from y7edge.data.formats.records import Problem
from y7edge.errors import DataError
from y7edge.files import is_folder, open_regular
from y7edge.text import printable

PAGE_TITLE = "Data check"  # in the head of every report; a file without it is not overwritten
_HEAD = 4096  # bytes


def require_page(path: Path, copy: Path | None = None) -> None:
    """Check that a report page can be written without replacing another file.

    Args:
        path: The path of the page.
        copy: The folder of the cleaned copy, if one is written.

    Raises:
        DataError: The path is a folder, does not end in .html, is inside ``copy``, or exists and is
            not a report page.
    """
    if is_folder(path):
        raise DataError(f"--save '{_shown(path)}': is a folder; add a file name: report.html")
    if path.suffix.lower() not in (".html", ".htm"):
        raise DataError(f"--save '{path}': expected a file name that ends in .html")
    if copy is not None and _real(copy) in (_real(path), *_real(path).parents):
        raise DataError(f"--save '{path}': is inside the cleaned copy {copy}; choose another path")
    if os.path.lexists(path) and not os.path.exists(path):  # noqa: PTH110 - never raises
        raise DataError(f"--save '{path}': is a broken link; remove it")
    if os.path.lexists(path) and not _is_page(path):
        raise DataError(
            f"--save '{path}': exists and is not a page of data check; choose another name"
        )


def _is_page(path: Path) -> bool:
    try:
        with open_regular(path) as stream:
            return f"<title>{PAGE_TITLE}".encode() in stream.read(_HEAD)
    except OSError:
        return False


def require_copy(out: Path, folders: Iterable[Path] = ()) -> None:
    """Check that the cleaned copy is written to a new or empty folder outside the data.

    Raises:
        DataError: ``out`` is not a new or empty folder, or is inside one of ``folders``.
    """
    if not out.name or out.name == "..":
        raise DataError(f"--fix '{_shown(out)}': expected the name of a new folder for the copy")
    try:
        resolved = _real(out)
        fit = not out.is_symlink() and (not os.path.lexists(out) or not any(out.iterdir()))
    except (OSError, ValueError):
        fit = False
    if not fit:
        raise DataError(f"{out}: expected a new or empty folder for the cleaned copy")
    for folder in folders:
        if _real(folder) in (resolved, *resolved.parents):
            raise DataError(f"{out}: is inside the data ({folder}); choose a folder outside it")


def _real(path: Path) -> Path:
    """Resolve links; unlike `Path.resolve`, this does not raise on circular links."""
    return Path(os.path.realpath(path))


def _shown(path: Path) -> str:
    """Return a path as typed; `str` turns an empty path into ``.``."""
    return "" if path == Path() else str(path)


@lru_cache(maxsize=1)  # one file may have a million problems in succession
def readable(path: Path, root: Path) -> str:
    """Return a path as printable text; paths below ``root`` are relative to it."""
    shown = within(path, root) if path != root else path.name or str(path)
    return printable(shown)


def in_words(problem: Problem, root: Path) -> str:
    """Format a problem as one line of text: file, line and message."""
    line = f":{problem.line}" if problem.line else ""
    return f"{readable(problem.file, root)}{line}: {printable(problem.message)}"


def within(path: Path, root: Path) -> str:
    """Return a path as text; paths below ``root`` are relative to it."""
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
