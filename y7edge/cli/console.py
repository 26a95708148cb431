"""What the command line prints: results on standard output, remarks and errors on standard error.

A result is one record. ``--json`` prints it as one line of JSON that any parser takes (numbers that
are not finite become null); otherwise the command's own lines for people are printed.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np


def to_json(record: Any) -> str:
    """One line of strict JSON; numpy values, paths and dataclasses are turned into plain ones."""
    return json.dumps(_plain(record), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def show(record: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """Print a result: ``record`` as JSON, or ``lines`` for people."""
    text = to_json(record) if as_json else "\n".join(lines)
    print(text, flush=True)


def note(text: str) -> None:
    """Print a remark on standard error, where it cannot get into anybody's JSON."""
    print(text, file=sys.stderr, flush=True)


def table(rows: Sequence[Sequence[object]]) -> list[str]:
    """Rows as aligned lines: text to the left, numbers to the right; the first row is the head."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    numeric = [all(isinstance(v, int | float | None) for v in c) for c in _columns(rows[1:])]
    numeric += [False] * (len(widths) - len(numeric))
    return [
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    ]


def _columns(rows: Sequence[Sequence[object]]) -> list[tuple[object, ...]]:
    return list(zip(*rows, strict=True))


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def facts(record: Mapping[str, object]) -> list[str]:
    """A flat record as lines of ``name  value``; what is None is left out."""
    width = max((len(key) for key in record), default=0)
    return [f"{k.ljust(width)}  {_cell(v)}" for k, v in record.items() if v is not None]
