"""Read a ``data.yaml``: entries with line numbers, and class names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from y7edge.data.formats.plain_yaml import Tree, as_text, is_null, read_yaml
from y7edge.data.formats.records import Scan
from y7edge.errors import DataError
from y7edge.text import is_printable

_MOST = 100_000  # classes
_SEPARATOR = re.compile(r"\s*[,;\n]\s*")
_WRAPPING = " \t\n[]'\""


def read_description(path: Path) -> Tree:
    """Parse a ``data.yaml``; scalars remain strings, and null entries become None.

    Raises:
        DataError: The file is not YAML, or not a mapping.
        RuntimeMissing: PyYAML is not installed.
    """
    try:
        tree = read_yaml(path, as_text)
    except ValueError as error:
        raise DataError(f"{path}: expected a data.yaml: {error}") from error
    if not isinstance(tree.content, dict):
        kind = "a list" if isinstance(tree.content, list) else "a text"
        kind = "nothing" if is_null(tree.content) else kind
        raise DataError(f"{path}: expected a mapping with train, val and names, found {kind}")
    tree.content = {k: None if is_null(value) else value for k, value in tree.content.items()}
    return tree


def take_names(scan: Scan, description: Tree) -> None:
    """Set the class names of a scan from the entries ``names`` and ``nc``; record problems."""
    path, lines = description.text.path, description.lines
    names, nc = description.content.get("names"), description.content.get("nc")
    for key, _, line in description.repeated:
        scan.problem("names", f"the entry '{key}' is repeated; remove one", path, line)
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
        words = f"expected {scan.nc} names (nc), found {len(scan.names)}; correct nc or names"
        scan.problem("names", words, path, lines.get("nc", 0))
    check_names(scan, path, line)


def check_names(scan: Scan, path: Path, line: int = 0) -> None:
    """Record a problem for each class name that is empty or not printable."""
    for index, name in enumerate(scan.names):
        if not is_printable(name):
            words = f"expected printable class names, found {name[:40]!a}"
            scan.problem("names", words, path, line)
        elif not name.strip():
            scan.problem("name_empty", f"class {index} has no name", path, line)


def _parts(names: str, nc: int | None) -> list[str]:
    """Split a string at commas, semicolons or line breaks; at spaces if that gives ``nc`` names."""
    inner = names.strip(_WRAPPING)
    parts = _SEPARATOR.split(inner.rstrip(",; "))
    words = inner.split()
    if len(parts) == 1 and nc == len(words):
        parts = words
    return [part.strip(_WRAPPING) for part in parts]


def _numbered(scan: Scan, names: dict[str, Any], path: Path, line: int) -> list[str]:
    """Convert a mapping ``{number: name}`` to a list; a number without a name becomes the name."""
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
        words = f"expected names numbered from 0 without gaps, found {sorted(whole)[:20]}"
        words += f": the mapping {' and '.join(faults)}" if faults else ""
        words += "; if the numbers start at 1, subtract 1 from each" if missing == [0] else ""
        scan.problem("names", words, path, line)
    return [numbered.get(index, str(index)) for index in range(count)]
