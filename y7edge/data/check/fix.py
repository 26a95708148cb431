"""Write a cleaned copy of a data set in YOLO format; the original is not changed.

The copy contains everything that training reads from the original. It also contains labels that
training refuses, if there is only one way to repair them.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from y7edge.boxes import corners
from y7edge.data.check.decoding import Progress, any_size
from y7edge.data.check.examine import Report, examine
from y7edge.data.check.images import SUFFIXES, is_called, levels_in_use
from y7edge.data.check.paths import in_words, readable, require_copy
from y7edge.data.check.splits import labels_of, same_splits, shared_entries
from y7edge.data.dataset import sample_of
from y7edge.data.formats.geometry import used
from y7edge.data.formats.records import Entry, Label, Scan
from y7edge.data.images import read_deep, reading, to_bytes
from y7edge.errors import DataError
from y7edge.files import temporary_folder, writing
from y7edge.text import cell, counted, printable, without_active

_MANY = 0.1  # dropping a larger fraction of the labels is reported as a loss
# Largest normalized difference between a box and the bounding box of its outline.
_SAME_BOX = 1e-4
# Pillow's options for images that must be encoded again.
_SAVING: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}


class Change(NamedTuple):
    """One row of ``changes.csv``."""

    file: str
    line: int  # from 1; 0 if unknown
    found: str  # what is wrong in the original
    done: str  # what the copy has instead


@dataclass(frozen=True, slots=True)
class Cleaned:
    """Result of `write_copy`."""

    out: Path
    changes: tuple[Change, ...]  # all differences from the original
    unchanged: tuple[str, ...]  # findings that were not fixed, one line each
    after: Report  # of the copy
    losses: tuple[str, ...] = ()  # missing data, doubtful labels: the command fails if any

    def record(self) -> dict[str, Any]:
        """Return the result as plain values, for JSON."""
        return {
            "out": self.out,
            "changes": [change._asdict() for change in self.changes],
            "not_fixed": list(self.unchanged),
            "losses": list(self.losses),
            "errors": self.after.count("error"),
            "warnings": self.after.count("warning"),
        }

    def lines(self) -> list[str]:
        """Return the result as text: changes by kind, findings that were not fixed, and losses."""
        done = Counter(change.done for change in self.changes)
        lines = [f"cleaned copy: {self.out / 'data.yaml'}"]
        lines += [f"  {count} x {words}" for words, count in done.most_common()]
        if self.unchanged:
            lines += ["not fixed, check these:", *(f"  {line}" for line in self.unchanged)]
        lines += [f"lost: {words}" for words in self.losses]
        left = ", ".join(counted(self.after.count(each), each) for each in ("error", "warning"))
        lines.append(f"the copy: {left}; all changes are in {self.out / 'changes.csv'}")
        return [printable(line) for line in lines]


@dataclass(slots=True)
class _Copy:
    """State of the copy while it is written."""

    scan: Scan
    folder: Path
    changes: list[Change] = field(default_factory=list)
    taken: set[tuple[str, str]] = field(default_factory=set)  # (split, stem in lower case)
    counts: Counter[str] = field(default_factory=Counter)  # images by split; labels, dropped
    losses: list[str] = field(default_factory=list)
    levels: tuple[int, int] | None = None  # lowest and highest value of 16-bit images

    def note(self, file: Path, line: int, found: str, done: str) -> None:
        self.changes.append(Change(readable(file, self.scan.root), line, found, done))


def write_copy(report: Report, out: Path | str, *, progress: Progress | None = None) -> Cleaned:
    """Write a cleaned copy: ``data.yaml``, ``images/``, ``labels/``, ``changes.csv``.

    Image files are copied. Only images with an EXIF rotation, and 16-bit images if the copy sets
    ``levels``, are encoded again.

    Args:
        report: The report on the original.
        out: A new or empty folder outside the data.
        progress: Called with the number of images done and their total.

    Raises:
        DataError: ``out`` is not a new or empty folder outside the data, or no label is left.
        OutputError: The copy cannot be written.
    """
    destination, scan = Path(out), report.scan
    files = [file for e in scan.entries for file in (e.path, e.label_file) if file]
    require_copy(destination, {scan.root, *(file.parent for file in files)})
    with writing("the cleaned copy", destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(destination.parent) as folder:
            copy = _Copy(scan, folder, levels=scan.levels or levels_in_use(scan))
            _write(copy, progress)
            if not copy.counts["labels"]:
                raise DataError(f"{scan.source}: expected labels that can be copied, found none")
            _note_problems(copy, report)
            _note_losses(copy, report)
            _write_changes(copy)
            folder.chmod(0o755)
            folder.replace(destination)
    after = examine(destination / "data.yaml", imgsz=scan.imgsz)
    left = tuple(
        in_words(f, scan.root)
        for f in report.findings
        if not f.fix and (f.severity != "info" or f.doubtful)
    )
    return Cleaned(destination, tuple(copy.changes), left, after, tuple(copy.losses))


def _write_changes(copy: _Copy) -> None:
    path = copy.folder / "changes.csv"
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        rows = ((cell(c.file), c.line, cell(c.found), cell(c.done)) for c in copy.changes)
        csv.writer(stream).writerows([Change._fields, *rows])


def _write(copy: _Copy, progress: Progress | None) -> None:
    """Write images, labels and the ``data.yaml``."""
    scan = copy.scan
    left_out = _left_out(copy)
    aliases = {other: one for one, other in dict(same_splits(scan)).items()}
    # The first of equal images is kept. Sort images that share a label file to the end.
    owners = Counter(entry.label_file for entry in scan.entries)
    wanted = sorted(scan.entries, key=lambda entry: owners[entry.label_file] > 1)
    seen: set[tuple[object, ...]] = set()
    for number, entry in enumerate(wanted, 1):
        for split in dict.fromkeys(entry.splits):
            if split in aliases or (entry.path, split) in left_out or not _usable(copy, entry):
                continue
            # Keep all equal images whose labels differ: it is unknown which labels are right.
            key = (split, entry.facts.digest, *labels_of(entry))
            if not entry.facts.flat and key in seen:
                copy.note(entry.path, 0, "the same image twice", "image kept once")
                continue
            seen.add(key)
            lines = _label_lines(copy, entry)
            if entry.labels and not lines:
                # Without labels it would become a background image.
                reason = "none of its labels can be used"
                copy.note(entry.path, 0, reason, "image left out")
                continue
            _write_image(copy, entry, split, lines)
        if progress is not None:
            progress(number, len(wanted))
    _write_description(copy, aliases)


def _left_out(copy: _Copy) -> set[tuple[Path, str]]:
    """Return the path and split of images to drop because another split has them too.

    An image in train and in another split is dropped from train, unless train would become empty.
    """
    shared = shared_entries(copy.scan)
    train = {entry.facts.digest for entry in copy.scan.in_split("train")}
    same: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for split, entries in copy.scan.members.items():
        for entry in entries:
            same[split, entry.facts.digest].append(entry)
    found: set[tuple[Path, str]] = set()
    emptied = train <= {first.facts.digest for _, _, first, _ in shared}
    for entry, split, first, other in shared:
        drop = (entry, split) if emptied or other != "train" else (first, other)
        # Drop all equal images of that split.
        for one in same.pop((drop[1], drop[0].facts.digest), ()):
            found.add((one.path, drop[1]))
            copy.note(one.path, 0, "in two splits", f"image left out of {drop[1]}")
    return found


def _usable(copy: _Copy, entry: Entry) -> bool:
    """Return whether an image can be copied; if not, note the reason."""
    reason = entry.facts.fault or entry.lost
    if entry.frame is None:
        reason = reason or "not readable"
    elif entry.tiny:
        reason = f"is {entry.frame.size[0]}x{entry.frame.size[1]} pixels"
    elif copy.scan.layout == "voc" and not entry.labelled:
        reason = "has no annotation"
    if reason:
        copy.note(entry.path, 0, reason, "image left out")
        copy.counts["dropped"] += len(entry.labels)
    return not reason


def _write_image(copy: _Copy, entry: Entry, split: str, lines: Sequence[str]) -> None:
    """Write an image and its label file; note what differs from the original."""
    facts, source = entry.facts, entry.path
    suffix = source.suffix
    if not is_called(facts.format, source):
        suffix = SUFFIXES.get(facts.format, suffix)
        found = f"{facts.format} with suffix {source.suffix}"
        copy.note(source, 0, found, f"renamed to {suffix}")
    stem, count = source.stem, 2
    while (split, stem.lower()) in copy.taken:
        stem, count = f"{source.stem}_{count}", count + 1
    if stem != source.stem:
        copy.note(source, 0, "its name is already used", f"renamed to {stem}{suffix}")
    copy.taken.add((split, stem.lower()))
    image = copy.folder / "images" / split / f"{stem}{suffix}"
    labels = copy.folder / "labels" / split / f"{stem}.txt"
    for path in (image, labels):
        path.parent.mkdir(parents=True, exist_ok=True)
    if entry.frame is not None and entry.frame.orientation != 1:
        _upright(source, image)
        done = f"stored upright{', boxes turned' if entry.in_stored_frame else ''}"
        copy.note(source, 0, f"EXIF orientation {entry.frame.orientation}", done)
    elif copy.levels and facts.levels:
        scaled = to_bytes(np.asarray(read_deep(source), np.uint16), copy.levels)
        image.write_bytes(cv2.imencode(image.suffix, scaled)[1].tobytes())
        copy.note(source, 0, "16 bits", "scaled to 8 bits")
    else:
        shutil.copyfile(source, image)
    if not entry.labelled and entry.label_file:
        copy.note(entry.label_file, 0, "no label file", "empty label file written")
    labels.write_text("".join(lines), encoding="utf-8")
    copy.counts["labels"] += len(lines)
    copy.counts[split] += 1


def _upright(source: Path, image: Path) -> None:
    """Write a copy of an image with the EXIF orientation applied."""
    from PIL import Image, ImageOps

    with reading(source) as (content, _), any_size(), Image.open(io.BytesIO(content)) as opened:
        kind = "JPEG" if opened.format == "MPO" else opened.format
        turned = ImageOps.exif_transpose(opened)
        turned.save(image, kind, exif=b"", **_SAVING.get(kind or "", {}))


def _label_lines(copy: _Copy, entry: Entry) -> list[str]:
    """Return the label lines of an image for the copy, and note the changes."""
    for label in entry.labels:
        if words := _change_of(copy, label):
            copy.note(label.file, label.line, label.text, words)
    sample = sample_of(entry, repaired=True)
    polygons = sample.polygons or (None,) * len(sample.boxes)
    boxes = np.asarray(sample.boxes, np.float64)
    lines = []
    for class_id, box, hull, polygon in zip(
        sample.class_id, boxes, corners(boxes[:, :2], boxes[:, 2:]), polygons, strict=True
    ):
        numbers = box
        if polygon is not None:
            extent = np.concatenate((polygon.min(axis=0), polygon.max(axis=0)))
            if np.abs(extent - hull).max() <= _SAME_BOX:
                numbers = polygon.ravel()
        lines.append(f"{class_id} {' '.join(f'{number:.8f}' for number in numbers)}\n")
    return lines


def _change_of(copy: _Copy, label: Label) -> str:
    """Return how a label is changed in the copy; empty if it is copied as written."""
    if label.crowd:
        return "label left out: crowd regions cannot be written as YOLO labels"
    if label.repeats:
        return "label kept once"
    if not used(label, repaired=True):
        copy.counts["dropped"] += 1
        if label.fault == "class_range":
            return f"label left out: class '{label.raw_class}' does not exist"
        return f"label left out: {label.fault or 'the image size is unknown'}"
    words = {"pixels": "box divided by the image size", "negative": "corners put in order",
             "twice": "box multiplied by the image size",
             "sticks_out": "box clipped", "range": "box clipped"}  # fmt: skip
    return "; ".join(filter(None, (label.repaired, words.get(label.fault, ""))))


def _write_description(copy: _Copy, aliases: dict[str, str]) -> None:
    """Write the ``data.yaml``; ``aliases`` are splits that use the images of another split."""
    scan = copy.scan
    names = [without_active(name).strip() or str(index) for index, name in enumerate(scan.names)]
    highest = max((x.class_id for _, x in scan.labels() if x.class_id is not None), default=-1)
    wanted = scan.classes or min(highest, 10_000) + 1
    names += [str(index) for index in range(len(names), wanted)]
    if names != scan.names:
        copy.note(scan.source, 0, f"{len(scan.names)} names", f"{len(names)} names written")
    lines = [f"# Cleaned copy of {scan.source.name}; see changes.csv\n"]
    for split in dict.fromkeys(scan.split_names):
        home = aliases.get(split, split)
        if copy.counts[home]:
            lines.append(f"{json.dumps(split)}: {json.dumps(f'images/{home}')}\n")
        else:
            copy.note(scan.source, 0, f"nothing is left of split {split}", "split left out")
            if scan.in_split(split):
                copy.losses.append(f"nothing is left of the split {split}")
    if copy.levels:
        lines.append(f"levels: {list(copy.levels)}  # of 16-bit images, scaled to 8 bits\n")
    lines.append("names:\n")
    # JSON strings are valid YAML and always quoted.
    lines += [f"  - {json.dumps(name, ensure_ascii=False)}\n" for name in names]
    text = "".join(lines).encode("utf-8", errors="backslashreplace")
    (copy.folder / "data.yaml").write_bytes(text)


def _note_problems(copy: _Copy, report: Report) -> None:
    """Record a change for each problem that is fixed just by writing the copy.

    All label files and ``data.yaml`` are written anew, and unusable files are left out.
    """
    noted = {"encoding", "byte_order_mark", "line_ends", "size"}
    noted |= {"unreferenced_label", "unreferenced_image"}
    noted |= {"path_entry", "label_name", "unreadable_text", "entry", "test_entry", "list_entry"}
    noted |= {"listed_twice", "names", "ids", "annotation", "undescribed", "rescaled"}
    noted |= {"passed_over", "tool_path", "text_number", "keypoints", "outline", "outline_points"}
    for finding in report.findings:
        if finding.check in noted and finding.fix:
            copy.note(finding.file, finding.line, finding.message, finding.fix)


def _note_losses(copy: _Copy, report: Report) -> None:
    """Add to the losses: many dropped labels, doubtful findings, errors that are not fixed."""
    dropped = copy.counts["dropped"]
    if dropped > _MANY * (dropped + copy.counts["labels"]):
        words = f"{dropped} of {dropped + copy.counts['labels']} labels are not in the copy"
        copy.losses.append(words)
    left = Counter(f.check for f in report.findings
                   if f.doubtful or (f.severity == "error" and not f.fix))  # fmt: skip
    copy.losses += [f"not fixed: {check}" for check in left]
