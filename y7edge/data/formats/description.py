"""A ``data.yaml`` as it is written: every entry with its line, repeated keys noticed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from y7edge.data.formats.records import Scan
from y7edge.data.formats.text import Text, read_text
from y7edge.errors import DataError, needing

_MOST = 100_000  # classes, and values in a file
_SEPARATOR = re.compile(r"\s*[,;\n]\s*")
_WRAPPING = " \t\n[]'\""


@dataclass(slots=True)
class Description:
    """Top-level entries as text, lists and mappings of text, and their lines from 1."""

    text: Text
    entries: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    repeated: list[tuple[str, int]] = field(default_factory=list)


def read_description(path: Path) -> Description:
    """Parse a ``data.yaml`` without giving its values types: YAML would make False of ``off``.

    Raises:
        DataError: It is no YAML, or no mapping.
        RuntimeMissing: PyYAML is not installed.
    """
    with needing("PyYAML", "eval", f"{path}: reading it"):
        import yaml
    description = Description(read_text(path))
    if description.text.error:
        raise DataError(f"{path}: cannot read it: {description.text.error}")
    try:
        node = yaml.compose(description.text.content.lstrip("\ufeff"), yaml.SafeLoader)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: expected a data.yaml, cannot read it: {reason}") from error
    if not isinstance(node, yaml.MappingNode):
        raise DataError(f"{path}: expected a mapping with train, val and names")
    try:
        weight = _weight(node, {}, set())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected a data.yaml, but an alias in it is circular") from error
    if weight > 20 * _MOST:
        raise DataError(f"{path}: expected a data.yaml, found aliases for {weight:.1e} values")
    for key, _ in node.value:
        description.lines[str(key.value)] = key.start_mark.line + 1
    description.entries = _plain(node, description.repeated)
    return description


def _weight(node: Any, known: dict[int, int], above: set[int]) -> int:
    """How many values a node stands for, aliases followed.

    Raises:
        ValueError: It holds itself.
    """
    if isinstance(node.value, str):
        return 1
    if id(node) in above:
        raise ValueError("circular")
    if id(node) not in known:
        above.add(id(node))
        parts = (part for entry in node.value
                 for part in (entry if isinstance(entry, tuple) else (entry,)))  # fmt: skip
        known[id(node)] = 1 + sum(_weight(part, known, above) for part in parts)
        above.remove(id(node))
    return known[id(node)]


def _plain(node: Any, repeated: list[tuple[str, int]]) -> Any:
    import yaml

    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key, value in node.value:
            name = str(key.value)
            if name in found:
                repeated.append((name, key.start_mark.line + 1))
            found[name] = _plain(value, repeated)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_plain(value, repeated) for value in node.value]
    empty = node.tag == "tag:yaml.org,2002:null"
    return None if empty else str(node.value)


def take_names(scan: Scan, description: Description) -> None:
    """Put ``names`` and ``nc`` into a scan, with what is wrong about them."""
    path, lines = description.text.path, description.lines
    names, nc = description.entries.get("names"), description.entries.get("nc")
    for key, line in description.repeated:
        scan.trouble("names", f"the entry '{key}' stands twice; the last one counts", path, line)
    if nc is not None:
        try:
            scan.nc = int(nc)
        except (TypeError, ValueError):
            scan.trouble("names", f"nc is {str(nc)[:40]!r}, no whole number", path, lines["nc"])
    if scan.nc is not None and not 0 <= scan.nc <= _MOST:
        words = f"nc is {str(nc)[:40]}, expected a count of classes up to {_MOST}"
        scan.trouble("names", words, path, lines["nc"])
        scan.nc = None
    line = lines.get("names", 0)
    if isinstance(names, dict):
        names = _numbered(scan, names, path, line)
    if isinstance(names, str):
        found = _parts(names, scan.nc)
        scan.trouble("names", f"names is the text {names!r}, no list; write {found}", path, line)
        names = found
    if names is None:
        words = "there is no entry names" + ("" if scan.nc else ", and no nc")
        if not scan.nc:
            scan.trouble("names", f"{words}: write the class names as a list", path, line)
        names = [str(index) for index in range(scan.nc or 0)]
    scan.names = ["" if name is None else str(name) for name in names]
    if scan.nc is not None and scan.nc != len(scan.names):
        message = f"nc is {scan.nc}, but there are {len(scan.names)} names; correct one of them"
        scan.trouble("names", message, path, lines.get("nc", 0))


def _parts(names: str, nc: int | None) -> list[str]:
    """The names in one text: between commas; between blanks where ``nc`` counts as many."""
    inner = names.strip(_WRAPPING)
    parts = _SEPARATOR.split(inner.rstrip(",; "))
    words = inner.split()
    if len(parts) == 1 and nc == len(words):
        parts = words
    return [part.strip(_WRAPPING) for part in parts]


def _numbered(scan: Scan, names: dict[str, Any], path: Path, line: int) -> list[Any]:
    """A mapping from numbers to names as a list; gaps are filled with numbers."""
    numbered: dict[int, Any] = {}
    for key, name in names.items():
        try:
            numbered[int(key)] = name
        except ValueError:
            message = f"names has the key '{key}' where a number from 0 should be"
            scan.trouble("names", message, path, line)
    beyond = [index for index in numbered if index >= _MOST]
    if beyond:
        words = f"names has {len(beyond)} keys beyond {_MOST}, as {str(beyond[0])[:40]}; left out"
        scan.trouble("names", words, path, line)
    count = max((index for index in numbered if index < _MOST), default=-1) + 1
    missing = [index for index in range(count) if index not in numbered]
    negative = [index for index in numbered if index < 0]
    if missing or negative:
        faults = [f"lacks {', '.join(map(str, missing[:5]))}"] if missing else []
        faults += [f"has {', '.join(map(str, negative[:5]))}, left out"] if negative else []
        words = f"names should be numbered from 0 without gaps, but {' and '.join(faults)}"
        words += "; were they counted from 1? Then subtract 1" if missing == [0] else ""
        scan.trouble("names", words, path, line)
    return [numbered.get(index, str(index)) for index in range(count)]
