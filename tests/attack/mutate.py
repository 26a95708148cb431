"""Mutate bytes, texts and JSON values by a seed."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.attack.guard import MARK

HTML = f'<script>alert("{MARK}")</script><img src=x onerror={MARK}>'
FORMULA = f"=cmd|' /C {MARK}'!A0"
NAMES = (
    *("", " ", ".", "..", "../../outside/secret.jpg", "/etc/passwd", "~root", "C:\\x", "con", "-"),
    *(
        "a/b",
        "a\\b",
        "x" * 300,
        "x" * 100_000,
        "a\nb",
        "a\rb",
        "a\tb",
        "a\0b",
        "\x1b[2J\x1b]0;x\x07",
    ),
    *("\u202eexe.gpj", "\u2028", "\ufeffname", "\x7f", "\x9b31m", "naïve ✓ 🚀", "\ud800", "\udcff"),
    *(HTML, FORMULA, "@SUM(1)", "+1", "%s%n{}{0}", "${HOME}", "`id`", "'; drop table", "null", "1"),
    *("🚀" * 200, "é" * 255, "person", "0", "\U0010ffff", "\ufffe", "a" + "\u0301" * 500),
)
NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 7, 255, 256, 65535, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63),
    *(2**64, -(2**63) - 1, 10**12, 10**30, 10**400, -(10**400), 0.5, -0.0, 1e-320, 1e-9, 1.0),
    *(1e308, -1e308, float("nan"), float("inf"), float("-inf"), 1.5, 0.1 + 0.2, 16384, 10**6),
)


def deep(depth: int) -> Any:
    """Return nested lists."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def odd(rng: random.Random, old: Any = None) -> Any:
    """Return a replacement for ``old``, often of another type."""
    choices: list[Callable[[], Any]] = [
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice(NAMES),
        lambda: rng.choice((None, True, False, [], {}, [[]], [None], {"a": 1}, "", "0")),
        lambda: [old],
        lambda: {"x": old},
        lambda: [old, old],
        lambda: str(old),
        lambda: deep(rng.choice((5, 40, 200))),
        lambda: [rng.choice(NUMBERS)] * rng.choice((2, 3, 4, 1000)),
        lambda: {str(i): i for i in range(rng.choice((1, 1000)))},
    ]
    if isinstance(old, int | float) and not isinstance(old, bool):
        choices += [lambda: -old, lambda: old * 10**6, lambda: old + 1, lambda: f"{old} "]
    if isinstance(old, str):
        choices += [lambda: old * 3, lambda: old + rng.choice(NAMES[:40]), lambda: old.upper()]
    return rng.choice(choices)()


def spots(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a tree."""
    found = [at] if at else []
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            found += spots(value, (*at, key))
    return found


def tree(rng: random.Random, value: Any, times: int | None = None) -> Any:
    """Return a JSON tree with a few values replaced, removed, exchanged or renamed."""
    changed = copy.deepcopy(value)
    for _ in range(times or rng.choice((1, 1, 1, 2, 4))):
        places = spots(changed)
        if not places:
            return odd(rng)
        *way, last = rng.choice(places)
        holder = _at(changed, way)
        what = rng.randrange(8)
        if what < 4:
            holder[last] = odd(rng, holder[last])
        elif what == 4:
            del holder[last]
        elif what == 5:
            holder[last] = copy.deepcopy(_at(changed, list(rng.choice(places))))
        elif isinstance(holder, dict):
            holder[rng.choice(NAMES) if what == 6 else f"{last}x"] = holder.pop(last)
        else:
            holder.insert(last, copy.deepcopy(holder[last]))
    return changed


def _at(value: Any, way: list[Any]) -> Any:
    for key in way:
        value = value[key]
    return value


def dumps(value: Any) -> str:
    """Return JSON, possibly with NaN, infinity and surrogate halves."""
    return json.dumps(value, ensure_ascii=True)


def raw(rng: random.Random, data: bytes) -> bytes:
    """Return bytes with a few flipped, cut, repeated, moved or overwritten."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        size = len(out)
        if not size:
            return bytes(rng.randbytes(8))
        at = rng.randrange(min(size, rng.choice((size, size, 64, 512))))
        count = min(rng.choice((1, 2, 4, 8, 64, 512)), size - at)
        what = rng.randrange(9)
        if what < 2:
            for _ in range(rng.choice((1, 3, 16))):
                out[rng.randrange(size)] ^= 1 << rng.randrange(8)
        elif what == 2:
            del out[at : (size if rng.random() < 0.5 else at + count)]
        elif what == 3:
            out[at:at] = out[at : at + count] * rng.choice((1, 3, 50))
        elif what == 4:
            to = rng.randrange(size)
            out[to : to + count] = out[at : at + count]
        elif what == 5:
            out[at : at + count] = rng.randbytes(count)
        elif what == 6:
            out[at : at + count] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * count
        elif what == 7:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 255 % 256))
            out[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
        else:
            out[at:at] = rng.choice(NAMES).encode("utf-8", "surrogatepass")[:1000]
    return bytes(out)


def text(rng: random.Random, data: bytes) -> bytes:
    """Return a text with lines, words and numbers exchanged, or in another encoding."""
    content = data.decode("utf-8", "surrogateescape")
    for _ in range(rng.choice((1, 1, 2, 4))):
        what = rng.randrange(10)
        lines = content.split("\n")
        if what < 4 and (found := list(re.finditer(r"-?\d+(\.\d+)?", content))):
            one = rng.choice(found)
            value = odd(rng, float(one[0])) if rng.random() < 0.4 else rng.choice(NUMBERS)
            content = content[: one.start()] + _short(value) + content[one.end() :]
        elif what == 4:
            lines.insert(rng.randrange(len(lines)), rng.choice(lines))
        elif what == 5:
            del lines[rng.randrange(len(lines))]
        elif what == 6:
            words = re.findall(r"\S+", content) or [""]
            content = content.replace(rng.choice(words), rng.choice((*NAMES[:45], "")), 1)
        elif what == 7:
            at = rng.randrange(len(content) + 1)
            content = content[:at] + rng.choice((*NAMES, "\0", '"', "<", "&", "[", "{", ":", "*a"))
            content += "" if rng.random() < 0.3 else data.decode("utf-8", "replace")[at:]
        elif what == 8:
            lines = lines * rng.choice((2, 50))
        else:
            encoding = rng.choice(("utf-16", "utf-32", "latin-1", "utf-8-sig", "cp037"))
            return content.encode(encoding, "replace")
        if what in (4, 5, 8):
            content = "\n".join(lines)
    return content.encode("utf-8", "surrogatepass")


def _short(value: object) -> str:
    """Return a value as text; Python limits the digits of integers."""
    return repr(value)[:5000] if not isinstance(value, str) else value


def file(rng: random.Random, path: Path, *ways: Callable[[random.Random, bytes], bytes]) -> None:
    """Mutate a file by one of ``ways``."""
    path.write_bytes(rng.choice(ways or (raw,))(rng, path.read_bytes()))


def in_json(rng: random.Random, data: bytes) -> bytes:
    """Mutate the values of a JSON file."""
    return dumps(tree(rng, json.loads(data))).encode()
