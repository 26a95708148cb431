"""Print results on standard output, remarks on standard error.

A result is one record: with ``--json`` one line of strict JSON (numbers that are not finite become
null), otherwise lines of text.
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
    """Return one line of strict JSON; converts numpy values, paths and dataclasses."""
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
    """Print a result: ``record`` as JSON, or ``lines``."""
    print(to_json(record) if as_json else "\n".join(lines), flush=True)


def note(text: str) -> None:
    """Print a remark on standard error, apart from JSON."""
    print(text, file=sys.stderr, flush=True)


def table(rows: Sequence[Sequence[object]]) -> list[str]:
    """Align rows, text to the left, numbers to the right; the first row is the header."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    columns = zip(*rows[1:], strict=True)
    numeric = [all(isinstance(v, int | float | None) for v in column) for column in columns]
    numeric = numeric or [False] * len(widths)
    return [
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    ]


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def facts(record: Mapping[str, object]) -> list[str]:
    """Return a flat record as lines of ``name  value``, without None."""
    width = max((len(key) for key in record), default=0)
    return [f"{k.ljust(width)}  {_cell(v)}" for k, v in record.items() if v is not None]
