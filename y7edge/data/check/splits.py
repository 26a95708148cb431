"""Checks across images: the same one twice, near the same, splits that lack something."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from y7edge.data.check.registry import Checks, Hit
from y7edge.data.formats.records import SPLITS, Entry, Scan

CHECKS = Checks()

# Of 256 bits. Two photographs of the same slide, moved a little, differ in 27; the nearest of
# different ones in 65.
_NEAR_BITS = 40
_NEAR_CORRELATION = 0.9
_CHUNK = 2048
_MOST_NEAR = 20  # that are named for an image

Grey = NDArray[np.uint8]


def _way(turns: int, mirrored: bool) -> Callable[[Grey], Grey]:
    return lambda grey: np.ascontiguousarray(np.rot90(grey[:, ::-1] if mirrored else grey, turns))


# An image may have been turned and mirrored on its way into the other split.
_WAYS = {
    f"{'mirrored, ' if mirrored else ''}{f'turned by {90 * turns} degrees, ' if turns else ''}": (
        _way(turns, mirrored)
    )
    for mirrored in (False, True)
    for turns in range(4)
}


@CHECKS.add("splits", "error", "splits that are not there or not read")
def _splits(scan: Scan) -> Iterator[Hit]:
    labelled = any(entry.labels for entry in scan.entries)
    for split in ("train", "val"):
        if split not in scan.split_names:
            yield Hit(f"there is no split {split}, which training needs", scan.source)
        elif not scan.in_split(split):
            yield Hit(f"the split {split} has no images", scan.source)
        elif labelled and not any(entry.labels for entry in scan.in_split(split)):
            yield Hit(f"the split {split} has no labels, which training refuses", scan.source)


def same_splits(scan: Scan) -> list[tuple[str, str]]:
    """Pairs of splits that hold the same images, all of them."""
    contents = {s: {_key(p) for p in scan.in_split(s)} for s in _names(scan)}
    names = [name for name in contents if contents[name]]
    return [
        (a, b) for i, a in enumerate(names) for b in names[i + 1 :] if contents[a] == contents[b]
    ]


def _names(scan: Scan) -> list[str]:
    order = dict.fromkeys((*SPLITS, *scan.split_names))
    return [split for split in order if split in scan.split_names]


def _key(entry: Entry) -> str:
    return entry.facts.digest or str(entry.path)


@CHECKS.add("same_splits", "warning", "splits that are one and the same")
def _same_splits(scan: Scan) -> Iterator[Hit]:
    for one, other in same_splits(scan):
        count = len(scan.in_split(one))
        words = f"{one} and {other} are the same {count} images"
        yield Hit(f"{words}: scores on {other} say nothing about new ones", scan.source)


def shared_entries(scan: Scan) -> list[tuple[Entry, str, Entry, str]]:
    """Entrys (by their pixels) in two splits: the later of the two mentions, then the first."""
    ignored = {split for pair in same_splits(scan) for split in pair}
    groups = _groups(scan)
    found = []
    for group in groups:
        mentions = [(p, s) for p in group for s in dict.fromkeys(p.splits)]
        first, split = mentions[0]
        for entry, other in mentions[1:]:
            if other != split and not {split, other} <= ignored:
                found.append((entry, other, first, split))
    return found


def _groups(scan: Scan) -> list[list[Entry]]:
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in scan.entries:
        if entry.facts.digest and not entry.facts.flat:
            groups[entry.facts.digest].append(entry)
        elif len(set(entry.splits)) > 1:
            groups[str(entry.path)].append(entry)
    return list(groups.values())


@CHECKS.add("leak", "error", "the same image in two splits",
       "left out of train, kept where the model is evaluated")  # fmt: skip
def _leak(scan: Scan) -> Iterator[Hit]:
    for entry, split, first, other in shared_entries(scan):
        if entry is first:
            words = f"is in {other} and in {split}; keep it in one"
        else:
            words = f"({split}) is the same image as {first.path.name} ({other}); keep one"
        yield Hit(words, entry.path, image=entry.path, other=_if_not(first, entry))


def _if_not(entry: Entry, same: Entry) -> Path | None:
    return None if entry is same else entry.path


@CHECKS.add("twice_in_split", "warning", "the same image twice in one split", "kept once")
def _twice_in_split(scan: Scan) -> Iterator[Hit]:
    for group in _groups(scan):
        first: dict[str, tuple[int, Entry]] = {}
        for index, entry in enumerate(group):
            earlier = min((first[s] for s in entry.splits if s in first), default=None, key=_index)
            for split in entry.splits:
                first.setdefault(split, (index, entry))
            if earlier is None:
                continue
            same = earlier[1]
            words = f"is the same image as {same.path.name} in the same split"
            if labels_of(same) != labels_of(entry):
                words += ", but its labels differ: one of them is wrong"
            yield Hit(f"{words}; keep one", entry.path, image=entry.path, other=same.path)


def _index(found: tuple[int, Entry]) -> int:
    return found[0]


def labels_of(entry: Entry) -> tuple[object, ...]:
    """The labels of an image in an order of their own: equal for images with the same."""
    return tuple(sorted((label.raw_class, label.values or ()) for label in entry.labels))


@CHECKS.add("near_leak", "warning", "nearly the same image in two splits")
def _near_leak(scan: Scan) -> Iterator[Hit]:
    ignored = {frozenset(pair) for pair in same_splits(scan)}
    names = _names(scan)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            if frozenset((one, other)) not in ignored:
                yield from _near(scan, one, other)


def _near(scan: Scan, one: str, other: str) -> Iterator[Hit]:
    left = [p for p in scan.in_split(one) if _telling(p)]
    right = [p for p in scan.in_split(other) if _telling(p)]
    if not left or not right:
        return
    signed = _signs([_thumb(entry) for entry in left])
    for words, move in _WAYS.items():
        for start in range(0, len(right), _CHUNK):
            thumbs = [move(_thumb(entry)) for entry in right[start : start + _CHUNK]]
            distance = (256 - _signs(thumbs) @ signed.T) / 2
            found = distance <= _NEAR_BITS
            found &= np.cumsum(found, axis=1, dtype=np.int32) <= _MOST_NEAR
            for row, column in zip(*np.nonzero(found), strict=True):
                second, first = right[start + row], left[column]
                alike = _correlation(_thumb(first), thumbs[row])
                if first.facts.digest == second.facts.digest or alike < _NEAR_CORRELATION:
                    continue
                message = (
                    f"({other}) {words}is nearly {first.path.name} ({one}): {alike:.1%} alike at "
                    "32x32; the same scene? Keep both in one split"
                )
                yield Hit(message, second.path, image=second.path, other=first.path)


def nearly_same(one: Entry, other: Entry) -> bool:
    """Whether two images look alike at 32x32."""
    telling = _telling(one) and _telling(other)
    return telling and _correlation(_thumb(one), _thumb(other)) >= _NEAR_CORRELATION


def _thumb(entry: Entry) -> Grey:
    thumb = entry.facts.thumb
    return np.zeros((1, 1), np.uint8) if thumb is None else thumb


def _telling(entry: Entry) -> bool:
    """Entrys without contrast all look alike."""
    return float(_thumb(entry).std()) > 4


def _signs(thumbs: list[Grey]) -> NDArray[np.float32]:
    """Difference hashes as +1 and -1, (n, 256): their products count equal bits.

    A bit says whether a cell of 16 rows of 17 is brighter than its left neighbour.
    """
    small = np.array([cv2.resize(t, (17, 16), interpolation=cv2.INTER_AREA) for t in thumbs])
    bits = (small[:, :, 1:] > small[:, :, :-1]).reshape(len(small), 256)
    return np.where(bits, np.float32(1), np.float32(-1))


def _correlation(one: Grey, other: Grey) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
