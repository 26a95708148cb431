"""Data sets in YOLO form: a ``data.yaml`` and one text file of labels per image.

``train``, ``val``, ``test`` of the ``data.yaml`` are each a folder of images (searched through), a
list file with one image per line, or a list of these; ``path`` is their root; ``names`` is a list
or a mapping from 0; ``nc`` may stand beside or, alone, make numbers the names.

A path is sought, in this order: under the root (``path``, itself relative to the folder of the
``data.yaml``); there without leading ``../`` (Roboflow writes ``../train/images`` and means
``train/images``); beside the ``data.yaml``; under the working directory (the published files mean
that). Where there is nothing of that name, backslashes are taken for slashes; and in a list a first
folder that is not there is left out (CVAT writes ``data/images/train/a.jpg`` into an archive that
has no ``data``).

The label file of an image is found by replacing the **last** folder named ``images`` (``Images``,
``IMAGES``) in its path by ``labels``, and the suffix by ``.txt``; else it stands beside the image;
else its name differs only in case, accents or as a URL. (The published code replaces the first
``images``, which goes wrong below a folder of that name.) No label file, or an empty one: the image
shows no object.

A label line is ``class cx cy w h``, a polygon ``class x1 y1 x2 y2 x3 y3 ...`` whose box is its
hull, or, with ``kpt_shape: [K, D]`` in the ``data.yaml``, a box and K keypoints of D numbers,
which are not used. Lines that may be boxes with further columns are refused. All numbers are
fractions of the upright image (EXIF rotation applied).
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from y7edge.data.formats.columns import settle_columns
from y7edge.data.formats.description import read_description, take_names
from y7edge.data.formats.listing import (
    Names,
    Places,
    files_below,
    images_below,
    is_there,
    listed,
    places_of,
    spellings,
    tails,
)
from y7edge.data.formats.records import (
    MOST_LABELS,
    RESPELLED,
    SPLIT_NAMES,
    SPLITS,
    Entry,
    Form,
    Label,
    Scan,
    own_names,
    written_number,
)
from y7edge.data.formats.text import read_text
from y7edge.data.sample import is_image
from y7edge.errors import DataError
from y7edge.files import is_file, is_folder

_YAML_SUFFIXES = (".yaml", ".yml")
_DESCRIBES = re.compile(r"^(?:\{\s*)?['\"]?(train|val|test|names|nc)['\"]?\s*:", re.MULTILINE)
_LABELS = {"images": "labels", "Images": "Labels", "IMAGES": "LABELS"}
Where = tuple[Path, int]


def find(folder: Path) -> Path | None:
    """The ``data.yaml`` of a folder: by that name, else its only yaml file that may be one."""
    for suffix in _YAML_SUFFIXES:
        if is_file(folder / f"data{suffix}"):
            return folder / f"data{suffix}"
    others = [path for path in listed(folder) if path.suffix in _YAML_SUFFIXES]
    # Beside COCO or VOC files there may be a yaml file of any other tool.
    one = len(others) == 1 and _DESCRIBES.search(read_text(others[0]).content)
    return others[0] if one else None


def describe(path: Path, splits: Sequence[str] | None = None) -> Scan:
    """Find the images of a ``data.yaml``: of the splits named, which then must exist, or of all.

    Raises:
        DataError: It cannot be parsed.
        RuntimeMissing: PyYAML is not installed.
    """
    scan = Scan(path, path.parent, "yolo")
    description = read_description(path)
    scan.add_text(description.text)
    take_names(scan, description)
    entries, lines = description.content, description.lines
    scan.keypoints = _pair(scan, entries, lines, "kpt_shape", "[points, 2 or 3]")
    scan.levels = _pair(scan, entries, lines, "levels", "[lowest, highest] of 0 to 65535")
    root = path.parent / str(entries.get("path") or "").replace("\\", os.sep)
    if entries.get("path") and not is_folder(root):
        words = f"'path: {entries['path']}' leads nowhere; entries are sought beside this file"
        scan.problem("path_entry", words, path, lines["path"])
    listing = _Listing(scan, root)
    for split in SPLITS if splits is None else splits:
        key = next((k for k in SPLIT_NAMES.get(split, (split,)) if entries.get(k)), None)
        if key is None:
            if splits is not None:
                there = ", ".join(str(key) for key in entries if key != "names") or "none"
                words = f"expected an entry '{split}', found {there}"
                scan.problem("splits", words, path)
            continue
        if key != split:
            words = f"the entry '{key}' is read as '{split}'; other tools expect that name"
            scan.problem("splits", words, path, lines[key], effect="advice", severity="warning")
        for item in entries[key] if isinstance(entries[key], list) else [entries[key]]:
            # Many files describe a test split that was never downloaded.
            optional = splits is None and split == "test"
            listing.entry(split, str(item), (path, lines[key]), optional=optional)
        if split in scan.members or splits is not None or split != "test":
            scan.split_names.append(split)
    if not scan.split_names:
        scan.problem("splits", "expected an entry 'train' or 'val', found neither", path)
    return scan


def _pair(
    scan: Scan, entries: Mapping[str, Any], lines: Mapping[str, int], key: str, words: str
) -> tuple[int, int] | None:
    """An entry of two numbers, which must make sense."""
    given = entries.get(key)
    texts = given if isinstance(given, list) else []
    numbers = [int(text) for text in texts if re.fullmatch(r"\d{1,5}", str(text))]
    if len(numbers) == len(texts) == 2:
        one, two = numbers
        if (one > 0 and two in (2, 3)) if key == "kpt_shape" else one < two <= 65535:
            return one, two
    if given is not None:
        message = f"expected {key} as {words}, found {str(given)[:40]}"
        scan.problem("names", message, scan.source, lines[key])
    return None


def list_images(path: Path) -> Scan:
    """The images that a list file names, as split train (or val, test if it is named so)."""
    split = next((name for name in SPLITS if name in path.stem.lower()), "train")
    scan = Scan(path, path.parent, "yolo", split_names=[split])
    _Listing(scan, path.parent).list_file(split, path)
    return _undescribed(scan, "expected a data.yaml")


def search_folder(folder: Path) -> Scan:
    """All images below a folder; folders named train, val, test are splits."""
    scan = Scan(folder, folder, "yolo")
    listing = _Listing(scan, folder)
    for image in images_below(scan, folder):
        parts = image.relative_to(folder).parts[:-1]
        named = [split for split in map(own_names, reversed(parts)) if split]
        listing.add(named[0] if named else "train", image)
    scan.split_names = [split for split in SPLITS if scan.in_split(split)]
    return _undescribed(
        scan,
        "expected a data.yaml, or folders images/ and annotations/ (*.xml) with lists train.txt "
        "and val.txt, or train/ and val/ with images and XML files, or "
        "annotations/instances_train2017.json and the like",
    )


def _undescribed(scan: Scan, words: str) -> Scan:
    if not scan.entries:
        raise DataError(f"{scan.source}: {words}, found none of them, and no image")
    words += ", found images only, and no class names"
    scan.problem("undescribed", words, scan.source)
    return scan


class _Listing:
    """Takes images into a scan, each once, by whatever path it is named."""

    def __init__(self, scan: Scan, root: Path) -> None:
        self.scan, self.root = scan, root
        self._known: dict[tuple[str, str], Entry] = {}
        self._folders: dict[Path, str] = {}
        self._places = Places()

    def entry(self, split: str, entry: str, where: Where, *, optional: bool = False) -> None:
        """Take what one entry stands for: a folder's images, a list file's, or the one it names."""
        scan, places = (
            self.scan,
            list(dict.fromkeys(places_of(entry, (self.root, self.scan.root, Path())))),
        )
        path = next(filter(is_there, places), None)
        if path is None and optional:
            words = f"'{split}: {entry}' leads nowhere; download it or remove the entry"
            scan.problem("test_entry", words, *where)
        elif path is None:
            tried = ", ".join(map(str, places))
            words = f"expected a folder or a list file '{entry}', found none: tried {tried}"
            scan.problem("entry", words, *where)
        elif is_folder(path):
            images = images_below(scan, path)
            for image in images:
                self.add(split, image)
            if not images:
                words = f"expected images in '{entry}', found none in {path}"
                scan.problem("entry", words, *where)
        elif path.suffix.lower() == ".txt":
            self.list_file(split, path)
        elif is_image(path):
            self.add(split, path)
        else:
            words = f"expected images in '{entry}', found none in {path}"
            scan.problem("entry", words, *where)

    def list_file(self, split: str, path: Path) -> None:
        """Take the images that a list names, relative to its folder, the root or where we run."""
        scan = self.scan
        text = scan.add_text(read_text(path))
        folders = dict.fromkeys(map(str, (path.parent, self.root, Path())))
        again: dict[str, tuple[str, str]] = {}  # line -> the problem that another such line is
        for number, line in text.lines if text.usable else ():
            if line in again:
                scan.problem(*again[line], path, number)
                continue
            image = self._found(folders, spellings(line))
            if image is None:
                # Tools write a folder that only they have, or the path on another machine.
                cut = tails(line)[1:]
                image = self._found(folders, cut)
                if image is not None and self._found(folders, cut[:1]) is None:
                    words = f"'{line[:80]}' is not there; {image} is taken for it"
                    scan.problem("tool_path", words, path, number)
            if image is None or not is_file(image) or not is_image(image):
                words = f"expected the path of an image, found no file '{line[:80]}'"
                words += "" if image is None or not is_file(image) else " that is one"
                again[line] = "list_entry", f"{words}; remove the line or restore it"
                scan.problem(*again[line], path, number)
                continue
            words = f"{image.name} is listed twice in {split}, it would count double"
            again[line] = "listed_twice", words
            if not self.add(split, image):
                scan.problem(*again[line], path, number)

    def _found(self, folders: Iterable[str], names: Iterable[str]) -> Path | None:
        found = (self._places.find(folder, name) for name in names for folder in folders)
        return next(filter(None, found), None)

    def add(self, split: str, path: Path) -> bool:
        """Take an image; whether it was not in the split yet."""
        folder = path.parent
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        key = (self._folders[folder], path.name)
        return self.scan.add(split, self._known.setdefault(key, Entry(path)))


def label_path(image: Path) -> Path:
    """Where the labels of an image stand (see the module's text for the rule)."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] in _LABELS:
            parts[index] = _LABELS[parts[index]]
            break
    return Path(*parts).with_suffix(".txt")


def read(scan: Scan) -> None:
    """Read the labels of all images."""
    names = Names()
    owners: dict[Path, list[Entry]] = defaultdict(list)
    count = Counter(scan.names)
    known = {name: index for index, name in enumerate(scan.names) if count[name] == 1}
    for entry in scan.entries:
        _find_labels(scan, entry, names)
        if entry.labelled and entry.label_file is not None:
            owners[entry.label_file].append(entry)
    for path, entries in owners.items():
        text = scan.add_text(read_text(path))
        if not text.usable:
            for entry in entries:
                entry.lost = f"its labels cannot be read: {text.error or 'they are not text'}"
            continue
        lines = text.lines
        if len(lines) > MOST_LABELS:
            scan.too_many(entries, path, len(lines))
            continue
        for entry in entries:
            entry.labels = [parse_line(path, n, line, known) for n, line in lines]
        if len(entries) > 1:
            shared = " and ".join(entry.path.name for entry in entries)
            words = f"{shared} share one label file; rename one"
            scan.problem("shared_label", words, entries[1].path, image=entries[1].path)
    settle_columns(scan)
    _find_lost(scan)


def _find_labels(scan: Scan, entry: Entry, names: Names) -> None:
    image = entry.path
    wanted, beside = label_path(image), image.with_suffix(".txt")
    candidates = dict.fromkeys((wanted, beside))
    path = None
    for candidate in candidates:
        scan.watch.note(candidate)
        if os.path.lexists(candidate):
            path = candidate
            break
    if path is None:
        real = Path(os.path.realpath(image.parent)) / image.name  # of a linked folder
        if real.parent != image.parent:
            candidates |= dict.fromkeys((label_path(real), real.with_suffix(".txt")))
        for candidate in candidates:
            scan.watch.note(candidate.parent)
            if (path := names.find(candidate)) is not None:
                break
        if path is not None and path not in candidates:
            words = f"is not found by other tools: call it {wanted.name!a}"
            scan.problem("label_name", words, path, image=image)
    entry.label_file, entry.labelled = path or wanted, path is not None


def _find_lost(scan: Scan) -> None:
    """Note images without labels, and whose labels may stand elsewhere."""
    bare = [entry for entry in scan.entries if not entry.labelled]
    elsewhere: dict[str, Path] = {}
    if bare:
        owned = {entry.label_file for entry in scan.entries if entry.labelled}
        for top in {label_root(e.label_file) for e in scan.entries if e.label_file}:
            if is_folder(top):
                elsewhere |= {p.stem: p for p in files_below(scan, top)
                              if p.suffix.lower() == ".txt" and p not in owned}  # fmt: skip
    for entry in bare:
        shown = os.path.relpath(entry.label_file or entry.path, scan.root)
        words = f"has no {shown}: taken as background; if that is right, make it an empty file"
        if entry.path.stem in elsewhere:
            other = os.path.relpath(elsewhere[entry.path.stem], scan.root)
            entry.lost = f"{other} has its name and no image: move it there?"
            words = f"has no {shown}, but {entry.lost}"
        scan.problem(
            "missing_label", words, entry.path, image=entry.path, doubtful=bool(entry.lost)
        )


def label_root(path: Path) -> Path:
    """The nearest folder called ``labels`` above a label file, else its own folder."""
    return next((p for p in path.parents if p.name in _LABELS.values()), path.parent)


def parse_line(path: Path, number: int, line: str, names: Mapping[str, int]) -> Label:
    """One label line, however wrong; commas and names of one class are understood."""
    plain, named = _respelled(line), False
    tokens = plain.split() or [""]
    first, rest, class_id = tokens[0], tokens[1:], _class(tokens[0])
    if class_id is None and (cut := _name_ends(tokens, names)):
        first, rest, named = " ".join(tokens[:cut]), tokens[cut:], True
        class_id = names[first]
    values: tuple[float, ...] | None
    try:
        values = tuple(map(written_number, rest))
    except ValueError:
        values = None
    form: Form = "polygon" if len(rest) >= 6 and len(rest) % 2 == 0 else "box"
    label = Label(path, number, line, first, class_id, values, form)
    label.named = named
    label.repaired = (
        RESPELLED if plain != line else f"class {first!r} is {class_id}" if named else ""
    )
    return label


def _respelled(line: str) -> str:
    """A line with points in its numbers and spaces between them, if that makes it a label."""
    if ";" in line:
        plain = line.replace(";", " ").replace(",", ".")
    elif "," not in line:
        return line
    else:
        tokens = line.split()
        spaced = "." in line or line.count(",") == 4 > len(tokens)
        spaced = spaced or any(token[-1] == "," for token in tokens)
        plain = line.replace(",", " " if spaced else ".")
    values = [_number(token) for token in plain.split()[1:]]
    usual = len(values) == 4 or (len(values) >= 6 and len(values) % 2 == 0)
    return plain if usual and None not in values else line


def _name_ends(tokens: Sequence[str], names: Mapping[str, int]) -> int:
    """How many of the first tokens are the name of one class, followed by numbers; 0 if none."""
    for cut in range(1, min(len(tokens) - 3, 9)):
        rest = tokens[cut:]
        if " ".join(tokens[:cut]) in names and None not in map(_number, rest):
            return cut
    return 0


def _number(token: str) -> float | None:
    try:
        return written_number(token)
    except ValueError:
        return None


def _class(token: str) -> int | None:
    value = _number(token)
    if value is None or not math.isfinite(value) or value != int(value):
        return None
    return int(value)
