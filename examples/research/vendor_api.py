"""List what NVIDIA's Python packages offer: the tables in tests/reference/vendor_api.

    python3.11 examples/research/vendor_api.py                         # all packages, 3 minutes
    python3.11 examples/research/vendor_api.py --only tensorrt         # one package
    python3.11 examples/research/vendor_api.py --cuda /usr/local/cuda-13.0   # toolkit for pycuda

Needs pip, gcc and nm, for pycuda also g++, numpy, pytools and the headers of the CUDA toolkit, but
neither a GPU nor a driver. The bindings are imported in a process of their own, over libraries that
only define the symbols that the bindings ask for. pycuda is built from source over such a library:
it must define the functions, because an empty one makes the linker drop the dependency.

A table has one entry for each public name. Its declaration is "class(BASE)", "enum", "member",
"value: TYPE", "property -> TYPE", or a signature in Python's syntax, taken from the first lines of
the docstring that pybind11, Boost.Python and Cython write. Defaults are "..."; types that Python
does not know are "Any". It says which names and arguments exist, not what they do.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

OUT = Path(__file__).parents[2] / "tests" / "reference" / "vendor_api"


class Package(NamedTuple):
    """A package, the releases to list, the module to import and the names to keep."""

    releases: dict[str, str]  # name of the release in the table: requirement of pip
    module: str
    keep: str  # regular expression of names at module level


PACKAGES = {
    "tensorrt": Package(
        {
            "8.6": "tensorrt-bindings==8.6.1",  # JetPack 6.0
            "10.0": "tensorrt-cu12-bindings==10.0.1",
            "10.3": "tensorrt-cu12-bindings==10.3.0",  # JetPack 6.1 and 6.2
            "10.7": "tensorrt-cu12-bindings==10.7.0",  # the last 10 for the DLA of Orin
            "10.13": "tensorrt-cu13-bindings==10.13.3.9",  # JetPack 7.0 and 7.1
            "10.16": "tensorrt-cu13-bindings==10.16.1.11",  # JetPack 7.2 has 10.16.2
            "11.0": "tensorrt-cu13-bindings==11.0.0.114",
            "11.4": "tensorrt-cu13-bindings==11.4.0.106",
        },
        "tensorrt_bindings",
        # Not the layers, which the parser of ONNX makes, and not the plugins.
        r"(?!I?(Plugin|QuickPlugin|Uff|Caffe|Algorithm)|IPluginV|I[A-Z]\w*Layer$)|ILayer|INMSLayer",
    ),
    "pycuda": Package(
        {"2025.1": "pycuda==2025.1.2", "2026.1": "pycuda==2026.1"},
        "pycuda.driver",
        r"(?!.*(Texture|Surface|[Aa]rray|texref|jit_|Linker))",
    ),
    "cuda-python": Package(
        {"12.8": "cuda-bindings==12.8.0", "13.5": "cuda-bindings==13.5.0"},
        "cuda.bindings.driver",
        r"cu(Graph(Instantiate|Launch|Upload|Destroy|Exec(Destroy|Update))|Stream|Init|Driver|Ctx"
        r"|Device(Get|Primary)|GetError|Thread|Event|Mem(Alloc|Free))"
        r"|CU(result|stream|graph|graphExec|event|context|device|\w+Mode|(stream|ctx)_flags)$",
    ),
}
DUNDERS = (
    *("__init__", "__enter__", "__exit__", "__call__", "__int__", "__index__"),
    *("__len__", "__getitem__", "__setitem__", "__iter__", "__contains__"),
)
PUBLIC = re.compile(r"(?!_)|(" + "|".join(DUNDERS) + r"|__version__)$")


def main() -> None:
    """Write the tables; with --inspect, print the names of one module (a process of its own)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PACKAGES, nargs="*", default=list(PACKAGES))
    parser.add_argument("--cuda", type=Path, default=Path("/usr/local/cuda"), help="for pycuda")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--inspect", choices=PACKAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inspect:
        print(json.dumps(declarations(options.inspect)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            tables, files = {}, {}
            for release, requirement in PACKAGES[name].releases.items():
                place = Path(folder) / release
                files[release] = fetch(requirement, place, options.cuda)
                tables[release] = inspect_package(name, place)
                print(f"{name} {release}: {len(tables[release])} names from {files[release]}")
        write_table(options.out / f"{name}.json", PACKAGES[name].module, files, tables)


def fetch(requirement: str, folder: Path, cuda: Path) -> str:
    """Unpack the wheel of a requirement, and return its name; pycuda is built from source."""
    folder.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    environment = dict(os.environ)
    if requirement.startswith("pycuda"):
        command, environment["HOME"] = [*pip, "wheel", "--no-cache-dir"], str(folder)
        configure_pycuda(folder, cuda)
    else:
        command = [*pip, "download", "--only-binary=:all:"]
    where = "-w" if "wheel" in command else "-d"
    extra = ["cuda-pathfinder"] if requirement.startswith("cuda-") else []
    run([*command, "--quiet", "--no-deps", where, str(folder), requirement, *extra], environment)
    wheels = sorted(folder.glob("*.whl"), key=lambda file: "pathfinder" in file.name)
    for wheel in wheels:
        zipfile.ZipFile(wheel).extractall(folder)
    return wheels[0].name


def configure_pycuda(folder: Path, cuda: Path) -> None:
    """Write the settings that pycuda's setup reads in the home folder, and a library libcuda.so.

    Without them, the setup looks for the toolkit beside the first nvcc in PATH, and links with
    curand and with a driver.
    """
    includes = "#include <cuda.h>\n#include <cudaProfiler.h>\n"
    headers = run(["gcc", "-E", f"-I{cuda / 'include'}", "-xc", "-"], stdin=includes)
    library(folder / "libcuda.so", "libcuda.so.1", set(re.findall(r"\b(cu[A-Z]\w*) *\(", headers)))
    settings = {
        "CUDA_ROOT": str(cuda),
        "CUDA_INC_DIR": [str(cuda / "include")],
        "CUDA_ENABLE_CURAND": False,
        "CUDADRV_LIB_DIR": [str(folder)],
        "CXXFLAGS": ["-O0", "-w"],
    }
    lines = [f"{name} = {value!r}\n" for name, value in settings.items()]
    (folder / ".aksetup-defaults.py").write_text("".join(lines))


def library(path: Path, soname: str, symbols: set[str]) -> None:
    """Make a shared library whose functions return an error code."""
    source = "".join(f"int {symbol}(void) {{ return 100; }}\n" for symbol in sorted(symbols))
    run(["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{soname}", "-xc", "-o", str(path), "-"],
        stdin=source)  # fmt: skip


def inspect_package(name: str, folder: Path) -> dict[str, list[str]]:
    """Return the declarations of a package, imported over libraries without content."""
    for extension in folder.rglob("*.so"):
        symbols = run(["nm", "-D", "--undefined-only", str(extension)])
        wanted = set(re.findall(r" U ((?!_?Py|dl)\w+)$", symbols, re.MULTILINE))
        needed = run(["readelf", "-d", str(extension)])
        for soname in re.findall(r"NEEDED.*\[(lib(?:nv|cuda\.)\S+)\]", needed):
            library(folder / soname, soname, wanted)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}
    text = run([sys.executable, __file__, "--inspect", name], environment)
    found: dict[str, list[str]] = json.loads(text)
    return found


def run(command: list[str], environment: dict[str, str] | None = None, stdin: str = "") -> str:
    """Return the output of a command; end the script if it fails."""
    done = subprocess.run(command, env=environment, input=stdin, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command[:6])} ...: {done.stderr.strip()[-2000:]}")
    return done.stdout


def write_table(
    path: Path, module: str, files: dict[str, str], tables: dict[str, dict[str, list[str]]]
) -> None:
    """Write the declarations of all releases, equal ones once."""
    names = sorted({name for table in tables.values() for name in table})
    entries = []
    for name in names:
        releases: dict[str, list[str]] = {}
        for release, table in tables.items():
            if name in table:
                releases.setdefault(json.dumps(table[name]), []).append(release)
        entry = {
            "all" if len(found) == len(tables) else " ".join(found): json.loads(declaration)
            for declaration, found in releases.items()
        }
        entries.append(f"{json.dumps(name)}: {json.dumps(entry)}")
    head = {"made by": "examples/research/vendor_api.py", "module": module, "wheels": files}
    text = json.dumps(head, indent=1)[:-2] + ',\n "names": {\n' + ",\n".join(entries) + "\n }\n}\n"
    path.write_text(text)


def declarations(name: str) -> dict[str, list[str]]:
    """Return the declarations of a package that can be imported here."""
    package = PACKAGES[name]
    read = {"tensorrt": pybind_signatures, "pycuda": boost_signatures}.get(name, cython_signatures)
    module = importlib.import_module(package.module)
    names = {n: o for n, o in vars(module).items() if re.match(package.keep, n)}
    return dict(walk(names, "", read))


Reader = Callable[[str, str, bool], list[str]]


def walk(names: dict[str, Any], prefix: str, read: Reader) -> Iterator[tuple[str, list[str]]]:
    """Yield name and declarations of public names and of the members of classes."""
    for name, item in names.items():
        if not PUBLIC.match(name) or isinstance(item, ModuleType):
            continue
        path = f"{prefix}{name}"
        if isinstance(item, type):
            yield from walk_class(item, path, read)
        elif isinstance(item, property):
            returned = read(name, f"{name}{getattr(item.fget, '__doc__', None) or ''}", True)
            kind = returned[0].split(" -> ")[-1] if returned else "Any"
            yield path, [f"property -> {kind}{', settable' if item.fset else ''}"]
        elif type(item).__name__ == "getset_descriptor":
            yield path, ["property -> Any, settable"]
        elif type(item).__name__ == "wrapper_descriptor":
            if read is cython_signatures and name == "__init__":
                yield path, ["(self, *args: Any, **kwargs: Any) -> None"]
        elif callable(item) or isinstance(item, staticmethod | classmethod):
            inner = getattr(item, "__func__", item)
            found = python_signature(inner) if isinstance(inner, FunctionType) else []
            bound = bool(prefix) and not isinstance(item, staticmethod)
            doc = getattr(inner, "__doc__", None) or ""
            if "cannot be instantiated from Python" in doc:
                continue
            found = found or read(name, doc, bound)
            static = "static " if isinstance(item, staticmethod) else ""
            yield path, [static + signature for signature in found or ["(*args, **kwargs) -> Any"]]
        elif type(item).__module__ != "__future__":
            yield path, [f"value: {type(item).__qualname__}"]


def walk_class(item: type, path: str, read: Reader) -> Iterator[tuple[str, list[str]]]:
    """Yield a class or enumeration and its members."""
    if item.__qualname__ != path and item.__module__ != "builtins":
        yield path, [f"alias {item.__qualname__}"]
        return
    members = getattr(item, "__members__", None) or getattr(item, "names", None)
    if isinstance(members, dict) or hasattr(members, "items"):
        yield path, ["enum"]
        for member in members:
            yield f"{path}.{member}", ["member"]
        return
    bases = [base for base in item.__bases__ if "builtins" not in base.__module__]
    bases += [Exception] if Exception in item.__bases__ else []
    own = ", ".join(b.__qualname__ for b in bases if b.__module__.partition(".")[0] != "Boost")
    yield path, [f"class({own})"]
    yield from walk(dict(vars(item)), f"{path}.", read)


def python_signature(function: FunctionType) -> list[str]:
    """Return the signature of a Python function; keywords that it pops from **kwargs by name."""
    parameters, star = [], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
            pops = [
                node.args[0].value
                for node in ast.walk(tree)
                if isinstance(node, ast.Call)
                and ast.unparse(node.func) == f"{parameter.name}.pop"
                and isinstance(node.args[0], ast.Constant)
            ]
            parameters += [] if star else ["*"]
            parameters += [f"{name}: Any = ..." for name in dict.fromkeys(pops)]
            parameters += [] if pops else ["**kwargs"]
            continue
        star |= parameter.kind is parameter.VAR_POSITIONAL
        prefix = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
        default = "" if parameter.default is parameter.empty else " = ..."
        parameters.append(f"{prefix}{parameter.name}: Any{default}")
    return [f"({', '.join(parameters)}) -> Any".replace("(this: Any", "(self")]


def pybind_signatures(name: str, doc: str, bound: bool) -> list[str]:
    """Return the signatures in a docstring of pybind11: one line, or one numbered for each."""
    head = re.escape(name)
    found = re.findall(rf"^\d+\. {head}\((.*)\) -> (.*)$", doc, re.MULTILINE)
    found = found or re.findall(rf"\A{head}\((.*)\) -> (.*)$", doc, re.MULTILINE)
    return [_pybind(inner, result, bound) for inner, result in found]


def _pybind(inner: str, result: str, bound: bool) -> str:
    parts = split(inner)
    parameters, positional = (["self"], 1) if bound and parts else ([], 0)
    for part in parts[len(parameters) :]:
        if part.startswith("*"):
            parameters.append(part)
            continue
        name, _, rest = part.partition(": ")
        kind, equal, default = rest.partition(" = ")
        optional = " | None" if default == "None" and "None" not in kind else ""
        parameters.append(f"{name}: {plain_type(kind, True)}{optional}{' = ...' if equal else ''}")
        if re.fullmatch(r"arg\d+", name):
            positional = len(parameters)
    for index, parameter in enumerate(parameters):
        if any(" = ..." not in later for later in parameters[index + 1 :] if ":" in later):
            parameters[index] = parameter.removesuffix(" = ...")  # as Python requires
    if positional > bool(bound):
        parameters.insert(positional, "/")
    return f"({', '.join(parameters)}) -> {plain_type(result, False)}"


def split(text: str) -> list[str]:
    """Split at the commas outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        depth += (character in "([{<") - (character in ")]}>") if not quote else 0
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def plain_type(text: str, argument: bool) -> str:
    """Return a type as Python writes it; "Any" for types of C++ that Python does not know."""
    text = re.sub(
        r"\b(tensorrt_bindings\.)?tensorrt\.|nvinfer1::(v_\d_\d::)?|nvonnxparser::", "", text
    )
    text = re.sub(r"collections\.abc\.|typing_extensions\.|typing\.", "", text.replace("::", "."))
    text = re.sub(r"\bSupports(Int|Float)\b", lambda found: found[1].lower(), text)
    text = re.sub(r"\bbuffer\b", "Buffer", text)
    text = re.sub(r"\b(capsule|handle|CapsuleType|numpy\.ndarray(\[.*\])?)", "Any", text)
    text = re.sub(r"\b(List|Tuple|Dict)\b", lambda found: found[1].lower(), text)
    text = re.sub(r"\blist\[", "Sequence[", text) if argument else text
    text = "Any" if text == "object" else text
    try:
        ast.parse(text, mode="eval")
    except SyntaxError:
        return "Any"
    return text


def boost_signatures(name: str, doc: str, bound: bool) -> list[str]:
    """Return the signatures in a docstring of Boost.Python: "name( (type)name [, ...]) -> R"."""
    signatures = []
    for inner, result in re.findall(rf"^{re.escape(name)}\((.*)\) -> (\w+) :", doc, re.MULTILINE):
        parameters, positional = [], 0
        for kind, argument, default in re.findall(r"\((\w+)\)(\w+)(=)?", inner):
            if bound and not parameters:
                parameters.append("self")
                continue
            kind = "Any" if kind == "object" else kind
            parameters.append(f"{argument}: {kind}{' = ...' if default else ''}")
            if re.fullmatch(r"arg\d+", argument):
                positional = len(parameters)
        if positional:
            parameters.insert(positional, "/")
        result = "Any" if result == "object" else result
        signatures.append(f"({', '.join(parameters)}) -> {result}")
    return list(dict.fromkeys(signatures))


def cython_signatures(name: str, doc: str, bound: bool) -> list[str]:
    """Return the signature in a docstring of Cython, and the types listed under "Returns"."""
    first = re.match(rf"(?:\w+\.)?{re.escape(name)}\((.*)\)", doc)
    if first is None:
        return []
    parameters = []
    for part in split(first[1]):
        if part == "self":
            parameters.append(part)
            continue
        declared, equal, _ = part.partition("=")
        declared, _, kind = declared.partition(": ")
        *words, argument = re.findall(r"\w+", declared)
        if words and {"int", "long", "size_t"} & set(words):
            kind = "int"
        kind = kind.strip()
        kind = kind if re.fullmatch(r"CU\w+|int", kind) else "Any"
        parameters.append(f"{argument}: {kind}{' = ...' if equal else ''}")
    return [f"({', '.join(parameters)}) -> {_returned(doc)}"]


def _returned(doc: str) -> str:
    """Return the type of the tuple that a function of cuda-python returns."""
    section = re.search(r"^( *)Returns\n *-+\n(.*?)(\n\n+\1\S|\Z)", doc, re.MULTILINE | re.DOTALL)
    if section is None:
        return "Any"
    kinds = []
    for line in re.findall(rf"^{section[1]}(\w.*)$", section[2], re.MULTILINE):
        kind = re.search(r"\b(CU\w+|int)\b(?!.*\bCU)", line.rpartition(": ")[2])
        kinds.append(kind[1] if kind else "Any")
    return f"tuple[{', '.join(kinds)}]"


if __name__ == "__main__":
    main()
