"""Parse the class names that other exporters write into the metadata of their files."""

from __future__ import annotations

import re
from ast import literal_eval
from typing import Any

from y7edge.artifact import bounds
from y7edge.artifact.schema import parse
from y7edge.text import printable

_MAX_TEXT = 1 << 20
_ITEM = r"""('(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")"""
_LIST = re.compile(rf"\s*{_ITEM}\s*(?:,|$)", re.ASCII)
_DICT = re.compile(rf"\s*(\d{{1,5}})\s*:\s*{_ITEM}\s*(?:,|$)", re.ASCII)


def parse_names(text: str) -> tuple[str, ...] | None:
    """Parse class names as other exporters write them; return None for any other text.

    Accepted are JSON and Python's notation, as a list or as a dictionary with the class ids from 0
    as keys, such as ``{0: 'person', 1: 'car'}``. Only single string literals are evaluated.
    """
    if len(text) > _MAX_TEXT:
        return None
    try:
        values = parse(text)
    except ValueError:
        values = _python_names(text.strip())
    if isinstance(values, dict):
        try:
            numbered = {int(key): value for key, value in values.items()}
        except ValueError:
            return None
        if sorted(numbered) != list(range(len(values))):
            return None
        values = [numbered[number] for number in range(len(numbered))]
    usable = isinstance(values, list) and 0 < len(values) <= bounds.MAX_CLASSES
    if not usable or not all(isinstance(value, str) for value in values):
        return None
    return tuple(printable(value)[: bounds.MAX_NAME] for value in values)


def _python_names(text: str) -> Any:
    """Parse a flat list or dictionary of strings in Python's notation; None for anything else."""
    pattern = {"[]": _LIST, "{}": _DICT}.get(text[:1] + text[-1:])
    if pattern is None:
        return None
    inside, at = text[1:-1].rstrip(), 0
    keys: list[str] = []
    values: list[str] = []
    while at < len(inside):
        match = pattern.match(inside, at)
        if match is None:
            return None
        try:
            values.append(str(literal_eval(match.groups()[-1])))
        except (ValueError, SyntaxError):  # such as an incomplete \x escape
            return None
        keys.append(match.groups()[0])
        at = match.end()
    return values if pattern is _LIST else dict(zip(keys, values, strict=True))
