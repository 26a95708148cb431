"""Data sets in Pascal VOC form: one XML file of boxes per picture, lists of stems for the splits.

Two layouts: ``images/``, ``annotations/`` and ``train.txt``, ``val.txt``, ``test.txt``; and that
of the original challenge (``JPEGImages/``, ``Annotations/``, ``ImageSets/Main/*.txt``). Class names
are those of ``classes.txt`` if there is one (one per line), else all in the annotations, sorted.

Corners are taken as written, as shares of the ``size`` that the annotation states. The challenge
itself counted pixels from 1; the tools that most people annotate with do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from y7edge.data.images import read_image
from y7edge.data.sample import IMAGE_SUFFIXES, Reading, Sample, Tally, sample
from y7edge.errors import DataError

_SPLITS = ("train", "val", "test")


class _Layout(NamedTuple):
    images: str
    annotations: str
    lists: str


_LAYOUTS = (
    _Layout("images", "annotations", "."),
    _Layout("JPEGImages", "Annotations", "ImageSets/Main"),
)


def _layout(folder: Path) -> _Layout | None:
    for layout in _LAYOUTS:
        annotations = folder / layout.annotations
        if (folder / layout.images).is_dir() and next(annotations.glob("*.xml"), None):
            return layout
    return None


def is_voc(folder: Path) -> bool:
    """Whether the folder has pictures and annotations in one of the two layouts."""
    return _layout(folder) is not None


def read(folder: Path, splits: Sequence[str] | None = None) -> Reading:
    """Read the splits of a folder: those named, which then must exist, or all there are.

    Raises:
        DataError: No such layout, a listed picture or annotation is missing, or an annotation is
            not well formed, defines entities, or lacks what is needed.
    """
    layout = _layout(folder)
    if layout is None:
        raise DataError(f"{folder}: expected the folders images/ and annotations/ with XML files")
    annotations = folder / layout.annotations
    trees = {path.stem: _parse(path) for path in sorted(annotations.glob("*.xml"))}
    names = _names(folder, trees)
    images = {
        path.stem: path
        for path in sorted((folder / layout.images).iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES
    }
    tally = Tally()
    found: dict[str, tuple[Sample, ...]] = {}
    for split in _SPLITS if splits is None else splits:
        listing = folder / layout.lists / f"{split}.txt"
        if splits is None and not listing.is_file():
            continue
        samples = []
        for where, stem in _stems(listing):
            if stem not in images or stem not in trees:
                raise DataError(
                    f"{where}: expected the stem of a picture in {layout.images}/ and of an XML "
                    f"file in {layout.annotations}/, found '{stem}'"
                )
            path = annotations / f"{stem}.xml"
            samples.append(_sample(images[stem], trees[stem], path, names, tally))
        found[split] = tuple(samples)
    if not found:
        raise DataError(f"{folder / layout.lists}: expected train.txt or val.txt, found neither")
    return Reading(names, found, tally.warnings())


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


def _names(folder: Path, trees: dict[str, ElementTree.Element]) -> tuple[str, ...]:
    listing = folder / "classes.txt"
    if listing.is_file():
        return tuple(name for _, name in _stems(listing, whole_line=True))
    found = {
        (name.text or "").strip()
        for tree in trees.values()
        for name in tree.iterfind("object/name")
    }
    if not found:
        raise DataError(f"{folder}: expected objects in the annotations, found none")
    return tuple(sorted(found))


def _stems(listing: Path, whole_line: bool = False) -> list[tuple[str, str]]:
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
    image: Path, tree: ElementTree.Element, path: Path, names: tuple[str, ...], tally: Tally
) -> Sample:
    classes, corners = [], []
    for item in tree.iterfind("object"):
        name = (item.findtext("name") or "").strip()
        if name not in names:
            raise DataError(
                f"{path}: expected one of the classes {', '.join(names)}, found '{name}'"
            )
        classes.append(names.index(name))
        corners.append(
            [_number(item, f"bndbox/{side}", path) for side in ("xmin", "ymin", "xmax", "ymax")]
        )
    width, height = _size(tree, image)
    boxes = np.array(corners, np.float64).reshape(-1, 4) / (width, height, width, height)
    return sample(image, boxes, np.array(classes, np.int64), path, tally)


def _size(tree: ElementTree.Element, image: Path) -> tuple[float, float]:
    """Width and height in pixels, from the picture itself where the annotation has none."""
    try:
        width, height = (
            float(tree.findtext("size/width", "0")),
            float(tree.findtext("size/height", "0")),
        )
    except ValueError:
        width = height = 0.0
    if not (width > 0 and height > 0):
        height, width = read_image(image).shape[:2]
    return width, height


def _number(item: ElementTree.Element, tag: str, path: Path) -> float:
    text = item.findtext(tag, "")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}: expected a number in object/{tag}, found '{text.strip()}'")
    return value
