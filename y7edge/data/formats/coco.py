"""Data sets in COCO form: one JSON file per split with ``images``, ``annotations``, ``categories``.

Layouts: ``annotations/instances_train2017.json`` (and ``val``) with ``train2017/`` or
``images/train2017/``; ``train.json`` and ``val.json`` with ``train/`` or ``images/``;
``train/_annotations.coco.json`` beside its pictures (Roboflow); or the path of one file, which then
is the split asked for.

Category ids may have gaps, as the published ones do (80 classes, ids to 90): classes are numbered
in the order of the ids, and named as the file names them. All files of a data set must agree.

A box is ``[x, y, width, height]`` in pixels of the upright picture (EXIF rotation applied). Where
an outline has several parts (an object behind a pole), they are joined by bridges without area, so
that its hull is that of the whole object; outlines as run lengths (RLE) are left out. Crowd regions
(``iscrowd``) are kept apart in `Sample.crowd`.
"""

from __future__ import annotations

import json
import posixpath
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.data.headers import label_size
from y7edge.data.sample import Plan, Reading, Sample, Tally, Watch, crowd_rows, sample
from y7edge.errors import DataError

_SPLITS = ("train", "val", "test")
_ROBOFLOW = "_annotations.coco.json"
_OTHER_KINDS = ("captions_", "panoptic_", "person_keypoints_", "stuff_", "image_info_")
_SPLIT_IN_NAME = re.compile(r"(?:^|[^a-z])(train|valid|val|test)(?:ation|ing)?(?![a-z])")

# An outline that shares less than this of its hull with its box belongs to something else.
SAME_EXTENT = 0.5
_LARGEST = 1e9  # pixels; no picture is as wide, and the product of two is still exact


def is_coco(folder: Path) -> bool:
    """Whether the folder has annotation files of COCO kind whose names tell their split."""
    return bool(_find(folder))


def plan(source: Path, splits: Sequence[str] | None = None) -> Plan:
    """Find the annotation files of a folder: of the splits named, which then must exist, or of all.

    Reading the plan raises a DataError that names the file and the id of what is wrong.

    Args:
        source: A folder in one of the layouts, or one JSON file.
        splits: Only these. A single file is read as the one split named, or, if None, as the one
            that its name tells, else ``train``.

    Raises:
        DataError: A split is missing, or several files claim to be the same.
    """
    files = {split: paths[0] for split, paths in _chosen(source, splits).items()}
    return Plan(
        tuple(f"{split}\t{path}" for split, path in files.items()), lambda: _read(source, files)
    )


def _chosen(source: Path, splits: Sequence[str] | None) -> Mapping[str, list[Path]]:
    if source.is_file():
        wanted = [_split_of(source) or "train"] if splits is None else list(splits)
        if len(wanted) != 1:
            raise DataError(
                f"{source}: expected a folder with a file for each of the splits "
                f"{', '.join(wanted)}, found a single file, which can be one of them only"
            )
        return {wanted[0]: [source]}
    found = _find(source)
    if splits is not None:
        missing = next((split for split in splits if split not in found), None)
        if missing is not None:
            raise DataError(
                f"{source}: expected COCO annotations for the split '{missing}', "
                f"found {', '.join(found) or 'none'}"
            )
        found = {split: found[split] for split in splits}
    for split, paths in found.items():
        if len(paths) > 1:
            raise DataError(
                f"{source}: expected one file for the split '{split}', found "
                f"{', '.join(path.name for path in paths)}; name the one that is meant"
            )
    return found


def _find(folder: Path) -> dict[str, list[Path]]:
    """Annotation files by split, in the order of the splits; of the first layout that fits."""
    layouts = (
        sorted((folder / "annotations").glob("*.json")),
        sorted(folder.glob(f"*/{_ROBOFLOW}")),
        sorted(folder.glob("*.json")),
    )
    for paths in layouts:
        instances = [path for path in paths if path.name.startswith("instances_")]
        others = [path for path in paths if not path.name.startswith(_OTHER_KINDS)]
        found: dict[str, list[Path]] = {}
        for path in instances or others:
            split = _split_of(path)
            if split is not None:
                found.setdefault(split, []).append(path)
        if found:
            return {split: found[split] for split in _SPLITS if split in found}
    return {}


def _split_of(path: Path) -> str | None:
    name = path.parent.name if path.name == _ROBOFLOW else path.stem
    match = _SPLIT_IN_NAME.search(name.lower())
    if match is None:
        return None
    return "val" if match[1] == "valid" else match[1]


def _read(source: Path, files: Mapping[str, Path]) -> Reading:
    tally, watch = Tally(), Watch()
    names: tuple[str, ...] | None = None
    splits = {}
    for split, path in files.items():
        watch.note(path)
        content = _parse(path)
        classes, found = _categories(content["categories"], path)
        if names is not None and found != names:
            raise DataError(
                f"{path}: expected the categories of the other splits, {_brief(names)}, "
                f"found {_brief(found)}"
            )
        names = found
        pictures = _images(content["images"], path, tally)
        _assign(content["annotations"], pictures, classes, path)
        unique = {picture.name: picture for picture in pictures.values()}
        splits[split] = tuple(_samples(unique.values(), path, split, tally, watch))
        if not splits[split]:
            tried = ", ".join(map(str, _folders(path, split)))
            raise DataError(f"{path}: expected the pictures that it lists, found none in {tried}")
    if names is None:
        raise DataError(f"{source}: expected COCO annotations, found none")
    return Reading(names, splits, tally.warnings(), watch.stamps)


def _parse(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: expected COCO annotations, cannot read it: {reason}") from error
    lists: dict[str, list[Any]] = {}
    for key in ("images", "annotations", "categories"):
        found = content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, list):
            raise DataError(f"{path}: expected COCO annotations with a list '{key}', found none")
        wrong = [item for item in found if not isinstance(item, dict)]
        if wrong:
            raise DataError(
                f"{path}: expected objects in the list '{key}', found {_brief(wrong[0])}"
            )
        lists[key] = found
    return lists


def _brief(value: object) -> str:
    return reprlib.repr(value)


def _categories(items: Sequence[Any], path: Path) -> tuple[dict[int, int], tuple[str, ...]]:
    """Class by category id, and the names in the order of the ids."""
    names: dict[int, str] = {}
    for item in items:
        number, name = item.get("id"), item.get("name")
        if type(number) is not int or not isinstance(name, str):
            raise DataError(
                f"{path}: expected categories with a whole number as id and a name, "
                f"found {_brief(number)} and {_brief(name)}"
            )
        if number in names:
            raise DataError(f"{path}: expected each category id once, found {number} again")
        names[number] = name
    if not names:
        raise DataError(f"{path}: expected categories, found none")
    order = sorted(names)
    classes = {number: index for index, number in enumerate(order)}
    return classes, tuple(names[number] for number in order)


@dataclass(slots=True)
class _Picture:
    """A picture as listed, and what its annotations say, in pixels."""

    name: str
    size: tuple[float, float] | None
    boxes: list[tuple[float, ...]] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    segmentations: list[object] = field(default_factory=list)


def _images(items: Sequence[Any], path: Path, tally: Tally) -> dict[Any, _Picture]:
    """Pictures by id; the same file under two ids is one picture."""
    by_name: dict[str, _Picture] = {}
    by_id: dict[Any, _Picture] = {}
    for item in items:
        number = item.get("id")
        if not isinstance(number, int | str):
            raise DataError(f"{path}: expected images with an id, found {_brief(number)}")
        name = _inside(item.get("file_name"), number, path)
        if name in by_name:
            tally.add("pictures listed twice, their labels joined", 1, path)
        else:
            width, height = item.get("width"), item.get("height")
            stated = _is_length(width) and _is_length(height)
            by_name[name] = _Picture(name, (float(width), float(height)) if stated else None)
        if by_id.setdefault(number, by_name[name]).name != name:
            raise DataError(
                f"{path}: expected each image id once, found {_brief(number)} for "
                f"{_brief(by_id[number].name)} and {_brief(name)}"
            )
    return by_id


def _is_length(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < _LARGEST


def _inside(name: object, number: object, path: Path) -> str:
    """A picture's path below its folder; one that leads out of it is refused."""
    text = name.replace("\\", "/") if isinstance(name, str) else ""
    normal = posixpath.normpath(text)
    windows = PureWindowsPath(text)
    leads_out = normal.split("/")[0] == ".." or windows.drive or windows.root
    if not text or leads_out or normal == "." or "\0" in text:
        raise DataError(
            f"{path}: image {_brief(number)}: expected a file name below the folder of the "
            f"pictures, found {_brief(name)}"
        )
    return normal


def _assign(
    items: Sequence[Any], pictures: Mapping[Any, _Picture], classes: Mapping[int, int], path: Path
) -> None:
    """Give every annotation to its picture."""
    for item in items:
        picture = _known(pictures, item, "image_id", path)
        class_id = _known(classes, item, "category_id", path)
        box = item.get("bbox")
        if not (
            isinstance(box, list)
            and len(box) == 4
            # Bounds that NaN, infinity, and integers beyond any float fail.
            and all(type(value) in (int, float) and -_LARGEST < value < _LARGEST for value in box)
        ):
            raise DataError(
                f"{path}: annotation {_brief(item.get('id'))}: expected bbox as four finite "
                f"numbers, found {_brief(box)}"
            )
        picture.boxes.append(tuple(box))
        picture.classes.append(class_id)
        picture.crowd.append(bool(item.get("iscrowd")))
        picture.segmentations.append(item.get("segmentation"))


def _known(table: Mapping[Any, Any], item: Mapping[str, Any], key: str, path: Path) -> Any:
    value = item.get(key)
    try:
        return table[value]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: annotation {_brief(item.get('id'))}: expected {key} to be one that the file "
            f"lists, found {_brief(value)}"
        ) from error


def _folders(path: Path, split: str) -> list[Path]:
    """Where the pictures of an annotation file may lie, likeliest first."""
    if path.name == _ROBOFLOW:
        return [path.parent]
    name = path.stem.removeprefix("instances_")
    bases = [path.parent]
    if path.parent.name.lower() == "annotations":
        bases.insert(0, path.parent.parent)
    places = (name, f"images/{name}", split, f"images/{split}", "images", ".")
    folders = dict.fromkeys(base / place for base in bases for place in places)
    return [folder for folder in folders if folder.is_dir()]


def _samples(
    pictures: Iterable[_Picture], path: Path, split: str, tally: Tally, watch: Watch
) -> Iterator[Sample]:
    folders = _folders(path, split)
    for picture in pictures:
        candidates = [folder / picture.name for folder in folders]
        image = next((candidate for candidate in candidates if _is_file(candidate)), None)
        if image is None:
            for candidate in candidates:
                watch.note(candidate)
            tally.add("pictures listed but not there, left out", 1, path)
            continue
        watch.note(image)
        yield _sample(image, picture, tally)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long or otherwise impossible
        return False


def _sample(image: Path, picture: _Picture, tally: Tally) -> Sample:
    scale, size = label_size(image, picture.size, image, tally)
    boxes = np.array(picture.boxes, np.float64).reshape(-1, 4)
    corners = np.hstack((boxes[:, :2], boxes[:, :2] + boxes[:, 2:])) / (*scale, *scale)
    classes = np.array(picture.classes, np.int64)
    crowd = np.array(picture.crowd, np.bool_)
    objects = ~crowd
    outlines = [
        _outline(picture.segmentations[index], corners[index], scale, image, tally)
        for index in np.flatnonzero(objects).tolist()
    ]
    made = sample(
        image, corners[objects], classes[objects], image, tally, polygons=outlines, size=size
    )
    if not crowd.any():
        return made
    tally.add("crowd regions, kept apart and not learned from", int(crowd.sum()), image)
    return replace(made, crowd=crowd_rows(corners[crowd], classes[crowd]))


def _outline(
    segmentation: object,
    corners: NDArray[np.float64],
    scale: tuple[float, float],
    where: Path,
    tally: Tally,
) -> NDArray[np.float64] | None:
    """One outline (k, 2) in shares of the picture from the parts of a segmentation, or None."""
    try:
        parts = [part / scale for part in parts_of(segmentation)]
    except (ValueError, TypeError, OverflowError):
        tally.add("outlines that are no lists of points, left out", 1, where)
        return None
    if not parts:
        return None
    # A point that is no number makes the hull, and this, no number.
    if not overlap(hull_of(parts), corners.tolist()) >= SAME_EXTENT:
        tally.add("outlines that disagree with their box, left out", 1, where)
        return None
    return join(parts)


def parts_of(segmentation: object) -> list[NDArray[np.float64]]:
    """The parts (k, 2) of an outline that have three points or more; none of run lengths.

    Raises:
        ValueError, TypeError, OverflowError: One is no list of points.
    """
    if not isinstance(segmentation, list):
        return []
    parts = [np.array(part, np.float64).reshape(-1, 2) for part in segmentation]
    return [part for part in parts if len(part) >= 3]


def hull_of(parts: Sequence[NDArray[np.float64]]) -> tuple[float, ...]:
    """The box x1, y1, x2, y2 around all parts; not a number where a point is none."""
    points = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2; 1 for two without area."""
    shared = max(min(one[2], other[2]) - max(one[0], other[0]), 0.0)
    shared *= max(min(one[3], other[3]) - max(one[1], other[1]), 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    union = sum(areas) - shared
    return shared / union if union else 1.0


def join(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """One polygon (k, 2) from several, by bridges that are walked in both directions.

    Filled by the even-odd rule it covers what the parts cover, and its hull is that of all. The
    time grows with the number of points.
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
