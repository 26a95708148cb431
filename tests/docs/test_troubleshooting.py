"""docs/troubleshooting.md: every message that it quotes is a message of the code.

A quoted message is text in code font that starts with ``error:``, ``warning:`` or ``...``. Dots in
it stands for names, numbers, and parts of other messages. The slow test of the page compares the
messages in its transcripts with what the commands print.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from itertools import chain

import pytest

from tests.docs import blocks
from tests.docs.blocks import ROOT

PAGE = "docs/troubleshooting.md"
# Messages of Python, not ours.
FOREIGN = {"ModuleNotFoundError: No module named 'y7edge'"}
START = re.compile(r"(?:error: |warning: |\.\.\. ?)")
VALUE = "\0"


def text_of(node: ast.expr) -> str | None:
    """Return the text of a string, with VALUE for what is inserted; None for other expressions."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        parts = (text_of(part) if isinstance(part, ast.Constant) else VALUE for part in node.values)
        return "".join(part or "" for part in parts)
    return None


def strings(source: str) -> set[str]:
    """Return all strings of a module, with VALUE for inserted values."""
    found = (text_of(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.expr))
    return {text for text in found if text and len(text) > 3}


@cache
def known() -> str:
    """Return all strings of the package, one after the other."""
    folders = (ROOT / name for name in ("y7edge", "export", "runtimes"))
    files = chain.from_iterable(folder.rglob("*.py") for folder in folders)
    sources = {path.resolve() for path in files}
    return "\n".join(
        sorted(chain.from_iterable(strings(path.read_text("utf-8")) for path in sources))
    )


def missing_parts(message: str) -> list[str]:
    """Return the parts of a quoted message that no string of the code contains."""
    words = re.sub(r"^(?:error|warning): ", "", message)
    parts = [part for part in words.split("...") if re.search(r"\w", part)]
    return [part for part in parts if part.strip() not in known()]


def quoted() -> list[str]:
    """Return the messages in code font, with ``...`` for values."""
    spans = re.findall(r"`([^`]+)`", blocks.prose(PAGE).replace("\n", " "))
    return [text for text in spans if START.match(text) or text.startswith("memory ran out")]


MESSAGES = quoted()


def test_there_are_messages():
    assert len(MESSAGES) > 30
    assert sum(bool(command.error) for command in blocks.commands(PAGE)) >= 3


@pytest.mark.parametrize("message", MESSAGES)
def test_quoted_messages_are_those_of_the_code(message):
    assert message in FOREIGN or missing_parts(message) == []


def test_changed_words_are_found():
    right = "error: an image must have shape (height, width, 3), or 1 or 4 channels; got ..."
    assert missing_parts(right) == []
    assert missing_parts(right.replace("must", "should")) != []
    assert missing_parts("error: the camera is asleep: ...") == ["the camera is asleep: "]
