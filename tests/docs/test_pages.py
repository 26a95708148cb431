"""All pages: languages, commands, scripts, links and navigation. Nothing is run here."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import sys
import unicodedata
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import typer

from tests.docs import blocks
from tests.docs.blocks import ROOT, commands, pages, prose
from y7edge.cli.app import TRACEBACK, app

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

PAGES = pages()
SITE = [page for page in PAGES if page.startswith("docs/")]
COMPLETION = ("--install-completion", "--show-completion")  # parsing them would install it


@pytest.mark.parametrize("page", PAGES)
def test_blocks_have_a_language(page):
    languages = {block.language: block.line for block in blocks.blocks(page)}
    assert {name: line for name, line in languages.items() if name not in blocks.LANGUAGES} == {}


@pytest.mark.parametrize("page", PAGES)
def test_marks_are_well_formed(page):
    """A mark that is misspelt would be a comment."""
    lines = [line for block in blocks.blocks(page) for line in block.text.splitlines()]
    marks = [line for line in lines if re.search(r"#\s*not[- ]run", line, re.IGNORECASE)]
    assert [line for line in marks if not blocks.NOT_RUN.search(line)] == []


COMMAND = r"\$ |y7edge [a-z]+\b|(?:pip3?|python3?|make|docker|sudo|ros2|git|pytest) [\w.-]"
TYPED = re.compile(rf"\s*(?:{COMMAND})")
HIDDEN = re.compile(rf"\s*(?:~~~|> *```|<pre|\t *```)|(?: {{4}}|\t)\s*(?:{COMMAND})")


@pytest.mark.parametrize("page", PAGES)
def test_no_command_is_hidden(page):
    """Commands in other blocks than those with a language of commands would escape the tests."""
    assert [line for line in prose(page).splitlines() if HIDDEN.match(line)] == []
    examples = {command.text for command in commands(page) if command.is_help}
    for block in blocks.blocks(page):
        if block.language not in ("sh", "console", "python"):
            typed = [
                line.strip()
                for line in block.text.splitlines()
                if re.match(rf"\s*(?:{COMMAND})", line)
            ]
            assert set(typed) <= examples, f"{page}:{block.line}"


@pytest.mark.parametrize(
    "line", ["~~~sh", "> ```sh", "    $ ls", "    y7edge info a.onnx", "\tmake x"]
)
def test_hidden_commands_are_found(line):
    assert HIDDEN.match(line)


@cache
def command_line():
    return typer.main.get_command(app)


def parse(arguments):
    """Parse arguments of y7edge without running the command; raise an error if they are wrong."""
    command = command_line()
    rest = [one for one in arguments if one != TRACEBACK and one not in COMPLETION]
    while rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]
    if rest and hasattr(command, "commands") and not rest[0].startswith("-"):
        raise ValueError(f"no such command: {rest[0]}")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(typer.Exit):
        command.make_context("y7edge", rest)


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_known_to_the_command_line(page):
    wrong = []
    for command in commands(page):
        if command.language != "sh":
            continue
        for arguments in blocks.y7edge_arguments(command.text):
            try:
                parse(arguments)
            except Exception as error:
                wrong.append(f"{command.where}: {' '.join(arguments)}: {error}")
    assert wrong == []


def test_wrong_commands_are_found():
    for wrong in (
        "y7edge export a.safetensors --no-such-option",
        "y7edge train --epochs many",
        "cat list | y7edge predict > out 2> log",
        "y7edge data chekc data.yaml",
        "python -m y7edge val a.onnx \\\n    --no-such-option",
    ):
        (arguments,) = blocks.y7edge_arguments(wrong)
        with pytest.raises(Exception, match=r"(?i)no such|valid|missing"):
            parse(arguments)
    parse(["val", "a.onnx", "--data", "missing.yaml"])


@cache
def options(script):
    """All options that a script names."""
    tree = ast.parse((ROOT / script).read_text(encoding="utf-8"))
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str) and value.startswith("-")}


@pytest.mark.parametrize("page", PAGES)
def test_scripts_and_their_options_are_there(page):
    for command in commands(page):
        if command.language == "sh":
            for script, arguments in blocks.scripts(command.text):
                assert (ROOT / script).is_file(), command.where
                used = {word.partition("=")[0] for word in arguments if word.startswith("--")}
                assert used <= options(script) | {"--help"}, command.where


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_are_python(page):
    for command in commands(page):
        if command.language == "python" and not command.reason:
            compile(command.text, command.where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_tests_that_run_commands_elsewhere_are_there():
    assert blocks.ELSEWHERE
    for test in blocks.ELSEWHERE.values():
        path, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")
    used = {command.elsewhere for page in PAGES for command in commands(page)} - {""}
    assert used == {*blocks.ELSEWHERE.values(), blocks.EXAMPLES_TEST}


@cache
def options_of(command):
    """The options of a command of y7edge, by its name; None if there is no such command."""
    group = command_line()
    for name in command.split():
        group = getattr(group, "commands", {}).get(name)
    if group is None:
        return None
    return {one for parameter in group.params for one in (*parameter.opts, "--help", "--traceback")}


@pytest.mark.parametrize("page", PAGES)
def test_options_named_in_the_text_exist(page):
    """Commands in code font may be incomplete, so only command and options are checked."""
    for code in re.findall(r"`y7edge ([^`]+)`", prose(page).replace("\n", " ")):
        words = code.split()
        name = " ".join(words[:2]) if words[0] == "data" and len(words) > 1 else words[0]
        if name in ("COMMAND", "--version") or name.startswith("-"):
            continue
        known = options_of(name)
        assert known is not None, code
        used = {word.partition("=")[0].strip(",") for word in words if word.startswith("--")}
        assert used <= known, code


LINK = re.compile(
    r"!?\[[^\]]*\]\(\s*<?([^\s)>]+)>?(?:\s+\"[^\"]*\")?\s*\)|(?:src|href)=\"([^\"]+)\""
)
REFERENCE = re.compile(r"^\[[^\]]+\]:\s+(\S+)", re.MULTILINE)


def links(page):
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    return [one or other for one, other in LINK.findall(text)] + REFERENCE.findall(text)


@cache
def anchors(page):
    """Anchors of a page, as the site and code hosts make them, and those set in HTML.

    They differ for some headings; a heading that is linked must have one anchor in both.
    """
    found = set(re.findall(r'(?:id|name)="([^"]+)"', prose(page)))
    for heading in re.findall(r"^#{1,6} +(.+?)\s*$", prose(page), re.MULTILINE):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading).lower()
        plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
        site = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip())
        host = re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")
        found |= {site} & {host}
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    wrong = []
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme == "mailto":
            continue
        if parts.scheme:
            is_right = parts.scheme == "https" and "." in parts.netloc and " " not in link
        else:
            target = (ROOT / page).parent / parts.path if parts.path else ROOT / page
            is_right = target.exists()
            if page in SITE:  # the site has no files outside docs/
                is_right &= (ROOT / "docs") in target.resolve().parents
            if is_right and parts.fragment:
                is_right = parts.fragment in anchors(target.resolve().relative_to(ROOT).as_posix())
        if not is_right:
            wrong.append(link)
    assert wrong == []


def entries(navigation):
    for entry in navigation:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else entries(value)


def test_every_page_is_in_the_navigation():
    project = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    listed = [f"docs/{name}" for name in entries(project["nav"])]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(SITE)


@pytest.mark.parametrize("page", SITE)
def test_a_page_has_one_title(page):
    titles = re.findall(r"^# .+", prose(page), re.MULTILINE)
    assert len(titles) == 1
    assert prose(page).lstrip().startswith(titles[0])


def test_images_are_used():
    used = {Path(link).name for page in PAGES for link in links(page)}
    made = {path.name for path in (ROOT / "docs" / "images").rglob("*") if path.is_file()}
    assert made - used == set()
