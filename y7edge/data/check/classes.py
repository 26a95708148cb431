"""Checks of classes: ids, names, balance."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from difflib import SequenceMatcher

from y7edge.data.check.registry import Checks, Hit, at
from y7edge.data.formats.records import Scan
from y7edge.data.formats.text import read_text
from y7edge.files import is_file

CHECKS = Checks()

_MOST_PAIRS = 40_000  # pairs of names that are compared


@CHECKS.add("shifted_ids", "error", "class ids that seem to start at 1")
def _shifted_ids(scan: Scan) -> Iterator[Hit]:
    used = {label.class_id for _, label in scan.labels() if label.class_id is not None}
    if scan.layout != "yolo" or not used or (min(used), max(used)) != (1, scan.classes):
        return
    words = (
        f"no label has class 0, and some have class {scan.classes}, which does not exist: do the "
        "ids start at 1? Then every label has the wrong class; subtract 1 from each id"
    )
    yield Hit(words, scan.source)


def _some(names: list[str]) -> str:
    """Return the first eight names as text."""
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


@CHECKS.add("name_twice", "warning", "class names that are equal or nearly equal")
def _name_twice(scan: Scan) -> Iterator[Hit]:
    seen: dict[str, int] = {}
    for index, name in enumerate(scan.names):
        plain = "".join(letter for letter in name.casefold() if letter.isalnum())
        if not plain:
            continue
        first = seen.setdefault(plain, index)
        if first != index and not scan.groups & {first, index}:
            words = f"classes {first} '{scan.names[first]}' and {index} '{name}' have equal names"
            yield Hit(f"{words}: merge them or rename one", scan.source)


@CHECKS.add("name_rare", "warning", "rare classes with a name like that of a frequent class")
def _name_rare(scan: Scan) -> Iterator[Hit]:
    if scan.layout != "voc":  # in other formats, a misspelled name does not add a class
        return
    counts: Counter[str] = Counter(label.raw_class for _, label in scan.labels())
    first: dict[str, Hit] = {}
    for entry, label in scan.labels():
        if label.raw_class not in first:
            first[label.raw_class] = at(entry, label, "")
    least = 20 * min(counts.values(), default=0)
    frequent = [(name, count) for name, count in counts.most_common() if count >= least]
    if len(counts) * len(frequent) > _MOST_PAIRS:
        words = f"{len(counts)} names: too many to compare all of them"
        yield Hit(words, scan.source, severity="info")
    for name, count in counts.items():
        for other, often in frequent[: _MOST_PAIRS // len(counts)]:
            if name and count * 20 <= often and _alike(name.casefold(), other.casefold()):
                words = f"class '{name}' ({count} labels) resembles '{other}' ({often}): "
                words += f"did you mean {other}?"
                item = first[name].message
                yield first[name]._replace(message=f"{item}{words}")


def _alike(name: str, other: str) -> bool:
    """Return whether one name may be a misspelling of the other."""
    if name == other:
        return False
    swapped = (f"{name[:i]}{name[i + 1]}{name[i]}{name[i + 2 :]}" for i in range(len(name) - 1))
    return SequenceMatcher(None, name, other).ratio() >= 0.75 or other in swapped


@CHECKS.add("classes_file", "warning", "a classes.txt that differs from the class names")
def _classes_file(scan: Scan) -> Iterator[Hit]:
    if scan.layout != "yolo" or not scan.names:
        return
    folders = {e.label_file.parent for e in scan.entries if e.label_file}
    for folder in sorted({scan.root, *folders, *(f.parent for f in folders)}):
        path = folder / "classes.txt"
        if is_file(path):
            listed = [line for _, line in read_text(path).lines]
            if listed != [name.strip() for name in scan.names]:
                words = f"lists {_some(listed)}, but the names are {_some(scan.names)}: correct one"
                yield Hit(words, path)


def per_class(scan: Scan) -> dict[int, Counter[str]]:
    """Return the number of labels by class and split."""
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for index in range(scan.classes):
        counts[index] = Counter()
    for entry, label in scan.labels():
        if label.class_id is not None and scan.has_class(label.class_id) and not label.crowd:
            for split in dict.fromkeys(entry.splits):
                counts[label.class_id][split] += 1
    return dict(sorted(counts.items()))


@CHECKS.add("class_balance", "warning", "classes without labels")
def _class_balance(scan: Scan) -> Iterator[Hit]:
    counts = per_class(scan)
    total: Counter[str] = Counter()
    for by_split in counts.values():
        total.update(by_split)
    if not total["train"]:
        return
    lacking = [index for index, found in counts.items() if not found["train"]]
    tested = [index for index in lacking if counts[index]["val"]]
    unused = [index for index in lacking if index not in tested and index not in scan.groups]
    untested = [i for i, found in counts.items() if found["train"] and not found["val"]]
    if tested:
        words = "have labels in val but not in train, so the model cannot learn them"
        yield Hit(f"{_listed(scan, tested)} {words}", scan.source)
    if unused:
        yield Hit(f"{_listed(scan, unused)} have no label; remove them?", scan.source)
    if untested and total["val"]:
        words = f"{_listed(scan, untested)} have no label in val, so they are not evaluated"
        yield Hit(words, scan.source, severity="info")


@CHECKS.add("class_shares", "info", "classes with far fewer labels than others")
def _class_shares(scan: Scan) -> Iterator[Hit]:
    found = {i: c["train"] for i, c in per_class(scan).items() if c["train"]}
    if not found:
        return
    most = max(found, key=found.__getitem__)
    rare = [index for index, count in found.items() if count * 100 < found[most]]
    if rare:
        words = f"{_listed(scan, rare)} have less than 1 % as many labels as {scan.name_of(most)}"
        yield Hit(words, scan.source)


def _listed(scan: Scan, indices: list[int]) -> str:
    """Return the number of classes and the first ten names as text."""
    shown = ", ".join(scan.name_of(index) for index in indices[:10])
    more = f" and {len(indices) - 10} more" if len(indices) > 10 else ""
    return f"{len(indices)} of {scan.classes} classes ({shown}{more})"
