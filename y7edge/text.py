"""Make untrusted text safe to print on a terminal, in a message or in a CSV cell.

*Active* characters control a terminal or change the order of text, such as ESC or U+202E.
"""

from __future__ import annotations

import re

# Control characters, lone surrogates, line separators, direction marks, and two characters that XML
# forbids. Zero-width joiners, which occur in emoji and Persian words, are not active.
_ACTIVE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
# First characters that make a spreadsheet read a cell as a formula; the last four are full-width.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
_LONGEST = 2000


def is_printable(text: str) -> bool:
    """Return whether a text is free of active characters."""
    return not _ACTIVE.search(text)


def printable(text: str) -> str:
    r"""Replace active characters by escapes such as ``\x1b`` or ``\u202e``."""
    return _ACTIVE.sub(lambda found: ascii(found[0])[1:-1], text)


def without_active(text: str) -> str:
    """Remove active characters."""
    return _ACTIVE.sub("", text)


def one_line(text: str, longest: int = _LONGEST) -> str:
    """Return a text as one printable line of at most ``longest`` characters, cut in the middle."""
    line = printable(" ".join(text[: 4 * longest].split()))
    if len(line) <= longest and len(text) <= 4 * longest:
        return line
    half = (longest - 5) // 2
    ending = printable(" ".join(text[-half:].split()))
    return f"{line[:half]} ... {ending[-half:]}"


def counted(count: int, noun: str) -> str:
    """Return a count with a regular noun, such as ``1 error`` or ``2 errors``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def cell(text: str) -> str:
    """Escape a text for a cell of a CSV file, against formula injection (OWASP, CSV Injection)."""
    shown = printable(text)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown
