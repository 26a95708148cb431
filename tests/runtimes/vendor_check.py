"""Check a module's calls of NVIDIA's packages with mypy, against the stubs of one release."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import mypy.api
import numpy as np

from tests.runtimes import vendor_stubs
from tests.runtimes.vendor_source import at_version, loaded, skipped, statements, with_kinds

ROOT = Path(__file__).parents[2]
_MYPY = (
    *("--follow-imports=silent", "--ignore-missing-imports", "--check-untyped-defs"),
    *("--warn-unreachable", "--show-error-end", "--show-absolute-path"),
    *("--no-error-summary", "--no-pretty"),
    "--no-site-packages",  # numpy is Any: faster
    *("--python-version=3.12", "--config-file="),
)
_COMPILED = shutil.ignore_patterns("__pycache__")
_LINE = re.compile(
    r"(?P<file>.+?):(\d+):(\d+):(\d+):(\d+): (error|note): (?P<text>.*?)(  \[([\w-]+)\])?$"
)
# What reveal_type says of an object of type Any or Any | None.
_UNKNOWN = re.compile(r'is "(Union\[)?(None(, | \| ))?Any\b(?!\[)')
# A module is not of type ``vendor.pycuda``, and None is not one of the vendor's objects.
_NO_TYPE = re.compile(r"got Module|\"reveal_type\"|(expression has type|got) \"None\"")


def findings(
    sources: Mapping[str, str],
    kinds: Mapping[str, str],
    chosen: Mapping[str, str],
    facts: Mapping[str, object],
    folder: Path,
) -> list[str]:
    """Return where modules use what the chosen releases do not have, "FILE:LINE: PROBLEM".

    Args:
        sources: source code by path, such as "y7edge/runtimes/trt.py".
        kinds: what variables of type Any are, see ``test_vendor_api.KINDS``.
        chosen: release by package.
        facts: values of expressions in a version of TensorRT, see ``at_version``.
        folder: where the copy of the package is checked; the same for all calls, or empty.
    """
    if not (folder / "y7edge").exists():
        shutil.copytree(ROOT / "y7edge", folder / "y7edge", ignore=_COMPILED)
    vendor_stubs.write_stubs(folder, dict(chosen))
    edited = {}
    for name, source in sources.items():
        edited[name] = with_kinds(at_version(source, facts), kinds)
        (folder / name).write_text(_revealed(edited[name]))
    output, problem, _ = mypy.api.run(
        [*_MYPY, f"--cache-dir={folder / 'cache'}", *(str(folder / name) for name in sources)]
    )
    assert not problem and "[syntax]" not in output, problem or output
    reports: dict[str, list[Report]] = {name: [] for name in sources}
    for line in output.splitlines():
        match = _LINE.match(line)
        name = match and str(Path(match["file"]).relative_to(folder))
        if match and name in sources and ("error: " in line or "Revealed" in line):
            reports[name].append(Report(int(match[2]), int(match[3]), match["text"]))
        else:
            assert ".pyi" in line or "/site-packages/" in line or ": note: " in line, line
    problems = []
    for name, source in edited.items():
        ignored = skipped(source)
        found = sorted(_problems(source, reports[name]))
        problems += [f"{name}:{line}: {text}" for line, text in found if line not in ignored]
    return problems


class Report(NamedTuple):
    """One line of mypy: where an expression begins, and what is said of it."""

    line: int
    column: int
    text: str


def _revealed(source: str) -> str:
    """Return a module in which mypy says of what type the objects are that have vendor's names."""
    edits = []
    for node in vendor_names(ast.parse(source)):
        receiver = node.value
        edits.append((receiver.lineno, receiver.col_offset, "reveal_type("))
        edits.append((receiver.end_lineno, receiver.end_col_offset, ")"))
    lines = [line.encode() for line in source.splitlines(keepends=True)]
    for number, column, text in sorted(edits, reverse=True):
        line = lines[number - 1]
        lines[number - 1] = line[:column] + text.encode() + line[column:]
    return b"".join(lines).decode()


def _problems(source: str, reports: list[Report]) -> Iterator[tuple[int, str]]:
    """Yield lines and problems, of those that mypy reports and of those that it cannot see."""
    tree = ast.parse(source)
    names = list(vendor_names(tree))
    for report in reports:
        if report.text == "Statement is unreachable":
            lines = _rest_of_block(tree, report.line, report.column)
            for node in names:
                if node.lineno in lines:
                    yield node.lineno, f"not checked, as mypy does not reach {ast.unparse(node)}"
        elif report.text.startswith("Revealed type is "):
            if _UNKNOWN.search(report.text):
                used = [ast.unparse(node) for node in names if node.value.lineno == report.line]
                yield report.line, f"KINDS lacks an object: one of {', '.join(used)}"
        elif not _NO_TYPE.search(report.text):
            yield report.line, report.text
    own = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and not loaded(n)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("getattr", "hasattr"):
            continue
        receiver, member = node.args[:2]
        if not isinstance(member, ast.Constant):
            yield node.lineno, f"not checked, because its name is computed: {ast.unparse(node)}"
        elif ast.unparse(receiver) != "self" and member.value not in vocabulary() | own:
            yield node.lineno, f"no release has {member.value}"


def _rest_of_block(tree: ast.AST, line: int, column: int) -> set[int]:
    """Return the lines from a statement to the end of its block."""
    for statement, rest in statements(tree):
        if (statement.lineno, statement.col_offset + 1) == (line, column):
            return set(range(line, (rest[-1].end_lineno or 0) + 1))
    return set()


@cache
def vocabulary() -> frozenset[str]:
    """Return the names of all members in all releases."""
    return frozenset(
        path.rpartition(".")[2]
        for package in vendor_stubs.MODULES
        for release in vendor_stubs.releases(package)
        for path in vendor_stubs.names(package, release)
    )


def vendor_names(tree: ast.AST) -> Iterator[ast.Attribute]:
    """Yield where a name is used that only NVIDIA's packages have."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    common = own.union(*map(dir, (str, list, dict, Path, np.ndarray, np)))
    names = vocabulary() - common
    types = set()  # annotations and base classes
    for node in ast.walk(tree):
        for field in ("annotation", "returns", "bases"):
            found = getattr(node, field, None)
            for item in found if isinstance(found, list) else [found] if found else []:
                types.update(ast.walk(item))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node in types:
            continue
        if node.attr in names and ast.unparse(node.value) != "self":
            yield node
