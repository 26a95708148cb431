"""Cache the labels, image sizes and warnings of a data set between runs.

Reading a hundred thousand label files and headers takes minutes; checking whether they changed
takes seconds. The folder ``labels/`` in ``$Y7EDGE_CACHE`` or ``~/.cache/y7edge`` has one file for
each data set and selection of splits. Files may be deleted at any time. Small sets are not cached.

A cache file becomes invalid if the list of files changes, or if a label file or image has another
size, modification time or change time. A file that is written twice within one tick of the file
system's clock (milliseconds) and keeps its size seems unchanged.

Files are written atomically, so several processes may write at once. A damaged file is ignored and
replaced. The format is a numpy archive without pickled objects.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.data.sample import Reading, Sample, stamp
from y7edge.files import atomic_write, cache_folder, open_regular

# Increase when a parser reads the same files differently, or when the cache format changes.
_VERSION = 3

_WORTH_KEEPING = 500  # images; smaller sets are read in well under a second

_log = logging.getLogger(__name__)


def reading(
    identity: Sequence[str], read: Callable[[], Reading], source: Path, splits: Sequence[str] | None
) -> Reading:
    """Return the cached content of a data set if its files are unchanged, else read them.

    Args:
        identity: Class names, file paths and warnings; the cache file is invalid if any differs.
        read: Function that reads the data set.
        source: Path of the data set; the name of the cache file is derived from it and ``splits``.
        splits: The requested splits.
    """
    try:
        key = _digest(source.resolve(), source, splits and tuple(splits))
        path = cache_folder("labels") / f"{key[:32]}.npz"
    except (OSError, RuntimeError) as error:  # no home folder, or circular links
        _warn_once(f"labels are not cached: {error}")
        return read()
    version = _digest(_VERSION, tuple(identity))
    if (kept := _recall(path, version)) is not None:
        return kept
    made = read()
    # Splits may share samples; store each once.
    samples = list({id(one): one for split in made.splits.values() for one in split}.values())
    if len(samples) >= _WORTH_KEEPING:
        try:
            with atomic_write(path, durable=False) as temporary:
                np.savez(temporary, **_pack(made, samples, version))  # type: ignore[arg-type]
        except OSError as error:
            _warn_once(f"{path.parent}: labels are not cached: {error}")
    return made


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning("%s", message)


def _digest(*parts: object) -> str:
    # File names may contain bytes that are not text.
    return hashlib.sha256(repr(parts).encode("utf-8", "backslashreplace")).hexdigest()


def _recall(path: Path, identity: str) -> Reading | None:
    """Return the content of a cache file; None if it is missing, damaged or out of date."""
    try:
        with open_regular(path) as stream, np.load(stream, allow_pickle=False) as archive:
            header = json.loads(archive["header"].tobytes())
            state = _digest([stamp(file) for file in header["watched"]])
            if header["identity"] != identity or header["state"] != state:
                return None
            return _unpack(header, archive)
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged cache file may raise anything
        _log.info("%s: damaged, replaced: %s", path, " ".join(str(error).split()))
        return None


def _pack(made: Reading, samples: Sequence[Sample], identity: str) -> dict[str, NDArray[Any]]:
    """Convert a reading to arrays: concatenated rows of all samples, and row counts by sample."""
    number = {id(one): index for index, one in enumerate(samples)}
    outlines = [outline for one in samples for outline in one.polygons]
    points = [outline for outline in outlines if outline is not None]
    header = {
        "identity": identity,
        "state": _digest(list(made.watched.values())),
        "watched": list(made.watched),
        "names": made.names,
        "warnings": made.warnings,
        "category_ids": made.category_ids,
        "image_ids": [one.image_id for one in samples],
        "paths": [str(one.path) for one in samples],
        "splits": {
            split: [number[id(one)] for one in members] for split, members in made.splits.items()
        },
    }
    return {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        "boxes": np.concatenate([one.boxes for one in samples]),
        "class_id": np.concatenate([one.class_id for one in samples]),
        "box_counts": np.array([len(one.boxes) for one in samples]),
        "sizes": np.array([one.size or (0, 0) for one in samples]),
        "crowd": np.concatenate([one.crowd for one in samples]),
        "crowd_counts": np.array([len(one.crowd) for one in samples]),
        "outline_counts": np.array([len(one.polygons) for one in samples]),
        "points": np.concatenate([np.zeros((0, 2), np.float32), *points]),
        "point_counts": np.array([-1 if one is None else len(one) for one in outlines], np.int64),
    }


def _unpack(header: Mapping[str, Any], archive: Mapping[str, NDArray[Any]]) -> Reading:
    """Convert the arrays of `_pack` back to a reading."""
    boxes = _cut(archive["boxes"], archive["box_counts"])
    class_ids = _cut(archive["class_id"], archive["box_counts"])
    crowds = _cut(archive["crowd"], archive["crowd_counts"])
    point_counts = archive["point_counts"]
    points = _cut(archive["points"], np.maximum(point_counts, 0))
    outlines = iter(
        [
            None if count < 0 else outline
            for count, outline in zip(point_counts.tolist(), points, strict=True)
        ]
    )
    samples = [
        Sample(
            Path(path),
            next(boxes),
            next(class_ids),
            tuple(itertools.islice(outlines, outline_count)),
            (size[0], size[1]) if size[0] else None,
            next(crowds),
            image_id,
        )
        for path, image_id, size, outline_count in zip(
            header["paths"],
            header["image_ids"],
            archive["sizes"].tolist(),
            archive["outline_counts"].tolist(),
            strict=True,
        )
    ]
    splits = {
        split: tuple(samples[index] for index in members)
        for split, members in header["splits"].items()
    }
    ids = {split: tuple(own) for split, own in header["category_ids"].items()}
    return Reading(tuple(header["names"]), splits, tuple(header["warnings"]), ids, {})


def _cut(rows: NDArray[Any], counts: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
    """Split ``rows`` into consecutive views; ``counts`` has the number of rows of each view."""
    ends = np.cumsum(counts)
    if len(rows) != (ends[-1] if len(ends) else 0):
        raise ValueError(f"expected {ends[-1:]} rows, found {len(rows)}")
    return (
        rows[end - count : end] for count, end in zip(counts.tolist(), ends.tolist(), strict=True)
    )
