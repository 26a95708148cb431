"""A cleaned copy of a data set, in YOLO form; the original is only read."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from y7edge.data.check.decoding import Progress, any_size
from y7edge.data.check.examine import Report, examine
from y7edge.data.check.geometry import grade, may_be_percent, outline_disagrees
from y7edge.data.check.images import LEAST_SIDE, SUFFIXES, boxes_in_stored_frame
from y7edge.data.check.paths import readable, require_copy
from y7edge.data.check.splits import same_splits, shared_pictures
from y7edge.data.formats.records import Label, Picture, Scan
from y7edge.data.sample import NO_AREA, ROUNDING
from y7edge.errors import DataError
from y7edge.files import writing

_MANY = 0.1  # of the labels
# How pictures that must be encoded again are saved.
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
class Mended:
    """A cleaned copy.

    Attributes:
        out: Its folder.
        changes: Everything that differs from the original.
        unchanged: What was found and could not be mended, one line each.
        after: What the examination of the copy found.
        losses: What the copy lacks that somebody may miss: many labels, a whole split.
    """

    out: Path
    changes: tuple[Change, ...]
    unchanged: tuple[str, ...]
    after: Report
    losses: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "out": self.out,
            "changes": [change._asdict() for change in self.changes],
            "not_mended": list(self.unchanged),
            "losses": list(self.losses),
            "errors": self.after.count("error"),
            "warnings": self.after.count("warning"),
        }

    def lines(self) -> list[str]:
        """For people: what was done, by kind; what was not."""
        done = Counter(change.done for change in self.changes)
        lines = [f"cleaned copy: {self.out / 'data.yaml'}"]
        lines += [f"  {count} x {words}" for words, count in done.most_common()]
        if self.unchanged:
            lines += ["not mended, look at these:", *(f"  {line}" for line in self.unchanged)]
        lines += [f"lost: {words}" for words in self.losses]
        left = f"{self.after.count('error')} errors, {self.after.count('warning')} warnings"
        return [*lines, f"the copy: {left}; every change stands in {self.out / 'changes.csv'}"]


@dataclass(slots=True)
class _Copy:
    """A copy in the making."""

    scan: Scan
    folder: Path
    changes: list[Change] = field(default_factory=list)
    taken: set[tuple[str, str]] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    losses: list[str] = field(default_factory=list)
    may_be_percent: bool = False

    def note(self, file: Path, line: int, found: str, done: str) -> None:
        self.changes.append(Change(readable(file, self.scan.root), line, found, done))


def mend(report: Report, out: Path | str, *, progress: Progress | None = None) -> Mended:
    """Write a cleaned copy: ``data.yaml``, ``images/``, ``labels/``, ``changes.csv``.

    Pictures are copied; only those with an EXIF rotation are encoded again, upright.

    Args:
        report: The examination of the original.
        out: A folder that is not there yet, or empty, and not within the data.
        progress: Told of pictures done, and of all.

    Raises:
        DataError: ``out`` is not fit, or nothing with a label is left to write.
        OutputError: the copy cannot be written.
    """
    destination, scan = Path(out), report.scan
    require_copy(destination, {scan.root, *scan.folders})
    with writing("the cleaned copy", destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=destination.parent, prefix=".cleaned-"))
        try:
            copy = _Copy(scan, folder, may_be_percent=may_be_percent(scan))
            _write(copy, progress)
            if not copy.counts["labels"]:
                reason = "nothing with a label is left to write; see the check"
                raise DataError(f"{scan.source}: {reason}")
            _note_troubles(copy, report)
            _note_losses(copy, report)
            _write_changes(copy)
            folder.chmod(0o755)
            folder.replace(destination)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    after = examine(destination / "data.yaml", imgsz=scan.imgsz)
    left = tuple(
        f"{readable(f.file, scan.root)}{f':{f.line}' if f.line else ''}: {f.message}"
        for f in report.findings
        if not f.fix and f.severity != "info"
    )
    return Mended(destination, tuple(copy.changes), left, after, tuple(copy.losses))


def _write_changes(copy: _Copy) -> None:
    path = copy.folder / "changes.csv"
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        csv.writer(stream).writerows([Change._fields, *copy.changes])


def _write(copy: _Copy, progress: Progress | None) -> None:
    scan = copy.scan
    left_out = _left_out(copy)
    equal = dict(same_splits(scan))  # first split -> one with the same pictures
    aliases = {other: one for one, other in equal.items()}
    # Of pictures twice in a split the first is kept: rather one whose labels are its own.
    owners = Counter(picture.label_file for picture in scan.pictures.values())
    wanted = sorted(scan.pictures.values(), key=lambda picture: owners[picture.label_file] > 1)
    seen: set[tuple[str, str]] = set()
    for number, picture in enumerate(wanted, 1):
        for split in dict.fromkeys(picture.splits):
            if split in aliases and aliases[split] in picture.splits:
                continue
            if split in aliases or (picture.path, split) in left_out or not _usable(copy, picture):
                continue
            key = (split, picture.facts.digest)
            if key in seen and not picture.facts.flat:
                copy.note(picture.path, 0, "the same picture twice", "picture kept once")
                continue
            seen.add(key)
            lines = _label_lines(copy, picture)
            if picture.labels and not lines:
                # Without labels it would pass for a picture that shows nothing.
                reason = "none of its labels can be used"
                copy.note(picture.path, 0, reason, "picture left out")
                continue
            _write_picture(copy, picture, split, lines)
        if progress is not None:
            progress(number, len(wanted))
    _write_description(copy, aliases)


def _left_out(copy: _Copy) -> set[tuple[Path, str]]:
    """Mentions of pictures in two splits to leave out: in train, rather than where one judges."""
    shared = shared_pictures(copy.scan)
    train = {p.facts.digest for p in copy.scan.in_split("train")}
    found: set[tuple[Path, str]] = set()
    emptied = train <= {first.facts.digest for _, _, first, _ in shared}
    for picture, split, first, other in shared:
        drop = (picture, split) if emptied or other != "train" else (first, other)
        # All copies of it within that split go.
        for same in copy.scan.in_split(drop[1]):
            if same.facts.digest == drop[0].facts.digest and (same.path, drop[1]) not in found:
                found.add((same.path, drop[1]))
                copy.note(same.path, 0, "in two splits", f"picture left out of {drop[1]}")
    return found


def _usable(copy: _Copy, picture: Picture) -> bool:
    facts, reason = picture.facts, ""
    if facts.fault or facts.size is None:
        reason = facts.fault or "not readable"
    elif min(facts.size) < LEAST_SIDE:
        reason = f"is {facts.size[0]}x{facts.size[1]} pixels"
    elif picture.lost:
        reason = picture.lost
    elif copy.scan.layout == "voc" and not picture.labelled:
        reason = "has no annotation"
    elif picture.label_file in {t.file for t in copy.scan.troubles if t.check == "annotation"}:
        reason = "has an annotation that cannot be read" if copy.scan.layout == "voc" else ""
    elif picture.stated and picture.stated != picture.size and not _fits(picture):
        reason = "has boxes in a frame of another size"
    if reason:
        copy.note(picture.path, 0, reason, "picture left out")
        copy.counts["dropped"] += len(picture.labels)
    return not reason


def _fits(picture: Picture) -> bool:
    size = picture.facts.size or (0, 0)
    for label in picture.labels:
        values = label.values or ()
        if len(values) == 4 and label.form in ("corners", "sides"):
            shift = values[:2] if label.form == "sides" else (0.0, 0.0)
            if values[2] + shift[0] > size[0] + 1 or values[3] + shift[1] > size[1] + 1:
                return False
    return True


def _write_picture(copy: _Copy, picture: Picture, split: str, lines: Sequence[str]) -> None:
    facts, source = picture.facts, picture.path
    suffix = SUFFIXES.get(facts.format, source.suffix.lower())
    right = source.suffix.lower() in (suffix, ".jpeg", ".tiff", ".mpo", ".pgm")
    if right and (suffix == ".jpg") == (source.suffix.lower() in (".jpg", ".jpeg", ".mpo")):
        suffix = source.suffix
    else:
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
    if facts.orientation != 1:
        _upright(source, image)
        copy.note(source, 0, f"EXIF orientation {facts.orientation}", "stored upright")
    else:
        shutil.copyfile(source, image)
    if picture.stated and picture.label_file and picture.stated != picture.size:
        copy.note(picture.label_file, 0, "states another size", "the picture's own size used")
    if not picture.labelled and picture.label_file:
        copy.note(picture.label_file, 0, "no label file", "an empty one written")
    labels.write_text("".join(lines), encoding="utf-8")
    copy.counts["pictures"] += 1
    copy.counts["labels"] += len(lines)
    copy.counts[split] += 1


def _upright(source: Path, image: Path) -> None:
    from PIL import Image, ImageOps

    with any_size(), Image.open(source) as opened:
        kind = "JPEG" if opened.format == "MPO" else opened.format
        turned = ImageOps.exif_transpose(opened)
        turned.save(image, kind, exif=b"", **_SAVING.get(kind or "", {}))


def _label_lines(copy: _Copy, picture: Picture) -> list[str]:
    """Clean label lines; what is mended or left out is noted."""
    lines: dict[object, str] = {}
    for label in picture.labels:
        if label.crowd:
            copy.note(label.file, label.line, label.text, "a crowd, which YOLO labels cannot say")
            continue
        class_id, reason = _clean_class(copy.scan, label)
        points, what = _clean_points(copy, picture, label)
        if points is None or class_id is None:
            copy.note(label.file, label.line, label.text, f"label left out: {reason or what}")
            copy.counts["dropped"] += 1
            continue
        xs, ys = points[0::2], points[1::2]
        box = (min(xs), min(ys), max(xs), max(ys))
        key = (class_id, *(round(value, 5) for value in box))
        if key in lines:
            copy.note(label.file, label.line, label.text, "label kept once")
            continue
        if label.mended:
            copy.note(label.file, label.line, label.text, label.mended)
        if outline_disagrees(label):
            copy.note(label.file, label.line, label.text, "its outline is left out")
        if what:
            copy.note(label.file, label.line, label.text, f"box {what}")
        lines[key] = _line(class_id, points)
    return list(lines.values())


def _line(class_id: int, points: Sequence[float]) -> str:
    if len(points) == 4:
        x1, y1, x2, y2 = points
        numbers: Sequence[float] = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
    else:
        numbers = points
    return f"{class_id} {' '.join(f'{number:.8f}' for number in numbers)}\n"


def _clean_class(scan: Scan, label: Label) -> tuple[int | None, str]:
    found = label.class_id
    if found is None and scan.layout == "yolo":
        return None, f"'{label.raw_class}' is neither the number nor the name of a class"
    if found is None or found < 0 or found >= max(scan.classes, 1 if scan.names else 1 << 30):
        return None, f"class '{label.raw_class}' does not exist"
    return found, ""


def _clean_points(
    copy: _Copy, picture: Picture, label: Label
) -> tuple[tuple[float, ...] | None, str]:
    """Corners (4 numbers) or a polygon (6 or more) in shares, and what was mended or is wrong."""
    found = grade(label, picture)
    if found.box is None or found.fault in ("no_area", "outside", "columns"):
        return None, found.fault or "its size is not known"
    if found.fault == "pixels" and copy.may_be_percent:
        return None, "percent or pixels"
    points: tuple[float, ...] = found.box
    if found.fault not in ("pixels", "twice", "negative"):
        points = _outline(label, picture) or points
    if boxes_in_stored_frame(picture):
        points = _turned(points, picture.facts.orientation)
    clipped = tuple(min(max(value, 0.0), 1.0) for value in points)
    xs, ys = clipped[0::2], clipped[1::2]
    if max(xs) - min(xs) <= 2 * NO_AREA or max(ys) - min(ys) <= 2 * NO_AREA:
        return None, "no area within the picture"
    moved = max(abs(a - b) for a, b in zip(points, clipped, strict=True)) > ROUNDING
    words = {"pixels": "divided by the picture's size", "negative": "put in order",
             "twice": "multiplied by the picture's size"}.get(found.fault, "")  # fmt: skip
    return clipped, words or ("clipped" if moved else "")


def _outline(label: Label, picture: Picture) -> tuple[float, ...]:
    if label.form == "polygon":
        return label.values or ()
    if not label.outline or picture.size is None or outline_disagrees(label):
        return ()
    width, height = picture.size
    return tuple(
        value / (height if index % 2 else width) for index, value in enumerate(label.outline)
    )


def _turned(points: tuple[float, ...], orientation: int) -> tuple[float, ...]:
    """Points in shares of the stored picture, as shares of the upright one."""
    moves = {
        2: lambda x, y: (1 - x, y),
        3: lambda x, y: (1 - x, 1 - y),
        4: lambda x, y: (x, 1 - y),
        5: lambda x, y: (y, x),
        6: lambda x, y: (1 - y, x),
        7: lambda x, y: (1 - y, 1 - x),
        8: lambda x, y: (y, 1 - x),
    }
    pairs = zip(points[0::2], points[1::2], strict=True)
    found = [moves[orientation](x, y) for x, y in pairs]
    if len(found) == 2:  # corners change places in a turn
        xs, ys = sorted(x for x, _ in found), sorted(y for _, y in found)
        return xs[0], ys[0], xs[1], ys[1]
    return tuple(value for point in found for value in point)


def _write_description(copy: _Copy, aliases: dict[str, str]) -> None:
    scan = copy.scan
    names = [name.strip() or str(index) for index, name in enumerate(scan.names)]
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
    lines.append("names:\n")
    # JSON is YAML, and quotes whatever needs it.
    lines += [f"  - {json.dumps(name, ensure_ascii=False)}\n" for name in names]
    text = "".join(lines).encode("utf-8", errors="backslashreplace")
    (copy.folder / "data.yaml").write_bytes(text)


def _note_troubles(copy: _Copy, report: Report) -> None:
    """Findings that the copy mends by what it is: files left out, or written anew."""
    noted = {"encoding", "byte_order_mark", "line_ends", "orphan_label", "orphan_picture"}
    noted |= {
        "path_entry",
        "label_name",
        "unreadable_text",
        "entry",
        "test_entry",
        "list_entry",
        "linked_folder",
        "listed_twice",
        "names",
        "ids",
        "annotation",
    }
    for finding in report.findings:
        if finding.check in noted:
            copy.note(finding.file, finding.line, finding.message, finding.fix)


def _note_losses(copy: _Copy, report: Report) -> None:
    """What makes the copy poorer than anyone would want without having been told."""
    dropped = copy.counts["dropped"]
    if dropped > _MANY * (dropped + copy.counts["labels"]):
        words = f"{dropped} of {dropped + copy.counts['labels']} labels are not in the copy"
        copy.losses.append(words)
    for finding in report.findings:
        if finding.severity == "error" and not finding.fix:
            copy.losses.append(f"not mended: {finding.check}")
