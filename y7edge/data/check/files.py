"""Checks of files: encodings, names, what leads nowhere and what belongs to nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from y7edge.data.check.paths import readable, within
from y7edge.data.check.registry import Checks, Hit
from y7edge.data.formats.records import Picture, Scan

CHECKS = Checks()

_REWRITTEN = "written anew in UTF-8"

CHECKS.from_scanner("entry", "error", "entries of the data.yaml that lead nowhere", "left out")
CHECKS.from_scanner(
    "path_entry", "warning", "a path of the data.yaml that leads nowhere", "left out"
)
CHECKS.from_scanner("folder", "error", "folders that cannot be read")
CHECKS.from_scanner("linked_folder", "warning", "links to folders, passed over", "left out")
CHECKS.from_scanner(
    "test_entry", "info", "a test split that is described but not there", "left out"
)
CHECKS.from_scanner("list_entry", "error", "list entries that lead to no picture", "left out")
CHECKS.from_scanner("listed_twice", "warning", "pictures listed twice in one split", "kept once")
CHECKS.from_scanner(
    "label_name", "error", "label files whose name is nearly right", "used and renamed"
)
CHECKS.from_scanner(
    "other_name", "info", "annotations that name another file", "the file's name counts"
)


@CHECKS.add("encoding", "error", "text files that are not UTF-8", _REWRITTEN)
def _encoding(scan: Scan) -> Iterator[Hit]:
    for text in scan.texts:
        if text.encoding == "binary":
            yield Hit("is no text, it holds zero bytes; restore it", text.path)
        elif text.encoding.startswith("utf-16"):
            yield Hit("is UTF-16, as PowerShell writes it; save it as UTF-8", text.path)
        elif text.encoding == "cp1252":
            yield Hit("is not UTF-8 (Windows-1252, read so here); save it as UTF-8", text.path)


@CHECKS.add("unreadable_text", "error", "text files that cannot be opened",
       "left out, and the picture with its labels")  # fmt: skip
def _unreadable(scan: Scan) -> Iterator[Hit]:
    for text in scan.texts:
        if text.error:
            yield Hit(f"cannot be read: {text.error}; restore it", text.path)


@CHECKS.add("byte_order_mark", "warning", "text files with a byte order mark", _REWRITTEN)
def _byte_order_mark(scan: Scan) -> Iterator[Hit]:
    for text in scan.texts:
        if text.encoding == "utf-8-sig":
            words = "begins with a byte order mark, at which other readers stumble; save it without"
            yield Hit(words, text.path)


@CHECKS.add("line_ends", "info", "text files with Windows line ends", _REWRITTEN)
def _line_ends(scan: Scan) -> Iterator[Hit]:
    for text in scan.texts:
        if text.carriage_returns:
            yield Hit("has Windows line ends (CRLF), which are understood", text.path)


@CHECKS.add("missing_label", "warning", "pictures without a label file", "an empty one is written")
def _missing_label(scan: Scan) -> Iterator[Hit]:
    if _unlabelled(scan):
        return
    for picture in scan.pictures.values():
        if picture.labelled or picture.label_file is None:
            continue
        where = readable(picture.label_file, scan.root)
        if scan.layout == "voc":
            words = f"has no annotation {where}: annotate it or leave it out"
            yield Hit(words, picture.path, picture=picture.path, severity="error")
        elif picture.lost:
            yield Hit(f"has no {where}, but {picture.lost}", picture.path, picture=picture.path)
        else:
            words = f"has no {where}: taken as background; if that is right, make it an empty file"
            yield Hit(words, picture.path, picture=picture.path)


def _unlabelled(scan: Scan) -> list[Picture]:
    """All pictures, if not one of them has a label file: then these are elsewhere."""
    pictures = list(scan.pictures.values())
    return pictures if not any(picture.labelled for picture in pictures) else []


@CHECKS.add("no_labels", "error", "no label at all")
def _no_labels(scan: Scan) -> Iterator[Hit]:
    if lost := _unlabelled(scan):
        where = lost[0].label_file
        words = f"none of {len(lost)} pictures has a label file; the first should be {where}"
        yield Hit(f"{words}: is the folder called otherwise?", scan.source)
    elif not any(picture.labels for picture in scan.pictures.values()):
        yield Hit(f"{len(scan.pictures)} pictures, and not one label", scan.source)


@CHECKS.add("orphan_label", "warning", "labels without a picture", "left out")
def _orphan_label(scan: Scan) -> Iterator[Hit]:
    for path in scan.orphan_labels:
        words = "belongs to no picture: restore the picture or remove it"
        if path.suffix != path.suffix.lower():
            words = f"is not read: rename {path.suffix} to {path.suffix.lower()}"
        yield Hit(words, path)


@CHECKS.add("orphan_picture", "info", "pictures that are in no split", "left out")
def _orphan_picture(scan: Scan) -> Iterator[Hit]:
    used = {path.parent for path in scan.pictures}
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in scan.orphan_pictures:
        if path.parent in used:
            yield Hit("lies beside the others but is in no split", path, picture=path)
        else:
            folders[path.parent].append(path)
    for folder, paths in folders.items():
        words = f"{len(paths)} pictures in {readable(folder, scan.root)} are in no split"
        yield Hit(words, folder, picture=paths[0])


@CHECKS.add("shared_label", "warning", "pictures that share a label file", "each gets its own")
def _shared_label(scan: Scan) -> Iterator[Hit]:
    if scan.layout != "yolo":
        return
    groups: dict[str, list[Path]] = defaultdict(list)
    for picture in scan.pictures.values():
        stem = str(picture.label_file or picture.path.with_suffix(""))
        groups[stem.lower()].append(picture.path)
    for paths in groups.values():
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            same = len({path.stem for path in paths}) == 1
            words = "share one label file" if same else "differ in upper and lower case only"
            yield Hit(f"{names} {words}; rename one", paths[1], picture=paths[1])


@CHECKS.add("path_letters", "info", "paths with letters beyond ASCII")
def _path_letters(scan: Scan) -> Iterator[Hit]:
    for path in _paths(scan):
        if not within(path, scan.root).isascii():
            yield Hit("its path has letters beyond ASCII, which some tools cannot open", path)


@CHECKS.add("path_spaces", "info", "paths with spaces")
def _path_spaces(scan: Scan) -> Iterator[Hit]:
    for path in _paths(scan):
        if any(letter.isspace() for letter in within(path, scan.root)):
            yield Hit("its path has spaces, at which scripts stumble", path)


def _paths(scan: Scan) -> Iterator[Path]:
    yield from scan.pictures
