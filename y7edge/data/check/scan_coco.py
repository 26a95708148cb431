"""Scanner for COCO JSON: one file, or a folder with one per split."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from y7edge.data.check.unreferenced import find_strays
from y7edge.data.formats.coco import hull_of, parts_of
from y7edge.data.formats.records import SPLITS, Label, Picture, Scan
from y7edge.data.formats.text import read_text
from y7edge.errors import DataError


def find_files(folder: Path) -> list[Path]:
    """The COCO files of a folder: in it, in ``annotations/``, or in its folders of splits."""
    places = (folder, folder / "annotations", *(p for p in sorted(folder.iterdir()) if p.is_dir()))
    found = [path for place in places if place.is_dir() for path in sorted(place.glob("*.json"))]
    return [path for path in dict.fromkeys(found) if _is_coco(path)]


def _is_coco(path: Path) -> bool:
    # The keys stand at the top level; captions and keypoints have no boxes to look at.
    if re.search(r"caption|keypoint|panoptic|result", path.name):
        return False
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        head = stream.read(1 << 20)
        if path.stat().st_size > len(head):
            stream.seek(-(1 << 16), 2)
            head += stream.read()
    return b'"images"' in head and (b'"annotations"' in head or b'"categories"' in head)


def scan_coco(source: Path) -> Scan:
    """Scan a JSON file or a folder that holds such.

    Raises:
        DataError: No such file, or one is no JSON with images, or leads to no picture.
    """
    files = [source] if source.is_file() else find_files(source)
    if not files:
        raise DataError(f"{source}: expected COCO JSON files, found none")
    root = source if source.is_dir() else source.parent
    if root.name == "annotations":
        root = root.parent
    scan = Scan(source, root, "coco")
    for path in files:
        _file(scan, path, _split(path, alone=len(files) == 1), root)
    if not scan.pictures:
        raise DataError(f"{source}: leads to no picture: looked in {root} and below images/")
    find_strays(scan, lambda _: None)
    return scan


def _split(path: Path, *, alone: bool) -> str:
    for text in (path.stem.lower(), path.parent.name.lower()):
        for split in SPLITS:
            if split in text:
                return split
    return "train" if alone else path.stem


def _file(scan: Scan, path: Path, split: str, root: Path) -> None:
    text = read_text(path)
    scan.texts.append(text)
    try:
        content = json.loads(text.content.lstrip("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected COCO JSON, cannot read it: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError(f"{path}: expected COCO JSON with a list of images")
    scan.split_names.append(split)
    classes = _categories(scan, content.get("categories"), path)
    pictures = _images(scan, content["images"], path, split, root)
    entries = content.get("annotations")
    if not isinstance(entries, list):
        for known in filter(None, pictures.values()):
            known.lost = "there is no list of annotations"
    seen: Counter[str] = Counter()
    for index, entry in _entries(scan, entries, path, "annotations"):
        item = f"annotation {entry.get('id', f'number {index}')}"
        if "id" in entry:
            seen[str(entry["id"])] += 1
            if seen[str(entry["id"])] == 2:
                scan.trouble("ids", f"{item}: its id stands more than once; number them anew", path)
        picture = pictures.get(str(entry.get("image_id")), _NOWHERE)
        if picture is _NOWHERE:
            words = f"{item}: image_id {entry.get('image_id')!r} is that of no image"
            scan.trouble("orphan_label", f"{words}; correct or remove it", path)
        elif picture is not None:
            picture.labels.append(_label(scan, entry, item, path, classes))


_NOWHERE = Picture(Path())


def _entries(scan: Scan, value: Any, path: Path, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    if not isinstance(value, list):
        scan.trouble("annotation", f"there is no list '{key}'", path)
        return
    for index, entry in enumerate(value):
        if isinstance(entry, dict):
            yield index, entry
        else:
            scan.trouble("annotation", f"{key}[{index}] is no object: {str(entry)[:40]}", path)


def _categories(scan: Scan, value: Any, path: Path) -> dict[str, int]:
    """Index into the names by category id; ids may have gaps, and names unite the files."""
    found: dict[str, int] = {}
    for _, entry in _entries(scan, value, path, "categories"):
        name, number = str(entry.get("name") or "").strip(), str(entry.get("id"))
        if number in found:
            both = f"{scan.names[found[number]]!r} and {name!r}"
            words = f"category id {number} stands more than once, for {both}: number them anew"
            scan.trouble("ids", words, path)
            continue
        own = [scan.names[index] for index in found.values()]
        if name not in scan.names or name in own:
            scan.names.append(name)
            found[number] = len(scan.names) - 1
        else:
            found[number] = scan.names.index(name)
    return found


def _images(
    scan: Scan, entries: list[Any], path: Path, split: str, root: Path
) -> dict[str, Picture | None]:
    found: dict[str, Picture | None] = {}
    doubled: dict[str, list[Picture | None]] = {}
    folder: Path | None = None
    for index, entry in _entries(scan, entries, path, "images"):
        number = str(entry.get("id"))
        name = entry.get("file_name")
        if number in found:
            words = f"image id {number} stands more than once: whose are its annotations?"
            scan.trouble("ids", f"{words} Number the images anew", path)
            doubled.setdefault(number, []).append(found[number])
        if not isinstance(name, str) or not name:
            scan.trouble("annotation", f"images[{index}] has no file_name", path)
            found[number] = None
            continue
        places = _places(name.replace("\\", "/"), path, root, split)
        if folder is not None:
            places.insert(0, folder / name)
        image = next((place for place in places if place.is_file()), None)
        if image is None:
            words = f"image {number}: there is no picture '{name}'; remove the entry or restore it"
            scan.trouble("list_entry", words, path)
            found[number] = None
            continue
        if image.name == name:
            folder = image.parent
        picture = scan.pictures.setdefault(image, Picture(image))
        if split in picture.splits:
            scan.trouble("listed_twice", f"image {number}: '{name}' has two entries", path)
        picture.splits.append(split)
        picture.label_file, picture.listed = path, (path, 0)
        picture.stated = _size(entry)
        scan.folders |= {image.parent, path.parent}
        found[number] = picture
    for number, others in doubled.items():
        # Of a broken entry nobody knows which picture it is, so it is another one.
        sharing = {id(picture): picture for picture in (*others, found[number])}
        for picture in filter(None, sharing.values() if len(sharing) > 1 else ()):
            picture.lost = f"its image id {number} is that of another picture too"
    return found


def _places(name: str, path: Path, root: Path, split: str) -> list[Path]:
    year = re.sub(r"^instances_", "", path.stem)
    folders = [path.parent, root / "images" / split, root / "images" / year, root / "images"]
    folders += [root / split, root / year, root, root / "data", root / f"{split}2017"]
    return [folder / text for folder in folders for text in dict.fromkeys((name, Path(name).name))]


def _size(entry: dict[str, Any]) -> tuple[float, float] | None:
    width, height = _number(entry.get("width")), _number(entry.get("height"))
    return None if width is None or height is None else (width, height)


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _label(
    scan: Scan, entry: dict[str, Any], item: str, path: Path, classes: dict[str, int]
) -> Label:
    box = entry.get("bbox")
    numbers = [_number(value) for value in box] if isinstance(box, list) else []
    whole = tuple(n for n in numbers if n is not None)
    category = str(entry.get("category_id"))
    return Label(
        file=path,
        line=0,
        text=f"category {category} bbox {box}"[:120],
        raw_class=category,
        class_id=classes.get(category),
        values=whole if len(whole) == len(numbers) else None,
        form="sides",
        item=item,
        outline=_outline(entry.get("segmentation")),
        hull=_hull(entry.get("segmentation")),
        crowd=bool(entry.get("iscrowd")),
    )


def _outline(value: Any) -> tuple[float, ...]:
    """The only polygon of an object; of several, or run lengths, the box has to do."""
    if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], list):
        return ()
    numbers = [_number(number) for number in value[0]]
    whole = tuple(n for n in numbers if n is not None and math.isfinite(n))
    return whole if len(whole) == len(numbers) and len(whole) % 2 == 0 and len(whole) >= 6 else ()


def _hull(value: Any) -> tuple[float, ...]:
    """The box around all parts of an outline; none of what is no outline."""
    try:
        parts = parts_of(value)
    except (ValueError, TypeError, OverflowError):
        return ()
    return hull_of(parts) if parts else ()
