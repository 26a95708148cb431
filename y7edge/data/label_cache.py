"""What was read of a data set, kept between runs: labels, sizes of images, warnings.

Reading a hundred thousand label files and headers takes minutes; looking whether they changed takes
seconds. One file per data set and choice of splits lies in the folder that ``Y7EDGE_CACHE`` names,
else in ``~/.cache/y7edge``, below ``labels/``; it may be deleted at any time. Small sets are read
anew each time.

What is kept counts only while everything it was read from is as it was: the list of files, and size
and times (of the last write and of the last change) of each label file and image. A change within
the same tick of the file system's clock (milliseconds) that keeps the size goes unseen.

The file is written whole or not at all, so that several processes may write at once; a damaged one
is read past and replaced. It is a numpy archive without pickled objects.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.data.sample import Plan, Reading, Sample, stamp
from y7edge.files import atomic_write, cache_folder, open_regular

# To be raised whenever a reader reads the same files differently, or the file below changes.
_VERSION = 3

# Sets with fewer images are read in well under a second.
_WORTH_KEEPING = 500

_log = logging.getLogger(__name__)


def reading(plan: Plan, source: Path, splits: Sequence[str] | None) -> Reading:
    """Carry out a plan, or recall what it gave when all its files were as they are now.

    Args:
        plan: What to read.
        source: The data set, and
        splits: the splits asked for: together they name the cache's file.
    """
    try:
        key = _digest(source.resolve(), source, splits and tuple(splits))
        path = cache_folder("labels") / f"{key[:32]}.npz"
    except (OSError, RuntimeError) as error:  # no home, or a loop of links
        _say_once(f"what is read is not kept for the next run: {error}")
        return plan.read()
    identity = _digest(_VERSION, plan.identity)
    kept = _recall(path, identity)
    if kept is not None:
        return kept
    made = plan.read()
    samples = _distinct(made)
    if len(samples) >= _WORTH_KEEPING:
        try:
            with atomic_write(path, durable=False) as temporary:
                np.savez(temporary, **_pack(made, samples, identity))  # type: ignore[arg-type]
        except OSError as error:
            _say_once(f"{path.parent}: what is read is not kept for the next run: {error}")
    return made


@functools.cache
def _say_once(message: str) -> None:
    _log.warning("%s", message)


def _digest(*parts: object) -> str:
    # Names of files need not be text: what no encoding has is escaped.
    return hashlib.sha256(repr(parts).encode("utf-8", "backslashreplace")).hexdigest()


def _state(watched: Sequence[str]) -> str:
    return _digest([stamp(path) for path in watched])


def _recall(path: Path, identity: str) -> Reading | None:
    """The reading kept in a file, if it is of this plan and still holds."""
    try:
        with open_regular(path) as stream, np.load(stream, allow_pickle=False) as archive:
            header = json.loads(archive["header"].tobytes())
            if header["identity"] != identity or _state(header["watched"]) != header["state"]:
                return None
            return _unpack(header, archive)
    except FileNotFoundError:
        return None
    # A damaged cache file is not an error: it is written again.
    except Exception as error:
        _log.info("%s: damaged, made anew: %s", path, " ".join(str(error).split()))
        return None


def _distinct(made: Reading) -> list[Sample]:
    """Every sample once, however many splits have it."""
    return list({id(one): one for samples in made.splits.values() for one in samples}.values())


def _pack(made: Reading, samples: Sequence[Sample], identity: str) -> dict[str, NDArray[Any]]:
    """Arrays that hold a reading: rows of all samples one after another, and how many of each."""
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
    # The caller of a recalled scan does not need its watches.
    ids = {split: tuple(own) for split, own in header["category_ids"].items()}
    return Reading(tuple(header["names"]), splits, tuple(header["warnings"]), ids, {})


def _cut(rows: NDArray[Any], counts: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
    """The rows of each sample in turn, as views."""
    ends = np.cumsum(counts)
    if len(rows) != (ends[-1] if len(ends) else 0):
        raise ValueError(f"expected {ends[-1:]} rows, found {len(rows)}")
    return (
        rows[end - count : end] for count, end in zip(counts.tolist(), ends.tolist(), strict=True)
    )
