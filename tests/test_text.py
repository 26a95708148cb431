"""Text from outside: nothing in it acts on a terminal, ends a line or is a formula."""

from __future__ import annotations

import csv
import html as library
import io
import re
from pathlib import Path

import pytest

from y7edge import html
from y7edge.errors import DataError
from y7edge.files import write_text
from y7edge.text import cell, is_printable, one_line, printable, without_active

ACTIVE = [
    *map(chr, (*range(32), *range(127, 160))),
    *("\u2028", "\u2029", "\u202a", "\u202e", "\u2066", "\u2069", "\ud800", "\udcff", "\udfff"),
    *("\ufffe", "\uffff"),
]
PLAIN = [
    "",
    "nut",
    "schraube mit Öse",
    "a'b\"c\\d",
    "猫",
    "👩‍🚀",
    "می‌خواهم",
    "e\u0301",
    "[bold]",
    "%s{0}",
]


@pytest.mark.parametrize("sign", ACTIVE, ids=ascii)
def test_active_characters_are_escaped_or_removed(sign: str) -> None:
    text = f"a{sign}b"
    assert not is_printable(text)
    assert is_printable(printable(text))
    assert eval(f"'{printable(text)}'") == text  # the escape is Python's
    assert without_active(text) == "ab"
    printable(text).encode("utf-8")


@pytest.mark.parametrize("text", PLAIN)
def test_other_text_stays(text: str) -> None:
    assert is_printable(text)
    assert printable(text) == without_active(text) == one_line(text) == text


@pytest.mark.parametrize("length", [0, 1999, 2000, 2001, 8000, 8001, 10**6])
@pytest.mark.parametrize("sign", ["x", "\x1b", "\n", " ", "ä", "\udcff"], ids=ascii)
def test_one_line_is_bounded(length: int, sign: str) -> None:
    line = one_line(f"begin {sign * length} end")
    assert len(line) <= 2000
    assert is_printable(line)
    assert line.startswith("begin")
    assert line.endswith("end")


def test_errors_are_one_bounded_line() -> None:
    words = str(DataError("x\x1b[31m\n" * 10_000 + "the way out"))
    assert len(words) <= 2000
    assert is_printable(words)
    assert words.endswith("the way out")


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\u00a0=1", "\uff1d1", "\uff0b1",
     "=cmd|' /C calc'!A0", '=HYPERLINK("http://x")'],
    ids=ascii,
)  # fmt: skip
def test_cells_are_not_formulas(text: str) -> None:
    stream = io.StringIO()
    csv.writer(stream).writerow([cell(text), cell("b,c\nd")])
    ((first, second),) = csv.reader(io.StringIO(stream.getvalue()))
    assert not re.match(r"[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]", first.lstrip())
    assert second == r"b,c\nd"
    assert cell("nut - 1") == "nut - 1"


@pytest.mark.parametrize("sign", [s for s in ACTIVE if s != "\n"], ids=ascii)
def test_pages_hold_only_characters_of_html(sign: str, tmp_path: Path) -> None:
    text = f"<b>{sign}&"
    parts = [
        html.heading(text), html.section(text, html.paragraph(text), html.code(f"a\n{text}")),
        html.tiles([(text, text, True)]), html.table([text], [[text]]), html.pairs([(text, text)]),
        html.figure(html.image(b"", text), text), html.pair(b"", b"", text),
    ]  # fmt: skip
    write_text(tmp_path / "page.html", html.page(text, parts))
    page = (tmp_path / "page.html").read_bytes().decode("utf-8")
    assert "<b>" not in page.replace("<b>&lt;", "")  # of the tiles
    assert all(is_printable(line) for line in page.splitlines())
    assert library.escape(text.replace(sign, printable(sign))) in page


def test_text_that_utf8_cannot_hold_is_written_as_escapes(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "ä\udcff\ud800\r\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa4\\udcff\\ud800\r\n"
