"""Load a data set of any supported format as a `Dataset`.

The parsers in `y7edge.data.formats` read the files. `load` raises an error for the first problem
that training refuses; ``data check`` reports all problems.
"""

from __future__ import annotations

import hashlib
import logging
import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from y7edge.boxes import centred
from y7edge.data import label_cache
from y7edge.data.formats import coco, geometry, voc, yolo
from y7edge.data.formats.forms import convert_forms
from y7edge.data.formats.records import Entry, Label, Scan
from y7edge.data.sample import Reading, Sample, is_image, single_class
from y7edge.errors import DataError
from y7edge.files import is_folder, reason, require_regular

__all__ = ["Dataset", "Sample", "load"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set: class names, and labelled images by split."""

    source: Path  # the ``data.yaml``, JSON file or folder
    names: tuple[str, ...]  # class names; ``Sample.class_id`` indexes them
    splits: Mapping[str, tuple[Sample, ...]]  # by name: ``train``, ``val``, ``test``
    warnings: tuple[str, ...] = ()  # one line for each kind of change made while reading
    # COCO only: category ids by split, in the order of ``names``; see `Reading`.
    category_ids: Mapping[str, tuple[int | str | None, ...]] = field(default_factory=dict)
    # Lowest and highest value of 16-bit images, scaled to 0 and 255; from the ``data.yaml``.
    levels: tuple[int, int] | None = None

    def split(self, name: str) -> tuple[Sample, ...]:
        """Return the samples of one split.

        Raises:
            DataError: The split does not exist or has no images.
        """
        samples = self.splits.get(name, ())
        if not samples:
            found = ", ".join(key for key, value in self.splits.items() if value) or "no split"
            raise DataError(f"{self.source}: expected images in split '{name}', found {found}")
        return samples

    def single_class(self) -> Dataset:
        """Return a copy with the single class "object"; equal boxes of one image are merged."""
        splits = {
            split: tuple(single_class(sample) for sample in samples)
            for split, samples in self.splits.items()
        }
        return replace(self, names=("object",), splits=splits, category_ids={})

    def renamed(self, names: Sequence[str]) -> Dataset:
        """Return a copy whose class ids are indices into ``names``, such as the classes of a model.

        ``names`` may lack classes of the data set that have no labels, and may have more classes.

        Raises:
            DataError: A class with labels is not in ``names``. Or ``names`` and the class names of
                the data set have no name in common, or one of these two lists repeats a name.
        """
        wanted = tuple(names)
        if self.names == wanted:
            return self
        samples = [sample for split in self.splits.values() for sample in split]
        used = {self.names[c] for s in samples for c in (*s.class_id, *s.crowd[:, 0].astype(int))}
        twice = len(set(wanted)) != len(wanted) or len(set(self.names)) != len(self.names)
        if twice or not used <= set(wanted) or not set(self.names) & set(wanted):
            raise DataError(
                f"{self.source}: expected the classes {reprlib.repr(wanted)}, each once, found "
                f"{reprlib.repr(self.names)}: correct names in the data set, or use the data that "
                "the model was trained for"
            )
        numbers = np.array([wanted.index(name) if name in wanted else -1 for name in self.names])
        splits = {
            split: tuple(_renumbered(sample, numbers) for sample in samples)
            for split, samples in self.splits.items()
        }
        ids = {
            split: tuple(dict(zip(self.names, own, strict=True)).get(name) for name in wanted)
            for split, own in self.category_ids.items()
        }
        return replace(self, names=wanted, splits=splits, category_ids=ids)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over class names, labels, and the names and sizes of the image files.

        Identifies the data of a training run. It does not depend on the location of the folder.
        """
        digest = hashlib.sha256(repr(self.names).encode())
        for split, samples in self.splits.items():
            for sample in samples:
                size = sample.path.stat().st_size
                line = f"\n{split}\t{sample.path.name}\t{size}\t"
                digest.update(line.encode("utf-8", "surrogateescape"))
                digest.update(sample.class_id.astype("<i4").tobytes())
                digest.update(sample.boxes.astype("<f4").tobytes())
                for outline in sample.polygons:
                    if outline is not None:
                        digest.update(b"\toutline\t" + outline.astype("<f4").tobytes())
                if len(sample.crowd):
                    digest.update(b"\tcrowd\t" + sample.crowd.astype("<f4").tobytes())
        return digest.hexdigest()


def load(path: Path | str, splits: Sequence[str] | None = None) -> Dataset:
    """Load a data set and log its warnings, one line each.

    Args:
        path: A ``data.yaml``, a folder that contains one, a folder with Pascal VOC or COCO
            annotations, or one COCO file.
        splits: Splits to load; each must exist. None loads all splits found.

    Raises:
        DataError: No data set was found, a requested split is missing, or a file is invalid.
        RuntimeMissing: PyYAML is not installed and a ``data.yaml`` must be read.
    """
    scan = open_scan(path, splits)
    scan.require()
    listing = [f"{split}\t{e.path}" for split, members in scan.members.items() for e in members]
    listing += [f"{split}\t{file}" for split, file in scan.files.items()]
    described = (*scan.names, str(scan.keypoints), *map(str, scan.annotations), *scan.warnings())
    read = partial(_read, scan)
    reading = label_cache.reading((*described, *listing), read, scan.source, splits)
    for warning in reading.warnings:
        _log.warning("%s: %s", scan.source, warning)
    splits_read = reading.splits
    if scan.levels:
        splits_read = {
            split: tuple(replace(sample, levels=scan.levels) for sample in samples)
            for split, samples in splits_read.items()
        }
    return Dataset(
        *(scan.source, reading.names, splits_read, reading.warnings, reading.category_ids),
        levels=scan.levels,
    )


def _read(scan: Scan) -> Reading:
    read_scan(scan)
    scan.require()
    samples = {id(entry): sample_of(entry) for entry in scan.entries}
    splits = {
        split: tuple(samples[id(entry)] for entry in scan.in_split(split) if not entry.tiny)
        for split in scan.split_names
    }
    names, ids = tuple(scan.names), scan.category_ids
    return Reading(names, splits, scan.warnings(), ids, scan.stamps)


def open_scan(path: Path | str, splits: Sequence[str] | None = None) -> Scan:
    """Detect the format of a data set and list its images, without reading labels.

    Args:
        path: As for `load`. Also a text file that lists images, or a folder of images and YOLO
            labels without a ``data.yaml``; training refuses both.
        splits: As for `load`.

    Raises:
        DataError: No data set was found.
        RuntimeMissing: PyYAML is not installed and a ``data.yaml`` must be read.
    """
    source = Path(path)
    if not is_folder(source):
        try:
            require_regular(source)
        except (OSError, ValueError) as error:  # ValueError: an invalid file name
            there = os.path.lexists(source)
            expected = "expected a data.yaml, COCO's JSON, or a folder of YOLO, COCO or Pascal VOC"
            found = f": {reason(error)}" if there else ", found nothing there"
            raise DataError(f"{source}: {expected}{found}") from error
        if is_image(source):
            raise DataError(f"{source}: expected a data.yaml or a data folder, found an image")
        if source.suffix.lower() == ".json":
            return coco.describe(source, splits)
        if source.suffix.lower() == ".txt":
            return yolo.list_images(source)
        return yolo.describe(source, splits)
    forms: dict[str, Callable[[], Scan]] = {}
    if (described := yolo.find(source)) is not None:
        forms[f"YOLO ({described.name})"] = partial(yolo.describe, described, splits)
    if coco.find_files(source):
        forms["COCO (JSON)"] = partial(coco.describe, source, splits)
    if voc.is_voc(source):
        forms["Pascal VOC (XML)"] = partial(voc.describe, source, splits)
    if not forms:
        return yolo.search_folder(source)
    first = next(iter(forms))
    scan = forms[first]()
    if len(forms) > 1:
        words = f"has annotations in {len(forms)} formats, {' and '.join(forms)}; only {first} is "
        scan.problem("layout", f"{words}read; remove the others", source)
    return scan


def read_scan(scan: Scan) -> None:
    """Read the labels and image headers of a scan from `open_scan`, and compute every box."""
    {"yolo": yolo, "coco": coco, "voc": voc}[scan.layout].read(scan)
    geometry.measure(scan)
    convert_forms(scan)
    geometry.place(scan)


def sample_of(entry: Entry, *, repaired: bool = False) -> Sample:
    """Convert an image to a `Sample` with its usable boxes and outlines, clipped to the image.

    Each point of an outline is clipped separately, so that the bounding box of the outline remains
    equal to the clipped box.

    Args:
        entry: The image, after `read_scan`.
        repaired: Include labels that training refuses, if there is only one way to repair them.
    """
    labels = [label for label in entry.labels if geometry.used(label, repaired=repaired)]
    crowd = [x for x in entry.labels if x.crowd and x.box is not None and not x.refused]
    outlines = tuple(
        np.clip(coco.join(label.parts), 0.0, 1.0).astype(np.float32) if label.parts else None
        for label in labels
    )
    rows = np.column_stack(([label.class_id for label in crowd], _boxes(crowd)))
    return Sample(
        entry.path,
        _boxes(labels).astype(np.float32),
        np.array([label.class_id for label in labels], np.int32),
        outlines if any(outline is not None for outline in outlines) else (),
        entry.size,
        rows[(rows[:, 3:] > geometry.NO_AREA).all(axis=1)].astype(np.float32),
        entry.image_id,
    )


def _renumbered(sample: Sample, numbers: NDArray[np.int64]) -> Sample:
    """Return a copy of a sample with each class id ``c`` replaced by ``numbers[c]``."""
    crowd = sample.crowd.copy()
    crowd[:, 0] = numbers[crowd[:, 0].astype(int)]
    return replace(sample, class_id=numbers[sample.class_id].astype(np.int32), crowd=crowd)


def _boxes(labels: Sequence[Label]) -> NDArray[np.float64]:
    """Return the clipped boxes (n, 4) of labels: centre x, centre y, width, height."""
    corners = np.array([label.box for label in labels], np.float64).reshape(-1, 4)
    return centred(np.clip(corners, 0.0, 1.0))
