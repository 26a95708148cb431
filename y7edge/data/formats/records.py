"""Records that all parsers return: the images, labels and problems of a data set.

A parser (`yolo`, `coco`, `voc`) returns a `Scan`. `y7edge.data.dataset.load` raises an error for
the first problem that training refuses; if there is none, it converts the scan to samples. ``data
check`` reports all problems.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from y7edge.data.formats.text import Text
from y7edge.data.headers import Frame
from y7edge.data.sample import Stamp, stamp
from y7edge.errors import DataError

Form = Literal["box", "polygon", "corners", "sides"]
Effect = Literal["refused", "changed", "advice"]
Severity = Literal["error", "warning", "info"]
Corners = tuple[float, float, float, float]
Points = NDArray[np.float64]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
MOST_LABELS = 50_000  # per image
LEAST_SIDE = 10  # pixels; the published YOLOv7 code drops smaller images
RESPELLED = "commas or semicolons replaced"  # a value of `Label.repaired`


class Kind(NamedTuple):
    """A kind of problem: default severity and effect, title, and how ``--fix`` repairs it."""

    severity: Severity
    effect: Effect
    title: str
    fix: str = ""


# fmt: off
KINDS: dict[str, Kind] = {
    "entry": Kind("error", "refused", "entries of the data.yaml that do not exist", "left out"),
    "path_entry": Kind("warning", "advice", "a data.yaml whose path entry does not exist",
        "left out"),
    "test_entry": Kind("info", "changed", "missing test split, left out", "left out"),
    "folder": Kind("error", "refused", "folders that cannot be read"),
    "passed_over": Kind("info", "changed", "hidden and system folders, skipped", "not copied"),
    "layout": Kind("warning", "changed", "annotations in several formats, of which one is read"),
    "list_entry": Kind("error", "refused", "listed images that do not exist, left out", "left out"),
    "listed_twice": Kind("warning", "changed", "images listed twice, kept once", "kept once"),
    "tool_path": Kind("warning", "changed",
        "file names with folders of another tool, found without these folders", "copied"),
    "label_name": Kind("error", "changed",
        "label files whose name differs slightly from that of the image, used anyway",
        "used and renamed"),
    "missing_label": Kind("warning", "changed", "images without a label file, used as background",
        "an empty one is written"),
    "shared_label": Kind("warning", "advice", "images that share a label file",
        "each gets its own"),
    "other_name": Kind("info", "advice", "annotations with the name of another image",
        "the name of the image file is used"),
    "encoding": Kind("error", "refused", "text files that are not UTF-8", "rewritten in UTF-8"),
    "unreadable_text": Kind("error", "refused", "text files that cannot be opened",
        "left out, and the image with it"),
    "byte_order_mark": Kind("warning", "advice", "text files with a byte order mark",
        "rewritten in UTF-8"),
    "line_ends": Kind("info", "advice", "text files with Windows line ends", "rewritten in UTF-8"),
    "annotation": Kind("error", "refused", "annotations that cannot be read",
        "the image is left out"),
    "ids": Kind("error", "refused", "repeated ids", "written without ids"),
    "unreferenced_label": Kind("error", "refused", "labels without an image", "left out"),
    "text_number": Kind("warning", "changed", "numbers written as text, read as numbers",
        "written as numbers"),
    "names": Kind("error", "refused", "invalid or contradictory class names",
        "one name per class, missing names replaced by numbers"),
    "splits": Kind("error", "refused", "missing or unread splits"),
    "undescribed": Kind("error", "refused", "no data.yaml",
        "a data.yaml is written, with classes named by number"),
    "header": Kind("error", "changed", "images without a readable header, size unknown",
        "the image is left out"),
    "pixel_count": Kind("error", "refused", "images with too many pixels to decode",
        "the image is left out"),
    "tiny_image": Kind("error", "changed", "images with a side below 10 pixels, left out",
        "the image is left out"),
    "rotation": Kind("error", "changed", "boxes drawn without the EXIF rotation, rotated",
        "stored upright, boxes rotated"),
    "size": Kind("error", "changed",
        "images whose size differs from their annotation, labels are read as pixels of the image",
        "the size of the image is used if all boxes fit into it, else the image is left out"),
    "rescaled": Kind("warning", "changed",
        "images scaled after they were labelled, labels are scaled too", "labels scaled"),
    "keypoints": Kind("info", "changed", "labels with keypoints, which are not used",
        "boxes are written"),
    "columns": Kind("error", "refused", "labels with the wrong number of columns",
        "the label is left out"),
    "number": Kind("error", "refused", "labels with invalid numbers", "the label is left out"),
    "not_finite": Kind("error", "refused", "labels that are NaN or infinite",
        "the label is left out"),
    "pixels": Kind("error", "refused", "labels in pixels, not in fractions of the image",
        "divided by the image's size if the box then fits, else left out"),
    "twice": Kind("error", "refused", "labels divided by the image's size twice",
        "multiplied by the image's size"),
    "separators": Kind("error", "refused", "numbers with commas or semicolons",
        "written with points and spaces"),
    "corners": Kind("error", "refused", "boxes in another format, such as corners x1 y1 x2 y2",
        "converted if all boxes of the data set are in this format"),
    "class_number": Kind("error", "refused", "classes that are not a whole number",
        "a name is replaced by its number, else the label is left out"),
    "class_range": Kind("error", "refused", "classes that do not exist", "the label is left out"),
    "name_empty": Kind("warning", "advice", "classes without a name", "named by their number"),
    "negative": Kind("error", "changed", "boxes with exchanged corners, put in order",
        "put in order"),
    "no_area": Kind("error", "changed", "boxes without area, dropped", "the label is left out"),
    "outside": Kind("error", "changed", "boxes outside the image, dropped",
        "the label is left out"),
    "range": Kind("error", "changed", "boxes sticking out of the image, clipped",
        "clipped to the image"),
    "sticks_out": Kind("warning", "changed", "boxes sticking out of the image, clipped",
        "clipped to the image"),
    "duplicate": Kind("warning", "changed", "repeated boxes, kept once", "kept once"),
    "crowd": Kind("info", "changed", "crowd regions, not used for training", "not written"),
    "outline": Kind("warning", "changed", "outlines that do not match their box, left out",
        "its outline is left out"),
    "outline_points": Kind("warning", "changed", "outlines that are not lists of points, left out",
        "its outline is left out"),
}
# fmt: on
# The end of messages about a missing split val.
HOW_TO_SPLIT = {"val": "; `y7edge data check DATA --fix OUT --val 0.2` writes a copy with both"}


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem or remark about a data set."""

    check: str  # a key of `KINDS`, or the name of a check
    # ``refused``: training raises an error. ``changed``: training repairs or drops the label or
    # image. ``advice``: training ignores the problem.
    effect: Effect
    severity: Severity  # ``data check`` fails if there is an ``error``
    message: str  # what was found, and how to fix it
    file: Path
    line: int = 0  # from 1; 0 if unknown
    image: Path | None = None
    box: Corners | None = None  # normalized x1, y1, x2, y2
    fix: str = ""  # how --fix repairs it; empty if --fix does not
    doubtful: bool = False  # whether a repair would be a guess
    other: Path | None = None  # a second image, for comparison


@dataclass(slots=True)
class Label:
    """One label: what the file contains, and the box in the upright image."""

    file: Path
    line: int  # from 1; 0 if unknown (JSON)
    raw: Any  # the label as written: a line of text, or a dict from a JSON file
    raw_class: str  # the class as written: a number, a name, a category
    class_id: int | None  # the class index; may be out of range
    values: tuple[float, ...] | None  # the numbers as written; None if one is invalid
    # ``box`` centre x, centre y, width, height and ``polygon`` x, y, x, y, ... are normalized;
    # ``corners`` x1, y1, x2, y2 and ``sides`` x, y, width, height are in pixels.
    form: Form = "box"
    item: str = ""  # name of the label in messages, like ``annotation 12`` (COCO, VOC)
    segmentation: Any = None  # a COCO outline as written
    crowd: bool = False  # whether it is a crowd region
    named: bool = False  # whether the class is a name instead of a number
    repaired: str = ""  # how the text or numbers were changed while reading; empty if unchanged
    # The first problem of the label, a key of `KINDS`. Between `classify_columns` and
    # `geometry.place`: why the label is not read as a polygon.
    fault: str = ""
    box: Corners | None = None  # normalized x1, y1, x2, y2, not clipped
    parts: Sequence[Points] = ()  # polygons (k, 2) of its outline, normalized
    refused: bool = False  # whether training refuses it
    repeats: bool = False  # whether it repeats an earlier label of the image

    @property
    def text(self) -> str:
        """The label as written, truncated to 120 characters."""
        raw = self.raw.get("bbox") if isinstance(self.raw, dict) else self.raw
        return str(raw)[:120]

    @property
    def kind(self) -> int | str:
        """The class index (equal for `1`, `01`, `1.0`), or the class as written if it has none."""
        return self.raw_class if self.class_id is None else self.class_id

    @property
    def place(self) -> str:
        """File and line, or file and item, for messages."""
        if self.line:
            return f"{self.file.name}:{self.line}"
        return f"{self.file.name}, {self.item}" if self.item else self.file.name

    @property
    def sound(self) -> bool:
        """Whether the box can be used as written, apart from clipping it to the image."""
        return self.box is not None and self.fault in ("", "sticks_out", "range")


@dataclass(frozen=True)
class Facts:
    """Properties of a decoded image."""

    fault: str = ""  # why the image cannot be used; empty if it can
    kind: str = ""  # of the fault: ``empty``, ``unreadable``, ``truncated`` or ``corrupt``
    doubt: str = ""  # signs of damage in a file that decodes
    format: str = ""  # of the content, like ``JPEG``
    mode: str = ""  # Pillow's mode, like ``RGB``
    several: bool = False  # whether the file contains more than one image
    levels: tuple[int, int] | None = None  # lowest and highest value of a 16-bit image
    digest: str = ""  # hash of the decoded pixels
    thumb: NDArray[np.uint8] | None = None  # grey thumbnail (32, 32)
    flat: bool = False  # whether all pixels have one colour


@dataclass(slots=True)
class Entry:
    """One image with its labels."""

    path: Path
    splits: list[str] = field(default_factory=list)
    label_file: Path | None = None  # the expected path of its labels
    labelled: bool = True  # whether the label file exists
    labels: list[Label] = field(default_factory=list)
    stated: tuple[float, float] | None = None  # width and height according to the annotation
    frame: Frame | None = None  # from the header; None if it cannot be read
    image_id: Any = None  # COCO only: the id as written
    in_stored_frame: bool = False  # whether labels refer to the image before EXIF rotation
    facts: Facts = field(default_factory=Facts)
    lost: str = ""  # why its labels cannot be used

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the upright image in pixels; None if unknown."""
        return None if self.frame is None else self.frame.size

    @property
    def tiny(self) -> bool:
        """Whether training leaves the image out because it is too small."""
        return self.frame is not None and min(self.frame.size) < LEAST_SIDE


@dataclass(slots=True)
class Scan:
    """A data set as parsed: its images, labels and problems."""

    source: Path  # the ``data.yaml``, JSON file or folder
    root: Path  # the folder of the data set; messages show paths relative to it
    layout: Literal["yolo", "voc", "coco"]
    names: list[str] = field(default_factory=list)
    nc: int | None = None  # number of classes: ``nc`` of the ``data.yaml``
    entries: list[Entry] = field(default_factory=list)
    members: dict[str, list[Entry]] = field(default_factory=dict)  # images by split
    split_names: list[str] = field(default_factory=list)  # includes empty splits
    files: dict[str, Path] = field(default_factory=dict)  # annotation files by split (COCO)
    annotations: list[Path] = field(default_factory=list)  # XML files of all images (VOC)
    # COCO only: category ids as written, by split, in the order of ``names``.
    category_ids: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    groups: set[int] = field(default_factory=set)  # classes that are only supercategories (COCO)
    problems: list[Problem] = field(default_factory=list)
    stamps: dict[str, Stamp] = field(default_factory=dict)  # state of files before reading, by path
    imgsz: int = 640  # side of the network's input in pixels
    levels: tuple[int, int] | None = None  # lowest, highest value of 16-bit images (``data.yaml``)
    keypoints: tuple[int, int] | None = None  # number of points, numbers per point (``kpt_shape``)
    noted: set[tuple[str, Path]] = field(default_factory=set)  # used by `problem_once`

    @property
    def classes(self) -> int:
        """The number of classes: the larger of ``len(names)`` and ``nc``; 0 if unknown."""
        return max(len(self.names), self.nc or 0)

    def has_class(self, class_id: int) -> bool:
        """Return whether a class exists; True if the number of classes is unknown."""
        return class_id >= 0 and (not self.classes or class_id < self.classes)

    def labels(self) -> Iterator[tuple[Entry, Label]]:
        """Yield every label with its image."""
        for entry in self.entries:
            for label in entry.labels:
                yield entry, label

    def in_split(self, split: str) -> list[Entry]:
        """Return the images of a split; an empty list if the split does not exist."""
        return self.members.get(split, [])

    def add(self, split: str, entry: Entry) -> bool:
        """Add an image to a split; return False if the split contains it already."""
        if split in entry.splits:
            return False
        if not entry.splits:
            self.entries.append(entry)
        entry.splits.append(split)
        self.members.setdefault(split, []).append(entry)
        return True

    def name_of(self, class_id: int) -> str:
        """Return the name of a class, or its number if it has no name."""
        known = 0 <= class_id < len(self.names) and self.names[class_id].strip()
        return self.names[class_id] if known else str(class_id)

    def problem(self, check: str, message: str, file: Path, line: int = 0, **other: Any) -> None:
        """Record a problem of kind ``check``; ``other`` sets or overrides fields of `Problem`."""
        kind = KINDS[check]
        fix = "" if other.get("doubtful") else kind.fix
        values = {"effect": kind.effect, "severity": kind.severity, "fix": fix, **other}
        self.problems.append(Problem(check, message=message, file=file, line=line, **values))

    def watch(self, path: Path) -> None:
        """Record the state of a file; call this before reading it, to detect later changes."""
        name = str(path)
        if name not in self.stamps:
            self.stamps[name] = stamp(name)

    def problem_once(self, check: str, message: str, file: Path) -> None:
        """Record a problem, unless it was recorded for this file before."""
        if (check, file) not in self.noted:
            self.noted.add((check, file))
            self.problem(check, message, file)

    def too_many(self, entries: Sequence[Entry], file: Path, count: int) -> None:
        """Record a problem for a file with too many labels, and drop the labels of its images."""
        words = f"expected at most {MOST_LABELS:,} labels for an image, found {count:,}; drop some"
        self.problem("annotation", words, file, image=entries[0].path)
        for entry in entries:
            entry.lost, entry.labels = "has too many labels", []

    def require(self) -> None:
        """Raise a `DataError` for the first problem that training refuses, if there is one."""
        for problem in self.problems:
            if problem.effect == "refused":
                line = f":{problem.line}" if problem.line else ""
                raise DataError(f"{problem.file}{line}: {problem.message}")

    def warnings(self) -> tuple[str, ...]:
        """Return one line for each kind of change, like ``repeated boxes, kept once: 2 (...)``."""
        kinds: dict[str, list[Problem]] = {}
        for problem in self.problems:
            if problem.effect == "changed":
                kinds.setdefault(KINDS[problem.check].title, []).append(problem)
        coco = self.layout == "coco"  # all labels are in one file: name the image
        return tuple(
            f"{title}: {len(found)} (first in {(coco and found[0].image) or found[0].file})"
            for title, found in kinds.items()
        )

    def add_text(self, text: Text) -> Text:
        """Record problems with the encoding and line ends of a text file; return the text."""
        found = {
            "binary": "zero bytes; restore it",
            "cp1252": "other bytes (Windows-1252?); save it as UTF-8",
        }.get(text.encoding, "UTF-16, as PowerShell writes it; save it as UTF-8")
        if text.error:
            self.problem("unreadable_text", f"cannot be read: {text.error}; restore it", text.path)
        elif text.encoding == "utf-8-sig":
            words = "begins with a byte order mark, which breaks other tools; save it without"
            self.problem("byte_order_mark", words, text.path)
        elif text.encoding != "utf-8":
            self.problem("encoding", f"expected text in UTF-8, found {found}", text.path)
        if text.carriage_returns:
            self.problem("line_ends", "has Windows line ends (CRLF)", text.path)
        return text


def written_number(text: str) -> float:
    """Parse a number like `float`, but raise ValueError for underscores, as in ``1_0``."""
    if "_" in text:
        raise ValueError(text)
    return float(text)


def written_numbers(texts: Iterable[str]) -> tuple[float, ...] | None:
    """Parse several numbers; return None if one of them is invalid."""
    try:
        return tuple(map(written_number, texts))
    except ValueError:
        return None


def split_named(label: str) -> str | None:
    """Return the split that a common name means: ``val`` for ``Valid``; None for other names."""
    for split, names in SPLIT_NAMES.items():
        if label.lower() in names:
            return split
    return None
