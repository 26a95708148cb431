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
from y7edge.runtimes import _trt_versions

ROOT = Path(__file__).parents[2]
# The options of mypy: other modules of ours, numpy and so on are not followed and are Any.
_MYPY = (
    *(
        "--follow-imports=silent",
        "--ignore-missing-imports",
        "--no-site-packages",
        "--config-file=",
    ),
    *("--show-error-end", "--no-error-summary", "--no-pretty", "--hide-error-context"),
    *("--check-untyped-defs", "--disallow-any-expr", "--python-version=3.12"),
)
_COMPILED = shutil.ignore_patterns("__pycache__")
_LINE = re.compile(r"(?P<file>.+?):(\d+):(\d+):(\d+):(\d+): error: (?P<text>.*?)(  \[([\w-]+)\])?$")
# A module is not of type ``vendor.pycuda``, and None is not one of the vendor's objects.
_NO_TYPE = re.compile(r"got Module|(expression has type|got) \"None\"")


class Edit(NamedTuple):
    """A replacement of one expression."""

    node: ast.expr
    text: str


class Finding(NamedTuple):
    """One problem: the line of the module, and what is wrong."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


def findings(
    sources: Mapping[str, str],
    kinds: Mapping[str, str],
    chosen: Mapping[str, str],
    version: str,
    folder: Path,
) -> list[Finding]:
    """Return the calls in some modules that do not exist in the chosen releases.

    Args:
        sources: source code by path, such as "y7edge/runtimes/trt.py".
        kinds: what variables of type Any are, see ``test_vendor_api.KINDS``.
        chosen: release by package.
        version: of TensorRT, for conditions on ``_trt_versions.value``.
        folder: where the copy of the package is checked; the same for all calls, or empty.
    """
    if not (folder / "y7edge").exists():
        shutil.copytree(ROOT / "y7edge", folder / "y7edge", ignore=_COMPILED)
    vendor_stubs.write_stubs(folder, dict(chosen))
    edited = {}
    for name, source in sources.items():
        edited[name] = with_kinds(at_version(source, version), kinds)
        (folder / name).write_text(edited[name])
    output, problem, _ = mypy.api.run(
        [*_MYPY, f"--cache-dir={folder / 'cache'}", *(str(folder / name) for name in sources)]
    )
    assert not problem and "[syntax]" not in output, problem or output
    found = []
    unknown = set()
    for line in output.splitlines():
        match = _LINE.match(line)
        name = match and str(Path(match["file"]).relative_to(folder))
        if match is None or name not in sources:
            assert ".pyi" in line or ": note: " in line, line
            continue
        spot = (name, *(int(number) for number in match.group(2, 3, 4, 5)))
        if match["text"] == 'Expression has type "Any"':
            unknown.add(spot)
        elif not match["text"].startswith("Expression ") and not _NO_TYPE.search(match["text"]):
            found.append(Finding(f"{name}:{spot[1]}", match["text"]))
    for name, source in edited.items():
        tree = ast.parse(source)
        for node in vendor_names(tree):
            receiver = node.value
            end = (receiver.end_lineno, receiver.end_col_offset)
            if (name, receiver.lineno, receiver.col_offset + 1, *end) in unknown:
                text = f"nothing says what {ast.unparse(receiver)} is, whose {node.attr} is used"
                found.append(Finding(f"{name}:{node.lineno}", text))
        found += [Finding(f"{name}:{line}", text) for line, text in _hidden(tree)]
    return found


def _hidden(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield names that mypy does not see: in ``getattr`` and ``hasattr``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            member = node.args[1]
            if not isinstance(member, ast.Constant):
                yield node.lineno, f"computed name {ast.unparse(member)}: write it out"
            elif member.value not in vocabulary():
                yield node.lineno, f"no release has {member.value}"


def skipped(source: str) -> set[int]:
    """Return the lines of a module that its constant conditions exclude."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        for block in (getattr(node, field, None) for field in ("body", "orelse", "finalbody")):
            for index, statement in enumerate(block if isinstance(block, list) else []):
                if isinstance(statement, ast.If) and isinstance(statement.test, ast.Constant):
                    live, dead = statement.body, statement.orelse
                    live, dead = (live, dead) if statement.test.value else (dead, live)
                    ends = live and isinstance(live[-1], ast.Return | ast.Raise | ast.Continue)
                    for unused in [*dead, *(block[index + 1 :] if ends else [])]:
                        found.update(range(unused.lineno, (unused.end_lineno or 0) + 1))
    return found


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
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in vocabulary() - common:
            yield node


def with_kinds(source: str, kinds: Mapping[str, str]) -> str:
    """Return a module whose annotations ``Any`` say what ``kinds`` says of the variable."""
    edits = []

    def look(node: ast.AST, scopes: tuple[str, ...]) -> None:
        slots: list[tuple[str, ast.expr | None]] = []
        if isinstance(node, ast.FunctionDef):
            slots = [(f"{node.name}()", node.returns)]
            arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            slots += [(argument.arg, argument.annotation) for argument in arguments]
            inner = (*scopes, node.name)
        elif isinstance(node, ast.ClassDef):
            inner = (*scopes, node.name)
        else:
            inner = scopes
            if isinstance(node, ast.AnnAssign):
                slots = [(ast.unparse(node.target).removeprefix("self."), node.annotation)]
        for name, annotation in slots:
            keys = [f"{scope}.{name}" for scope in reversed(inner)]
            kind = next((kinds[key] for key in (*keys, name) if key in kinds), None)
            if annotation is not None and kind and ast.unparse(annotation).startswith("Any"):
                edits.append(Edit(annotation, ast.unparse(annotation).replace("Any", kind)))
        for child in ast.iter_child_nodes(node):
            look(child, inner)

    look(ast.parse(source), ())
    imports = "import tensorrt, pycuda.driver, cuda.bindings.driver, vendor"
    future = "from __future__ import annotations"
    return _apply(source, edits).replace(future, f"{future}; {imports}", 1)


def at_version(source: str, version: str) -> str:
    """Return a module with the conditions on TensorRT's version replaced by their values.

    Line numbers stay the same.
    """
    while True:
        edits = list(_edits(ast.parse(source), version))
        if not edits:
            return source
        source = _apply(source, edits)


def _edits(tree: ast.AST, version: str) -> Iterator[Edit]:
    """Yield replacements of what is known in a version: calls, conditions, names in ``getattr``."""
    for function in [tree, *(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))]:
        known = _constants(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func).rpartition(".")[2]
                if name == "value" and _topic(node):
                    yield Edit(node, repr(_trt_versions.value(node.args[0].value, version)))
                if name == "getattr" and len(node.args) == 2:
                    member = _value(node.args[1], known)
                    if isinstance(member, str):
                        yield Edit(node, f"{ast.unparse(node.args[0])}.{member}")
            elif isinstance(node, ast.If | ast.IfExp) and not isinstance(node.test, ast.Constant):
                test = _value(node.test, known)
                if test is not None:
                    yield Edit(node.test, str(bool(test)))
            elif isinstance(node, ast.IfExp):
                yield Edit(node, ast.unparse(node.body if node.test.value else node.orelse))


def _topic(call: ast.Call) -> bool:
    topics = {difference.topic for difference in _trt_versions.DIFFERENCES}
    first = call.args[0] if call.args else None
    return isinstance(first, ast.Constant) and first.value in topics


def _constants(function: ast.AST) -> dict[str, object]:
    """Return the local variables that are assigned once, a text."""
    stored = [n.id for n in ast.walk(function) if isinstance(n, ast.Name) and not _loaded(n)]
    return {
        node.targets[0].id: node.value.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        and stored.count(node.targets[0].id) == 1
    }


def _loaded(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Load)


def _value(node: ast.expr, known: Mapping[str, object]) -> object:
    """Return the value of an expression; None if it is not known."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        value = _value(node.operand, known)
        return None if value is None else not value
    if isinstance(node, ast.BoolOp):
        values = [_value(item, known) for item in node.values]
        decisive = isinstance(node.op, ast.Or)
        if any(v is not None and bool(v) is decisive for v in values):
            return decisive
        return None if None in values else not decisive
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        left, right = _value(node.left, known), node.comparators[0]
        options = right.elts if isinstance(right, ast.Tuple | ast.Set | ast.List) else [right]
        values = [_value(option, known) for option in options]
        if left is None or None in values:
            return None
        if isinstance(node.ops[0], ast.Eq | ast.In):
            return left in values
        if isinstance(node.ops[0], ast.NotEq | ast.NotIn):
            return left not in values
    return None


def _apply(source: str, edits: list[Edit]) -> str:
    """Return the source with expressions replaced, the outer ones first; lines stay the same."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    data, taken = source.encode(), []
    for node, text in edits:
        begin = starts[node.lineno - 1] + node.col_offset
        taken.append((begin, -(starts[node.end_lineno - 1] + node.end_col_offset), text))
    pieces, position = [], 0
    for begin, end, text in sorted(taken):
        if begin < position:
            continue  # within another replacement
        missing = data[begin:-end].count(b"\n")
        text = f"({text}{chr(10) * missing})" if missing else text
        pieces += [data[position:begin], text.encode()]
        position = -end
    return b"".join([*pieces, data[position:]]).decode()
