"""How paths are reported, and where output may be written: never over data or foreign files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from y7edge.data.formats.records import Problem
from y7edge.errors import DataError
from y7edge.files import is_folder, open_regular
from y7edge.text import printable

# What the head of every page of findings holds.
PAGE_TITLE = "Data check"
_HEAD = 4096


def require_page(path: Path, copy: Path | None = None) -> None:
    """Refuse a place for the page where something else stands, or might be taken for data.

    Args:
        path: Where the page should be written.
        copy: Where a cleaned copy is to be written, if one is.

    Raises:
        DataError: It is a folder, not an HTML file by its name, or a file that is not such a page.
    """
    if is_folder(path):
        raise DataError(f"--save '{_shown(path)}': is a folder; name a file in it, as report.html")
    if path.suffix.lower() not in (".html", ".htm"):
        raise DataError(f"--save '{path}': the page is HTML; name a file, as report.html")
    if copy is not None and _real(copy) in (_real(path), *_real(path).parents):
        raise DataError(f"--save '{path}': lies within the cleaned copy {copy}; choose another")
    if os.path.lexists(path) and not os.path.exists(path):  # noqa: PTH110 - never raises
        raise DataError(f"--save '{path}': is a link that leads nowhere; remove it")
    if os.path.lexists(path) and not _is_page(path):
        raise DataError(
            f"--save '{path}': something else stands there, no page of this command; it is not "
            "overwritten, choose another name"
        )


def _is_page(path: Path) -> bool:
    try:
        with open_regular(path) as stream:
            return f"<title>{PAGE_TITLE}".encode() in stream.read(_HEAD)
    except OSError:
        return False


def require_copy(out: Path, folders: Iterable[Path] = ()) -> None:
    """Refuse a place for the cleaned copy that is taken, or within the data.

    Raises:
        DataError: It is not a new or empty folder with a name, or lies within one of ``folders``.
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
            raise DataError(f"{out}: lies within the data ({folder}), choose a folder outside it")


def _real(path: Path) -> Path:
    """Where links lead; unlike `Path.resolve` it takes links in a circle as they are."""
    return Path(os.path.realpath(path))


def _shown(path: Path) -> str:
    """Return the path as typed: ``Path("")`` prints as ``.``."""
    return "" if path == Path() else str(path)


@lru_cache(maxsize=1)  # of a file with a million problems, say
def readable(path: Path, root: Path) -> str:
    """A path for people, in one line: relative to the data set where it lies in it."""
    shown = within(path, root) if path != root else path.name or str(path)
    return printable(shown)


def in_words(problem: Problem, root: Path) -> str:
    """A problem in one line: file, line and message."""
    line = f":{problem.line}" if problem.line else ""
    return f"{readable(problem.file, root)}{line}: {printable(problem.message)}"


def within(path: Path, root: Path) -> str:
    """A path relative to the data set where it lies in it."""
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
