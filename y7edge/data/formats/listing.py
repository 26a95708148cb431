"""Files of a data set: folders walked, and paths located, the same way for every format.

Hidden and service folders (``.ipynb_checkpoints``, trash, NAS thumbnails) are passed over. Links to
folders are followed, each folder once however many ways lead to it. A folder is never an image,
whatever it is called.
"""

from __future__ import annotations

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
_DRIVE = re.compile(r"^[A-Za-z]+:/*")  # also of a URL
_QUOTED = re.compile(r"(?:%[0-9A-Fa-f]{2})+")


def is_service(name: str) -> bool:
    """Whether a folder's name is that of a hidden or service folder."""
    return _SERVICE.fullmatch(name) is not None


def files_below(scan: Scan, folder: Path) -> list[Path]:
    """All files below a folder in order; problems are noted once for each folder."""
    found: list[Path] = []
    links: list[Path] = []
    root = os.path.realpath(folder)
    if root == os.path.dirname(root):  # noqa: PTH120 - the same as below
        words = "is the root of the file system; name the folder of the images"
        scan.problem_once("folder", words, folder)
        return []
    seen = {root}
    waiting = [folder]
    while waiting or links:
        if not waiting:  # links last: a folder is listed by its own path where it has one
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
                scan.problem_once("passed_over", "is a hidden or service folder, passed over", path)
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
        words = f"cannot be read: {error.strerror}; what is in it is missing here"
        scan.problem_once("folder", words, folder)
        return []


def images_below(scan: Scan, folder: Path) -> list[Path]:
    """All images below a folder, in order."""
    return [path for path in files_below(scan, folder) if is_image(path)]


def listed(folder: Path) -> list[Path]:
    """What a folder holds, in order.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {reason(error)}") from error


def images_in(folder: Path) -> list[Path]:
    """The images of one folder, in order."""
    return [path for path in listed(folder) if is_image(path) and not is_folder(path)]


def is_there(path: Path) -> bool:
    """`Path.exists` for names that may be impossible."""
    return os.path.exists(path)  # noqa: PTH110


class Places:
    """Finds files by relative paths; looks at each folder once that is not there."""

    def __init__(self) -> None:
        self._folders: dict[str, bool] = {}

    def find(self, folder: Path | str, name: str) -> Path | None:
        """The file or folder of that name, if there is one."""
        # Hundreds of thousands may be sought: letters are cheaper than paths.
        place = name if os.path.isabs(name) else f"{folder}/{name}"  # noqa: PTH117
        parent = place[: place.rfind("/") + 1]
        if parent not in self._folders:
            self._folders[parent] = is_folder(parent)
        return Path(place) if self._folders[parent] and os.path.exists(place) else None  # noqa: PTH110


def spellings(entry: str) -> tuple[str, ...]:
    """A path as written, and as meant by who wrote it on Windows."""
    return tuple(dict.fromkeys((entry.strip(), entry.strip().replace("\\", "/"))))


def places_of(entry: str, folders: Iterable[Path]) -> Iterator[Path]:
    """Where an entry of a ``data.yaml`` may be: also without leading ``../`` (Roboflow)."""
    for spelling in spellings(entry):
        stripped = re.sub(r"^(\.\./)+", "", spelling)
        for folder in folders:
            yield folder / spelling
            yield folder / stripped


def tails(name: str) -> list[str]:
    """A file name as written, then with fewer and fewer of its first folders.

    Labelling tools write their own paths: an upload folder, ``/data/a.png``, a URL. No tail leads
    out of the folder that it is sought in. The first is empty where the name as written does.
    """
    text = posixpath.normpath(name.replace("\\", "/")) if name else ""
    plain = _DRIVE.sub("", text).lstrip("/")
    parts = [part for part in plain.split("/") if part not in ("..", ".", "")]
    whole = "/".join(parts)
    found = [whole if whole == text else ""]
    for start in range(whole == text, len(parts)):
        found.append("/".join(parts[start:]))
    last = parts[-1] if parts else ""
    if "%" in last or "?" in last:  # also Label Studio's `?d=folder%2Fa.png`
        found.append(unquote(last).replace("\\", "/").rsplit("/", 1)[-1].rsplit("=", 1)[-1])
    return [tail for tail in dict.fromkeys(found) if tail not in (".", "..") and "\0" not in tail]


def unquote(text: str) -> str:
    """A text in which a URL has written letters as ``%C3%A9``."""
    return _QUOTED.sub(
        lambda match: bytes.fromhex(match[0].replace("%", "")).decode("utf-8", "replace"), text
    )


class Names:
    """Names of folders, each read once, to find files whose name is written a little otherwise."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, Path]] = {}

    def find(self, path: Path) -> Path | None:
        """A file that differs in the case of its suffix, in how accents are encoded, or by URL."""
        folder = path.parent
        if folder not in self._folders:
            try:
                files = sorted(folder.iterdir())
            except OSError:
                files = []
            known = {_plain(file): file for file in files}
            # A name that is meant literally goes before one that a URL stands for.
            self._folders[folder] = {_plain(file, url=True): file for file in files} | known
        known = self._folders[folder]
        return known.get(_plain(path)) or known.get(_plain(path, url=True))


def _plain(path: Path, *, url: bool = False) -> str:
    stem = unquote(path.stem) if url else path.stem
    return unicodedata.normalize("NFC", stem) + path.suffix.lower()
