"""A cleaned copy of a data set, in YOLO form; the original is only read.

The copy holds what training would read of the original, and what can be repaired without a guess.
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
from y7edge.text import cell, printable, without_active

_MANY = 0.1  # of the labels
_SAME_BOX = 1e-4  # within which the hull of an outline is the box that it came with
# How images that must be encoded again are saved.
_SAVING: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}


class Change(NamedTuple):
    """One line of ``changes.csv``: where, what was found, what was done."""

    file: str
    line: int
    found: str
    done: str


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A cleaned copy."""

    out: Path
    changes: tuple[Change, ...]  # everything that differs from the original
    unchanged: tuple[str, ...]  # what was found and could not be fixed, one line each
    after: Report  # of the copy
    losses: tuple[str, ...] = ()  # data that it lacks, and doubts: it is not clean

    def record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "out": self.out,
            "changes": [change._asdict() for change in self.changes],
            "not_fixed": list(self.unchanged),
            "losses": list(self.losses),
            "errors": self.after.count("error"),
            "warnings": self.after.count("warning"),
        }

    def lines(self) -> list[str]:
        """Text: what was done, by kind; what was not."""
        done = Counter(change.done for change in self.changes)
        lines = [f"cleaned copy: {self.out / 'data.yaml'}"]
        lines += [f"  {count} x {words}" for words, count in done.most_common()]
        if self.unchanged:
            lines += ["not fixed, look at these:", *(f"  {line}" for line in self.unchanged)]
        lines += [f"lost: {words}" for words in self.losses]
        left = f"{self.after.count('error')} errors, {self.after.count('warning')} warnings"
        lines.append(f"the copy: {left}; every change is in {self.out / 'changes.csv'}")
        return [printable(line) for line in lines]


@dataclass(slots=True)
class _Copy:
    """A copy in the making."""

    scan: Scan
    folder: Path
    changes: list[Change] = field(default_factory=list)
    taken: set[tuple[str, str]] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    losses: list[str] = field(default_factory=list)
    levels: tuple[int, int] | None = None

    def note(self, file: Path, line: int, found: str, done: str) -> None:
        self.changes.append(Change(readable(file, self.scan.root), line, found, done))


def write_copy(report: Report, out: Path | str, *, progress: Progress | None = None) -> Cleaned:
    """Write a cleaned copy: ``data.yaml``, ``images/``, ``labels/``, ``changes.csv``.

    Images are copied; only those with an EXIF rotation are encoded again, upright.

    Args:
        report: The examination of the original.
        out: A folder that is not there yet, or empty, and not within the data.
        progress: Called with how many images are done, and how many there are.

    Raises:
        DataError: ``out`` is not fit, or nothing with a label is left to write.
        OutputError: the copy cannot be written.
    """
    destination, scan = Path(out), report.scan
    require_copy(destination, _folders(scan))
    with writing("the cleaned copy", destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(destination.parent) as folder:
            copy = _Copy(scan, folder, levels=scan.levels or levels_in_use(scan))
            _write(copy, progress)
            if not copy.counts["labels"]:
                reason = "nothing with a label is left to write; see the check"
                raise DataError(f"{scan.source}: {reason}")
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


def _folders(scan: Scan) -> set[Path]:
    files = [e.path for e in scan.entries] + [e.label_file for e in scan.entries if e.label_file]
    return {scan.root, *(path.parent for path in files)}


def _write_changes(copy: _Copy) -> None:
    path = copy.folder / "changes.csv"
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        rows = ((cell(c.file), c.line, cell(c.found), cell(c.done)) for c in copy.changes)
        csv.writer(stream).writerows([Change._fields, *rows])


def _write(copy: _Copy, progress: Progress | None) -> None:
    scan = copy.scan
    left_out = _left_out(copy)
    equal = dict(same_splits(scan))  # first split -> one with the same images
    aliases = {other: one for one, other in equal.items()}
    # Of images twice in a split the first is kept: rather one whose labels are its own.
    owners = Counter(entry.label_file for entry in scan.entries)
    wanted = sorted(scan.entries, key=lambda entry: owners[entry.label_file] > 1)
    seen: set[tuple[object, ...]] = set()
    for number, entry in enumerate(wanted, 1):
        for split in dict.fromkeys(entry.splits):
            if split in aliases and aliases[split] in entry.splits:
                continue
            if split in aliases or (entry.path, split) in left_out or not _usable(copy, entry):
                continue
            # With other labels one of them is wrong: nothing says which.
            key = (split, entry.facts.digest, *labels_of(entry))
            if not entry.facts.flat and key in seen:
                copy.note(entry.path, 0, "the same image twice", "image kept once")
                continue
            seen.add(key)
            lines = _label_lines(copy, entry)
            if entry.labels and not lines:
                # Without labels it would pass for an image that shows nothing.
                reason = "none of its labels can be used"
                copy.note(entry.path, 0, reason, "image left out")
                continue
            _write_image(copy, entry, split, lines)
        if progress is not None:
            progress(number, len(wanted))
    _write_description(copy, aliases)


def _left_out(copy: _Copy) -> set[tuple[Path, str]]:
    """Cross-split duplicates to drop, preferably from train."""
    shared = shared_entries(copy.scan)
    train = {p.facts.digest for p in copy.scan.in_split("train")}
    same: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for split, entries in copy.scan.members.items():
        for entry in entries:
            same[split, entry.facts.digest].append(entry)
    found: set[tuple[Path, str]] = set()
    emptied = train <= {first.facts.digest for _, _, first, _ in shared}
    for entry, split, first, other in shared:
        drop = (entry, split) if emptied or other != "train" else (first, other)
        # All copies of it within that split go.
        for one in same.pop((drop[1], drop[0].facts.digest), ()):
            found.add((one.path, drop[1]))
            copy.note(one.path, 0, "in two splits", f"image left out of {drop[1]}")
    return found


def _usable(copy: _Copy, entry: Entry) -> bool:
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
    facts, source = entry.facts, entry.path
    suffix = source.suffix
    if not is_called(facts.format, source):
        suffix = SUFFIXES.get(facts.format, suffix)
        copy.note(source, 0, f"a {facts.format} called {source.suffix}", f"called {suffix}")
    stem, count = source.stem, 2
    while (split, stem.lower()) in copy.taken:
        stem, count = f"{source.stem}_{count}", count + 1
    if stem != source.stem:
        copy.note(source, 0, "its name is taken", f"called {stem}{suffix}")
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
        copy.note(entry.label_file, 0, "no label file", "an empty one written")
    labels.write_text("".join(lines), encoding="utf-8")
    copy.counts["labels"] += len(lines)
    copy.counts[split] += 1


def _upright(source: Path, image: Path) -> None:
    from PIL import Image, ImageOps

    with reading(source) as (content, _), any_size(), Image.open(io.BytesIO(content)) as opened:
        kind = "JPEG" if opened.format == "MPO" else opened.format
        turned = ImageOps.exif_transpose(opened)
        turned.save(image, kind, exif=b"", **_SAVING.get(kind or "", {}))


def _label_lines(copy: _Copy, entry: Entry) -> list[str]:
    """Label lines of what training reads or would read after certain repairs; changes are noted."""
    for label in entry.labels:
        if words := _done(copy, label):
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


def _done(copy: _Copy, label: Label) -> str:
    """What becomes of a label, if it is not copied as it is."""
    if label.crowd:
        return "a crowd, which YOLO labels cannot say"
    if label.repeats:
        return "label kept once"
    if not used(label, repaired=True):
        copy.counts["dropped"] += 1
        if label.fault == "class_range":
            return f"label left out: class '{label.raw_class}' does not exist"
        return f"label left out: {label.fault or 'its size is not known'}"
    words = {"pixels": "box divided by the image size", "negative": "box put in order",
             "twice": "box multiplied by the image size",
             "sticks_out": "box clipped", "range": "box clipped"}  # fmt: skip
    return "; ".join(filter(None, (label.repaired, words.get(label.fault, ""))))


def _write_description(copy: _Copy, aliases: dict[str, str]) -> None:
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
            if scan.in_split(split):  # else there was nothing
                copy.losses.append(f"nothing is left of the split {split}")
    if copy.levels:
        lines.append(f"levels: {list(copy.levels)}  # of 16-bit images, scaled to 8 bits\n")
    lines.append("names:\n")
    # JSON is YAML, and quotes whatever needs it.
    lines += [f"  - {json.dumps(name, ensure_ascii=False)}\n" for name in names]
    text = "".join(lines).encode("utf-8", errors="backslashreplace")
    (copy.folder / "data.yaml").write_bytes(text)


def _note_problems(copy: _Copy, report: Report) -> None:
    """Findings that the copy fixes by what it is: files left out, or written anew."""
    noted = {"encoding", "byte_order_mark", "line_ends", "size"}
    noted |= {"unreferenced_label", "unreferenced_image"}
    noted |= {"path_entry", "label_name", "unreadable_text", "entry", "test_entry", "list_entry"}
    noted |= {"listed_twice", "names", "ids", "annotation", "undescribed", "rescaled"}
    noted |= {"passed_over", "tool_path", "text_number", "keypoints", "outline", "outline_points"}
    for finding in report.findings:
        if finding.check in noted and finding.fix:
            copy.note(finding.file, finding.line, finding.message, finding.fix)


def _note_losses(copy: _Copy, report: Report) -> None:
    """Record data loss and doubt, with which the copy is not clean."""
    dropped = copy.counts["dropped"]
    if dropped > _MANY * (dropped + copy.counts["labels"]):
        words = f"{dropped} of {dropped + copy.counts['labels']} labels are not in the copy"
        copy.losses.append(words)
    left = Counter(f.check for f in report.findings
                   if f.doubtful or (f.severity == "error" and not f.fix))  # fmt: skip
    copy.losses += [f"not fixed: {check}" for check in left]
