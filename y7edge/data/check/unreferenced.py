"""Unreferenced files: what lies beside a data set's files and is not part of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from y7edge.data.formats.records import Scan
from y7edge.data.sample import IMAGE_SUFFIXES

# Pictures, or nearly: formats that no reader here takes, so that they are passed over in silence.
UNREAD_SUFFIXES = frozenset(
    {".avif", ".dng", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".svg"}
)
_TEXTS = frozenset({".json", ".txt", ".xml"})
_NO_LABELS = {"classes", "labels", "names", "obj", "readme", "requirements", "train", "val"}
_NO_LABELS |= {"test", "license", "notes", "predefined_classes", "readme.dataset", "valid"}


def find_strays(scan: Scan, label_of: Callable[[Path], Path | None], suffix: str = "") -> None:
    """Note label files without a picture, pictures in no split, and files nobody reads.

    Args:
        scan: Its pictures are known; the three lists are filled.
        label_of: Where the labels of a picture should stand; None where labels have no files.
        suffix: Of label files; empty where labels have no files.
    """
    _find(scan, label_of, suffix)
    forget_known_links(scan)


def _find(scan: Scan, label_of: Callable[[Path], Path | None], suffix: str) -> None:
    known = {_real(path) for path in scan.pictures}
    for path in _files(scan, {path.parent for path in scan.pictures}, "images"):
        ending = path.suffix.lower()
        if ending in UNREAD_SUFFIXES or (ending not in IMAGE_SUFFIXES and _begins_as_one(path)):
            scan.ignored.append(path)
        elif ending in IMAGE_SUFFIXES and _real(path) not in known:
            scan.orphan_pictures.append(path)
    if not suffix:
        return
    owned = {_real(p.label_file) for p in scan.pictures.values() if p.label_file}
    folders = {p.label_file.parent for p in scan.pictures.values() if p.label_file}
    strangers = (label_of(path) for path in scan.orphan_pictures)
    owned |= {_real(path) for path in strangers if path}
    for path in _files(scan, folders, "labels"):
        is_label = path.suffix.lower() == suffix and path.stem.lower() not in _NO_LABELS
        if is_label and _real(path) not in owned:
            scan.orphan_labels.append(path)


def _begins_as_one(path: Path) -> bool:
    """Whether a file whose name says otherwise is a JPEG or PNG."""
    if path.suffix.lower() in _TEXTS:
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(8).startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))
    except OSError:
        return False


def _real(path: Path) -> str:
    """Where links lead; unlike `Path.resolve` it takes links in a circle as they are."""
    return os.path.realpath(path)


def _through_link(folder: Path, root: Path) -> bool:
    """Whether the way down from ``root`` to ``folder`` leads through a link."""
    steps = (path for path in (folder, *folder.parents) if path.is_relative_to(root))
    return any(path.is_symlink() for path in steps if path != root)


def _files(scan: Scan, folders: set[Path], name: str) -> Iterator[Path]:
    """Files of folders, and of all below the nearest folder called ``name``, each once."""
    seen: set[Path] = set()
    for folder in sorted(folders):
        roots = [parent for parent in (folder, *folder.parents) if parent.name == name]
        if not (roots or [folder])[0].is_dir():
            continue
        below = files_below(scan, roots[0] if roots else folder)
        if roots and _through_link(folder, roots[0]):
            below += files_below(scan, folder)
        for path in below if roots else (path for path in below if path.parent == folder):
            if path not in seen and not path.name.startswith(".") and path.is_file():
                seen.add(path)
                yield path


def files_below(scan: Scan, folder: Path) -> list[Path]:
    """All files below a folder in order; links to folders are not followed."""

    def note(error: OSError) -> None:
        path = Path(error.filename or folder)
        if not any(t.check == "folder" and t.file == path for t in scan.troubles):
            words = f"cannot be read: {error.strerror}; what is in it is missing here"
            scan.trouble("folder", words, path)

    found = []
    for top, folders, names in os.walk(folder, onerror=note):
        found += [Path(top) / name for name in names]
        for path in (Path(top) / name for name in folders):
            if path.is_symlink() and not any(t.file == path for t in scan.troubles):
                words = "is a link to a folder, which is not followed: name that in the data.yaml"
                scan.trouble("linked_folder", f"{words}, or copy it here", path)
    return sorted(found)


def forget_known_links(scan: Scan) -> None:
    """Take back what was said of links to folders that were read, by this way or another."""
    known = set(scan.folders)
    for picture in scan.pictures.values():
        known |= {path.parent for path in (picture.path, picture.label_file) if path}
    above = {parent for folder in known for parent in folder.parents}
    targets = {os.path.realpath(folder) for folder in known}
    scan.troubles = [
        trouble
        for trouble in scan.troubles
        if trouble.check != "linked_folder"
        or (trouble.file not in known | above and os.path.realpath(trouble.file) not in targets)
    ]
