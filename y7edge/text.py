"""Text from outside, made fit for a terminal, a line of a message and a cell of a table."""

from __future__ import annotations

import re

# Characters that act on a terminal or reorder what stands around them: control characters, halves
# of surrogate pairs, separators of lines, marks that change the direction; two that XML cannot
# hold. Joiners within emoji and in Persian words stay.
_ACTIVE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
# What a spreadsheet takes for a formula, if a cell begins with it; the last four are full-width.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
_LONGEST = 2000


def is_printable(text: str) -> bool:
    """Whether a text has no character that acts on a terminal, and can be encoded."""
    return not _ACTIVE.search(text)


def printable(text: str) -> str:
    r"""Escape such characters: ``\x1b``, ``\u202e``."""
    return _ACTIVE.sub(lambda found: ascii(found[0])[1:-1], text)


def without_active(text: str) -> str:
    """Remove such characters."""
    return _ACTIVE.sub("", text)


def one_line(text: str, longest: int = _LONGEST) -> str:
    """Return a text as one printable line; the middle of a longer one is left out."""
    line = printable(" ".join(text[: 4 * longest].split()))
    if len(line) <= longest and len(text) <= 4 * longest:
        return line
    half = (longest - 5) // 2
    ending = printable(" ".join(text[-half:].split()))
    return f"{line[:half]} ... {ending[-half:]}"


def cell(text: str) -> str:
    """Return a text for a cell of a CSV file: printable, and no formula of a spreadsheet.

    See "CSV Injection", OWASP.
    """
    shown = printable(text)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown
