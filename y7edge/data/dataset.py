"""Data sets in one form, whatever files they were read from.

``load`` takes a ``data.yaml`` (YOLO labels: `y7edge.data.formats.yolo`), a folder with one, a
folder of Pascal VOC annotations (`y7edge.data.formats.voc`), or a folder or file of COCO
annotations (`y7edge.data.formats.coco`).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from y7edge.data import label_cache
from y7edge.data.formats import coco, voc, yolo
from y7edge.data.sample import Plan, Sample, single_class
from y7edge.errors import DataError

__all__ = ["Dataset", "Sample", "load"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled pictures by split.

    Attributes:
        source: The ``data.yaml`` or folder that it was read from.
        names: Class names; ``Sample.class_id`` indexes them.
        splits: Samples by name of the split: ``train``, ``val``, ``test``, as far as there are.
        warnings: What was mended while reading, one line each, with counts.
    """

    source: Path
    names: tuple[str, ...]
    splits: Mapping[str, tuple[Sample, ...]]
    warnings: tuple[str, ...] = ()

    def split(self, name: str) -> tuple[Sample, ...]:
        """The samples of one split.

        Raises:
            DataError: There is no such split, or it has no pictures.
        """
        samples = self.splits.get(name, ())
        if not samples:
            found = ", ".join(key for key, value in self.splits.items() if value) or "no split"
            raise DataError(f"{self.source}: expected pictures in split '{name}', found {found}")
        return samples

    def single_class(self) -> Dataset:
        """The same pictures with one class, "object"; boxes that differed by class only are one."""
        splits = {
            split: tuple(single_class(sample) for sample in samples)
            for split, samples in self.splits.items()
        }
        return replace(self, names=("object",), splits=splits)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, labels, and the names and sizes of the pictures' files.

        It tells whether two runs saw the same data; the folder may have moved in between. Outlines
        and crowd regions count where there are any.
        """
        digest = hashlib.sha256(repr(self.names).encode())
        for split, samples in self.splits.items():
            for sample in samples:
                size = sample.path.stat().st_size
                digest.update(f"\n{split}\t{sample.path.name}\t{size}\t".encode())
                digest.update(sample.class_id.astype("<i4").tobytes())
                digest.update(sample.boxes.astype("<f4").tobytes())
                for outline in sample.polygons:
                    if outline is not None:
                        digest.update(b"\toutline\t" + outline.astype("<f4").tobytes())
                if len(sample.crowd):
                    digest.update(b"\tcrowd\t" + sample.crowd.astype("<f4").tobytes())
        return digest.hexdigest()


def load(path: Path | str, splits: Sequence[str] | None = None) -> Dataset:
    """Read a data set; its warnings are logged, one line each.

    Args:
        path: A ``data.yaml``, a folder that holds one, a folder of Pascal VOC or COCO annotations,
            or one COCO file.
        splits: Only these, which then must exist; None reads all that are there.

    Raises:
        DataError: Nothing readable there, a split asked for is missing, or a label file is wrong.
        RuntimeMissing: A ``data.yaml`` needs PyYAML.
    """
    source = Path(path)
    if not source.exists():
        raise DataError(f"{source}: expected a data.yaml or a data folder, found nothing there")
    described, plan = _plan(source, splits)
    reading = label_cache.reading(plan, described, splits)
    for warning in reading.warnings:
        _log.warning("%s: %s", described, warning)
    return Dataset(described, reading.names, reading.splits, reading.warnings)


def _plan(source: Path, splits: Sequence[str] | None) -> tuple[Path, Plan]:
    """What describes the data below ``source``, and the plan of the reader that knows it."""
    if source.is_file() and source.suffix.lower() == ".json":
        return source, coco.plan(source, splits)
    if source.is_file():
        return source, yolo.plan(source, splits)
    if source.is_dir():
        described = yolo.find(source)
        if described is not None:
            return described, yolo.plan(described, splits)
        if coco.is_coco(source):
            return source, coco.plan(source, splits)
        if voc.is_voc(source):
            return source, voc.plan(source, splits)
    raise DataError(
        f"{source}: expected a data.yaml, or folders images/ and annotations/ (*.xml) with lists "
        "train.txt and val.txt, or train/ and val/ with pictures and XML files, or "
        "annotations/instances_train2017.json and the like, found none"
    )
