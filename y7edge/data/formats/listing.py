"""Files of a data set: folders walked, and paths located, the same way for every format.

Hidden and service folders (``.ipynb_checkpoints``, trash, NAS thumbnails) are passed over. Links to
folders are followed, each folder once however many ways lead to it. A folder is never an image,
whatever it is called.
"""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from y7edge.data.formats.records import Scan
from y7edge.data.sample import is_image

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
    seen = {os.path.realpath(folder)}
    waiting = [folder]
    while waiting or links:
        if not waiting:  # links last: a folder is listed by its own path where it has one
            link = links.pop(0)
            real = os.path.realpath(link)
            if real in seen:
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
                note_once(scan, "passed_over", "is a hidden or service folder, passed over", path)
            elif item.is_symlink():
                links.append(path)
            elif (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                waiting.append(path)
        links.sort()
    return sorted(found, key=lambda path: path.parts)


def _listed(scan: Scan, folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as items:
            return list(items)
    except OSError as error:
        words = f"cannot be read: {error.strerror}; what is in it is missing here"
        note_once(scan, "folder", words, folder)
        return []


def note_once(scan: Scan, check: str, words: str, path: Path) -> None:
    """Note a problem unless it is known already."""
    if not any(p.check == check and p.file == path for p in scan.problems):
        scan.problem(check, words, path)


def images_below(scan: Scan, folder: Path) -> list[Path]:
    """All images below a folder, in order."""
    return [path for path in files_below(scan, folder) if is_image(path)]


def images_in(folder: Path) -> list[Path]:
    """The images of one folder, in order."""
    return sorted(path for path in folder.iterdir() if is_image(path) and not path.is_dir())


def is_there(path: Path) -> bool:
    """`Path.exists` for names that may be impossible."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """`Path.is_file` for names that may be impossible."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


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
