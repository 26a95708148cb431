"""Read COCO data sets: a JSON file per split with ``images``, ``annotations``, ``categories``.

Layouts: ``annotations/instances_train2017.json`` (and ``val``) with ``train2017/`` or
``images/train2017/``; ``train.json`` and ``val.json`` with ``train/`` or ``images/``;
``train/_annotations.coco.json`` beside its images (Roboflow); or a single file, which is read as
the requested split.

Class indices follow the order of the category ids in the first file; ids may have gaps. The other
files must have the same categories, which are matched by name. `Dataset.category_ids` has the ids.

A box is ``[x, y, width, height]`` in pixels of the upright image (EXIF rotation applied). An
outline of several polygons (an object behind a pole) is joined to one polygon by bridges without
area. Outlines as run lengths (RLE) are not read. Crowd regions (``iscrowd``) become `Sample.crowd`.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from reprlib import repr as _brief
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.data.formats.description import check_names
from y7edge.data.formats.listing import Places, is_service, listed, tails
from y7edge.data.formats.records import (
    HOW_TO_SPLIT,
    MOST_LABELS,
    SPLIT_NAMES,
    SPLITS,
    Entry,
    Label,
    Scan,
    split_named,
    written_number,
)
from y7edge.data.formats.text import read_text
from y7edge.files import is_file, is_folder, open_regular

_ROBOFLOW = "_annotations.coco.json"
_OTHER_KINDS = re.compile(r"caption|keypoint|panoptic|stuff_|image_info|result|prediction")
_SPLIT_IN_NAME = re.compile(r"(?:^|[^a-z])(train|valid|val|test)(?:ation|ing)?(?![a-z])")
_LARGEST_FILE = 1 << 30  # bytes; COCO's own training file has 450 MB
_LARGEST = 1e9  # pixels; float64 is exact for the product of two such sides
_WORDS = {"true": True, "false": False, "yes": True, "no": False}


def find_files(folder: Path) -> dict[str, list[Path]]:
    """Return annotation files by split, from the first supported layout that the folder has.

    If no file name contains a split, the files are returned as ``train``.
    """
    folders = [path for path in listed(folder) if not is_service(path.name)]
    layouts = (
        sorted((folder / "annotations").glob("*.json")),
        [path / _ROBOFLOW for path in folders],
        [path for path in sorted(folder.glob("*.json")) if _begins_as_one(path)],
        [p for place in folders for p in sorted(place.glob("*.json")) if _begins_as_one(p)],
    )
    for paths in layouts:
        fitting = [p for p in paths if not p.name.startswith(".") and os.path.lexists(p)]
        instances = [path for path in fitting if path.name.startswith("instances_")]
        others = [path for path in fitting if not _OTHER_KINDS.search(path.name)]
        found: dict[str, list[Path]] = {}
        for path in instances or others:
            inner = path.parent.parent == folder and path.parent.name != "annotations"
            split = _split_of(path) or (split_named(path.parent.name) if inner else None)
            if split is not None:
                found.setdefault(split, []).append(path)
        nameless = [path for path in instances or others if _begins_as_one(path)]
        if found or nameless:
            return {s: found[s] for s in SPLITS if s in found} or {"train": nameless}
    return {}


def _split_of(path: Path) -> str | None:
    """Return the split that the name of an annotation file contains, or None."""
    name = path.parent.name if path.name == _ROBOFLOW else path.stem
    match = _SPLIT_IN_NAME.search(name.lower())
    return None if match is None else split_named(match[1])


def _begins_as_one(path: Path) -> bool:
    """Return whether a file has the keys of a COCO file near its beginning or end."""
    try:
        with open_regular(path) as stream:
            head = stream.read(1 << 20)
            if stream.read(1 << 16):
                stream.seek(-(1 << 16), 2)
                head += stream.read(1 << 16)
    except OSError:
        return False
    return b'"images"' in head and (b'"annotations"' in head or b'"categories"' in head)


def describe(source: Path, splits: Sequence[str] | None = None) -> Scan:
    """Find the annotation files of a data set.

    Args:
        source: A folder in one of the layouts, or one JSON file.
        splits: Splits to read; each must exist. None reads all splits found. For a single file,
            give exactly one split, or None for the split in the file name, else ``train``.
    """
    root = source if is_folder(source) else source.parent
    scan = Scan(source, root.parent if root.name == "annotations" else root, "coco")
    if is_file(source):
        wanted = [_split_of(source) or "train"] if splits is None else list(splits)
        if len(wanted) != 1:
            words = f"expected a folder with one file for each split ({', '.join(wanted)}), found "
            words += "a single file; give the folder, or one split"
            scan.problem("splits", words, source)
        found = {split: [source] for split in wanted}
    else:
        found = find_files(source)
    for split in found if splits is None else splits:
        if split not in found:
            there = ", ".join(found) or "none"
            words = f"expected COCO annotations for the split '{split}', found {there}"
            scan.problem("splits", words + HOW_TO_SPLIT.get(split, ""), source)
            continue
        if len(found[split]) > 1:
            words = f"expected one file for the split '{split}', found "
            words += f"{', '.join(p.name for p in found[split])}; give the one to read"
            scan.problem("splits", words, source)
        scan.split_names.append(split)
        scan.files[split] = found[split][0]
    return scan


def read(scan: Scan) -> None:
    """Read the annotation files of a scan, and find the images that they list."""
    for split, path in scan.files.items():
        scan.watch(path)
        content = _parse(scan, path)
        if content is None:
            continue
        reader = _Reader(scan, split, path)
        classes = reader.categories(content["categories"])
        entries = reader.images(content["images"])
        reader.annotations(content["annotations"], entries, classes)
        if not scan.in_split(split):
            tried = ", ".join(map(str, reader.folders))
            words = f"expected its images, found none of them in {tried}"
            scan.problem("entry", words, path)


def _parse(scan: Scan, path: Path) -> dict[str, list[Any]] | None:
    """Return the lists of a COCO file; None if it cannot be parsed or lacks ``images``."""
    text = scan.add_text(read_text(path, most=_LARGEST_FILE))
    if not text.usable:
        return None
    try:
        content = json.loads(text.content)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        scan.problem("annotation", f"expected COCO annotations, cannot read it: {reason}", path)
        return None
    lists: dict[str, list[Any]] = {}
    for key in ("images", "annotations", "categories"):
        found = content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, list):
            words = f"expected COCO annotations with a list '{key}', found none"
            scan.problem("annotation", words, path)
            if key == "images":
                return None
            found = []
        lists[key] = [item for item in found if isinstance(item, dict)]
        for item in [item for item in found if not isinstance(item, dict)][:1]:
            words = f"expected objects in the list '{key}', found {_brief(item)}"
            scan.problem("annotation", words, path)
    return lists


def number_of(value: Any) -> float | None:
    """Convert a number or a string to float; return None if it is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return written_number(value) if isinstance(value, str) else float(value)
    except (ValueError, OverflowError):
        return None


def _key(value: Any) -> Any:
    """Convert an id so that ``7``, ``7.0`` and ``"7"`` are equal; return None if it is invalid."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,30}", value.strip()):
        return int(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value


class _Reader:
    """Reads the lists of one COCO file into a scan."""

    def __init__(self, scan: Scan, split: str, path: Path) -> None:
        self.scan, self.split, self.path = scan, split, path
        self.folders = _folders(path, split, scan.root)
        self._texts: set[str] = set()
        self._places = Places()

    def _problem(self, check: str, words: str, **other: Any) -> None:
        self.scan.problem(check, words, self.path, **other)

    def _number(self, value: Any, what: str) -> float | None:
        """Convert a value by `number_of`.

        If the value is a number written as text, report it as a problem, but only once for each
        ``what`` (the name of the value in the message).
        """
        if isinstance(value, str) and what not in self._texts and number_of(value) is not None:
            self._texts.add(what)
            self._problem("text_number", f"{what} is written as text, {_brief(value)}")
        return number_of(value)

    def _id(self, value: Any, what: str) -> Any:
        """Convert an id by `_key`; report an id written as text as `_number` does."""
        if isinstance(value, str) and isinstance(_key(value), int):
            self._number(value, what)
        return _key(value)

    def categories(self, items: Sequence[Any]) -> dict[Any, int]:
        """Read the categories; return class indices by category id."""
        named: dict[Any, tuple[str, Any]] = {}
        for item in items:
            number, name = self._id(item.get("id"), "a category's id"), item.get("name")
            if isinstance(name, int | float) and not isinstance(name, bool):
                name = str(name)
            if number is None or isinstance(number, str) or not isinstance(name, str):
                words = "expected categories with a whole number as id and a name, found "
                self._problem("names", f"{words}{_brief(item.get('id'))} and {_brief(name)}")
            elif number in named:
                words = f"expected each category id once, found {number} again, "
                both = f"for {named[number][0]!r} and {name!r}"
                self._problem("ids", f"{words}{both}; renumber them")
            else:
                named[number] = (name, item.get("id"))
        if not named:
            self._problem("names", "expected categories, found none")
        parents = {str(item.get("supercategory")) for item in items}
        tops = {_key(i.get("id")) for i in items if i.get("supercategory") == "none"}
        order = sorted(named)
        # Roboflow adds a category that is only the supercategory of others; a file may lack it.
        keys = _keys([(named[n][0], n in tops and named[n][0] in parents) for n in order])
        scan = self.scan
        if not scan.category_ids:
            scan.names = [named[number][0] for number in order]
            scan.groups = {index for index, key in enumerate(keys) if key[1]}
            check_names(scan, self.path)
        whole = _keys([(name, index in scan.groups) for index, name in enumerate(scan.names)])
        if other := {key[0] for key in {*keys} ^ {*whole} if not key[1]}:
            words = f"expected the categories of the other splits, {_brief(scan.names)}, found "
            words += f"{_brief([key[0] for key in keys])}; differs: {_brief(other)}"
            self._problem("names", words)
        known = {key: index for index, key in enumerate(whole)}
        ids = {known[key]: n for key, n in zip(keys, order, strict=True) if key in known}
        scan.category_ids[self.split] = tuple(
            named[ids[index]][1] if index in ids else None for index in range(len(scan.names))
        )
        return {number: index for index, number in ids.items()}

    def images(self, items: Sequence[Any]) -> dict[Any, Entry | None]:
        """Read the images; return entries by image id, None for images whose file is missing."""
        by_file: dict[Path, Entry] = {}
        by_id: dict[Any, Entry | None] = {}
        names: dict[Any, str] = {}
        written: dict[Path, list[str]] = {}
        last: tuple[Path, int] | None = None
        for item in items:
            number, name = self._id(item.get("id"), "an image's id"), item.get("file_name")
            entry = None
            if number is None:
                words = f"expected images with an id, found {_brief(item.get('id'))}"
                self._problem("annotation", words)
            found, last = self._find(name, number, last)
            if found is not None:
                if found in by_file and tails(str(name)) == written[found]:
                    words = f"image {_brief(number)}: '{name}' has two entries; labels joined"
                    self._problem("listed_twice", words, image=found)
                elif found in by_file:
                    words = f"image {_brief(number)}: '{name}' and another file name both lead to "
                    self._problem("ids", f"{words}{found.name}; correct the file names")
                    by_file[found].lost = "two different file names lead to it"
                else:
                    written[found] = tails(str(name))
                    stated = tuple(self._number(item.get(k), f"an image's {k}")
                                   for k in ("width", "height"))  # fmt: skip
                    by_file[found] = Entry(found, label_file=self.path, stated=_size(*stated))
                    by_file[found].image_id = item.get("id")
                entry = by_file[found]
            if number in by_id and names[number] != str(name):
                words = f"expected each image id once, found {_brief(number)} for "
                words += f"{_brief(names[number])} and {_brief(name)}; renumber the images"
                self._problem("ids", words)
                for one in filter(None, (by_id[number], entry)):
                    one.lost = f"another image has the same id {_brief(number)}"
            elif number is not None:
                by_id.setdefault(number, entry)
                names.setdefault(number, str(name))
        for one in by_file.values():
            self.scan.add(self.split, one)
        return by_id

    def _find(
        self, name: object, number: Any, last: tuple[Path, int] | None
    ) -> tuple[Path | None, tuple[Path, int] | None]:
        """Find the file of an image with the file name ``name`` and the id ``number``.

        Return the path and the place of the file. The place is the folder in which the file was
        found, and the number of leading folders that were cut from the name. ``last`` is the place
        of the previous image and is tried first. If the file is missing, return None and ``last``.
        """
        text = name if isinstance(name, str) else ""
        found = tails(text)
        places = ((folder, depth) for depth in range(len(found)) for folder in self.folders)
        for folder, depth in chain([last] if last and last[1] < len(found) else [], places):
            path = self._places.find(folder, found[depth]) if found[depth] else None
            if path is not None and is_file(path):
                if depth:
                    words = f"'{text[:80]}' was not found; {path.name} is used"
                    self._problem("tool_path", words, image=path)
                return path, (folder, depth)
        label = f"image {_brief(number)}: expected "
        if not any(found) or not found[0]:
            words = f"{label}a file name inside the image folder, found {_brief(name)}"
            self._problem("annotation", words)
        else:
            for folder in self.folders:
                self.scan.watch(folder / found[0])
            words = f"{label}an image '{text[:80]}', found none; remove the entry or add the image"
            self._problem("list_entry", words, effect="changed")
        return None, last

    def annotations(
        self, items: Sequence[Any], entries: Mapping[Any, Entry | None], classes: Mapping[Any, int]
    ) -> None:
        """Read the annotations and add them to their images."""
        seen: Counter[str] = Counter()
        for index, item in enumerate(items):
            called = f"annotation {_brief(item['id']) if 'id' in item else f'number {index}'}"
            if "id" in item:
                key = str(item["id"])
                seen[key] += 1
                if seen[key] == 2:
                    words = f"{called}: its id is used more than once; renumber the annotations"
                    self._problem("ids", words, effect="advice")
            number = self._id(item.get("image_id"), "an annotation's image_id")
            if number is None or number not in entries:
                words = f"{called}: expected the id of an image as image_id, found "
                words += f"{_brief(item.get('image_id'))}; correct or remove it"
                self._problem("unreferenced_label", words)
                continue
            label = self._label(item, called, classes)
            entry = entries[number]
            if entry is not None:
                entry.labels.append(label)
        for entry in self.scan.in_split(self.split):
            if len(entry.labels) > MOST_LABELS:
                self.scan.too_many([entry], self.path, len(entry.labels))

    def _label(self, item: Any, called: str, classes: Mapping[Any, int]) -> Label:
        """Convert an annotation to a label; ``called`` is its name in messages."""
        category = self._id(item.get("category_id"), "an annotation's category_id")
        box = item.get("bbox")
        numbers = [self._number(v, "a bbox") for v in box] if isinstance(box, list) else []
        values = None if None in numbers else tuple(n for n in numbers if n is not None)
        crowd = item.get("iscrowd")
        if isinstance(crowd, str):
            self._number(crowd if number_of(crowd) is not None else "0", "iscrowd")
            crowd = _WORDS.get(crowd.strip().lower(), number_of(crowd))
            if crowd is None:
                words = f"{called}: expected iscrowd 0 or 1, found {_brief(item['iscrowd'])}"
                self._problem("number", words)
        class_id = None if category is None else classes.get(category)
        name, outline = _brief(item.get("category_id")), item.get("segmentation")
        return Label(
            self.path, 0, item, name, class_id, values, "sides", called, outline, bool(crowd)
        )


def _keys(names: Sequence[tuple[str, bool]]) -> list[tuple[str, bool, int]]:
    """Return a unique key for each pair of name and group flag: the pair and a counter."""
    count: Counter[tuple[str, bool]] = Counter()
    found = []
    for key in names:
        found.append((*key, count[key]))
        count[key] += 1
    return found


def _size(width: float | None, height: float | None) -> tuple[float, float] | None:
    """Return the stated size, None if invalid; zeros are kept, because they are reported later."""
    if width is None or height is None or not (0 <= width < _LARGEST and 0 <= height < _LARGEST):
        return None
    return width, height


def _folders(path: Path, split: str, root: Path) -> list[Path]:
    """Return the existing folders that may contain the images of an annotation file, best first."""
    if path.name == _ROBOFLOW:
        return [path.parent]
    name = path.stem.removeprefix("instances_")
    bases = [path.parent]
    if path.parent.name.lower() == "annotations":
        bases.insert(0, path.parent.parent)
    elif root != path.parent:
        bases.append(root)
    also = [*SPLIT_NAMES.get(split, (split,)), f"{split}2017"]
    places = [name, f"images/{name}", *also, *(f"images/{one}" for one in also), "images", "data"]
    folders = dict.fromkeys(base / place for base in bases for place in (*places, "."))
    return [folder for folder in folders if is_folder(folder)]


def parts_of(segmentation: object) -> list[NDArray[np.float64]]:
    """Return the polygons (k, 2) of a ``segmentation``; an empty list for run lengths (RLE).

    Raises:
        ValueError, TypeError, OverflowError: A part is not a list of points.
    """
    if not isinstance(segmentation, list):
        return []
    parts = [np.array(part, np.float64).reshape(-1, 2) for part in segmentation]
    return [part for part in parts if len(part) >= 3]


def hull_of(parts: Sequence[NDArray[np.float64]]) -> tuple[float, ...]:
    """Return the bounding box x1, y1, x2, y2 of polygons (k, 2); NaN if a point is NaN."""
    points = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the IoU of two boxes x1, y1, x2, y2; 1 if both have no area."""
    shared = max(min(one[2], other[2]) - max(one[0], other[0]), 0.0)
    shared *= max(min(one[3], other[3]) - max(one[1], other[1]), 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    union = sum(areas) - shared
    return shared / union if union else 1.0


def join(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Join polygons into one polygon (k, 2).

    The outline leads from one polygon to the next on a straight line, and returns on the same line.
    Filled by the even-odd rule, the polygon covers the same area as the parts, if the parts do not
    overlap. The time is linear in the number of points.
    """
    if len(parts) == 1:
        return parts[0]
    walk, landings = [], []
    near = parts[1].mean(axis=0)
    for part in parts:
        start = int(((part - near) ** 2).sum(axis=1).argmin())
        near = part[start]
        walk.append(np.roll(part, -start, axis=0))
        walk.append(near[None])
        landings.append(near)
    back = landings[-2:0:-1]
    return np.concatenate((*walk, np.array(back).reshape(-1, 2)))
