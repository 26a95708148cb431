"""Checks across images: duplicates, near duplicates, and incomplete splits; making a split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from y7edge.data.check.registry import Checks, Hit
from y7edge.data.formats.records import HOW_TO_SPLIT, SPLITS, Entry, Scan
from y7edge.errors import DataError

CHECKS = Checks()

# Hashes (256 bits) of near duplicates differ in at most this number of bits. Measured: two slightly
# shifted photographs of one microscope slide differ in 27 bits, the two most similar photographs of
# different slides in 65.
_NEAR_BITS = 40
_NEAR_CORRELATION = 0.9
_CHUNK = 2048  # images compared at a time
_MOST_NEAR = 20  # near duplicates reported per image

Grey = NDArray[np.uint8]


def _transform(turns: int, mirrored: bool) -> Callable[[Grey], Grey]:
    """Return a function that mirrors a thumbnail, then rotates it by 90 degrees ``turns`` times."""
    return lambda grey: np.ascontiguousarray(np.rot90(grey[:, ::-1] if mirrored else grey, turns))


# Words for messages, and transforms of the thumbnails of the second split.
_TRANSFORMS = {
    f"{'mirrored, ' if mirrored else ''}{f'turned by {90 * turns} degrees, ' if turns else ''}": (
        _transform(turns, mirrored)
    )
    for mirrored in (False, True)
    for turns in range(4)
}


@CHECKS.add("splits", "error", "missing or unread splits")
def _splits(scan: Scan) -> Iterator[Hit]:
    labelled = any(entry.labels for entry in scan.entries)
    for split in ("train", "val"):
        if split not in scan.split_names:
            words = f"expected a split {split}, which training needs, found none"
            yield Hit(words + HOW_TO_SPLIT.get(split, ""), scan.source)
        elif not scan.in_split(split):
            yield Hit(f"the split {split} has no images", scan.source)
        elif labelled and not any(entry.labels for entry in scan.in_split(split)):
            yield Hit(f"the split {split} has no labels, which training refuses", scan.source)


def same_splits(scan: Scan) -> list[tuple[str, str]]:
    """Return pairs of splits that have exactly the same images."""
    contents = {
        split: {entry.facts.digest or str(entry.path) for entry in scan.in_split(split)}
        for split in _names(scan)
    }
    names = [name for name in contents if contents[name]]
    return [
        (a, b) for i, a in enumerate(names) for b in names[i + 1 :] if contents[a] == contents[b]
    ]


def _names(scan: Scan) -> list[str]:
    """Return the names of the splits: train, val, test, then others."""
    order = dict.fromkeys((*SPLITS, *scan.split_names))
    return [split for split in order if split in scan.split_names]


@CHECKS.add("same_splits", "warning", "splits with the same images")
def _same_splits(scan: Scan) -> Iterator[Hit]:
    for one, other in same_splits(scan):
        count = len(scan.in_split(one))
        words = f"{one} and {other} have the same {count} images"
        yield Hit(f"{words}: scores on {other} do not measure generalization", scan.source)


def shared_entries(scan: Scan) -> list[tuple[Entry, str, Entry, str]]:
    """Return pairs of equal images in different splits.

    Each tuple has the repeated image and its split, then the first image and its split. Splits that
    `same_splits` returns are not compared with each other.
    """
    ignored = {split for pair in same_splits(scan) for split in pair}
    found = []
    for group in _groups(scan):
        mentions = [(p, s) for p in group for s in dict.fromkeys(p.splits)]
        first, split = mentions[0]
        for entry, other in mentions[1:]:
            if other != split and not {split, other} <= ignored:
                found.append((entry, other, first, split))
    return found


def _groups(scan: Scan) -> list[list[Entry]]:
    """Return groups of images with equal pixels; images of a single colour are not compared."""
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
        other_image = None if entry is first else first.path
        yield Hit(words, entry.path, image=entry.path, other=other_image)


@CHECKS.add("twice_in_split", "warning", "the same image twice in one split", "kept once")
def _twice_in_split(scan: Scan) -> Iterator[Hit]:
    for group in _groups(scan):
        first: dict[str, tuple[int, Entry]] = {}
        for index, entry in enumerate(group):
            seen = (first[s] for s in entry.splits if s in first)
            earlier = min(seen, default=None, key=lambda found: found[0])
            for split in entry.splits:
                first.setdefault(split, (index, entry))
            if earlier is None:
                continue
            same = earlier[1]
            words = f"is the same image as {same.path.name} in the same split"
            if labels_of(same) != labels_of(entry):
                words += ", but its labels differ: one of them is wrong"
            yield Hit(f"{words}; keep one", entry.path, image=entry.path, other=same.path)


def labels_of(entry: Entry) -> tuple[object, ...]:
    """Return the labels of an image in sorted order, to compare them with those of another."""
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
    """Yield images of split ``other`` that are nearly equal to an image of split ``one``."""
    for words, first, second, alike in _near_pairs(scan.in_split(one), scan.in_split(other)):
        if first.facts.digest == second.facts.digest:
            continue
        message = (
            f"({other}) {words}is nearly equal to {first.path.name} ({one}): correlation "
            f"{alike:.1%} at 32x32; keep images of one scene in one split"
        )
        yield Hit(message, second.path, image=second.path, other=first.path)


def _near_pairs(
    ones: Sequence[Entry], others: Sequence[Entry]
) -> Iterator[tuple[str, Entry, Entry, float]]:
    """Yield how the second image was transformed, both images, and the correlation of the two."""
    left = [entry for entry in ones if _has_contrast(entry)]
    right = [entry for entry in others if _has_contrast(entry)]
    if not left or not right:
        return
    signed = _signs([_thumb(entry) for entry in left])
    for words, move in _TRANSFORMS.items():
        for start in range(0, len(right), _CHUNK):
            thumbs = [move(_thumb(entry)) for entry in right[start : start + _CHUNK]]
            distance = (256 - _signs(thumbs) @ signed.T) / 2
            found = distance <= _NEAR_BITS
            found &= np.cumsum(found, axis=1, dtype=np.int32) <= _MOST_NEAR
            for row, column in zip(*np.nonzero(found), strict=True):
                first, second = left[column], right[start + row]
                alike = _correlation(_thumb(first), thumbs[row])
                if alike >= _NEAR_CORRELATION:
                    yield words, first, second, alike


def split_off(scan: Scan, fraction: float) -> None:
    """Move a fraction of the images of the split train to a new split val.

    Equal and nearly equal images stay together, if there are enough others. Otherwise (a video of
    one scene), val gets the last images by name. The choice depends only on the pixels of the
    images, so it is the same in every run.

    Raises:
        DataError: The data set has a split val, or fewer than two images can be used.
    """
    if scan.in_split("val"):
        count = len(scan.in_split("val"))
        raise DataError(f"{scan.source}: the split val has {count} images already; omit --val")
    usable = [entry for entry in scan.in_split("train") if entry.facts.digest and not entry.tiny]
    if len(usable) < 2:
        raise DataError(
            f"{scan.source}: expected at least 2 images in train to divide, found {len(usable)}"
        )
    count = min(max(1, round(fraction * len(usable))), len(usable) - 1)
    chosen: list[Entry] = []
    left: list[Entry] = []
    for group in _scenes(usable):
        fits = len(chosen) + len(group) <= count
        (chosen if fits else left).extend(group)
    if len(chosen) < count / 2:
        left.sort(key=lambda entry: str(entry.path))
        chosen += left[len(chosen) - count :]
    scan.split_names = list(dict.fromkeys((*scan.split_names, "val")))
    for entry in chosen:
        scan.add("val", entry)
        entry.splits.remove("train")
        scan.members["train"].remove(entry)


def _scenes(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Return groups of equal and nearly equal images, in an order that depends on their pixels."""
    parents = {entry.facts.digest: entry.facts.digest for entry in entries}

    def root(digest: str) -> str:
        while parents[digest] != digest:
            parents[digest] = digest = parents[parents[digest]]
        return digest

    for _, first, second, _ in _near_pairs(entries, entries):
        one, other = sorted((root(first.facts.digest), root(second.facts.digest)))
        parents[other] = one
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[root(entry.facts.digest)].append(entry)
    return [groups[digest] for digest in sorted(groups)]


def nearly_same(one: Entry, other: Entry) -> bool:
    """Return whether the thumbnails of two images are nearly equal."""
    contrast = _has_contrast(one) and _has_contrast(other)
    return contrast and _correlation(_thumb(one), _thumb(other)) >= _NEAR_CORRELATION


def _thumb(entry: Entry) -> Grey:
    thumb = entry.facts.thumb
    return np.zeros((1, 1), np.uint8) if thumb is None else thumb


def _has_contrast(entry: Entry) -> bool:
    """Return whether an image has enough contrast to be compared."""
    return float(_thumb(entry).std()) > 4


def _signs(thumbs: list[Grey]) -> NDArray[np.float32]:
    """Return the difference hashes of thumbnails, (n, 256): 1 for a set bit, -1 for a clear bit.

    Thumbnails are scaled to 17x16. A bit is set if a pixel is brighter than its left neighbour.
    The dot product of two hashes is 256 minus twice the number of different bits.
    """
    small = np.array([cv2.resize(t, (17, 16), interpolation=cv2.INTER_AREA) for t in thumbs])
    bits = (small[:, :, 1:] > small[:, :, :-1]).reshape(len(small), 256)
    return np.where(bits, np.float32(1), np.float32(-1))


def _correlation(one: Grey, other: Grey) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
