"""A ``data.yaml`` as it is written: every entry with its line, repeated keys noticed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from y7edge.data.formats.records import Scan
from y7edge.data.formats.text import Text, read_text
from y7edge.errors import DataError, needing
from y7edge.text import is_printable

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
        DataError: It is not YAML, or not a mapping.
        RuntimeMissing: PyYAML is not installed.
    """
    with needing("PyYAML", "eval", f"{path}: reading it"):
        import yaml
    description = Description(read_text(path))
    if description.text.error:
        raise DataError(f"{path}: cannot read it: {description.text.error}")
    try:
        node = yaml.compose(description.text.content, yaml.SafeLoader)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: expected a data.yaml, cannot read it: {reason}") from error
    if not isinstance(node, yaml.MappingNode):
        kind = {"SequenceNode": "list", "NoneType": "nothing"}.get(type(node).__name__, "a text")
        raise DataError(f"{path}: expected a mapping with train, val and names, found {kind}")
    try:
        weight = _weight(node, {}, set())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected a data.yaml, but an alias in it is circular") from error
    if weight > 20 * _MOST:
        raise DataError(f"{path}: expected a data.yaml, found aliases for {weight:.1e} values")
    description.entries = _plain(node, description.repeated)
    for key, value in node.value:
        description.lines[str(key.value)] = key.start_mark.line + 1
        if value.tag == "tag:yaml.org,2002:null":
            description.entries[str(key.value)] = None
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
    return str(node.value)


def take_names(scan: Scan, description: Description) -> None:
    """Put ``names`` and ``nc`` into a scan, with what is wrong about them."""
    path, lines = description.text.path, description.lines
    names, nc = description.entries.get("names"), description.entries.get("nc")
    for key, line in description.repeated:
        scan.problem("names", f"the entry '{key}' stands twice; remove one", path, line)
    if nc is not None:
        scan.nc = int(nc) if isinstance(nc, str) and re.fullmatch(r"0*[1-9]\d{0,6}", nc) else None
        if scan.nc is None or scan.nc > _MOST:
            words = f"expected nc to be a positive whole number, found {str(nc)[:40]!r}"
            scan.problem("names", words, path, lines["nc"])
            scan.nc = None
    line = lines.get("names", 0)
    if isinstance(names, dict):
        names = _numbered(scan, names, path, line)
    elif names is None and scan.nc:
        names = [str(index) for index in range(scan.nc)]
    elif not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        words, given = "expected names as a list or a mapping from 0, found", names
        names = _parts(given, scan.nc) if isinstance(given, str) and given else []
        hint = f"; write {names}" if names else ""
        scan.problem("names", f"{words} {str(given)[:80]}{hint}", path, line)
    scan.names = names
    if scan.nc is not None and scan.nc != len(scan.names):
        words = f"expected as many names as nc says, found {len(scan.names)} and nc {scan.nc}"
        scan.problem("names", f"{words}; correct one of them", path, lines.get("nc", 0))
    check_names(scan, path, line)


def check_names(scan: Scan, path: Path, line: int = 0) -> None:
    """Note names that cannot be printed or written, and empty ones."""
    for index, name in enumerate(scan.names):
        if not is_printable(name):
            words = f"expected class names of printable letters, found {name[:40]!a}"
            scan.problem("names", words, path, line)
        elif not name.strip():
            scan.problem("name_empty", f"class {index} has no name", path, line)


def _parts(names: str, nc: int | None) -> list[str]:
    """The names in one text: between commas; between blanks where ``nc`` counts as many."""
    inner = names.strip(_WRAPPING)
    parts = _SEPARATOR.split(inner.rstrip(",; "))
    words = inner.split()
    if len(parts) == 1 and nc == len(words):
        parts = words
    return [part.strip(_WRAPPING) for part in parts]


def _numbered(scan: Scan, names: dict[str, Any], path: Path, line: int) -> list[str]:
    """A mapping from numbers to names as a list; gaps are filled with numbers."""
    whole = {int(key): str(n) for key, n in names.items() if re.fullmatch(r"-?\d{1,12}", key)}
    numbered = {key: name for key, name in whole.items() if 0 <= key < _MOST}
    faults = []
    if others := [key for key in names if not re.fullmatch(r"-?\d{1,12}", key)]:
        faults.append(f"has {', '.join(others)[:60]}, not a number")
    count = max(numbered, default=-1) + 1
    missing = [index for index in range(count) if index not in numbered]
    if missing:
        faults.append(f"lacks {', '.join(map(str, missing[:5]))}")
    if beyond := [key for key in whole if key not in numbered]:
        faults.append(f"has {', '.join(map(str, beyond[:5]))}, left out")
    if faults or not names:
        words = f"expected names numbered from 0 without gaps, found {sorted(whole)[:20]}, but "
        words += " and ".join(faults)
        words += "; were they counted from 1? Then subtract 1" if missing == [0] else ""
        scan.problem("names", words, path, line)
    return [numbered.get(index, str(index)) for index in range(count)]
