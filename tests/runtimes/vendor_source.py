"""Rewrite the source of a module for mypy: types of variables, and one version of TensorRT.

Line numbers stay the same.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple

# Annotations in which Any is replaced.
_ANY = re.compile(r"Any( \| None)?|(list|Sequence)\[Any\]|dict\[str, Any\]")


class Edit(NamedTuple):
    """A replacement of one expression."""

    node: ast.expr
    text: str


def with_kinds(source: str, kinds: Mapping[str, str]) -> str:
    """Return a module whose annotations say what ``kinds`` says of variables of type Any."""
    edits, declared = [], set()

    def kind_of(name: str, scopes: tuple[str, ...]) -> str | None:
        keys = (*(f"{scope}.{name}" for scope in reversed(scopes)), name)
        return next((kinds[key] for key in keys if key in kinds), None)

    def look(node: ast.AST, scopes: tuple[str, ...]) -> None:
        slots: list[tuple[str, ast.expr | None]] = []
        if isinstance(node, ast.FunctionDef):
            slots = [(f"{node.name}()", node.returns)]
            arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            slots += [(argument.arg, argument.annotation) for argument in arguments]
        elif isinstance(node, ast.AnnAssign):
            slots = [(ast.unparse(node.target).removeprefix("self."), node.annotation)]
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            keys = {f"{scope}.{name}" for scope in scopes} & kinds.keys() - declared
            edits.extend(Edit(node.targets[0], f"{name}: {kinds[key]}") for key in keys)
            declared.update(keys)
        elif isinstance(node, ast.ClassDef):
            for base in node.bases:  # a class cannot be derived from a variable's attribute
                module, _, rest = ast.unparse(base).partition(".")
                kind = kind_of(module, scopes)
                edits.extend([Edit(base, f"{kind.removeprefix('vendor.')}.{rest}")] if kind else [])
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            scopes = (*scopes, node.name)
        for name, annotation in slots:
            kind, written = kind_of(name, scopes), ast.unparse(annotation) if annotation else ""
            if kind and _ANY.fullmatch(written):
                edits.append(Edit(annotation, re.sub(r"\bAny\b", kind, written)))
        for child in ast.iter_child_nodes(node):
            look(child, scopes)

    look(ast.parse(source), ())
    imports = "import tensorrt, pycuda.driver, cuda.bindings.driver, vendor"
    future = "from __future__ import annotations"
    return _apply(source, edits).replace(future, f"{future}; {imports}", 1)


def at_version(source: str, facts: Mapping[str, object]) -> str:
    """Return a module with the conditions on TensorRT's version replaced by their values.

    Args:
        source: code of the module.
        facts: values by the text of an expression, such as ``{"self._flags": True}``, or of a call
            with only its first argument, such as ``{"value('precision')": "graph"}``.
    """
    return _at_version(source, tuple(sorted(facts.items())))


@cache
def _at_version(source: str, facts: tuple[tuple[str, object], ...]) -> str:
    while True:
        edits = list(_edits(ast.parse(source), dict(facts)))
        if not edits:
            return source
        source = _apply(source, edits)


def _edits(tree: ast.AST, facts: Mapping[str, object]) -> Iterator[Edit]:
    """Yield replacements of what is known in a version: calls, conditions, names in ``getattr``."""
    for function in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]:
        known = {**facts, **_constants(function)}
        for node in ast.walk(function):
            if isinstance(node, ast.Call):
                fact = known.get(_call(node))
                if fact is not None:
                    yield Edit(node, repr(fact))
                if ast.unparse(node.func) == "getattr" and len(node.args) == 2:
                    member = _value(node.args[1], known)
                    if isinstance(member, str):
                        yield Edit(node, f"{ast.unparse(node.args[0])}.{member}")
            elif isinstance(node, ast.If | ast.IfExp) and not isinstance(node.test, ast.Constant):
                test = _value(node.test, known)
                if test is not None:
                    yield Edit(node.test, str(bool(test)))
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Compare | ast.BoolOp):
                value = _value(node.value, known)
                if value is not None:
                    yield Edit(node.value, repr(value))
            elif isinstance(node, ast.IfExp):
                yield Edit(node, ast.unparse(node.body if node.test.value else node.orelse))


def _call(call: ast.Call) -> str:
    """Return the text of a call without module and with its first argument only."""
    name = ast.unparse(call.func).rpartition(".")[2]
    return f"{name}({ast.unparse(call.args[0])})" if call.args else f"{name}()"


def _constants(function: ast.AST) -> dict[str, object]:
    """Return the local variables that are assigned once, a text or truth value."""
    stored = [n.id for n in ast.walk(function) if isinstance(n, ast.Name) and not loaded(n)]
    stored += [n.arg for n in ast.walk(function) if isinstance(n, ast.arg)]
    return {
        node.targets[0].id: node.value.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str | bool)
        and stored.count(node.targets[0].id) == 1
    }


def _value(node: ast.expr, known: Mapping[str, object]) -> object:
    """Return the value of an expression; None if it is not known."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name | ast.Attribute):
        return known.get(ast.unparse(node))
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


def skipped(source: str) -> set[int]:
    """Return the lines of a module that its constant conditions exclude.

    These are branches, what follows a return, and private functions that are used only there.
    """
    tree, found = ast.parse(source), set()
    for statement, (_, *rest) in statements(tree):
        if isinstance(statement, ast.If) and isinstance(statement.test, ast.Constant):
            branches = (statement.body, statement.orelse)
            live, dead = branches if statement.test.value else reversed(branches)
            ends = live and isinstance(live[-1], ast.Return | ast.Raise | ast.Continue)
            for unused in [*dead, *(rest if ends else [])]:
                found |= _lines(unused)
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name.startswith("_"):
            uses = {
                node.lineno
                for node in ast.walk(tree)
                if function.name in (getattr(node, "id", ""), getattr(node, "attr", ""))
            }
            found |= _lines(function) if uses and uses <= found else set()
    return found


def _lines(statement: ast.stmt) -> set[int]:
    """Return the numbers of its lines."""
    return set(range(statement.lineno, (statement.end_lineno or 0) + 1))


def statements(tree: ast.AST) -> Iterator[tuple[ast.stmt, list[ast.stmt]]]:
    """Yield each statement, and it with those that follow in its block."""
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            for index, statement in enumerate(block if isinstance(block, list) else []):
                yield statement, block[index:]


def loaded(name: ast.Name | ast.Attribute) -> bool:
    """Return whether a name is read, not assigned or deleted."""
    return isinstance(name.ctx, ast.Load)


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
