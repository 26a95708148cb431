"""Checks of files: unreferenced images and labels, and names that break other tools."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from os.path import realpath  # unlike `Path.resolve`, it does not raise on circular links
from pathlib import Path

from y7edge.data.check.paths import readable, within
from y7edge.data.check.registry import Checks, Hit
from y7edge.data.formats import yolo
from y7edge.data.formats.listing import files_below
from y7edge.data.formats.records import Entry, Scan
from y7edge.data.sample import IMAGE_SUFFIXES
from y7edge.files import is_file, is_folder, open_regular

CHECKS = Checks()

# Image formats that are not read.
_UNREAD_SUFFIXES = frozenset(
    {".avif", ".dng", ".exr", ".gif", ".hdr", ".heic", ".heif", ".jxl", ".pam", ".pfm", ".svg"}
)
_TEXTS = frozenset({".json", ".txt", ".xml"})
# Stems of text files that are not label files.
_NO_LABELS = {"classes", "labels", "names", "obj", "readme", "requirements", "train", "val"}
_NO_LABELS |= {"test", "license", "notes", "predefined_classes", "readme.dataset", "valid"}


@CHECKS.add("no_labels", "error", "no label at all")
def _no_labels(scan: Scan) -> Iterator[Hit]:
    entries = scan.entries
    if entries and not any(entry.labelled for entry in entries):
        words = f"none of {len(entries)} images has a label file; the first should be "
        yield Hit(f"{words}{entries[0].label_file}: rename the folder", scan.source)
    elif not any(entry.labels for entry in entries):
        yield Hit(f"expected labels, found none for {len(entries)} images", scan.source)


@CHECKS.add("unreferenced_label", "warning", "labels without an image", "left out")
def _unreferenced_label(scan: Scan) -> Iterator[Hit]:
    suffix = {"yolo": ".txt", "voc": ".xml"}.get(scan.layout)
    owned = {realpath(e.label_file) for e in scan.entries if e.label_file}
    folders = {e.label_file.parent for e in scan.entries if e.label_file and suffix}
    for path in _unreferenced(scan):
        owned |= {realpath(path.with_suffix(suffix or "")), realpath(_label_of(scan, path))}
    for path in _files(folders, "labels"):
        is_label = path.suffix.lower() == suffix and path.stem.lower() not in _NO_LABELS
        if is_label and realpath(path) not in owned:
            words = "has no image: restore the image or remove the label file"
            if path.suffix != suffix:
                words = f"is not read: rename {path.suffix} to {suffix}"
            yield Hit(words, path)


def _label_of(scan: Scan, image: Path) -> Path:
    """Return the expected path of the label file of an image that is in no split."""
    if scan.layout == "voc" and scan.annotations:
        return scan.annotations[0].with_name(f"{image.stem}.xml")
    return yolo.label_path(image)


@CHECKS.add("unreferenced_image", "info", "images that are in no split", "left out")
def _unreferenced_image(scan: Scan) -> Iterator[Hit]:
    used = {entry.path.parent for entry in scan.entries}
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in _unreferenced(scan):
        if path.parent in used:
            yield Hit("is beside images of the data set but in no split", path, image=path)
        else:
            folders[path.parent].append(path)
    for folder, paths in folders.items():
        words = f"{len(paths)} images in {readable(folder, scan.root)} are in no split"
        yield Hit(words, folder, image=paths[0])


@CHECKS.add("ignored", "warning", "images in formats that are not read")
def _ignored(scan: Scan) -> Iterator[Hit]:
    for path in _image_files(scan):
        if path.suffix.lower() in _UNREAD_SUFFIXES:
            yield Hit(f"{path.suffix} files are not read; convert it to JPEG or PNG", path)
        elif path.suffix.lower() not in IMAGE_SUFFIXES and _begins_as_one(path):
            kind = f"with the suffix {path.suffix}" if path.suffix else "without a suffix"
            yield Hit(f"is an image {kind}, so it is not read; rename it", path)


def _image_files(scan: Scan) -> list[Path]:
    """Return all files in the image folders, also those that are not images."""
    return list(_files({entry.path.parent for entry in scan.entries}, "images"))


def _unreferenced(scan: Scan) -> list[Path]:
    """Return the images in the image folders that are in no split."""
    known = {realpath(entry.path) for entry in scan.entries}
    files = (path for path in _image_files(scan) if path.suffix.lower() in IMAGE_SUFFIXES)
    return [path for path in files if realpath(path) not in known]


def _begins_as_one(path: Path) -> bool:
    """Return whether a file begins like a JPEG or PNG."""
    if path.suffix.lower() in _TEXTS:
        return False
    try:
        with open_regular(path) as stream:
            return stream.read(8).startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))
    except OSError:
        return False


def _files(folders: set[Path], name: str) -> Iterator[Path]:
    """Yield the files in folders, each once.

    If a folder or a parent of it is called ``name`` (``images`` or ``labels``), yield all files at
    any depth below the folder of this name instead.
    """
    unnoted = Scan(Path(), Path(), "yolo")  # its problems are discarded: the parser reports them
    seen: set[str] = set()
    tops: dict[tuple[Path, bool], None] = {}
    for folder in sorted(folders):
        root = next((parent for parent in (folder, *folder.parents) if parent.name == name), None)
        if is_folder(folder):
            tops[root or folder, root is not None] = None
    for top, whole in tops:
        for path in files_below(unnoted, top):
            fits = (whole or path.parent == top) and not path.name.startswith(".")
            if fits and is_file(path) and realpath(path) not in seen:
                seen.add(realpath(path))
                yield path


@CHECKS.add("shared_label", "warning", "images that share a label file", "each gets its own")
def _shared_label(scan: Scan) -> Iterator[Hit]:
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in scan.entries if scan.layout == "yolo" else ():
        groups[str(entry.label_file or entry.path.with_suffix("")).lower()].append(entry)
    for entries in groups.values():
        if len({entry.label_file for entry in entries}) > 1:
            names = " and ".join(entry.path.name for entry in entries)
            words = f"{names} differ only in upper and lower case; rename one"
            yield Hit(words, entries[1].path, image=entries[1].path)


@CHECKS.add("path_letters", "info", "paths with non-ASCII characters")
def _path_letters(scan: Scan) -> Iterator[Hit]:
    for entry in scan.entries:
        if not within(entry.path, scan.root).isascii():
            words = "its path has non-ASCII characters, which some tools cannot open"
            yield Hit(words, entry.path)


@CHECKS.add("path_spaces", "info", "paths with spaces")
def _path_spaces(scan: Scan) -> Iterator[Hit]:
    for entry in scan.entries:
        if any(map(str.isspace, within(entry.path, scan.root))):
            yield Hit("its path has spaces, which break some scripts", entry.path)
