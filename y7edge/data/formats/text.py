"""Text files read whatever their encoding, with a note of what it was."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path

from y7edge.files import read_regular, reason

MOST_TEXT = 64 << 20  # bytes; of a list with half a million paths, say
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, slots=True)
class Text:
    """A text file."""

    path: Path
    content: str = ""  # what cannot be decoded is replaced
    # ``utf-8``; ``utf-8-sig`` (with a byte order mark), ``utf-16``, ``cp1252`` for anything else
    # that has letters beyond ASCII; ``binary`` is not text.
    encoding: str = "utf-8"
    carriage_returns: bool = False  # whether lines end as on Windows
    error: str = ""  # why nothing could be read

    @property
    def lines(self) -> list[tuple[int, str]]:
        """Lines that are not blank, with their numbers from 1."""
        numbered = enumerate(self.content.splitlines(), 1)
        return [(number, line.strip()) for number, line in numbered if line.strip()]

    @property
    def usable(self) -> bool:
        """Whether there is text to parse."""
        return not self.error and self.encoding != "binary"


def read_text(path: Path, *, most: int = MOST_TEXT) -> Text:
    """Read a file of text of at most ``most`` bytes; never raises for what it holds or is."""
    try:
        raw = read_regular(path, most)
    except (OSError, ValueError) as error:  # ValueError: a name that cannot be
        return Text(path, error=reason(error))
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "")
    if not encoding and b"\0" in raw:
        # UTF-16 without its mark has a zero beside every ASCII letter; other files do not.
        halves = raw[1::2].count(0), raw[0::2].count(0)
        encoding = "binary"
        if max(halves) > 0.4 * len(raw):
            encoding = "utf-16-le" if halves[0] > halves[1] else "utf-16-be"
    try:
        content = raw.decode(encoding or "utf-8") if encoding != "binary" else ""
    except UnicodeDecodeError:
        encoding = encoding if encoding.startswith("utf-16") else "cp1252"
        content = raw.decode(encoding, errors="replace")
    return Text(path, content, encoding or "utf-8", "\r\n" in content)
