"""Scanner for Pascal VOC folders; the layouts are those of `y7edge.data.formats.voc`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from y7edge.data.check.unreferenced import find_strays
from y7edge.data.formats.records import SPLITS, Label, Picture, Scan
from y7edge.data.formats.text import read_text
from y7edge.data.formats.voc import layout_of, split_folders
from y7edge.data.sample import is_image
from y7edge.errors import DataError

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_OBJECT = re.compile(r"<object[\s>]")


def scan_voc(folder: Path) -> Scan:
    """Scan a folder of pictures and XML annotations.

    Raises:
        DataError: No such layout, or no picture in it.
    """
    layout = layout_of(folder)
    scan = Scan(folder, folder, "voc")
    if layout is not None:
        _scan_lists(scan, *(folder / name for name in layout))
    else:
        _scan_folders(scan, split_folders(folder))
    trees = {p.path: _annotation(scan, p) for p in scan.pictures.values()}
    _take_names(scan, [tree for tree in trees.values() if tree is not None], folder)
    for picture in scan.pictures.values():
        _resolve_classes(scan, picture)
    # Where each picture has its annotation beside it, all of them are known by now.
    apart = None if layout is None else folder / layout.annotations
    find_strays(scan, lambda image: apart and apart / f"{image.stem}.xml", ".xml")
    return scan


def _scan_lists(scan: Scan, image_folder: Path, annotations: Path, lists: Path) -> None:
    scan.folders |= {image_folder, annotations}
    by_stem = _by_stem(scan, image_folder)
    for split in SPLITS:
        if (lists / f"{split}.txt").is_file():
            scan.split_names.append(split)
            _list(scan, split, lists / f"{split}.txt", by_stem, annotations)
    if not scan.split_names:
        scan.split_names.append("train")
        words = "there are no lists train.txt and val.txt; every picture is taken for training"
        scan.trouble("splits", words, lists)
        for image in by_stem.values():
            picture = Picture(image, ["train"], annotations / f"{image.stem}.xml")
            scan.pictures[image] = picture
    if not scan.pictures:
        raise DataError(f"{scan.root}: its lists lead to no picture in {image_folder.name}/")


def _scan_folders(scan: Scan, folders: Mapping[str, Path]) -> None:
    for split, folder in folders.items():
        scan.folders.add(folder)
        scan.split_names.append(split)
        for image in _by_stem(scan, folder).values():
            scan.pictures[image] = Picture(image, [split], image.with_suffix(".xml"))
    if not scan.pictures:
        raise DataError(f"{scan.root}: expected pictures beside its XML files, found none")


def _by_stem(scan: Scan, folder: Path) -> dict[str, Path]:
    by_stem: dict[str, Path] = {}
    for image in sorted(folder.iterdir()):
        if is_image(image):
            other = by_stem.setdefault(image.stem, image)
            if other != image:
                words = f"{other.name} and {image.name} share the annotation {image.stem}.xml"
                scan.trouble("shared_label", words, image)
    return by_stem


def _list(scan: Scan, split: str, path: Path, by_stem: dict[str, Path], annotations: Path) -> None:
    text = read_text(path)
    scan.texts.append(text)
    for number, line in text.lines:
        stem = line.split()[0].removeprefix("\ufeff")
        image = by_stem.get(stem)
        if image is None:
            words = f"'{stem}' is the stem of no picture; remove the line or restore the file"
            named = Path(stem.replace("\\", "/"))
            # Other suffixes are parts of a stem: `a.v2` is not the picture `a`.
            if (short := named.stem if is_image(named) else named.name) in by_stem:
                words = f"'{stem}' is no stem; write '{short}'"
            scan.trouble("list_entry", words, path, number)
            continue
        picture = scan.pictures.setdefault(
            image, Picture(image, label_file=annotations / f"{stem}.xml")
        )
        if split in picture.splits:
            words = f"{stem} is listed twice in {split}, it would count double"
            scan.trouble("listed_twice", words, path, number)
        picture.splits.append(split)
        picture.listed = (path, number)


def _annotation(scan: Scan, picture: Picture) -> ElementTree.Element | None:
    path = picture.label_file
    picture.labelled = path is not None and path.is_file()
    if path is None or not picture.labelled:
        return None
    text = read_text(path)
    scan.texts.append(text)
    if "<!DOCTYPE" in text.content or "<!ENTITY" in text.content:
        words = "defines a document type or entities, which can read other files; remove them"
        scan.trouble("annotation", words, path)
        return None
    try:
        # Without the declaration: its encoding no longer holds for decoded text.
        content = re.sub(r"^\s*<\?xml[^>]*\?>", "", text.content.lstrip("\ufeff"))
        tree = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        scan.trouble("annotation", f"is no well-formed XML: {error}", path, error.position[0])
        return None
    if tree.tag != "annotation":
        words = f"its root is <{tree.tag[:80]}>, expected <annotation> without a namespace"
        scan.trouble("annotation", words, path)
        return None
    starts = [
        text.content.count("\n", 0, match.start()) + 1 for match in _OBJECT.finditer(text.content)
    ]
    items = list(tree.iterfind("object"))
    for index, item in enumerate(items):
        line = starts[index] if len(starts) == len(items) else 0
        picture.labels.append(_label(item, path, line, index))
    picture.stated = _stated(tree)
    written = (tree.findtext("filename") or "").strip()
    if written and Path(written).stem != picture.path.stem:
        words = f"is named after {picture.path.name} but says filename '{written}'"
        scan.trouble("other_name", words, path)
    return tree


def _label(item: ElementTree.Element, path: Path, line: int, index: int) -> Label:
    texts = [(item.findtext(f"bndbox/{side}") or "").strip() for side in _SIDES]
    name = (item.findtext("name") or "").strip()
    values: tuple[float, ...] | None
    try:
        values = tuple(float(text) for text in texts if text)
    except ValueError:
        values = None
    shown = f"{name} {' '.join(text or '-' for text in texts)}"
    return Label(path, line, shown[:120], name, None, values, "corners", f"object {index + 1}")


def _stated(tree: ElementTree.Element) -> tuple[float, float] | None:
    try:
        width = float(tree.findtext("size/width") or "nan")
        height = float(tree.findtext("size/height") or "nan")
    except ValueError:
        return None
    return (width, height) if math.isfinite(width) and math.isfinite(height) else None


def _take_names(scan: Scan, trees: list[ElementTree.Element], folder: Path) -> None:
    listing = folder / "classes.txt"
    if listing.is_file():
        text = read_text(listing)
        scan.texts.append(text)
        scan.names = [line for _, line in text.lines]
        return
    names = {(n.text or "").strip() for tree in trees for n in tree.iterfind("object/name")}
    scan.names = sorted(names - {""})


def _resolve_classes(scan: Scan, picture: Picture) -> None:
    numbers = {name: index for index, name in reversed(list(enumerate(scan.names)))}
    for label in picture.labels:
        label.class_id = numbers.get(label.raw_class)
