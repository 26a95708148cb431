"""Data sets in YOLO form: a ``data.yaml`` and one text file of labels per picture.

``data.yaml`` as people have it: ``train``, ``val``, ``test`` are each a folder of pictures
(searched through), a list file with one picture per line, or a list of these; ``path`` is their
root; ``names`` is a list or a mapping from 0; ``nc`` may stand beside or, alone, make numbers the
names.

A path is looked for, in this order: under the root (``path``, itself relative to the folder of the
``data.yaml``); there without leading ``../`` (Roboflow writes ``../train/images`` and means
``train/images``); beside the ``data.yaml`` (the data were moved and ``path`` was not corrected);
under the working directory (the published files mean that). Where there is nothing of that name,
backslashes are taken for slashes; and in a list a first folder that is not there is left out (CVAT
writes ``data/images/train/a.jpg`` into an archive that has no ``data``).

The label file of a picture is found by replacing the **last** folder named ``images`` (``Images``,
``IMAGES``) in its path by ``labels`` (``Labels``, ``LABELS``), and the suffix by ``.txt``; if there
is none, it stands beside the picture. The
published code replaces the first one, which goes wrong when the data lie below a folder that
happens to be called ``images``. No label file, or an empty one: the picture shows no object.

A label line is ``class cx cy w h`` or a polygon ``class x1 y1 x2 y2 x3 y3 ...``, told apart line by
line by the count of numbers; the box of a polygon is its hull. All numbers are shares of the
upright picture, which is the one that is read (EXIF rotation applied).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from y7edge.boxes import corners
from y7edge.data.headers import header_size
from y7edge.data.sample import Plan, Reading, Sample, Tally, Watch, is_image, sample
from y7edge.errors import DataError, needing

_SPLITS = ("train", "val", "test")
_YAML_SUFFIXES = (".yaml", ".yml")
_DESCRIBES = re.compile(rb"^(?:\{\s*)?['\"]?(train|val|test|names|nc)['\"]?\s*:", re.MULTILINE)
_LABELS = {"images": "labels", "Images": "Labels", "IMAGES": "LABELS"}

# No rounding or sloppy box reaches this many picture sizes: such numbers are pixels.
_SURELY_PIXELS = 4.0


def find(folder: Path) -> Path | None:
    """The ``data.yaml`` of a folder: by that name, else its only yaml file that may be one."""
    for suffix in _YAML_SUFFIXES:
        if (folder / f"data{suffix}").is_file():
            return folder / f"data{suffix}"
    others = [path for path in folder.iterdir() if path.suffix in _YAML_SUFFIXES]
    return others[0] if len(others) == 1 and _may_describe(others[0]) else None


def _may_describe(path: Path) -> bool:
    """Whether a yaml file is about data: beside COCO or VOC files there may be any other."""
    try:
        return _DESCRIBES.search(path.read_bytes().removeprefix(b"\xef\xbb\xbf")) is not None
    except OSError:
        return False


def plan(path: Path, splits: Sequence[str] | None = None) -> Plan:
    """Find the pictures of a ``data.yaml``: of the splits named, which then must exist, or of all.

    Reading the plan raises a DataError that names file and line where a label file is wrong.

    Raises:
        DataError: The file is not such a description, or a path in it leads nowhere.
        RuntimeMissing: PyYAML is not installed.
    """
    content = _parse(path)
    names = _names(content, path)
    root = path.parent / str(content.get("path") or "").replace("\\", os.sep)
    found: dict[str, list[Path]] = {}
    absent = False
    for split in _SPLITS if splits is None else splits:
        entry = content.get(split)
        if not entry:
            if splits is not None:
                there = ", ".join(str(key) for key in content if key != "names") or "none"
                raise DataError(f"{path}: expected an entry '{split}', found {there}")
            continue
        entries = entry if isinstance(entry, list) else [entry]
        try:
            found[split] = [image for item in entries for image in _images(str(item), root, path)]
        except DataError:
            # Many files describe a test split that was never downloaded.
            if splits is not None or split != "test":
                raise
            absent = True
    if not found:
        raise DataError(f"{path}: expected an entry 'train' or 'val', found neither")
    listing = (f"{split}\t{image}" for split, images in found.items() for image in images)

    def read() -> Reading:
        tally = Tally()
        tally.add("test split described but not there, left out", int(absent), path)
        return _read(names, found, tally)

    return Plan((*names, str(absent), *listing), read)


def _read(names: tuple[str, ...], found: Mapping[str, Sequence[Path]], tally: Tally) -> Reading:
    watch = Watch()
    # A picture in two splits is read, and counted, once.
    samples = {
        image: _read_sample(image, len(names), tally, watch)
        for image in dict.fromkeys(image for images in found.values() for image in images)
    }
    splits = {split: tuple(samples[image] for image in images) for split, images in found.items()}
    return Reading(names, splits, tally.warnings(), watch.stamps)


def label_path(image: Path) -> Path:
    """Where the labels of a picture stand (see the module's text for the rule)."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] in _LABELS:
            parts[index] = _LABELS[parts[index]]
            break
    return Path(*parts).with_suffix(".txt")


def _parse(path: Path) -> dict[str, Any]:
    with needing("PyYAML", "eval", f"{path}: reading it"):
        import yaml
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = yaml.safe_load(text)
        if isinstance(content, dict):
            # As they are written: YAML would make False of a class "off", and 7 of "007".
            content["names"] = yaml.load(text, yaml.BaseLoader).get("names")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: expected a data.yaml, cannot read it: {reason}") from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: expected a mapping with train, val and names, found {type(content).__name__}"
        )
    return content


def _names(content: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Class names from ``names`` and ``nc``, which must agree."""
    names, nc = content.get("names"), content.get("nc")
    if nc is not None and (isinstance(nc, bool) or not isinstance(nc, int) or nc < 1):
        raise DataError(f"{path}: expected nc to be a positive whole number, found {nc!r}")
    if isinstance(names, dict):
        try:
            numbered = {int(key): name for key, name in names.items()}
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{path}: expected names numbered from 0, found the keys {list(names)}"
            ) from error
        if sorted(numbered) != list(range(len(names))):
            raise DataError(
                f"{path}: expected names numbered from 0 without gaps, found {sorted(numbered)}"
            )
        names = [numbered[index] for index in range(len(numbered))]
    if names is None and nc is not None:
        names = [str(index) for index in range(nc)]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise DataError(f"{path}: expected names as a list or a mapping from 0, found {names!r}")
    if nc is not None and nc != len(names):
        raise DataError(
            f"{path}: expected as many names as nc says, found {len(names)} and nc {nc}"
        )
    return tuple(names)


def _images(entry: str, root: Path, source: Path) -> list[Path]:
    """The pictures that one entry stands for: a folder's, a list file's, or the one it names."""
    path = _locate(entry, root, source)
    if path.is_dir():
        found = (image for image in path.rglob("*") if is_image(image))
        images = sorted(found, key=lambda image: image.parts)
    elif path.suffix.lower() == ".txt":
        images = list(_listed(path, root))
    else:
        images = [path] if is_image(path) else []
    if not images:
        raise DataError(f"{source}: expected pictures in '{entry}', found none in {path}")
    return images


def _locate(entry: str, root: Path, source: Path) -> Path:
    candidates: dict[Path, None] = {}  # in order, each once
    for spelling in _spellings(entry):
        stripped = spelling
        while stripped.startswith("../"):
            stripped = stripped[3:]
        folders = (root / spelling, root / stripped, source.parent / spelling, Path(spelling))
        candidates.update(dict.fromkeys(folders))
    for candidate in candidates:
        if _is_there(candidate):
            return candidate
    tried = ", ".join(str(candidate) for candidate in candidates)
    raise DataError(
        f"{source}: expected a folder or a list file '{entry}', found none: tried {tried}"
    )


def _spellings(entry: str) -> tuple[str, ...]:
    """A path as written, and as meant by who wrote it on Windows."""
    return tuple(dict.fromkeys((entry.strip(), entry.strip().replace("\\", "/"))))


def inner_path(entry: str) -> str:
    """A line of a list without its first folder, which only the annotating tool had."""
    path = entry.strip().replace("\\", "/").removeprefix("./")
    return path.partition("/")[2].lstrip("/") or path


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long or otherwise impossible
        return False


def _listed(path: Path, root: Path) -> Iterator[Path]:
    """The pictures that a list file names, relative to its folder, the root or where we run."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a list of pictures, cannot read it: {error}") from error
    for number, line in enumerate(lines, 1):
        entry = line.strip()
        if not entry:
            continue
        folders = (path.parent, root, Path())
        texts = (*_spellings(entry), inner_path(entry))
        candidates = (folder / text for text in texts for folder in folders)
        image = next((candidate for candidate in candidates if _is_there(candidate)), None)
        if image is None or not image.is_file():
            raise DataError(
                f"{path}:{number}: expected the path of a picture, found no file '{entry}'"
            )
        yield image


def _read_sample(image: Path, nc: int, tally: Tally, watch: Watch) -> Sample:
    path, text = _label_text(image, tally, watch)
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    labels = _clean_boxes(lines, nc)
    if labels is None:
        parsed = [_parse_line(line, nc, f"{path}:{number}") for number, line in lines]
        labels = _Labels(
            np.array([one.class_id for one in parsed], np.int64),
            np.array([one.corners for one in parsed], np.float64).reshape(-1, 4),
            [one.polygon for one in parsed],
        )
    watch.note(image)
    size = header_size(image, tally)
    return sample(
        image,
        labels.corners,
        labels.class_id,
        path,
        tally,
        polygons=labels.polygons,
        size=size,
    )


def _label_text(image: Path, tally: Tally, watch: Watch) -> tuple[Path, str]:
    """The label file of a picture and what it says; nothing if there is none."""
    path = label_path(image)
    for candidate in dict.fromkeys((path, image.with_suffix(".txt"))):
        watch.note(candidate)
        try:
            return candidate, candidate.read_bytes().decode("utf-8-sig")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{candidate}: expected a text file of labels, cannot read it: {error}"
            ) from error
    tally.add("pictures without a label file, taken as background", 1, path)
    return path, ""


class _Labels(NamedTuple):
    """Labels of one file: class (n,), corners (n, 4), and an outline or None for each, or none."""

    class_id: NDArray[np.int64]
    corners: NDArray[np.float64]
    polygons: Sequence[NDArray[np.float64] | None] = ()


class _Label(NamedTuple):
    """One line: class, corners x1, y1, x2, y2, and the outline (k, 2) if it is one."""

    class_id: int
    corners: tuple[float, float, float, float]
    polygon: NDArray[np.float64] | None = None


def _clean_boxes(lines: Sequence[tuple[int, str]], nc: int) -> _Labels | None:
    """Read all lines at once if they are boxes in order; else None, for a look at each line."""
    tokens = [line.split() for _, line in lines]
    if any(len(row) != 5 for row in tokens):
        return None
    try:
        rows = np.array([[float(token) for token in row] for row in tokens]).reshape(-1, 5)
    except ValueError:
        return None
    class_id, centres, sizes = rows[:, 0], rows[:, 1:3], rows[:, 3:]
    # Written so that NaN fails.
    if not (
        (np.abs(rows[:, 1:]) <= _SURELY_PIXELS).all()
        and ((class_id >= 0) & (class_id < nc) & (class_id == np.floor(class_id))).all()
    ):
        return None
    return _Labels(class_id.astype(np.int64), corners(centres, sizes))


def _parse_line(line: str, nc: int, where: str) -> _Label:
    """Class and corners (shares of the picture) of one label line."""
    try:
        numbers = [float(token) for token in line.split()]
    except ValueError as error:
        raise DataError(f"{where}: expected numbers, found '{line.strip()[:60]}'") from error
    if not all(math.isfinite(number) for number in numbers):
        raise DataError(f"{where}: expected finite numbers, found '{line.strip()[:60]}'")
    if len(numbers) != 5 and (len(numbers) < 7 or len(numbers) % 2 == 0):
        raise DataError(
            f"{where}: expected 'class cx cy w h' or 'class x1 y1 x2 y2 x3 y3 ...', "
            f"found {len(numbers)} numbers"
        )
    class_id, *values = numbers
    if class_id != int(class_id) or not 0 <= class_id < nc:
        raise DataError(
            f"{where}: expected a class from 0 to {nc - 1}, found {class_id:g}; "
            "correct the line or the names of the data.yaml"
        )
    if max(map(abs, values)) > _SURELY_PIXELS:
        raise DataError(
            f"{where}: expected shares of the picture's size (0 to 1), found "
            f"{max(values, key=abs):g}; divide pixels by the picture's width and height"
        )
    if len(values) > 4:
        xs, ys = values[0::2], values[1::2]
        polygon = np.array((xs, ys), np.float64).T
        return _Label(int(class_id), (min(xs), min(ys), max(xs), max(ys)), polygon)
    cx, cy, w, h = values
    return _Label(int(class_id), (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
