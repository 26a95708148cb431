"""Print results on standard output and remarks on standard error.

With ``--json`` a result is one line of JSON in ASCII, in which non-finite numbers are null.
Otherwise it is lines of text. Control characters, for example in file names, are escaped. So are
characters that the encoding of the stream cannot represent.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from y7edge.text import printable


def open_streams() -> None:
    """Make both streams escape characters that they cannot encode; replace a closed stream."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def to_json(record: Any) -> str:
    """Convert a record to one line of JSON; it may contain numpy values, paths and dataclasses."""
    return json.dumps(_plain(record), allow_nan=False)


def _plain(value: Any) -> Any:
    if value is None or type(value) in (str, int, bool):
        return value  # the fast path: a record may have millions of values
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    numpy = sys.modules.get("numpy")  # whose import is slow
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def show(record: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """Print a result: ``record`` as JSON, or ``lines``."""
    print(to_json(record) if as_json else "\n".join(map(printable, lines)), flush=True)


# Levels of sd-daemon(3), by those of logging.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}


def note(text: str, level: int = logging.INFO) -> None:
    """Print one line on standard error; ``level``, of logging, is its priority in the journal."""
    start = f"<{_PRIORITIES.get(level, 2)}>" if _is_journal() else ""
    with suppress(OSError):  # ignore a full disk or a closed pipe
        print(start + printable(text), file=sys.stderr, flush=True)


def _is_journal() -> bool:
    """Return whether standard error is the journal of systemd: see ``JOURNAL_STREAM``."""
    stated = os.environ.get("JOURNAL_STREAM")
    if not stated:
        return False
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # it is closed, or not a file
        return False
    return stated == f"{found.st_dev}:{found.st_ino}"


def table(rows: Sequence[Sequence[object]]) -> list[str]:
    """Format rows as lines with aligned columns; numbers are right-aligned.

    The first row is the header.
    """
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
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def facts(record: Mapping[str, object]) -> list[str]:
    """Format a flat record as lines ``name  value``; omit values that are None."""
    width = max((len(key) for key in record), default=0)
    return [f"{k.ljust(width)}  {_cell(v)}" for k, v in record.items() if v is not None]
