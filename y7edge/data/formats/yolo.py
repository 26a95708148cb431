"""Read YOLO data sets: a ``data.yaml`` and a text file of labels per image.

Entries of the ``data.yaml``:

* ``train``, ``val``, ``test``: a folder of images at any depth, a list file with one image per
  line, or a list of these;
* ``path``: the root of these paths, relative to the folder of the ``data.yaml``;
* ``names``: a list, or a mapping from 0; ``nc``: the number of classes. One of the two is enough.

Paths are searched for in this order: below the root; below the root without leading ``../``
(Roboflow); beside the ``data.yaml``; below the working directory (published files). If a path does
not exist, backslashes are read as slashes. In list files, leading folders that do not exist are
removed (CVAT writes ``data/images/train/a.jpg`` into archives without a folder ``data``).

The path of a label file is the path of its image with the **last** folder ``images`` (``Images``,
``IMAGES``) replaced by ``labels`` and the suffix by ``.txt``. (The published code replaces the
first ``images``, which fails if a parent folder has this name.) If there is no such file, a label
file beside the image is used; if there is none either, one whose name is spelled differently (case,
accents, URL encoding). An image without a label file, or with an empty one, is a background image.

A label line is a box ``class cx cy w h`` or a polygon ``class x1 y1 x2 y2 x3 y3 ...``. With
``kpt_shape: [K, D]`` in the ``data.yaml``, a line is a box and K keypoints of D numbers, and the
keypoints are not used. Other boxes with extra columns are refused. All numbers are normalized by
the size of the upright image (EXIF rotation applied).
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from y7edge.data.formats.columns import classify_columns
from y7edge.data.formats.description import read_description, take_names
from y7edge.data.formats.listing import (
    Names,
    Places,
    files_below,
    images_below,
    listed,
    places_of,
    spellings,
    tails,
)
from y7edge.data.formats.records import (
    HOW_TO_SPLIT,
    MOST_LABELS,
    RESPELLED,
    SPLIT_NAMES,
    SPLITS,
    Entry,
    Form,
    Label,
    Scan,
    split_named,
    written_numbers,
)
from y7edge.data.formats.text import read_text
from y7edge.data.sample import is_image
from y7edge.errors import DataError
from y7edge.files import is_file, is_folder

_YAML_SUFFIXES = (".yaml", ".yml")
_DESCRIBES = re.compile(r"^(?:\{\s*)?['\"]?(train|val|test|names|nc)['\"]?\s*:", re.MULTILINE)
_LABELS = {"images": "labels", "Images": "Labels", "IMAGES": "LABELS"}
Where = tuple[Path, int]  # a file, and a line from 1


def find(folder: Path) -> Path | None:
    """Return the ``data.yaml`` of a folder, or its only YAML file if that describes a data set."""
    for suffix in _YAML_SUFFIXES:
        if is_file(folder / f"data{suffix}"):
            return folder / f"data{suffix}"
    others = [path for path in listed(folder) if path.suffix in _YAML_SUFFIXES]
    # A YAML file beside COCO or VOC files may belong to another tool.
    one = len(others) == 1 and _DESCRIBES.search(read_text(others[0]).content)
    return others[0] if one else None


def describe(path: Path, splits: Sequence[str] | None = None) -> Scan:
    """Find the images that a ``data.yaml`` describes.

    ``splits`` are the splits to read, which must exist; None reads all splits found.

    Raises:
        DataError: The file cannot be parsed.
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
        words = f"'path: {entries['path']}' does not exist; paths are read relative to this file"
        scan.problem("path_entry", words, path, lines["path"])
    listing = _Listing(scan, root)
    for split in SPLITS if splits is None else splits:
        key = next((k for k in SPLIT_NAMES.get(split, (split,)) if entries.get(k)), None)
        if key is None:
            if splits is not None:
                there = ", ".join(str(key) for key in entries if key != "names") or "none"
                words = f"expected an entry '{split}', found {there}{HOW_TO_SPLIT.get(split, '')}"
                scan.problem("splits", words, path)
            continue
        if key != split:
            words = f"the entry '{key}' is read as '{split}'; rename it for other tools"
            scan.problem("splits", words, path, lines[key], effect="advice", severity="warning")
        for item in entries[key] if isinstance(entries[key], list) else [entries[key]]:
            # Many data sets are distributed without the test split that they describe.
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
    """Return the two numbers of the entry ``key``, or None; record a problem if it is invalid.

    ``words`` describes the expected entry in the message.
    """
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
    """Find the images of a list file. The split is in the file's name, else it is ``train``."""
    split = next((name for name in SPLITS if name in path.stem.lower()), "train")
    scan = Scan(path, path.parent, "yolo", split_names=[split])
    _Listing(scan, path.parent).list_file(split, path)
    return _undescribed(scan, "expected a data.yaml")


def search_folder(folder: Path) -> Scan:
    """Find all images below a folder; folders named train, val or test are read as splits."""
    scan = Scan(folder, folder, "yolo")
    listing = _Listing(scan, folder)
    for image in images_below(scan, folder):
        parts = image.relative_to(folder).parts[:-1]
        named = [split for split in map(split_named, reversed(parts)) if split]
        listing.add(named[0] if named else "train", image)
    scan.split_names = [split for split in SPLITS if scan.in_split(split)]
    return _undescribed(
        scan,
        "expected a data.yaml, or folders images/ and annotations/ (*.xml) with lists train.txt "
        "and val.txt, or train/ and val/ with images and XML files, or "
        "annotations/instances_train2017.json and the like",
    )


def _undescribed(scan: Scan, words: str) -> Scan:
    """Record that a ``data.yaml`` is missing; raise DataError if there are no images either."""
    if not scan.entries:
        raise DataError(f"{scan.source}: {words}, found none of these and no images")
    words += ", found only images; write a data.yaml with the class names"
    scan.problem("undescribed", words, scan.source)
    return scan


class _Listing:
    """Adds images to a scan, each once, even if different paths lead to it."""

    def __init__(self, scan: Scan, root: Path) -> None:
        self.scan, self.root = scan, root
        self._known: dict[tuple[str, str], Entry] = {}
        self._real = functools.cache(os.path.realpath)
        self._places = Places()

    def entry(self, split: str, entry: str, where: Where, *, optional: bool = False) -> None:
        """Add the images of an entry of the ``data.yaml``: a folder, a list file or an image."""
        scan = self.scan
        places = list(dict.fromkeys(places_of(entry, (self.root, scan.root, Path()))))
        path = next(filter(os.path.exists, places), None)
        if path is None and optional:
            words = f"'{split}: {entry}' does not exist; download it or remove the entry"
            scan.problem("test_entry", words, *where)
        elif path is None:
            tried = ", ".join(map(str, places))
            words = f"expected a folder or a list file '{entry}', found none: tried {tried}"
            scan.problem("entry", words, *where)
        elif path.suffix.lower() == ".txt" and not is_folder(path):
            self.list_file(split, path)
        else:
            images = images_below(scan, path) if is_folder(path) else [*filter(is_image, [path])]
            for image in images:
                self.add(split, image)
            if not images:
                words = f"expected images in '{entry}', found none in {path}"
                scan.problem("entry", words, *where)

    def list_file(self, split: str, path: Path) -> None:
        """Add the images of a list file.

        Paths are relative to the folder of the file, to the root or to the working directory.
        """
        scan = self.scan
        text = scan.add_text(read_text(path))
        folders = dict.fromkeys(map(str, (path.parent, self.root, Path())))
        again: dict[str, tuple[str, str]] = {}  # by line: the problem if the line is repeated
        for number, line in text.lines if text.usable else ():
            if line in again:
                scan.problem(*again[line], path, number)
                continue
            image = self._found(folders, spellings(line))
            if image is None:
                # The line may be a path on another machine, or begin with a folder of a tool.
                cut = tails(line)[1:]
                image = self._found(folders, cut[:1])
                if image is None and (image := self._found(folders, cut[1:])):
                    words = f"'{line[:80]}' was not found; {image} is used"
                    scan.problem("tool_path", words, path, number)
            if image is None or not is_file(image) or not is_image(image):
                found = "no file" if image is None or not is_file(image) else "another file"
                words = f"expected the path of an image, found {found} '{line[:80]}'; "
                again[line] = "list_entry", f"{words}remove the line or restore the image"
                scan.problem(*again[line], path, number)
                continue
            words = f"{image.name} is listed twice in {split}; remove one line"
            again[line] = "listed_twice", words
            if not self.add(split, image):
                scan.problem(*again[line], path, number)

    def _found(self, folders: Iterable[str], names: Iterable[str]) -> Path | None:
        """Return the first path ``folder/name`` that exists, or None."""
        found = (self._places.find(folder, name) for name in names for folder in folders)
        return next(filter(None, found), None)

    def add(self, split: str, path: Path) -> bool:
        """Add an image to a split; return False if the split contains it already."""
        key = (self._real(path.parent), path.name)
        return self.scan.add(split, self._known.setdefault(key, Entry(path)))


def label_path(image: Path) -> Path:
    """Return the usual path of the label file of an image: ``labels`` instead of ``images``."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] in _LABELS:
            parts[index] = _LABELS[parts[index]]
            break
    return Path(*parts).with_suffix(".txt")


def read(scan: Scan) -> None:
    """Read the labels of all images of a scan."""
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
    classify_columns(scan)
    _find_lost(scan)


def _find_labels(scan: Scan, entry: Entry, names: Names) -> None:
    """Find the label file of an image; record a problem if its name is not exactly as expected."""
    image = entry.path
    wanted, beside = label_path(image), image.with_suffix(".txt")
    candidates = dict.fromkeys((wanted, beside))
    path = None
    for candidate in candidates:
        scan.watch(candidate)
        if os.path.lexists(candidate):
            path = candidate
            break
    if path is None:
        real = Path(os.path.realpath(image.parent)) / image.name  # if the folder is a link
        if real.parent != image.parent:
            candidates |= dict.fromkeys((label_path(real), real.with_suffix(".txt")))
        for candidate in candidates:
            scan.watch(candidate.parent)
            if (path := names.find(candidate)) is not None:
                break
        if path is not None and path not in candidates:
            words = f"other tools do not find it: rename it to {wanted.name!a}"
            scan.problem("label_name", words, path, image=image)
    entry.label_file, entry.labelled = path or wanted, path is not None


def _find_lost(scan: Scan) -> None:
    """Record a problem for each image without a label file.

    The message names an unused label file with the same stem, if there is one.
    """
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
        words = f"has no {shown} and is used as background; if this is right, add an empty file"
        if entry.path.stem in elsewhere:
            other = os.path.relpath(elsewhere[entry.path.stem], scan.root)
            entry.lost = f"{other} has the same name and no image; move it if it is the right file"
            words = f"has no {shown}, but {entry.lost}"
        scan.problem(
            "missing_label", words, entry.path, image=entry.path, doubtful=bool(entry.lost)
        )


def label_root(path: Path) -> Path:
    """Return the nearest folder ``labels`` above a label file, else its own folder."""
    return next((p for p in path.parents if p.name in _LABELS.values()), path.parent)


def parse_line(path: Path, number: int, line: str, names: Mapping[str, int]) -> Label:
    """Parse a label line; accept commas between numbers, and class names instead of numbers."""
    plain, named = _respelled(line), False
    tokens = plain.split() or [""]
    first, rest, class_id = tokens[0], tokens[1:], _class(tokens[0])
    if class_id is None and (cut := _name_ends(tokens, names)):
        first, rest, named = " ".join(tokens[:cut]), tokens[cut:], True
        class_id = names[first]
    values = written_numbers(rest)
    form: Form = "polygon" if len(rest) >= 6 and len(rest) % 2 == 0 else "box"
    repaired = RESPELLED if plain != line else f"class {first!r} is {class_id}" if named else ""
    return Label(path, number, line, first, class_id, values, form, named=named, repaired=repaired)


def _respelled(line: str) -> str:
    """Replace commas and semicolons by points and spaces if the result is a valid label."""
    if ";" in line:
        plain = line.replace(";", " ").replace(",", ".")
    elif "," not in line:
        return line
    else:
        tokens = line.split()
        spaced = "." in line or line.count(",") == 4 > len(tokens)
        spaced = spaced or any(token[-1] == "," for token in tokens)
        plain = line.replace(",", " " if spaced else ".")
    values = written_numbers(plain.split()[1:]) or ()
    usual = len(values) == 4 or (len(values) >= 6 and len(values) % 2 == 0)
    return plain if usual else line


def _name_ends(tokens: Sequence[str], names: Mapping[str, int]) -> int:
    """Return the number of tokens in the class name at the start of a line; 0 if there is none.

    The name has at most eight tokens. All tokens after it are numbers, at least four.
    """
    for cut in range(1, min(len(tokens) - 3, 9)):
        rest = tokens[cut:]
        if " ".join(tokens[:cut]) in names and written_numbers(rest) is not None:
            return cut
    return 0


def _class(token: str) -> int | None:
    """Return the class number, also of ``1.0``; None if it is not a whole number."""
    (value,) = written_numbers([token]) or (math.nan,)
    return int(value) if math.isfinite(value) and value == int(value) else None
