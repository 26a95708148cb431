"""Read a safe subset of YAML: mappings, lists and scalars, with limits on size and depth.

Features with surprising effects are not supported: implicit types (``010`` as eight,
``2020-01-01`` as a date), tags that create objects, aliases that grow exponentially. The caller
chooses how scalars are converted: `as_text` keeps strings, `as_value` converts numbers, bools and
null.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from y7edge.data.formats.text import Text, read_text
from y7edge.errors import needing

_LARGEST = 4 << 20  # bytes
_MOST = 210_000  # values, with expanded aliases; enough for 100,000 numbered class names
_DEEPEST = 32
_KNOWN = ("str", "int", "float", "bool", "null", "seq", "map")
_TAGS = {*(f"tag:yaml.org,2002:{name}" for name in _KNOWN), "!", None}
_NULLS = ("", "~", "null", "Null", "NULL")
_BOOLS = {
    spelled: value
    for value, words in ((True, ("true", "yes", "on")), (False, ("false", "no", "off")))
    for word in words
    for spelled in (word, word.title(), word.upper())
}
_WHOLE = re.compile(r"[-+]?[0-9]{1,100}")
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF|nan|NaN|NAN)")

# Converts a scalar; the arguments are its text and whether it is unquoted.
Scalar = Callable[[str, bool], Any]


@dataclass(slots=True)
class Tree:
    """The content of a YAML file, and the lines of its top-level keys, from 1."""

    text: Text
    content: Any = None
    lines: dict[str, int] = field(default_factory=dict)
    repeated: list[tuple[str, int, int]] = field(default_factory=list)  # key, first and later line


def as_text(text: str, plain: bool) -> str:
    """Return a scalar as written."""
    return text


def as_value(text: str, plain: bool) -> Any:
    """Convert an unquoted scalar to a number, a bool or None if it is one; else return the text."""
    if not plain:
        return text
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _WHOLE.fullmatch(text):
        return int(text)
    if found := _SPECIAL.fullmatch(text):
        return float(found[1] + found[2])
    return float(text) if _NUMBER.fullmatch(text) else text


def is_null(text: Any) -> bool:
    """Return whether an entry is null or empty; ``text`` is a value from `as_text`."""
    return text in _NULLS if isinstance(text, str) else text is None


def read_yaml(path: Path, scalar: Scalar) -> Tree:
    """Read a file with one YAML document.

    Raises:
        ValueError: The file cannot be read or parsed; the message does not contain its path.
        RuntimeMissing: PyYAML is not installed.
    """
    with needing("PyYAML", "eval", f"{path}: reading it"):
        import yaml
    text = read_text(path, most=_LARGEST)
    if not text.usable:
        words = text.error and f"cannot be read: {text.error}"
        raise ValueError(words or "not YAML: it contains zero bytes")
    # libyaml is ten times as fast, but may be missing. It refuses surrogate pairs, which JSON uses
    # to escape an emoji.
    for name in ("CSafeLoader", "SafeLoader"):
        if (loader := getattr(yaml, name, None)) is not None:
            try:
                return _Builder(yaml, scalar, yaml.parse(text.content, loader)).document(Tree(text))
            except yaml.YAMLError as error:
                reason = " ".join(str(error).split())
            except ValueError as error:
                reason = str(error)
                break
    raise ValueError(f"not YAML: {reason}")


class _Builder:
    """Builds a `Tree` from parser events; checks the limits before it allocates memory."""

    def __init__(self, yaml: Any, scalar: Scalar, events: Iterator[Any]) -> None:
        self.yaml, self.scalar, self.events = yaml, scalar, events
        self.count = 0
        self.anchors: dict[str, tuple[Any, int]] = {}

    def document(self, tree: Tree) -> Tree:
        """Fill a tree with the only document of the file; raise ValueError if there are several."""
        self.tree = tree
        for event in self.events:
            if isinstance(event, self.yaml.DocumentStartEvent):
                if self.count:
                    raise ValueError("expected one document, found a second one (---)")
                tree.content = self._value(next(self.events), 0)
        return tree

    def _value(self, event: Any, depth: int) -> Any:
        yaml, line = self.yaml, event.start_mark.line + 1
        before = self.count
        self._add(1)
        if depth > _DEEPEST:
            raise ValueError(f"line {line}: nested more than {_DEEPEST} deep")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                words = f"alias *{event.anchor[:40]} is undefined or circular"
                raise ValueError(f"line {line}: {words}")
            value, weight = self.anchors[event.anchor]
            self._add(weight)
            return value
        if event.tag not in _TAGS:
            raise ValueError(f"line {line}: the tag {event.tag[:60]} is not supported; remove it")
        if isinstance(event, yaml.ScalarEvent):
            whole = event.value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
            value = self.scalar(whole, not event.style and event.tag is None)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(item := next(self.events), yaml.SequenceEndEvent):
                value.append(self._value(item, depth + 1))
        else:
            value = self._mapping(depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = value, self.count - before
        return value

    def _mapping(self, depth: int) -> dict[str, Any]:
        yaml = self.yaml
        found: dict[str, Any] = {}
        lines: dict[str, int] = {}
        merged: list[Any] = []
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            line = event.start_mark.line + 1
            if not isinstance(event, yaml.ScalarEvent):
                raise ValueError(f"line {line}: expected text as a key, found a list or mapping")
            key, value = event.value, self._value(next(self.events), depth + 1)
            self._add(1)
            if key == "<<" and not event.style:
                merged += value if isinstance(value, list) else [value]
                continue
            if key in lines:
                self.tree.repeated.append((key, lines[key], line))
            found[key] = value
            lines.setdefault(key, line)
        for other in merged:
            if not isinstance(other, dict):
                raise ValueError("expected << to name mappings, found something else")
            self._add(len(other))
            found = {**other, **found}
        if depth == 0:
            self.tree.lines = lines
        return found

    def _add(self, count: int) -> None:
        self.count += count
        if self.count > _MOST:
            raise ValueError(f"expected at most {_MOST:,} values with expanded aliases, found more")
