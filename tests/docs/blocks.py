"""Read the fenced blocks of the documentation, and the commands in them.

What a page says to the tests:

- ``sh`` blocks contain commands, ``console`` blocks a transcript whose commands follow ``$ ``.
- ``# not run: REASON`` at the end of a command, or as the first line of a block, says why no test
  can run it.
- ``# exits with N`` at the end of a command says that it fails. In a transcript, so does a printed
  line that starts with ``error: ``, and the command must print this line.
- The example of a help text, in a ``text`` block, is a command too.

``python -m tests.docs.blocks`` counts the commands of each page.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
LANGUAGES = frozenset(
    {"sh", "console", "python", "text", "json", "yaml", "ini", "toml", "cpp", "dockerfile"}
)
NOT_RUN = re.compile(r"#\s*not run: (\S.*)$")
EXITS = re.compile(r"#\s*exits with (\d+)\b")
FENCE = re.compile(r"^( *)```(.*)$")
EXAMPLE = re.compile(r"^ *Example:\n *(y7edge .+)$", re.MULTILINE)
EXAMPLES_TEST = "tests/docs/test_commands.py::test_examples_of_help_texts"
# Words before the name of a program.
LEADING = frozenset(
    ["sudo", "time", "exec", "nohup", "env", "then", "do", "else", "if", "while", "until", "!"]
)

# Commands that another test of the repository runs: how they start -> the test.
ELSEWHERE = {
    "y7edge soup": "tests/cli/test_soup.py::test_average_is_written_only_if_it_is_better",
    "y7edge train --resume": "tests/train/run/test_distributed.py::"
    "test_processes_end_with_the_first_and_the_run_resumes",
    "y7edge diff good.onnx": "tests/export/proof/test_diff.py::test_planted_faults",
    "from pathlib import Path from rosbags": "tests/docs/test_ros2.py::"
    "test_a_recording_without_ros",
    "python examples/scale/ray_batch.py mine.onnx images/": "tests/examples/test_ray_batch.py::"
    "test_the_rows_are_those_of_predict",
    "python examples/research/chip_table.py": "tests/examples/research/test_chip_table.py::"
    "test_the_page_is_that_of_the_script",
    "python examples/voc_to_yolo.py": "tests/examples/test_voc_to_yolo.py::"
    "test_converted_data_set_is_equal",
    "pytest -s -m slow tests/cli/test_results.py": "tests/cli/test_results.py::"
    "test_many_killed_processes_lose_nothing",
    "pytest -s -m slow tests/examples/test_ray_batch.py": "tests/examples/test_ray_batch.py::"
    "test_the_rows_are_those_of_predict",
    "make demo": "tests/examples/test_demo.py::"
    "test_the_whole_demo_with_a_model_that_needs_no_training",
}


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the line of its first fence (from 1), language and text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def reason(self) -> str:
        """Why the whole block is not run, or an empty string."""
        found = NOT_RUN.match(self.text.strip().partition("\n")[0])
        return found[1] if found else ""


@dataclass(frozen=True)
class Command:
    """A command of a block: in Python blocks, the whole block.

    Attributes:
        page: Path of the page from the repository's root.
        line: Line of the page, from 1.
        language: ``sh`` or ``python``.
        text: As typed, with continued lines.
        reason: Why it is not run, or an empty string.
        exit_code: The expected exit code; None: any failure.
        error: The line that a failing command must print, or an empty string.
        is_help: Whether it is the example of a help text.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str = ""
    exit_code: int | None = 0
    error: str = ""
    is_help: bool = False

    @property
    def elsewhere(self) -> str:
        """The test that runs this command, or an empty string."""
        if self.is_help:
            return EXAMPLES_TEST
        words = " ".join(self.text.partition(" #")[0].split())
        return next((test for start, test in ELSEWHERE.items() if words.startswith(start)), "")

    @property
    def is_run(self) -> bool:
        """Whether the test of the page runs it."""
        return not self.reason and not self.elsewhere

    @property
    def where(self) -> str:
        """Page and line, for messages."""
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Return the paths of all pages, from the repository's root."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]
    names = sorted(path.relative_to(ROOT).as_posix() for path in found)
    return [name for name in names if name != "CHANGELOG.md"]


@lru_cache
def read(page: str) -> str:
    """Return the text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    found: list[Block] = []
    opened: tuple[int, str, int] | None = None
    lines: list[str] = []
    for number, line in enumerate(read(page).splitlines(), 1):
        fence = FENCE.match(line)
        if opened and fence and not fence[2]:
            start, language, indent = opened
            text = textwrap.dedent("\n".join(one[indent:] for one in lines))
            found.append(Block(page, start, language, text))
            opened, lines = None, []
        elif opened:
            lines.append(line)
        elif fence:
            opened = number, fence[2].strip(), len(fence[1])
    if opened:
        raise ValueError(f"{page}:{opened[0]}: the block has no end")
    return found


def prose(page: str) -> str:
    """Return a page without its blocks; they are replaced by empty lines."""
    kept, inside = [], False
    for line in read(page).splitlines():
        is_fence = FENCE.match(line) is not None
        kept.append("" if inside or is_fence else line)
        inside ^= is_fence
    return "\n".join(kept)


def _is_complete(text: str) -> bool:
    """Whether bash would run this, or wait for more lines."""
    if text.endswith("\\"):
        return False
    if not re.search(r"['\"(){}`]|<<|\b(?:for|while|until|if|case|do|then)\b", text):
        return True
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    return checked.returncode == 0 and not checked.stderr


def _numbered(block: Block) -> list[tuple[int, str]]:
    """Return the lines of a shell block with their numbers; comments of their own are left out."""
    lines = list(enumerate(block.text.splitlines(), block.line + 1))
    return [(number, line) for number, line in lines if line.strip()]


def _shell(block: Block) -> list[Command]:
    """Return the commands of an ``sh`` block."""
    found: list[Command] = []
    text, start = "", 0
    for number, line in _numbered(block):
        if not text and line.lstrip().startswith("#"):
            continue
        start = start if text else number
        text = f"{text}\n{line}" if text else line
        if _is_complete(text):
            found.append(_command(block, start, text))
            text = ""
    if text:
        raise ValueError(f"{block.page}:{start}: the command has no end")
    return found


def _command(block: Block, line: int, text: str, printed: str = "") -> Command:
    last = text.splitlines()[-1]
    marked, exits = NOT_RUN.search(last), EXITS.search(last)
    error = re.search("^error: .*", printed, re.MULTILINE)
    return Command(
        block.page,
        line,
        "sh",
        text,
        block.reason or (marked[1] if marked else ""),
        int(exits[1]) if exits else None if error else 0,
        error[0] if error else "",
    )


def _transcript(block: Block) -> list[Command]:
    """Return the commands of a ``console`` block; the lines between them are their output."""
    found: list[Command] = []
    entries: list[tuple[int, str, list[str]]] = []
    for number, line in _numbered(block):
        if entries and not _is_complete(entries[-1][1]):
            start, text, printed = entries[-1]
            entries[-1] = start, f"{text}\n{line.removeprefix('> ')}", printed
        elif line.startswith("$ "):
            entries.append((number, line[2:], []))
        elif entries:
            entries[-1][2].append(line)
        elif not NOT_RUN.match(line):
            raise ValueError(f"{block.page}:{number}: expected a command after `$ `")
    for start, text, printed in entries:
        found.append(_command(block, start, text, "\n".join(printed)))
    return found


def commands(page: str) -> list[Command]:
    """Return the commands of a page in order; a Python block is one command."""
    found: list[Command] = []
    for block in blocks(page):
        if block.language == "sh":
            found += _shell(block)
        elif block.language == "console":
            found += _transcript(block)
        elif block.language == "python":
            found.append(Command(page, block.line, "python", block.text, block.reason))
        elif example := EXAMPLE.search(block.text):
            line = block.line + 1 + block.text[: example.start(1)].count("\n")
            found.append(Command(page, line, "sh", example[1], is_help=True))
    return found


def words(text: str) -> list[list[str]]:
    """Split a shell command into its simple commands: words without redirections."""
    found: list[list[str]] = []
    waiting = ""
    for line in text.replace("\\\n", " ").splitlines():
        waiting = f"{waiting}\n{line}" if waiting else line
        lexer = shlex.shlex(waiting, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            tokens = list(lexer)
        except ValueError:  # a quotation that ends in another line
            continue
        waiting = ""
        found += _simple(tokens)
    return found


def _simple(tokens: list[str]) -> list[list[str]]:
    found: list[list[str]] = [[]]
    rest = iter(tokens)
    for token in rest:
        if set(token) <= set("<>&") and set(token) & set("<>"):
            next(rest, None)
            if found[-1] and found[-1][-1] == "2":
                found[-1].pop()
        elif set(token) <= set("|&;()"):
            found.append([])
        else:
            found[-1].append(token)
    return [named for words in found if (named := _without_leading(words))]


def _without_leading(words: list[str]) -> list[str]:
    for index, word in enumerate(words):
        if word not in LEADING and not re.match(r"\w+=", word):
            return words[index:]
    return []


def y7edge_arguments(text: str) -> list[list[str]]:
    """Return the arguments of each call of y7edge in a shell command."""
    found = []
    for simple in words(text):
        if Path(simple[0]).name == "y7edge":
            found.append(simple[1:])
        elif "-m" in simple and simple[simple.index("-m") :][1:2] == ["y7edge"]:
            found.append(simple[simple.index("-m") + 2 :])
    return found


def scripts(text: str) -> list[tuple[str, list[str]]]:
    """Return the Python scripts of examples/ that a shell command runs, and their arguments."""
    found = []
    for simple in words(text):
        if re.match(r"python[\d.]*$", Path(simple[0]).name):
            for index, word in enumerate(simple[1:], 1):
                if word.startswith("examples/"):
                    found.append((word, simple[index + 1 :]))
                    break
    return found


def count(page: str) -> Counter[str]:
    """Count the commands of a page: run, not run, and run by another test."""
    kinds = Counter({"run": 0, "not run": 0, "elsewhere": 0})
    for command in commands(page):
        kinds["not run" if command.reason else "elsewhere" if command.elsewhere else "run"] += 1
    return kinds


def main() -> None:
    """Print the counts of each page, and their sum."""
    total: Counter[str] = Counter()
    print(f"{'page':32} {'run':>5} {'not run':>8} {'by another test':>16}")
    for page in pages():
        one = count(page)
        total += one
        if sum(one.values()):
            print(f"{page:32} {one['run']:5} {one['not run']:8} {one['elsewhere']:16}")
    print(f"{'total':32} {total['run']:5} {total['not run']:8} {total['elsewhere']:16}")


if __name__ == "__main__":
    sys.exit(main())
