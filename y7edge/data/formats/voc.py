"""Read Pascal VOC data sets: an XML file of boxes per image, and a list of stems per split.

Three layouts are supported:

* ``images/``, ``annotations/`` and ``train.txt``, ``val.txt``, ``test.txt``;
* the layout of the original challenge: ``JPEGImages/``, ``Annotations/``, ``ImageSets/Main/*.txt``;
* a folder for each split (``train/``, ``val/`` or ``valid/``, ``test/``) with images and their XML
  files side by side, at any depth, as labelling services export it.

Class names are the lines of ``classes.txt`` if it exists, else all names in the annotations,
sorted. Corners are in pixels of the upright image (EXIF rotation applied), from 0 as most tools
write them; the challenge itself counted pixels from 1. ``difficult`` objects are not treated
differently.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from y7edge.data.formats.description import check_names
from y7edge.data.formats.listing import files_below, images_below, images_in, listed
from y7edge.data.formats.records import (
    HOW_TO_SPLIT,
    MOST_LABELS,
    SPLIT_NAMES,
    SPLITS,
    Entry,
    Label,
    Scan,
    written_numbers,
)
from y7edge.data.formats.text import Text, read_text
from y7edge.data.sample import is_image
from y7edge.files import is_file, is_folder

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_OBJECT = re.compile(r"<object[\s>]")


class Layout(NamedTuple):
    """The folders of images, annotations and split lists, relative to the data set."""

    images: str
    annotations: str
    lists: str


_LAYOUTS = (
    Layout("images", "annotations", "."),
    Layout("JPEGImages", "Annotations", "ImageSets/Main"),
)


def layout_of(folder: Path) -> Layout | None:
    """Return the layout of a folder with split lists; None if the folder has another layout."""
    for layout in _LAYOUTS:
        if is_folder(folder / layout.images) and _annotations(folder / layout.annotations):
            return layout
    return None


def split_folders(folder: Path) -> dict[str, Path]:
    """Return the folders with images and annotations side by side, by split."""
    return {
        split: folder / name
        for split in SPLITS
        for name in reversed(SPLIT_NAMES[split])
        if _annotations(folder / name)
    }


def is_voc(folder: Path) -> bool:
    """Return whether a folder has one of the supported layouts."""
    return layout_of(folder) is not None or bool(split_folders(folder))


def describe(folder: Path, splits: Sequence[str] | None = None) -> Scan:
    """Find the images of a data set.

    ``splits`` are the splits to read, which must exist; None reads all splits found.
    """
    scan = Scan(folder, folder, "voc")
    layout = layout_of(folder)
    if layout is not None:
        _lists(scan, layout, splits)
        scan.annotations = _annotations(folder / layout.annotations)
    else:
        folders = split_folders(folder)
        for split in folders if splits is None else splits:
            if split not in folders:
                words = f"expected a folder {split} with images and XML files, found "
                words += ", ".join(folders) + HOW_TO_SPLIT.get(split, "")
                scan.problem("splits", words, folder)
                continue
            scan.split_names.append(split)
            for image in images_below(scan, folders[split]):
                scan.add(split, Entry(image, label_file=image.with_suffix(".xml")))
        scan.annotations = [
            path
            for each in folders.values()
            for path in filter(_is_annotation, files_below(scan, each))
        ]
    for entry in scan.entries:
        entry.labelled = entry.label_file is not None and is_file(entry.label_file)
        if not entry.labelled and entry.label_file is not None:
            words = f"expected {entry.label_file.name}, found none; annotate the image or remove it"
            scan.problem("missing_label", words, entry.path,
                         image=entry.path, effect="refused", severity="error")  # fmt: skip
    listed_names = folder / "classes.txt"
    if os.path.lexists(listed_names):
        scan.names = [line for _, line in scan.add_text(read_text(listed_names)).lines]
        check_names(scan, listed_names)
    return scan


def _annotations(folder: Path) -> list[Path]:
    """Return the annotation files directly in a folder; an empty list if it does not exist."""
    return list(filter(_is_annotation, listed(folder))) if is_folder(folder) else []


def _is_annotation(path: Path) -> bool:
    # macOS writes hidden "._name.xml" files beside files on foreign disks.
    return path.suffix == ".xml" and not path.name.startswith(".")


def _by_stem(scan: Scan, folder: Path) -> dict[str, Path]:
    """Return the images of a folder by stem; record a problem for images with equal stems."""
    by_stem: dict[str, Path] = {}
    for image in images_in(folder):
        other = by_stem.setdefault(image.stem, image)
        if other != image:
            words = f"{other.name} and {image.name} share the annotation {image.stem}.xml"
            scan.problem("shared_label", words, image, effect="refused", severity="error")
    return by_stem


def _lists(scan: Scan, layout: Layout, splits: Sequence[str] | None) -> None:
    """Add the images of the split lists to a scan."""
    folder, annotations = scan.root / layout.images, scan.root / layout.annotations
    by_stem = _by_stem(scan, folder)
    entries = {stem: Entry(image, [], annotations / f"{stem}.xml") for stem, image in
               by_stem.items()}  # fmt: skip
    lists = scan.root / layout.lists
    for split in SPLITS if splits is None else splits:
        paths = [lists / f"{name}.txt" for name in SPLIT_NAMES.get(split, (split,))]
        path = next(filter(os.path.lexists, paths), paths[0])
        if splits is None and not os.path.lexists(path):
            continue
        scan.split_names.append(split)
        text = read_text(path)
        if text.error:
            words = f"expected a list, one stem per line: {text.error}{HOW_TO_SPLIT['val']}"
            scan.problem("splits", words, path)
        for number, line in scan.add_text(text).lines if not text.error else ():
            # Stems may contain spaces, but lists of the challenge have a second column.
            stem = line if line in entries else line.split()[0]
            entry = entries.get(stem)
            if entry is None:
                words = f"expected the stem of an image in {layout.images}/, found '{stem}'; "
                named = Path(stem.replace("\\", "/"))
                # Remove only suffixes of images: `a.v2` is a stem.
                short = named.stem if is_image(named) else named.name
                words += (
                    f"write '{short}'"
                    if short in by_stem
                    else "remove the line or restore the image"
                )
                scan.problem("list_entry", words, path, number)
            elif not scan.add(split, entry):
                words = f"{stem} is listed twice in {split}; remove one line"
                scan.problem("listed_twice", words, path, number)
    if not scan.split_names:
        words = f"expected train.txt or val.txt, found neither{HOW_TO_SPLIT['val']}"
        scan.problem("splits", words, lists, fix="all images are in train")
        scan.split_names.append("train")
        for entry in entries.values():
            scan.add("train", entry)


def read(scan: Scan) -> None:
    """Read the annotations into the entries of a scan."""
    by_file = {entry.label_file: entry for entry in scan.entries if entry.labelled}
    named = bool(scan.names)
    found: set[str] = set()
    for path in scan.annotations:
        # Without classes.txt, class names come from all annotations, not only from those of the
        # requested splits.
        entry = by_file.get(path)
        if entry is None and named:
            continue
        scan.watch(path)
        entry = entry or Entry(path)
        _annotation(scan, entry, path)
        found |= {label.raw_class for label in entry.labels}
    if not named:
        scan.names = sorted(found - {""})
        if not scan.names:
            words = "expected objects in the annotations, found none"
            scan.problem("names", words, scan.source)
        check_names(scan, scan.source)
    numbers = {name: index for index, name in reversed(list(enumerate(scan.names)))}
    for _, label in scan.labels():
        label.class_id = numbers.get(label.raw_class)


def _annotation(scan: Scan, entry: Entry, path: Path) -> None:
    """Read one XML file into an entry."""
    content = scan.add_text(read_text(path))
    tree = _parse(scan, entry, content)
    if tree is None:
        return
    items = list(tree.iterfind("object"))
    if len(items) > MOST_LABELS:
        scan.too_many([entry], path, len(items))
        return
    for index, (item, line) in enumerate(zip(items, _lines(content, len(items)), strict=True)):
        entry.labels.append(_label(item, path, line, index))
    entry.stated = _stated(tree)
    written = (tree.findtext("filename") or "").strip()
    if written and re.split(r"[\\/]", written)[-1].rsplit(".", 1)[0] != path.stem:
        words = f"expected {entry.path.name} as filename, found '{written[:80]}'; correct it"
        scan.problem("other_name", words, path)


def _parse(scan: Scan, entry: Entry, text: Text) -> ElementTree.Element | None:
    """Return the root element of an XML file; record a problem if it cannot be parsed."""
    reason, line = "", 0
    # Entities can grow exponentially or read other files.
    if "<!DOCTYPE" in text.content or "<!ENTITY" in text.content:
        reason = "refused: it defines a document type or entities; remove them"
        scan.problem("annotation", reason, text.path)
    elif text.usable:
        try:
            # Remove the declaration: its encoding does not apply to text that is decoded already.
            tree = ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text.content))
            if tree.tag == "annotation":
                return tree
            reason = f"expected the root <annotation> without a namespace, found <{tree.tag[:80]}>"
        except ElementTree.ParseError as error:
            reason, line = f"expected a well-formed XML annotation: {error}", error.position[0]
        scan.problem("annotation", reason, text.path, line)
    entry.lost = "has an annotation that cannot be read"
    return None


def _lines(text: Text, count: int) -> list[int]:
    """Return the lines of the ``<object>`` tags; zeros if their number differs from ``count``."""
    content, lines, line, last = text.content, [], 1, 0
    for match in _OBJECT.finditer(content):
        line += content.count("\n", last, match.start())
        last = match.start()
        lines.append(line)
    return lines if len(lines) == count else [0] * count


def _label(item: ElementTree.Element, path: Path, line: int, index: int) -> Label:
    texts = [(item.findtext(f"bndbox/{side}") or "").strip() for side in _SIDES]
    name = (item.findtext("name") or "").strip()
    values = written_numbers(filter(None, texts))
    shown = f"{name} {' '.join(text or '-' for text in texts)}"
    return Label(path, line, shown, name, None, values, "corners", f"object {index + 1}")


def _stated(tree: ElementTree.Element) -> tuple[float, float] | None:
    """Return the stated size, None if invalid; zeros are kept, because they are reported later."""
    try:
        width, height = (float(tree.findtext(f"size/{side}", "")) for side in ("width", "height"))
    except ValueError:
        return None
    return (width, height) if math.isfinite(width) and math.isfinite(height) else None
