"""Label files of YOLO data: found under names that are nearly right, read however wrong."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from y7edge.data.formats.records import RESPELLED, Form, Label, Picture, Scan
from y7edge.data.formats.text import read_text
from y7edge.data.formats.yolo import label_path


class Listing:
    """Names of folders, each read once, to find files whose name is written a little otherwise."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, Path]] = {}

    def find(self, path: Path) -> Path | None:
        """A file that differs in the case of its suffix, or in how its accents are encoded."""
        folder = path.parent
        if folder not in self._folders:
            try:
                files = sorted(folder.iterdir())
            except OSError:
                files = []
            self._folders[folder] = {_plain(file): file for file in files}
        return self._folders[folder].get(_plain(path))


def _plain(path: Path) -> str:
    return unicodedata.normalize("NFC", path.stem) + path.suffix.lower()


def read_labels(scan: Scan, picture: Picture, listing: Listing) -> None:
    """Give a picture its labels, or the reason why they are lost."""
    wanted, beside = label_path(picture.path), picture.path.with_suffix(".txt")
    path = next((p for p in (wanted, beside) if os.path.lexists(p)), None)
    if path is None:
        path = listing.find(wanted) or listing.find(beside)
        if path is not None:
            words = f"is not read by the training: call it {wanted.name!a}"
            scan.trouble("label_name", words, path)
    picture.label_file = path or wanted
    picture.labelled = path is not None
    if path is None:
        return
    scan.folders.add(path.parent)
    text = read_text(path)
    scan.texts.append(text)
    if text.error or text.encoding == "binary":
        picture.lost = f"its labels cannot be read: {text.error or 'they are no text'}"
        return
    lines = ((number, line.removeprefix("\ufeff")) for number, line in text.lines)
    picture.labels = [parse_line(path, n, line, scan.names) for n, line in lines if line]


def parse_line(path: Path, number: int, line: str, names: Sequence[str] = ()) -> Label:
    """One label line, however wrong; commas and class names are understood where they are clear."""
    plain, named = _respelled(line), False
    tokens = plain.split() or [""]
    first, rest, class_id = tokens[0], tokens[1:], _class(tokens[0])
    if class_id is None and (cut := _name_ends(tokens, names)):
        first, rest, named = " ".join(tokens[:cut]), tokens[cut:], True
        class_id = list(names).index(first)
    values = [_number(token) for token in rest]
    numbers = tuple(value for value in values if value is not None)
    form: Form = "polygon" if len(values) >= 6 and len(values) % 2 == 0 else "box"
    whole = numbers if len(numbers) == len(values) else None
    label = Label(path, number, line[:120], first, class_id, whole, form)
    label.named = named
    label.mended = RESPELLED if plain != line else f"class {first!r} is {class_id}" if named else ""
    return label


def _respelled(line: str) -> str:
    """A line with points in its numbers and spaces between them, if that makes it a label."""
    tokens = line.split()
    if ";" in line:
        plain = line.replace(";", " ").replace(",", ".")
    elif "," not in line:
        return line
    elif "." in line or line.count(",") == 4 > len(tokens) or any(t[-1] == "," for t in tokens):
        plain = line.replace(",", " ")
    else:
        plain = line.replace(",", ".")
    values = [_number(token) for token in plain.split()[1:]]
    usual = len(values) == 4 or (len(values) >= 6 and len(values) % 2 == 0)
    return plain if usual and None not in values else line


def _name_ends(tokens: Sequence[str], names: Sequence[str]) -> int:
    """How many of the first tokens are the name of one class, followed by numbers; 0 if none."""
    for cut in range(1, min(len(tokens) - 3, 9)):
        name = " ".join(tokens[:cut])
        rest = [_number(token) for token in tokens[cut:]]
        if None not in rest and list(names).count(name) == 1:
            return cut
    return 0


def _number(token: str) -> float | None:
    try:
        return float(token)
    except ValueError:
        return None


def _class(token: str) -> int | None:
    value = _number(token)
    if value is None or not math.isfinite(value) or value != int(value):
        return None
    return int(value)
