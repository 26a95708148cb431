"""Records of a data set: what its files say, and every problem met, in one form for all formats.

A parser (`yolo`, `coco`, `voc`) fills a `Scan` once. `y7edge.data.dataset.load` raises its first
``refused`` problem and builds samples from the rest; ``data check`` reports all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from y7edge.data.formats.text import Text
from y7edge.data.headers import Frame
from y7edge.data.sample import Watch
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
MOST_LABELS = 50_000  # of an image; more is a file of something else
LEAST_SIDE = 10  # the published reader drops smaller images
RESPELLED = "commas or semicolons read as what they stand for"


class Kind(NamedTuple):
    """A kind of problem: its usual severity and effect, a title, and what ``--fix`` does."""

    severity: Severity
    effect: Effect
    title: str
    fix: str = ""


# fmt: off
KINDS: dict[str, Kind] = {
    "entry": Kind("error", "refused", "entries of the data.yaml that lead nowhere", "left out"),
    "path_entry": Kind("warning", "advice", "a path of the data.yaml that leads nowhere",
        "left out"),
    "test_entry": Kind("info", "changed", "test split described but not there, left out",
        "left out"),
    "folder": Kind("error", "refused", "folders that cannot be read"),
    "passed_over": Kind("info", "changed", "hidden and service folders, passed over", "not copied"),
    "layout": Kind("warning", "changed", "annotations in two forms, one of them passed over"),
    "list_entry": Kind("error", "refused", "images listed but not there, left out", "left out"),
    "listed_twice": Kind("warning", "changed", "images listed twice, kept once", "kept once"),
    "tool_path": Kind("warning", "changed", "file names with a tool's path, found by their end",
        "copied"),
    "label_name": Kind("error", "changed", "label files whose name is nearly right, used",
        "used and renamed"),
    "missing_label": Kind("warning", "changed", "images without a label file, taken as background",
        "an empty one is written"),
    "shared_label": Kind("warning", "advice", "images that share a label file",
        "each gets its own"),
    "other_name": Kind("info", "advice", "annotations that name another file",
        "the file's name counts"),
    "encoding": Kind("error", "refused", "text files that are not UTF-8", "written anew in UTF-8"),
    "unreadable_text": Kind("error", "refused", "text files that cannot be opened",
        "left out, and the image with it"),
    "byte_order_mark": Kind("warning", "advice", "text files with a byte order mark",
        "written anew in UTF-8"),
    "line_ends": Kind("info", "advice", "text files with Windows line ends",
        "written anew in UTF-8"),
    "annotation": Kind("error", "refused", "annotations that cannot be read",
        "the image is left out"),
    "ids": Kind("error", "refused", "ids that stand more than once", "written without ids"),
    "unreferenced_label": Kind("error", "refused", "labels without an image", "left out"),
    "text_number": Kind("warning", "changed", "numbers written as text, read as numbers",
        "written as numbers"),
    "names": Kind("error", "refused", "class names that disagree or cannot be read",
        "names as many as classes, gaps filled with numbers"),
    "splits": Kind("error", "refused", "splits that are not there or not read"),
    "undescribed": Kind("error", "refused", "no data.yaml",
        "one is written, with classes named by number"),
    "header": Kind("error", "changed", "images without a readable header, size unknown",
        "the image is left out"),
    "pixel_count": Kind("error", "refused", "images of more pixels than are decoded",
        "the image is left out"),
    "tiny_image": Kind("error", "changed", "images with a side below 10 pixels, left out",
        "the image is left out"),
    "rotation": Kind("error", "changed", "boxes made without the camera's rotation, turned",
        "stored upright, boxes turned"),
    "size": Kind("error", "changed",
        "images of another size than labelled, labels taken as pixels of the file",
        "the image's own size is used if all boxes fit it, else it is left out"),
    "rescaled": Kind("warning", "changed",
        "images scaled since they were labelled, labels scaled with them", "labels scaled"),
    "keypoints": Kind("info", "changed", "labels with keypoints, of which the box is used",
        "boxes are written"),
    "columns": Kind("error", "refused", "labels with the wrong count of numbers",
        "the label is left out"),
    "number": Kind("error", "refused", "labels with something that is not a number",
        "the label is left out"),
    "not_finite": Kind("error", "refused", "labels that are NaN or infinite",
        "the label is left out"),
    "pixels": Kind("error", "refused", "labels in pixels, not in fractions of the image",
        "divided by the image's size where that fits, else left out"),
    "twice": Kind("error", "refused", "labels divided by the image's size once too often",
        "multiplied by the image's size"),
    "separators": Kind("error", "refused", "numbers with commas or semicolons",
        "written with points and spaces"),
    "corners": Kind("error", "refused", "boxes written in another form, as corners x1 y1 x2 y2",
        "converted where a whole set is so"),
    "class_number": Kind("error", "refused", "classes that are not a whole number",
        "the number of the name is used, else the label is left out"),
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
    "crowd": Kind("info", "changed", "crowd regions, kept apart and not learned from",
        "not written"),
    "outline": Kind("warning", "changed", "outlines that disagree with their box, left out",
        "its outline is left out"),
    "outline_points": Kind("warning", "changed", "outlines that are not lists of points, left out",
        "its outline is left out"),
}
# fmt: on


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem, or remark; its effect is set here and nowhere else."""

    check: str  # a key of `KINDS`, or the name of a check
    # ``refused``: training raises it; ``changed``: training reads on with a repair or a dropped
    # label; ``advice``: training reads the files as they are.
    effect: Effect
    severity: Severity  # errors fail the gate
    message: str  # what was found, and the way out
    file: Path  # that it is in
    line: int = 0  # from 1; 0 where lines mean nothing
    image: Path | None = None  # that it is about
    box: Corners | None = None  # that it is about: corners in fractions of the image
    fix: str = ""  # what --fix does about it; empty: nothing
    doubtful: bool = False  # whether a repair would be a guess
    other: Path | None = None  # a second image, for comparison

    def error(self) -> DataError:
        """The problem as an exception."""
        return DataError(f"{self.file}{f':{self.line}' if self.line else ''}: {self.message}")


@dataclass(slots=True)
class Label:
    """One label: as it is written, and where its box lies."""

    file: Path
    line: int  # from 1; 0 where lines mean nothing (JSON)
    raw: Any  # the label as written: a line, or an entry of a JSON file
    raw_class: str  # the class as written: a number, a name, a category
    class_id: int | None  # the index that this means, perhaps beyond the names
    values: tuple[float, ...] | None  # the numbers as written; None if one is not a number
    # ``box`` centre x, centre y, width, height and ``polygon`` x, y, x, y, ... in fractions of the
    # image; ``corners`` x1, y1, x2, y2 and ``sides`` x, y, width, height in pixels.
    form: Form = "box"
    item: str = ""  # what it is called where lines mean nothing: ``annotation 12``
    segmentation: Any = None  # a COCO outline as written
    crowd: bool = False  # whether it stands for more objects than were counted
    named: bool = False  # whether its class was written as a name where a number should be
    repaired: str = ""  # the repair that reading it needed
    fault: str = ""  # the first thing wrong with its numbers, a key of `KINDS`
    box: Corners | None = None  # in fractions of the upright image, not clipped
    parts: Sequence[Points] = ()  # its outline, in fractions of the upright image
    refused: bool = False  # whether training refuses it
    repeats: bool = False  # whether an earlier label of the image says the same

    @property
    def text(self) -> str:
        """The label as written, cut to a readable length."""
        if isinstance(self.raw, dict):
            return str(self.raw.get("bbox"))[:120]
        return str(self.raw)[:120]

    @property
    def kind(self) -> int | str:
        """What it is a label of, however that is spelled: `1`, `01` and `1.0` are one class."""
        return self.raw_class if self.class_id is None else self.class_id

    @property
    def place(self) -> str:
        """File and line, or file and item, for a message."""
        if self.line:
            return f"{self.file.name}:{self.line}"
        return f"{self.file.name}, {self.item}" if self.item else self.file.name

    @property
    def sound(self) -> bool:
        """Whether its box is used as it is, clipped at most."""
        return self.box is not None and self.fault in ("", "sticks_out", "range")


@dataclass(frozen=True)
class Facts:
    """What decoding an image showed."""

    fault: str = ""  # why it cannot be used
    kind: str = ""  # of the fault: ``empty``, ``unreadable``, ``truncated`` or ``corrupt``
    doubt: str = ""  # signs of damage in a file that decodes
    format: str = ""  # what the content is, ``JPEG``
    mode: str = ""  # of Pillow, ``RGB``
    several: bool = False  # whether the file holds more than one image
    levels: tuple[int, int] | None = None  # lowest and highest value of a 16-bit image
    digest: str = ""  # over the decoded pixels
    thumb: NDArray[np.uint8] | None = None  # (32, 32), grey
    flat: bool = False  # whether all pixels have one colour


@dataclass(slots=True)
class Entry:
    """One image and all that is said about it."""

    path: Path
    splits: list[str] = field(default_factory=list)
    label_file: Path | None = None  # where its labels stand or should stand
    labelled: bool = True  # whether that is there
    labels: list[Label] = field(default_factory=list)
    stated: tuple[float, float] | None = None  # width and height by the annotation
    frame: Frame | None = None  # size and rotation by the header; None where it cannot be read
    image_id: Any = None  # in a COCO file, as written
    in_stored_frame: bool = False  # whether labels count in the image without EXIF rotation
    facts: Facts = field(default_factory=Facts)
    lost: str = ""  # why its labels cannot be used, though there are some

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the upright image in pixels, where they are known."""
        return None if self.frame is None else self.frame.size

    @property
    def tiny(self) -> bool:
        """Whether nothing can be seen on it: training leaves it out."""
        return self.frame is not None and min(self.frame.size) < LEAST_SIDE


@dataclass(slots=True)
class Scan:
    """A data set as its files have it."""

    source: Path  # the ``data.yaml``, JSON file or folder
    root: Path  # the folder that holds it all; paths are shown relative to it
    layout: Literal["yolo", "voc", "coco"]
    names: list[str] = field(default_factory=list)
    nc: int | None = None  # the count of classes as written
    entries: list[Entry] = field(default_factory=list)
    members: dict[str, list[Entry]] = field(default_factory=dict)  # by split, in its order
    split_names: list[str] = field(default_factory=list)  # that the data set describes
    files: dict[str, Path] = field(default_factory=dict)  # of annotations, by split (COCO)
    annotations: list[Path] = field(default_factory=list)  # also of images in no split (VOC)
    # By split, the ids of a COCO file in the order of ``names``, as written.
    category_ids: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    groups: set[int] = field(default_factory=set)  # classes that only group others
    problems: list[Problem] = field(default_factory=list)
    watch: Watch = field(default_factory=Watch)  # the files that were read
    imgsz: int = 640  # side of the network's input, pixels: what is a small box?
    levels: tuple[int, int] | None = None  # of which 8-bit images were made (``data.yaml``)
    keypoints: tuple[int, int] | None = None  # points and numbers of each (``kpt_shape``)
    noted: set[tuple[str, Path]] = field(default_factory=set)  # checks and files, by `problem_once`

    @property
    def classes(self) -> int:
        """How many classes there may be: the larger of names and nc; 0 if neither is known."""
        return max(len(self.names), self.nc or 0)

    def has_class(self, class_id: int) -> bool:
        """Whether there is a class of this number, as far as that is known."""
        return class_id >= 0 and (not self.classes or class_id < self.classes)

    def labels(self) -> Iterator[tuple[Entry, Label]]:
        """Every label with its image."""
        for entry in self.entries:
            for label in entry.labels:
                yield entry, label

    def in_split(self, split: str) -> list[Entry]:
        """The images of a split, in its order."""
        return self.members.get(split, [])

    def add(self, split: str, entry: Entry) -> bool:
        """Take an image into a split; False if it is in it already."""
        if split in entry.splits:
            return False
        if not entry.splits:
            self.entries.append(entry)
        entry.splits.append(split)
        self.members.setdefault(split, []).append(entry)
        return True

    def name_of(self, class_id: int) -> str:
        """The name of a class, or its number where it has none."""
        known = 0 <= class_id < len(self.names) and self.names[class_id].strip()
        return self.names[class_id] if known else str(class_id)

    def problem(self, check: str, message: str, file: Path, line: int = 0, **other: Any) -> None:
        """Note a problem; ``other`` are attributes of it that differ from those of its kind."""
        kind = KINDS[check]
        fix = "" if other.get("doubtful") else kind.fix
        values = {"effect": kind.effect, "severity": kind.severity, "fix": fix, **other}
        self.problems.append(Problem(check, message=message, file=file, line=line, **values))

    def problem_once(self, check: str, message: str, file: Path) -> None:
        """Note a problem unless it is noted of this file already."""
        if (check, file) not in self.noted:
            self.noted.add((check, file))
            self.problem(check, message, file)

    def too_many(self, entries: Sequence[Entry], file: Path, count: int) -> None:
        """Note a file with more labels for an image than there can be."""
        words = f"expected at most {MOST_LABELS:,} labels for an image, found {count:,}; remove it"
        self.problem("annotation", words, file, image=entries[0].path)
        for entry in entries:
            entry.lost, entry.labels = "has too many labels", []

    def require(self) -> None:
        """Raise the first problem that training refuses.

        Raises:
            DataError: There is one.
        """
        for problem in self.problems:
            if problem.effect == "refused":
                raise problem.error()

    def warnings(self) -> tuple[str, ...]:
        """One line for each kind of change, as ``boxes without area, dropped: 2 (first in x)``."""
        kinds: dict[str, list[Problem]] = {}
        for problem in self.problems:
            if problem.effect == "changed":
                kinds.setdefault(KINDS[problem.check].title, []).append(problem)
        coco = self.layout == "coco"  # one file says nothing there
        return tuple(
            f"{title}: {len(found)} (first in {(coco and found[0].image) or found[0].file})"
            for title, found in kinds.items()
        )

    def add_text(self, text: Text) -> Text:
        """Note a text file that was read, with what is wrong about it as a text."""
        found = {
            "binary": "zero bytes; restore it",
            "cp1252": "other bytes (Windows-1252?); save it as UTF-8",
        }.get(text.encoding, "UTF-16, as PowerShell writes it; save it as UTF-8")
        if text.error:
            self.problem("unreadable_text", f"cannot be read: {text.error}; restore it", text.path)
        elif text.encoding == "utf-8-sig":
            words = "begins with a byte order mark, which other readers trip over; save it without"
            self.problem("byte_order_mark", words, text.path)
        elif text.encoding != "utf-8":
            self.problem("encoding", f"expected text in UTF-8, found {found}", text.path)
        if text.carriage_returns:
            self.problem("line_ends", "has Windows line ends (CRLF), which are read", text.path)
        return text


def written_number(text: str) -> float:
    """The number that a text is.

    Raises:
        ValueError: It is none; nor is ``1_0``, which only Python takes for ten.
    """
    if "_" in text:
        raise ValueError(text)
    return float(text)


def own_names(label: str) -> str | None:
    """The split that a name of a folder, file or entry means, whatever its case; None if none."""
    for split, names in SPLIT_NAMES.items():
        if label.lower() in names:
            return split
    return None
