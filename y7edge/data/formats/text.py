"""Read text files, and detect their encoding."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path

from y7edge.files import read_regular, reason

MOST_TEXT = 64 << 20  # bytes; enough for a list of half a million paths
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, slots=True)
class Text:
    """The content of a text file."""

    path: Path
    content: str = ""  # bytes that are invalid in the encoding are replaced
    # ``utf-8``, ``utf-8-sig`` (with a byte order mark), ``utf-16``, ``utf-16-le``, ``utf-16-be``,
    # ``binary`` if the file is not text, ``cp1252`` for anything else.
    encoding: str = "utf-8"
    carriage_returns: bool = False  # whether it has Windows line ends
    error: str = ""  # why the file could not be read

    @property
    def lines(self) -> list[tuple[int, str]]:
        """Non-blank lines without surrounding spaces, and their numbers from 1."""
        numbered = enumerate(self.content.splitlines(), 1)
        return [(number, line.strip()) for number, line in numbered if line.strip()]

    @property
    def usable(self) -> bool:
        """Whether there is text to parse."""
        return not self.error and self.encoding != "binary"


def read_text(path: Path, *, most: int = MOST_TEXT) -> Text:
    """Read a text file of at most ``most`` bytes; errors are stored in ``Text.error``."""
    try:
        raw = read_regular(path, most)
    except (OSError, ValueError) as error:  # ValueError: an invalid file name
        return Text(path, error=reason(error))
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "")
    if not encoding and b"\0" in raw:
        # In UTF-16 every other byte of ASCII text is zero.
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
