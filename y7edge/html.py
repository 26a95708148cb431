"""Build self-contained HTML pages: images as ``data:`` URIs, inline SVG, no scripts."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

from y7edge.text import printable

_STYLE = """
:root { color-scheme: light; --ink: #0f172a; --soft: #475569; --line: #e2e8f0; --accent: #0f766e }
* { box-sizing: border-box }
body { margin: 0; background: #f8fafc; color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1rem 4rem }
h1 { font-size: clamp(1.6rem, 5vw, 2.4rem); line-height: 1.15; margin: 0 0 .5rem;
     letter-spacing: -.02em }
h2 { font-size: 1.25rem; margin: 0 0 .25rem }
p { margin: .25rem 0 .9rem; max-width: 46rem }
.lead, .soft, figcaption { color: var(--soft) }
section { background: #fff; border: 1px solid var(--line); border-radius: 14px;
          padding: 1.25rem; margin-top: 1.25rem }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem;
         margin: 1.25rem 0 }
.tile { background: #fff; border: 1px solid var(--line); border-radius: 14px; padding: .8rem 1rem }
.tile b { display: block; font-size: 1.6rem; letter-spacing: -.02em; line-height: 1.2 }
.tile span { color: var(--soft); font-size: .85rem; display: block; line-height: 1.35 }
.tile.bad b { color: #b91c1c }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr));
        gap: .9rem }
.wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)) }
.column { display: grid; gap: .9rem }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 4px }
figure { margin: 0 }
figcaption { font-size: .85rem; margin-top: .3rem }
img { width: 100%; height: auto; display: block; border-radius: 8px }
svg { width: 100%; height: auto; display: block; max-width: 34rem }
.scroll { overflow-x: auto; margin: 0 0 .9rem }
table { border-collapse: collapse; width: 100%; font-size: .9rem;
        font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .4rem .6rem; border-bottom: 1px solid var(--line);
         white-space: nowrap }
th { font-weight: 600; color: var(--soft) }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
td.words { text-align: left; white-space: normal; min-width: 14rem }
table.facts td:first-child { color: var(--soft); width: 12rem }
.ok { color: var(--accent); font-weight: 600 } .no { color: #b91c1c; font-weight: 600 }
ol { list-style: none; margin: 0; padding: 0 }
li { padding: .6rem 0; border-top: 1px solid var(--line); overflow-wrap: anywhere }
li b { display: flex; justify-content: space-between; gap: 1rem }
li i { font-style: normal; font-weight: 400; white-space: nowrap }
li span { display: block; color: var(--soft); font-size: .9rem }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f1f5f9; border-radius: 8px;
      padding: .8rem 1rem; font-size: .85rem; margin: .25rem 0 .9rem }
"""


def escape(text: str) -> str:
    """Escape a text for HTML; control characters except line ends are escaped too."""
    return html.escape("\n".join(map(printable, text.split("\n"))))


def page(title: str, body: Iterable[str]) -> str:
    """Return a complete HTML document."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def heading(title: str) -> str:
    """Return the page's title."""
    return f"<h1>{escape(title)}</h1>"


def section(title: str, *parts: str) -> str:
    """Return a section with a heading."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def paragraph(words: str, kind: str = "") -> str:
    """Return a paragraph of plain text; ``kind`` is a CSS class, such as "soft"."""
    return f'<p class="{kind}">{escape(words)}</p>' if kind else f"<p>{escape(words)}</p>"


def tiles(figures: Sequence[tuple[str, str, bool]]) -> str:
    """Return a row of large numbers; ``figures``: (number as text, description, is good)."""
    cells = (
        f'<div class="{"tile" if fine else "tile bad"}"><b>{escape(figure)}</b>'
        f"<span>{escape(words)}</span></div>"
        for figure, words, fine in figures
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def table(header: Sequence[str], rows: Iterable[Sequence[str | bool]]) -> str:
    """Return a table; True and False become "passed" and "failed"."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values."""
    body = "".join(
        f'<tr><td>{escape(name)}</td><td class="words">{escape(value)}</td></tr>'
        for name, value in rows
    )
    return f'<div class="scroll"><table class="facts">{body}</table></div>'


def _cell(content: str | bool) -> str:
    if isinstance(content, bool):
        return '<td class="ok">passed</td>' if content else '<td class="no">failed</td>'
    kind = ' class="words"' if len(content) > 40 else ""
    return f"<td{kind}>{escape(content)}</td>"


def image(content: bytes, words: str) -> str:
    """Return an image from JPEG or PNG bytes; ``words`` is its alternative text."""
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    data = base64.b64encode(content).decode("ascii")
    return f'<img alt="{escape(words)}" src="data:image/{kind};base64,{data}">'


def figure(content: str, caption: str) -> str:
    """Return an image or chart with a caption."""
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def pair(first: bytes, second: bytes, caption: str) -> str:
    """Return two images side by side with a caption."""
    both = image(first, f"left: {caption}") + image(second, f"right: {caption}")
    return figure(f'<div class="pair">{both}</div>', caption)


def grid(items: Iterable[str], *, wide: bool = False) -> str:
    """Return items in columns; ``wide`` columns are for plots and pairs of images."""
    return f'<div class="{"grid wide" if wide else "grid"}">{"".join(items)}</div>'


def column(items: Iterable[str]) -> str:
    """Return items in one column."""
    return f'<div class="column">{"".join(items)}</div>'


def code(lines: str) -> str:
    """Return preformatted text in a fixed-width font."""
    return f"<pre>{escape(lines)}</pre>"
