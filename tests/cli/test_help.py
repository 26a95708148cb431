"""Help texts: words, summaries, examples, and equal forms for equal things."""

from __future__ import annotations

import re
import shlex
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import typer

from y7edge.cli import main
from y7edge.cli.app import SECTIONS, app
from y7edge.cli.data import EXAMPLE
from y7edge.cli.grouped import commands, sections, summary

ROOT = Path(__file__).parents[2]
GROUP: Any = typer.main.get_command(app)
TOP = GROUP.context_class(GROUP, info_name="y7edge")
COMMANDS = dict(commands(GROUP, TOP))
EACH = pytest.mark.parametrize("name", COMMANDS)

# Words that CONTRIBUTING.md ("Words") does not use for these things.
NEVER = {
    *("picture", "pictures", "judge", "judged", "judges", "mend", "mended", "told", "stray"),
    *("orphan", "keeper", "taste", "cook", "cooked", "story", "chance", "somebody", "whoever"),
    *("ckpt", "bbox", "bboxes", "dataset", "datasets", "quantize", "quantized", "fps", "license"),
    *("please", "simply", "just", "obviously"),
}


@cache
def _help(name: str) -> str:
    with redirect_stdout(StringIO()) as printed:
        assert main([*name.split(), "--help"]) == 0
    return printed.getvalue()


def _words(text: str) -> set[str]:
    # Without names of options, files and values of other libraries.
    return set(re.findall(r"(?<![\w.`/-])[a-z]+(?![\w(/=-])", text.lower()))


@EACH
def test_help_uses_the_words_of_the_project(name: str) -> None:
    stated = re.findall(r'never "(\w+)"', (ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    assert stated
    found = _words(_help(name)) & (NEVER | set(stated))
    assert not found


def test_words_are_found() -> None:
    assert {"picture", "judge"} <= _words("A picture, and --judge; judge it. `fps`")
    assert "fps" not in _words("`fps` and my-fps and --fps")


@EACH
def test_summary_is_one_line_of_the_overview(name: str) -> None:
    text = summary(COMMANDS[name])
    assert text.endswith(".")
    assert len(text) <= 61
    assert f"  {name:<11}  {text}" in _help("").splitlines()


def test_overview_has_every_command_in_a_section() -> None:
    text = _help("")
    assert "..." not in text.replace("[ARGS]...", "")
    titles = re.findall(r"^(\S.*):$", text, re.M)
    assert titles == [*SECTIONS, "Options"]
    rows = re.findall(r"^  ([a-z]+(?: [a-z]+)?)  ", text, re.M)
    assert rows == list(COMMANDS)
    assert rows[0] == "data check"


@EACH
def test_usage_and_options_have_plain_metavars(name: str) -> None:
    text = _help(name)
    usage = text.partition("\n\n")[0]
    assert re.fullmatch(r"Usage: y7edge [a-z ]+\[OPTIONS\]( \[?[A-Z]+\]?(\.\.\.)?)*", usage)
    assert "TEXT" not in text.replace("--licence TEXT", "")
    assert not re.search(r"<\w|\bRANGE\b|INTEGER|FLOAT|[<>]=|\\\[|\{\w", text)
    context = COMMANDS[name].context_class(COMMANDS[name], info_name=name, parent=TOP)
    for records in sections(COMMANDS[name], context).values():
        for names, words in records:
            assert words, names
            assert words[0] != " ", names
            assert re.match(r"(.+[.\]]|Show this message and exit\.)$", words), (names, words)


@EACH
def test_every_command_has_an_example_and_json(name: str) -> None:
    text = _help(name)
    (example,) = re.findall(r"\n  Example:\n    (y7edge .+)\n$", text)
    assert re.search(r"^  --json  ", text, re.M)
    assert example.startswith(f"y7edge {name}")
    _parse(example)


def _parse(line: str) -> list[str]:
    """Parse a command line with the parser of its command; return the options."""
    words = shlex.split(line)[1:]
    name = next(name for name in COMMANDS if " ".join(words).startswith(name))
    command = COMMANDS[name]
    context = command.context_class(command, info_name=name, parent=TOP)
    given, rest, _ = command.make_parser(context).parse_args(words[len(name.split()) :])
    assert not rest
    return list(given)


def test_examples_of_the_data_group() -> None:
    assert "save" in _parse(EXAMPLE)
    with pytest.raises(Exception, match="--sav"):
        _parse(EXAMPLE.replace("--save", "--sav"))


@pytest.mark.parametrize("option", ["--device", "--backend", "--imgsz", "--split", "--json"])
def test_equal_options_have_equal_texts(option: str) -> None:
    """Except where the models run in torch, or where an option means less."""
    texts: dict[str, list[str]] = {}
    for name, command in COMMANDS.items():
        context = command.context_class(command, info_name=name, parent=TOP)
        for records in sections(command, context).values():
            for names, words in records:
                if names.split()[0] == option:
                    texts.setdefault(words.partition("  [")[0], []).append(name)
    special = {"train", "soup", "data check"}
    assert len([names for names in texts.values() if set(names) - special]) == 1, texts
