"""Data sets in Pascal VOC form: one XML file of boxes per picture, lists of stems for the splits.

Three layouts: ``images/``, ``annotations/`` and ``train.txt``, ``val.txt``, ``test.txt``; that of
the original challenge (``JPEGImages/``, ``Annotations/``, ``ImageSets/Main/*.txt``); and a folder
for each split, ``train/``, ``val/`` or ``valid/``, ``test/``, with pictures and their XML files
side by side, as labelling services export it. Class names are those of ``classes.txt`` if there is
one (one per line), else all in the annotations, sorted.

Corners are taken as written, in pixels of the upright picture (EXIF rotation applied). The
challenge itself counted pixels from 1; the tools that most people annotate with do not. Where the
``size`` that the annotation states is not the picture's, `y7edge.data.headers.label_size` decides.
Objects marked ``difficult`` are objects like the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from y7edge.data.headers import label_size
from y7edge.data.sample import Plan, Reading, Sample, Tally, Watch, is_image, sample
from y7edge.errors import DataError

_SPLITS = ("train", "val", "test")

# What folders of splits are called; where there are two, the first is taken.
_FOLDERS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}

# By split, pictures with their annotations.
_Found = dict[str, list[tuple[Path, Path]]]


class Layout(NamedTuple):
    """Names of the folders of pictures, of annotations, and of the lists of splits."""

    images: str
    annotations: str
    lists: str


_LAYOUTS = (
    Layout("images", "annotations", "."),
    Layout("JPEGImages", "Annotations", "ImageSets/Main"),
)


def layout_of(folder: Path) -> Layout | None:
    """Which of the layouts with lists a folder has."""
    for layout in _LAYOUTS:
        annotations = folder / layout.annotations
        if (folder / layout.images).is_dir() and next(annotations.glob("*.xml"), None):
            return layout
    return None


def split_folders(folder: Path) -> dict[str, Path]:
    """By split, the folders that hold pictures and their annotations side by side."""
    return {
        split: folder / name
        for split in _SPLITS
        for name in reversed(_FOLDERS[split])
        if next((folder / name).glob("*.xml"), None)
    }


def is_voc(folder: Path) -> bool:
    """Whether the folder has pictures and annotations in one of the layouts."""
    return layout_of(folder) is not None or bool(split_folders(folder))


def plan(folder: Path, splits: Sequence[str] | None = None) -> Plan:
    """Find the pictures of a folder: of the splits named, which then must exist, or of all.

    Reading the plan raises a DataError where an annotation is not well formed, defines entities, or
    lacks what is needed.

    Raises:
        DataError: No such layout, or a picture or annotation is missing.
    """
    layout = layout_of(folder)
    if layout is not None:
        found = _listed(folder, layout, splits)
        annotations = _annotations(folder / layout.annotations)
    elif folders := split_folders(folder):
        found = _side_by_side(folder, folders, splits)
        annotations = [path for each in folders.values() for path in _annotations(each)]
    else:
        raise DataError(
            f"{folder}: expected the folders images/ and annotations/ with XML files, or train/ "
            "and val/ with pictures and XML files"
        )
    classes = _listed_names(folder)
    pictures = (f"{split}\t{image}" for split, items in found.items() for image, _ in items)
    return Plan(
        (*map(str, annotations), str(classes), *pictures),
        lambda: _read(folder, annotations, classes, found),
    )


def _listed(folder: Path, layout: Layout, splits: Sequence[str] | None) -> _Found:
    annotations = {path.stem: path for path in _annotations(folder / layout.annotations)}
    images = {path.stem: path for path in _images(folder / layout.images)}
    found: _Found = {}
    for split in _SPLITS if splits is None else splits:
        listing = folder / layout.lists / f"{split}.txt"
        if splits is None and not listing.is_file():
            continue
        found[split] = []
        for where, stem in _entries(listing):
            if stem not in images or stem not in annotations:
                raise DataError(
                    f"{where}: expected the stem of a picture in {layout.images}/ and of an XML "
                    f"file in {layout.annotations}/, found '{stem}'"
                )
            found[split].append((images[stem], annotations[stem]))
    if not found:
        raise DataError(f"{folder / layout.lists}: expected train.txt or val.txt, found neither")
    return found


def _side_by_side(
    folder: Path, folders: Mapping[str, Path], splits: Sequence[str] | None
) -> _Found:
    found: _Found = {}
    for split in folders if splits is None else splits:
        if split not in folders:
            raise DataError(
                f"{folder}: expected a folder {' or '.join(_FOLDERS.get(split, (split,)))} with "
                f"pictures and XML files, found {', '.join(folders)}"
            )
        found[split] = []
        for image in _images(folders[split]):
            annotation = image.with_suffix(".xml")
            if not annotation.is_file():
                raise DataError(f"{image}: expected {annotation.name} beside the picture")
            found[split].append((image, annotation))
    return found


def _images(folder: Path) -> list[Path]:
    return sorted(filter(is_image, folder.iterdir()))


def _annotations(folder: Path) -> list[Path]:
    # Without "._name.xml", see `is_image`.
    return sorted(path for path in folder.glob("*.xml") if not path.name.startswith("."))


def _read(
    folder: Path,
    annotations: Sequence[Path],
    classes: tuple[str, ...] | None,
    found: _Found,
) -> Reading:
    tally, watch = Tally(), Watch()
    trees = {}
    for path in annotations:
        watch.note(path)
        trees[path] = _parse(path)
    names = _names(folder, trees) if classes is None else classes
    numbers = {name: names.index(name) for name in names}
    splits = {}
    for split, items in found.items():
        samples = []
        for image, path in items:
            watch.note(image)
            samples.append(_sample(image, trees[path], path, numbers, tally))
        splits[split] = tuple(samples)
    return Reading(names, splits, tally.warnings(), watch.stamps)


def _parse(path: Path) -> ElementTree.Element:
    try:
        text = path.read_text(encoding="utf-8-sig")
        # Entities can grow without bound or read other files; no annotation needs them. Only UTF-8
        # is accepted, so that no other encoding hides them from this search.
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise DataError(f"{path}: refused, as it defines a document type or entities")
        return ElementTree.fromstring(text)
    except (OSError, UnicodeDecodeError, ElementTree.ParseError) as error:
        raise DataError(f"{path}: expected an XML annotation in UTF-8: {error}") from error


def _listed_names(folder: Path) -> tuple[str, ...] | None:
    listing = folder / "classes.txt"
    if not listing.is_file():
        return None
    return tuple(name for _, name in _entries(listing, whole_line=True))


def _names(folder: Path, trees: Mapping[Path, ElementTree.Element]) -> tuple[str, ...]:
    found = {
        (name.text or "").strip()
        for tree in trees.values()
        for name in tree.iterfind("object/name")
    }
    found.discard("")  # an object without a name is refused where it stands
    if not found:
        raise DataError(f"{folder}: expected objects in the annotations, found none")
    return tuple(sorted(found))


def _entries(listing: Path, whole_line: bool = False) -> list[tuple[str, str]]:
    """File and line, and the first word (the challenge's lists have two columns) or all of it."""
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{listing}: expected a list, one entry per line: {error}") from error
    return [
        (f"{listing}:{number}", line.strip() if whole_line else line.split()[0])
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _sample(
    image: Path, tree: ElementTree.Element, path: Path, numbers: Mapping[str, int], tally: Tally
) -> Sample:
    classes, corners = [], []
    for item in tree.iterfind("object"):
        name = (item.findtext("name") or "").strip()
        if name not in numbers:
            raise DataError(
                f"{path}: expected one of the classes {', '.join(numbers)}, found '{name}'"
            )
        classes.append(numbers[name])
        corners.append(
            [_number(item, f"bndbox/{side}", path) for side in ("xmin", "ymin", "xmax", "ymax")]
        )
    (width, height), size = label_size(image, _stated_size(tree), path, tally)
    boxes = np.array(corners, np.float64).reshape(-1, 4) / (width, height, width, height)
    return sample(image, boxes, np.array(classes, np.int64), path, tally, size=size)


def _stated_size(tree: ElementTree.Element) -> tuple[float, float] | None:
    """Width and height in pixels, if the annotation states both."""
    try:
        width, height = (float(tree.findtext(f"size/{side}", "")) for side in ("width", "height"))
    except ValueError:
        return None
    # Some tools write zeros, or NaN.
    return (width, height) if 0 < width < math.inf and 0 < height < math.inf else None


def _number(item: ElementTree.Element, tag: str, path: Path) -> float:
    text = item.findtext(tag, "")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}: expected a number in object/{tag}, found '{text.strip()}'")
    return value
