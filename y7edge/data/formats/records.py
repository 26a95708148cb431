"""Raw records of a data set: what its files say, however wrong, in one form for all formats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from y7edge.data.formats.text import Text

Form = Literal["box", "polygon", "corners", "sides"]
Corners = tuple[float, float, float, float]
RESPELLED = "commas or semicolons read as what they stand for"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Facts:
    """One picture's file.

    Attributes:
        fault: Why it cannot be used, empty if it can; ``kind`` is ``empty``, ``unreadable``,
            ``truncated`` or ``corrupt``.
        doubt: Signs of damage in a file that decodes.
        size: Width and height as OpenCV shows it, rotated as the camera noted.
        stored: Width and height as stored.
        orientation: The EXIF note, 1 to 8; 1 is upright.
        format: What the content is, ``JPEG``.
        mode: Pillow's mode, ``RGB``.
        frames: Pictures in the file.
        digest: Over the decoded pixels.
        thumb: uint8 (32, 32), grey.
        flat: Whether all pixels have one colour.
    """

    fault: str = ""
    kind: str = ""
    doubt: str = ""
    size: tuple[int, int] | None = None
    stored: tuple[int, int] | None = None
    orientation: int = 1
    format: str = ""
    mode: str = ""
    frames: int = 1
    digest: str = ""
    thumb: NDArray[np.uint8] | None = None
    flat: bool = False

    @property
    def turned(self) -> bool:
        """Whether width and height change places when the EXIF note is followed."""
        return self.orientation in (5, 6, 7, 8)


@dataclass(slots=True)
class Label:
    """One label as it is written.

    Attributes:
        file: The file that it stands in.
        line: Its line, from 1; 0 where lines mean nothing (JSON).
        item: What it is called where lines mean nothing: ``annotation 12``.
        text: The label as written, cut to a readable length.
        raw_class: The class as written: a number, a name, a category.
        class_id: The index that this means, perhaps beyond the names; None if it means none.
        values: The numbers as written, without the class; None if one of them is no number.
        form: What the numbers are: ``box`` centre x, centre y, width, height and ``polygon``
            x, y, x, y, ... in shares of the picture; ``corners`` x1, y1, x2, y2 and ``sides``
            x, y, width, height in pixels.
        outline: A polygon (x, y, x, y, ...) that came with a box, in pixels.
        hull: The box x1, y1, x2, y2 around all parts of the outline that came with a box, in
            pixels; not a number where a point is none.
        crowd: Whether it stands for more objects than anyone counted.
        named: Whether its class was written as a name where a number should be.
        mended: What it took to read it; empty: nothing.
    """

    file: Path
    line: int
    text: str
    raw_class: str
    class_id: int | None
    values: tuple[float, ...] | None
    form: Form = "box"
    item: str = ""
    outline: tuple[float, ...] = ()
    hull: tuple[float, ...] = ()
    crowd: bool = False
    named: bool = False
    mended: str = ""

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


@dataclass(slots=True)
class Picture:
    """One picture and all that is said about it.

    Attributes:
        path: Its file.
        splits: The splits that it is in, one entry per mention.
        label_file: Where its labels stand or should stand.
        labelled: Whether that is there.
        labels: What it holds.
        stated: Width and height that the annotation states, where it does.
        listed: The list file and line that named it last.
        facts: What decoding it showed.
        lost: Why its labels cannot be used, though there are some; empty if they can.
    """

    path: Path
    splits: list[str] = field(default_factory=list)
    label_file: Path | None = None
    labelled: bool = True
    labels: list[Label] = field(default_factory=list)
    stated: tuple[float, float] | None = None
    listed: tuple[Path, int] | None = None
    facts: Facts = field(default_factory=Facts)
    lost: str = ""

    @property
    def size(self) -> tuple[float, float] | None:
        """The frame that pixel values are counted in.

        It is the one that the annotation states, unless that has another shape than the picture,
        upright or as stored: then the statement is wrong, and the picture's own size holds.
        """
        if self.stated is None or min(self.stated) <= 0:
            return self.facts.size
        known = [size for size in (self.facts.size, self.facts.stored) if size]
        return self.stated if not known or any(map(self._same_shape, known)) else known[0]

    def _same_shape(self, size: tuple[int, int]) -> bool:
        if self.stated is None:
            return False
        return abs(self.stated[0] * size[1] / (self.stated[1] * size[0]) - 1) < 0.01


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that a scanner met and that belongs to no label; ``check`` says whose it is."""

    check: str
    message: str
    file: Path
    line: int = 0


class Reading(NamedTuple):
    """Boxes that are written in another form than they should be.

    Attributes:
        place: The folder of labels, or the file.
        picture: The picture, where it is about one only.
        form: What the numbers seem to be.
        beyond: How many boxes stick out of their picture if read as they should be.
        boxes: How many there are.
        certain: Whether they were converted.
        most: Whether it is so in most files.
    """

    place: Path
    picture: Picture | None
    form: str
    beyond: int
    boxes: int
    certain: bool
    most: bool = True


@dataclass(slots=True)
class Scan:
    """A data set as its files have it.

    Attributes:
        source: The ``data.yaml``, JSON file or folder.
        root: The folder that holds it all; paths are shown relative to it.
        layout: ``yolo``, ``voc`` or ``coco``.
        names: Class names as written.
        nc: The count of classes as written, if it is.
        pictures: By path.
        split_names: The splits that the data set describes.
        texts: Every text file that was read.
        troubles: What the scanner met on the way.
        orphan_labels: Label files that belong to no picture.
        orphan_pictures: Pictures beside the others that no split names.
        ignored: Files among the pictures whose suffix no reader takes.
        folders: Every folder that something was read from.
        imgsz: Side of the network's input, pixels.
        readings: Boxes in other forms than they should have.
    """

    source: Path
    root: Path
    layout: Literal["yolo", "voc", "coco"]
    names: list[str] = field(default_factory=list)
    nc: int | None = None
    pictures: dict[Path, Picture] = field(default_factory=dict)
    split_names: list[str] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    orphan_labels: list[Path] = field(default_factory=list)
    orphan_pictures: list[Path] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)
    folders: set[Path] = field(default_factory=set)
    imgsz: int = 640
    readings: list[Reading] = field(default_factory=list)

    @property
    def classes(self) -> int:
        """How many classes there may be: the larger of names and nc; 0 if neither is told."""
        return max(len(self.names), self.nc or 0)

    def labels(self) -> Iterator[tuple[Picture, Label]]:
        """Every label with its picture."""
        for picture in self.pictures.values():
            for label in picture.labels:
                yield picture, label

    def in_split(self, split: str) -> list[Picture]:
        """The pictures of a split, each once."""
        return [picture for picture in self.pictures.values() if split in picture.splits]

    def name_of(self, class_id: int) -> str:
        """The name of a class, or its number where it has none."""
        known = 0 <= class_id < len(self.names) and self.names[class_id].strip()
        return self.names[class_id] if known else str(class_id)

    def trouble(self, check: str, message: str, file: Path, line: int = 0) -> None:
        """Note something that belongs to no label."""
        self.troubles.append(Trouble(check, message, file, line))
