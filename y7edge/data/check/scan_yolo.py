"""Scanner for YOLO data: a ``data.yaml``, a list of pictures, or a folder of them.

It follows the rules of `y7edge.data.formats.yolo` for where things are, and continues where that
stops.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from y7edge.data.check.label_files import Listing, read_labels
from y7edge.data.check.paths import readable
from y7edge.data.check.unreferenced import files_below, find_strays
from y7edge.data.formats.description import read_description, take_names
from y7edge.data.formats.records import SPLITS, Picture, Scan
from y7edge.data.formats.text import read_text
from y7edge.data.formats.yolo import inner_path, label_path
from y7edge.data.sample import is_image
from y7edge.errors import DataError

_OTHER_NAMES = {"valid": "val", "validation": "val", "training": "train", "testing": "test"}


def scan_description(path: Path) -> Scan:
    """Scan what a ``data.yaml`` describes.

    Raises:
        DataError: It cannot be parsed, or leads to no picture at all.
        RuntimeMissing: PyYAML is not installed.
    """
    scan = Scan(path, path.parent, "yolo")
    description = read_description(path)
    scan.texts.append(description.text)
    take_names(scan, description)
    entries = description.entries
    root = path.parent / str(entries.get("path") or "").replace("\\", os.sep)
    if entries.get("path") and not root.is_dir():
        words = f"'path: {entries['path']}' leads nowhere; entries are sought beside this file"
        scan.trouble("path_entry", words, path, description.lines["path"])
    for split in SPLITS:
        entry = entries.get(split)
        if not entry:
            continue
        scan.split_names.append(split)
        for item in entry if isinstance(entry, list) else [entry]:
            line = description.lines.get(split, 0)
            _entry(scan, split, str(item), root, (path, line))
    for split in _OTHER_NAMES:
        if split in entries and _OTHER_NAMES[split] not in entries:
            message = f"the entry '{split}' is not read; call it '{_OTHER_NAMES[split]}'"
            scan.trouble("splits", message, path, description.lines[split])
    if not scan.pictures:
        troubles = "; ".join(t.message for t in scan.troubles if t.check == "entry")
        raise DataError(f"{path}: leads to no picture: {troubles or 'no train, no val'}")
    _finish(scan)
    return scan


def scan_list(path: Path) -> Scan:
    """Scan the pictures that a list file names, as split train (or val, test if it is named so)."""
    split = next((name for name in SPLITS if name in path.stem.lower()), "train")
    scan = Scan(path, path.parent, "yolo", split_names=[split])
    _list(scan, split, path, path.parent)
    if not scan.pictures:
        raise DataError(f"{path}: expected the paths of pictures, one per line, found none")
    _finish(scan)
    return scan


def scan_folder(folder: Path) -> Scan:
    """Scan all pictures below a folder; folders named train, val, test are splits."""
    scan = Scan(folder, folder, "yolo")
    for image in sorted(filter(is_image, files_below(scan, folder))):
        parts = [_OTHER_NAMES.get(part.lower(), part.lower()) for part in image.parts]
        split = next((name for name in SPLITS if name in parts), "train")
        _add(scan, split, image)
    if not scan.pictures:
        raise DataError(
            f"{folder}: expected a data.yaml, a COCO JSON file, a Pascal VOC folder or pictures, "
            "found none of them"
        )
    scan.split_names = [s for s in SPLITS if scan.in_split(s)]
    scan.trouble("splits", "no data.yaml here: class names are unknown, so are ids beyond", folder)
    _finish(scan)
    return scan


def _finish(scan: Scan) -> None:
    listing = Listing()
    for picture in scan.pictures.values():
        read_labels(scan, picture, listing)
    find_strays(scan, label_path, ".txt")
    bare: dict[str, list[Picture]] = defaultdict(list)
    for picture in scan.pictures.values():
        if not picture.labelled:
            bare[picture.path.stem].append(picture)
    for path in scan.orphan_labels:
        for picture in bare.get(path.stem, ()):
            shown = readable(path, scan.root)
            picture.lost = f"{shown} has its name and no picture: move it there?"


def _entry(scan: Scan, split: str, entry: str, root: Path, where: tuple[Path, int]) -> None:
    path = locate(entry, (root, scan.root, Path()))
    if path is None:
        words = f"'{split}: {entry}' leads nowhere; correct the path"
        scan.trouble("entry" if split != "test" else "test_entry", words, *where)
        return
    if path.is_dir():
        before = len(scan.pictures)
        found = sorted(filter(is_image, files_below(scan, path)))
        for image in found:
            _add(scan, split, image)
        if not found and len(scan.pictures) == before:
            scan.trouble("entry", f"'{split}: {entry}' is a folder without pictures", *where)
    elif path.suffix.lower() == ".txt":
        _list(scan, split, path, root)
    elif is_image(path):
        _add(scan, split, path)
    else:
        scan.trouble("entry", f"'{split}: {entry}' is neither folder, list nor picture", *where)


def _list(scan: Scan, split: str, path: Path, root: Path) -> None:
    text = read_text(path)
    scan.texts.append(text)
    if text.error:
        scan.trouble("entry", f"the list cannot be read: {text.error}", path)
    for number, line in text.lines:
        places = (path.parent, root, Path())
        image = locate(line, places, climb=False) or locate(inner_path(line), places, climb=False)
        if image is None or not image.is_file():
            words = f"'{line[:80]}' leads to no picture; remove the line or restore the file"
            scan.trouble("list_entry", words, path, number)
        elif not is_image(image):
            scan.trouble("list_entry", f"'{line[:80]}' is no picture", path, number)
        else:
            _add(scan, split, image, (path, number))


def _add(scan: Scan, split: str, path: Path, listed: tuple[Path, int] | None = None) -> None:
    path = Path(os.path.normpath(path))  # `a/../b` and `b` are one picture
    picture = scan.pictures.setdefault(path, Picture(path))
    if listed is not None and split in picture.splits:
        words = f"{path.name} is listed twice in {split}, it would count double"
        scan.trouble("listed_twice", words, *listed)
    if listed is not None or split not in picture.splits:
        picture.splits.append(split)
    picture.listed = listed
    scan.folders.add(path.parent)


def locate(entry: str, folders: Iterable[Path], *, climb: bool = True) -> Path | None:
    """The first of the places that a path in a file may mean where there is something."""
    spellings = dict.fromkeys((entry.strip(), entry.strip().replace("\\", "/")))
    for spelling in spellings:
        stripped = spelling
        while climb and stripped.startswith("../"):
            stripped = stripped[3:]
        for folder in folders:
            for text in dict.fromkeys((spelling, stripped)):
                try:
                    if (folder / text).exists():
                        return folder / text
                except (OSError, ValueError):  # a name that is too long or otherwise impossible
                    continue
    return None
