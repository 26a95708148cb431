"""List the files of a data set, and find files by the paths that its descriptions contain.

Hidden and system folders (``.ipynb_checkpoints``, trash, NAS thumbnails) are skipped. Links to
folders are followed; each folder is listed once.
"""

from __future__ import annotations

import functools
import heapq
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from y7edge.data.formats.records import Scan
from y7edge.data.sample import is_image
from y7edge.errors import DataError
from y7edge.files import is_folder, reason

_SERVICE = re.compile(
    r"\..*|__MACOSX|\$.*|@(eaDir|tmp|Recycle|Recently-Snapshot|sharebin)|#(recycle|snapshot)"
    r"|System Volume Information|lost\+found|Network Trash Folder|Temporary Items",
    re.IGNORECASE,
)
_DRIVE = re.compile(r"^[A-Za-z]+:/*")  # a drive letter or the scheme of a URL
_QUOTED = re.compile(r"(?:%[0-9A-Fa-f]{2})+")


def is_service(name: str) -> bool:
    """Return whether a folder of this name is hidden, or made by a system or tool."""
    return _SERVICE.fullmatch(name) is not None


def files_below(scan: Scan, folder: Path) -> list[Path]:
    """Return all files below a folder, sorted; record a problem for skipped or unreadable ones."""
    found: list[Path] = []
    links: list[Path] = []
    root = os.path.realpath(folder)
    if root == os.path.dirname(root):  # noqa: PTH120 - the same as below
        words = "is the root of the file system; give the folder of the images"
        scan.problem_once("folder", words, folder)
        return []
    seen = {root}
    waiting = [folder]
    while waiting or links:
        if not waiting:  # links last, so that a folder is listed by its real path if possible
            link = heapq.heappop(links)
            real = os.path.realpath(link)
            if real in seen or root.startswith(os.path.join(real, "")):  # noqa: PTH118 - a loop
                continue
            seen.add(real)
            waiting.append(link)
        top = waiting.pop()
        for item in _listed(scan, top):
            path = top / item.name
            try:
                is_folder = item.is_dir()
            except OSError:
                is_folder = False
            if not is_folder:
                found.append(path)
            elif is_service(item.name):
                scan.problem_once("passed_over", "is a hidden or system folder, skipped", path)
            elif item.is_symlink():
                heapq.heappush(links, path)
            elif (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                waiting.append(path)
    return sorted(found, key=lambda path: path.parts)


def _listed(scan: Scan, folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as items:
            return list(items)
    except OSError as error:
        words = f"cannot be read: {error.strerror}; correct its permissions"
        scan.problem_once("folder", words, folder)
        return []


def images_below(scan: Scan, folder: Path) -> list[Path]:
    """Return all images below a folder, sorted."""
    return [path for path in files_below(scan, folder) if is_image(path)]


def listed(folder: Path) -> list[Path]:
    """Return the contents of a folder, sorted.

    Raises:
        DataError: The folder cannot be read.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {reason(error)}") from error


def images_in(folder: Path) -> list[Path]:
    """Return the images directly in a folder, sorted."""
    return [path for path in listed(folder) if is_image(path) and not is_folder(path)]


class Places:
    """Finds files by path; caches which folders exist."""

    def __init__(self) -> None:
        self._is_folder = functools.cache(is_folder)

    def find(self, folder: Path | str, name: str) -> Path | None:
        """Return the path ``folder/name`` (or ``name``, if absolute) if it exists, else None."""
        # Strings are much faster than `Path` for hundreds of thousands of names.
        place = name if os.path.isabs(name) else f"{folder}/{name}"  # noqa: PTH117
        known = self._is_folder(place[: place.rfind("/") + 1])
        return Path(place) if known and os.path.exists(place) else None  # noqa: PTH110


def spellings(entry: str) -> tuple[str, ...]:
    """Return a path as written, and with backslashes replaced by slashes if it has any."""
    return tuple(dict.fromkeys((entry.strip(), entry.strip().replace("\\", "/"))))


def places_of(entry: str, folders: Iterable[Path]) -> Iterator[Path]:
    """Yield the paths of an entry in each folder: as written, and without leading ``../``.

    Roboflow writes ``../train/images`` for folders beside the ``data.yaml``.
    """
    for spelling in spellings(entry):
        stripped = re.sub(r"^(\.\./)+", "", spelling)
        for folder in folders:
            yield folder / spelling
            yield folder / stripped


def tails(name: str) -> list[str]:
    """Return a file name without its first 0, 1, 2, ... folders.

    For ``a/b.png``, the result is ``a/b.png`` and ``b.png``.

    Labelling tools write paths that exist only for them: an upload folder, ``/data/a.png``, a URL.
    The first item is empty if the name is absolute or contains ``..``, so that no item leads out of
    the folder that it is joined to.
    """
    text = posixpath.normpath(name.replace("\\", "/")) if name else ""
    plain = _DRIVE.sub("", text).lstrip("/")
    parts = [part for part in plain.split("/") if part not in ("..", ".", "")]
    whole = "/".join(parts)
    found = ["/".join(parts[start:]) for start in range(len(parts))]
    if whole != text:
        found.insert(0, "")
    last = parts[-1] if parts else ""
    if "%" in last or "?" in last:  # Label Studio writes `?d=folder%2Fa.png`
        found.append(_unquote(last).replace("\\", "/").rsplit("/", 1)[-1].rsplit("=", 1)[-1])
    return [tail for tail in dict.fromkeys(found) if tail not in (".", "..") and "\0" not in tail]


def _unquote(text: str) -> str:
    """Decode URL-encoded characters: ``%C3%A9`` becomes ``é``."""
    return _QUOTED.sub(
        lambda match: bytes.fromhex(match[0].replace("%", "")).decode("utf-8", "replace"), text
    )


class Names:
    """Finds files by a name that is spelled slightly differently; caches the listed folders."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, Path]] = {}

    def find(self, path: Path) -> Path | None:
        """Return a file in the folder of ``path`` with nearly the same name, or None.

        Only suffix case, Unicode normalization and URL encoding may differ.
        """
        folder = path.parent
        if folder not in self._folders:
            try:
                files = sorted(folder.iterdir())
            except OSError:
                files = []
            known = {_plain(file): file for file in files}
            # Literal names take precedence over decoded ones.
            self._folders[folder] = {_plain(file, url=True): file for file in files} | known
        known = self._folders[folder]
        return known.get(_plain(path)) or known.get(_plain(path, url=True))


def _plain(path: Path, *, url: bool = False) -> str:
    """Return a file name for comparison: NFC, suffix in lower case; ``url`` decodes ``%20``."""
    stem = _unquote(path.stem) if url else path.stem
    return unicodedata.normalize("NFC", stem) + path.suffix.lower()
