"""Type stubs of NVIDIA's Python packages, from the tables in tests/reference/vendor_api.

``write_stubs`` writes them for one release of each package. mypy then finds calls of members that
this release does not have, and wrong arguments.
"""

from __future__ import annotations

import builtins
import json
import re
from functools import cache
from pathlib import Path

TABLES = Path(__file__).parents[1] / "reference" / "vendor_api"
MODULES = {
    "tensorrt": "tensorrt",
    "pycuda": "pycuda.driver",
    "cuda-python": "cuda.bindings.driver",
}
_TYPES = {"Any", "Sequence", "Iterable", "Iterator", "Callable", "Buffer", "None"}
# Arguments for which the bindings also accept other types, by implicit conversion.
_ACCEPTED = {
    "Dims": "Dims | Sequence[int]",
    "Permutation": "Permutation | Sequence[int]",
    "Weights": "Any",
}
_HEAD = """\
import builtins
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload
from typing_extensions import Buffer, Self
"""


@cache
def releases(package: str) -> tuple[str, ...]:
    """Return the releases in the table of a package, oldest first."""
    return tuple(_table(package)["wheels"])


@cache
def versions(package: str) -> dict[str, str]:
    """Return the full versions of the releases in the table, such as "10.3.0", and the releases."""
    wheels = _table(package)["wheels"]
    return {wheel.split("-")[1]: release for release, wheel in wheels.items()}


@cache
def names(package: str, release: str) -> dict[str, list[str]]:
    """Return the declarations of all names of a release."""
    found = {}
    for name, entry in _table(package)["names"].items():
        for which, declarations in entry.items():
            if which == "all" or release in which.split():
                found[name] = declarations
    return found


@cache
def _table(package: str):
    return json.loads((TABLES / f"{package}.json").read_text())


def write_stubs(folder: Path, chosen: dict[str, str]) -> None:
    """Write stubs for the chosen releases, and ``vendor``: the modules as classes.

    A module cannot be the type of a variable; ``vendor.tensorrt`` can.
    """
    vendor = [_HEAD]
    for package, release in chosen.items():
        found = names(package, release)
        path = folder.joinpath(*MODULES[package].split("."))
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in path.relative_to(folder).parents[:-1]:
            (folder / parent / "__init__.pyi").touch()
        path.with_suffix(".pyi").write_text(_HEAD + "\n".join(_body(found, "", "")))
        alias = package.replace("-", "_")
        vendor += [f"import {MODULES[package]} as _{alias}", f"class {alias}:"]
        vendor += [f"    {line}" for line in _body(found, "", f"_{alias}.") or ["..."]]
    vendor += ["class pagelocked(Any):  # an array", "    base: _pycuda.PagelockedHostAllocation"]
    (folder / "vendor.pyi").write_text("\n".join(vendor) + "\n")


def _body(found: dict[str, list[str]], prefix: str, module: str) -> list[str]:
    """Return the lines of a module or class; ``module`` is the prefix of the types' names."""
    lines = []
    for path, declarations in found.items():
        name = path[len(prefix) :]
        if not path.startswith(prefix) or "." in name:
            continue
        kind, _, rest = declarations[0].partition(" ")
        if kind.startswith(("class(", "enum", "alias")):
            lines += _class(found, path, declarations[0], module)
        elif kind == "member":
            lines.append(f"{name}: {_resolve(prefix[:-1], found, module)}")
        elif kind == "value:":
            lines.append(f"{name}: {_resolve(rest, found, module)}")
        elif kind == "property":
            returned, settable = rest.removeprefix("-> ").removesuffix(", settable"), ", settable"
            returned = _resolve(returned, found, module)
            lines += ["@property", f"def {name}(self) -> {returned}: ..."]
            if rest.endswith(settable):
                lines += [f"@{name}.setter", f"def {name}(self, value: Any) -> None: ..."]
        else:
            lines += _functions(name, declarations, found, module, bound=bool(prefix))
    return lines


def _class(found: dict[str, list[str]], path: str, declaration: str, module: str) -> list[str]:
    name = path.rpartition(".")[2]
    if module:  # the class itself is in the stub of the module
        return [f"{name}: builtins.type[{module}{path}]"]
    if declaration.startswith("alias "):
        return [f"{name} = {_resolve(declaration[6:], found, module)}"]
    inner = _body(found, f"{path}.", module)
    if declaration == "enum":
        bases = "" if "DataType" in found else "builtins.int"  # an int in Boost.Python and cuda
        inner += [
            "def __init__(self, value: builtins.int) -> None: ...",
            "def __int__(self) -> builtins.int: ...",
            *("name: builtins.str", "value: builtins.int"),
            "__members__: builtins.dict[builtins.str, Self]",
        ]
    else:
        bases = declaration[len("class(") : -1]
        bases = ", ".join(filter(None, (_resolve(b, found, module) for b in bases.split(", "))))
        bases = bases if "Any" not in bases else ""
    if f"{path}.__getitem__" in found and f"{path}.__iter__" not in found:
        inner.append("def __iter__(self) -> Iterator[Any]: ...")  # Python counts up to IndexError
    if path == "IHostMemory":
        inner.append("def __buffer__(self, flags: builtins.int) -> builtins.memoryview: ...")
    return [f"class {name}({bases}):", *(f"    {line}" for line in inner or ["..."])]


def _functions(
    name: str, declarations: list[str], found: dict[str, list[str]], module: str, *, bound: bool
) -> list[str]:
    lines = []
    for declaration in declarations:
        static = declaration.startswith("static ") or (bool(module) and not bound)
        inner, _, returned = declaration.removeprefix("static ").rpartition(" -> ")
        arguments = re.sub(
            r"(: )(Dims|Permutation|Weights)\b", lambda m: m[1] + _ACCEPTED[m[2]], inner
        )
        returned = "Self" if name == "__enter__" else _resolve(returned, found, module)
        lines += ["@overload"] if len(declarations) > 1 else []
        lines += ["@staticmethod"] if static else []
        lines.append(f"def {name}{_resolve(arguments, found, module)} -> {returned}: ...")
    return lines


def _resolve(text: str, found: dict[str, list[str]], module: str) -> str:
    """Return the text with builtins and classes under their full names, unknown types as Any."""

    def replace(match: re.Match[str]) -> str:
        name = match[0]
        if name not in found and name[1:] in found:
            name = name[1:]  # a docstring names IParserError of C++, the bindings ParserError
        declaration = found.get(name, [""])[0]
        if declaration.startswith(("class(", "enum", "alias ")):
            return f"{module}{name}"
        if name in _TYPES:
            return name
        return f"builtins.{name}" if hasattr(builtins, name) else "Any"

    # Names of arguments are followed by a colon, or by a comma or bracket if without type.
    return re.sub(r"(?<![\w.*])[A-Za-z_][\w.]*(?!\w|:)(?<!self)(?<!args)", replace, text)
