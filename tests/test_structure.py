"""The shape of the package: direction of imports, budgets, names, and what an import may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.blocking import BLOCKER
from y7edge.runtimes import registry

ROOT = Path(__file__).parents[1]
FOLDERS = {"y7edge": "y7edge", "y7edge.export": "export", "y7edge.runtimes": "runtimes"}

# A module imports only from its own layer and from those before it; the longest prefix decides.
LAYERS = (
    (
        *("y7edge.jetson", "y7edge.tegrastats"),
        *(
            "y7edge",
            "y7edge.errors",
            "y7edge.files",
            "y7edge.plugins",
            "y7edge.text",
            "y7edge.interpreters",
        ),
        *("y7edge.html", "y7edge.boxes", "y7edge.frames", "y7edge.machine", "y7edge.packages"),
    ),
    ("y7edge.models", "y7edge.artifact"),
    ("y7edge.runtimes",),
    ("y7edge.data", "y7edge.sources"),
    ("y7edge.detect",),
    ("y7edge.evaluation",),
    ("y7edge.adapters", "y7edge.benchmark", "y7edge.environment", "y7edge.live"),
    ("y7edge.nn",),
    ("y7edge.train",),
    ("y7edge.export",),
    ("y7edge.cli", "y7edge.__main__"),
)
# The packages of the runtimes, and of engines that have none yet.
ENGINES = {
    *(name for runtime in registry.names() for name in registry.get(runtime).NEEDS),
    *("tensorrt", "rknnlite", "coremltools"),
}
# What may be imported at the top of a file beside the standard library; the rest is imported where
# it is used. The longest prefix decides.
TOP_LEVEL = {
    "y7edge": {"numpy", "cv2"},
    **{
        f"y7edge.{m}": {"numpy"}
        for m in ("errors", "files", "frames", "text", "html", "boxes", "plugins", "runtimes")
    },
    **{f"y7edge.{m}": {"numpy"} for m in ("models", "artifact", "detect.detections")},
    **{f"y7edge.live.{m}": {"aiohttp"} for m in ("server", "serving", "health_server")},
    "y7edge.nn": {"numpy", "torch"},
    "y7edge.train": {"numpy", "cv2", "torch", "rich"},
    "y7edge.export": {"numpy", "cv2", "onnx"},
    "y7edge.export.folding": {"numpy"},
    "y7edge.cli": {"numpy", "typer"},
}
# Who may import these at all, be it inside a function.
ONLY_IN = {
    "torch": (
        *("y7edge.nn", "y7edge.train"),
        *("y7edge.export.folding", "y7edge.export.proof.reference", "y7edge.export.targets"),
    ),
    "onnx": ("y7edge.export",),
    "onnxsim": ("y7edge.export",),
    "typer": ("y7edge.cli",),
    "gi": ("y7edge.sources",),
    "supervision": ("y7edge.adapters", "y7edge.detect.detections"),
    "trackers": ("y7edge.adapters",),
    "pyarrow": ("y7edge.adapters",),
    **dict.fromkeys(ENGINES, ("y7edge.runtimes", "y7edge.export.targets")),
}
NETWORK = {"urllib", "http", "socket", "ssl", "ftplib", "smtplib", "requests", "httpx", "aiohttp"}
NO_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base_utils"}

MAX_FILE, MAX_FUNCTION, P95_FUNCTION = 500, 80, 45
IMPORT_MS = 50.0


@cache
def _modules() -> dict[str, Path]:
    """Every module of the package by its import name, each file once."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if package == "y7edge" and parts[0] in ("export", "runtimes"):
                continue  # seen through the link
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = path
    return found


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_modules()[module].read_text(encoding="utf-8"))


def _imports(module: str, *, top_level: bool = False) -> set[str]:
    """Full names that a module imports; of our own, the module that each name is defined in."""
    names: set[str] = set()
    # y7edge/__init__.py names what it will import on demand, for type checkers: no import.
    lazy = module == "y7edge"
    for node in _statements(_tree(module)) if top_level or lazy else ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            assert not node.level, f"{module}: relative import; write the whole name"
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                names.add(whole if whole in _modules() else base)
    return names


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Statements that run at import time: neither function bodies nor ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _statements(child)


def _longest_prefix(module: str, prefixes: Iterator[str]) -> str:
    fitting = [p for p in prefixes if module == p or module.startswith(p + ".")]
    return max(fitting, key=len)


def _layer(module: str) -> int:
    prefix = _longest_prefix(module, (p for layer in LAYERS for p in layer))
    if prefix == "y7edge" and module != "y7edge":
        pytest.fail(f"{module} has no layer: add it to LAYERS")
    return next(level for level, layer in enumerate(LAYERS) if prefix in layer)


def _functions() -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [(m, n) for m in _modules() for n in ast.walk(_tree(m)) if isinstance(n, kinds)]


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("module", sorted(_modules()))
def test_imports_go_downwards(module: str) -> None:
    ours = {name for name in _imports(module) if name.split(".")[0] == "y7edge"}
    upwards = {name for name in ours if _layer(name) > _layer(module)}
    assert not upwards, f"{module} imports upwards: {sorted(upwards)}"


@pytest.mark.parametrize("module", sorted(_modules()))
def test_each_library_is_imported_where_it_may_be(module: str) -> None:
    roots = {name.split(".")[0] for name in _imports(module)}
    for library, places in ONLY_IN.items():
        if library in roots:
            assert any(module == p or module.startswith(p + ".") for p in places), library
    if not module.startswith(("y7edge.sources.", "y7edge.live.")):
        assert not roots & NETWORK, "connections are opened for network URIs and the web page only"
    assert not roots & {"export", "runtimes"}, "a second copy: write y7edge.export"


@pytest.mark.parametrize("module", sorted(_modules()))
def test_heavy_libraries_are_imported_when_used(module: str) -> None:
    allowed = TOP_LEVEL[_longest_prefix(module, iter(TOP_LEVEL))] | {"y7edge"}
    roots = {name.split(".")[0] for name in _imports(module, top_level=True)}
    assert roots - sys.stdlib_module_names <= allowed


def test_no_import_cycles() -> None:
    graph = {m: _imports(m) & set(_modules()) - {m} for m in _modules()}
    # Take away modules that import nothing left, until nothing changes: what stays is in a cycle.
    while leaves := {m for m, uses in graph.items() if not uses & set(graph)}:
        graph = {m: uses for m, uses in graph.items() if m not in leaves}
    assert not graph, f"in or behind a cycle: {sorted(graph)}"


@pytest.mark.parametrize("module", sorted(_modules()))
def test_names_of_modules(module: str) -> None:
    name = module.rsplit(".", 1)[-1]
    libraries = {*ENGINES, "torch", "onnx", "onnxsim", "numpy", "cv2", "typer", "rich", "yaml"}
    assert name not in NO_NAMES | libraries
    package = module.rpartition(".")[0]
    if package in _modules():
        exported = {n.rsplit(".", 1)[-1] for n in _exports(package)}
        assert name not in exported, f"{package} exports a name that hides the module {name}"


def _exports(package: str) -> set[str]:
    """What a package offers: the strings of its ``__all__``."""
    for node in _tree(package).body:
        targets = [ast.unparse(t) for t in getattr(node, "targets", [])]
        if isinstance(node, ast.Assign) and "__all__" in targets:
            return {n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant)}
    return set()


@pytest.mark.parametrize("module", sorted(_modules()))
def test_files_are_short(module: str) -> None:
    lines = _modules()[module].read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_FILE, f"{module}: {lines} lines"


def test_functions_are_short() -> None:
    lengths = sorted((_length(node), f"{module}.{node.name}") for module, node in _functions())
    assert lengths[-1][0] <= MAX_FUNCTION, f"too long: {lengths[-5:]}"
    p95 = lengths[int(0.95 * (len(lengths) - 1))]
    assert p95[0] <= P95_FUNCTION, f"95th percentile: {p95}; longest: {lengths[-5:]}"


def test_the_package_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    """Print files and lines by folder, and the longest of each kind."""
    lengths = {m: path.read_text(encoding="utf-8").count("\n") for m, path in _modules().items()}
    rooms: dict[str, list[int]] = {}
    for module, path in _modules().items():
        rooms.setdefault(str(path.parent.relative_to(ROOT)), []).append(lengths[module])
    rows = [f"{room:<28} {len(v):>4} files {sum(v):>6} lines" for room, v in sorted(rooms.items())]
    longest = max(lengths, key=lambda module: lengths[module])
    function = max(_functions(), key=lambda found: _length(found[1]))
    chain = max((_chain(module) for module in _modules()), key=len)
    assert sum(map(sum, rooms.values())) == sum(lengths.values())
    with capsys.disabled():
        print("", *rows, sep="\n")
        print(f"{'all':<28} {len(lengths):>4} files {sum(lengths.values()):>6} lines")
        print(f"longest file: {longest}, {lengths[longest]} lines")
        print(f"longest function: {function[0]}.{function[1].name}, {_length(function[1])} lines")
        print(f"longest import chain: {len(chain)} modules, {' > '.join(chain)}")


@cache
def _chain(module: str) -> tuple[str, ...]:
    """The longest chain of imports that run when ``module`` is imported, from it downwards."""
    used = _imports(module, top_level=True) & set(_modules()) - {module}
    return (module, *max(map(_chain, used), key=len, default=()))


def test_hints_are_complete() -> None:
    lacking = []
    for module, node in _functions():
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        every += [a for a in (arguments.vararg, arguments.kwarg) if a]
        bare = [a.arg for a in every if a.annotation is None and a.arg not in ("self", "cls")]
        if bare or node.returns is None:
            lacking.append(f"{module}.{node.name}: {bare or 'return'}")
    assert not lacking


@pytest.mark.parametrize("module", sorted(_modules()))
def test_docstrings(module: str) -> None:
    lacking = [name for name, node in _public(_tree(module), module) if not ast.get_docstring(node)]
    assert not lacking


def _public(
    node: ast.Module | ast.ClassDef, name: str
) -> Iterator[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """A module or class and its public names; functions inside functions are not counted."""
    yield name, node
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if child.name.startswith("_"):
            continue
        if isinstance(child, ast.ClassDef):
            yield from _public(child, f"{name}.{child.name}")
        elif "overload" not in {ast.unparse(d).rsplit(".", 1)[-1] for d in child.decorator_list}:
            yield f"{name}.{child.name}", child


# --- what an import brings in --------------------------------------------------------------------


def _python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_brings_no_engine() -> None:
    code = "import sys, y7edge; print(*{name.split('.')[0] for name in sys.modules})"
    heavy = {*ENGINES, "torch", "onnx", "onnxsim", "cv2", "typer", "matplotlib", "safetensors"}
    assert not heavy & set(_python(code).split())


def test_the_command_line_starts_without_runtimes_and_targets() -> None:
    code = "import sys, y7edge.cli.app; print(*sys.modules)"
    loaded = _python(code).split()
    assert "y7edge.cli.export" in loaded
    for package in ("y7edge.runtimes", "y7edge.export", "numpy", "rich", "importlib.metadata"):
        assert not [name for name in loaded if name.startswith(package)]


def test_import_is_quick() -> None:
    code = (
        "import time, numpy; start = time.perf_counter(); import y7edge;"
        "print(1e3 * (time.perf_counter() - start))"
    )
    assert min(float(_python(code)) for _ in range(5)) <= IMPORT_MS


def test_torch_free_modules_import_without_torch_and_onnx() -> None:
    # The top of every file that detection may reach, in one process.
    names = [m for m in _modules() if _layer(m) < _layer("y7edge.nn")] + ["y7edge.export.folding"]
    blocked = {"torch", "onnx", "onnxsim", *ENGINES}
    code = f"import importlib\nfor name in {names!r}: importlib.import_module(name)"
    _python(BLOCKER.format(blocked=blocked) + code)


def test_help_and_check_run_on_a_base_install() -> None:
    blocked = {"torch", "onnx", "onnxsim", "cv2", "yaml", "safetensors", "matplotlib", *ENGINES}
    code = "from y7edge.cli import main; sys.exit(main(['--help']))"
    assert "export" in _python(BLOCKER.format(blocked=blocked) + code)
    code = "from y7edge.cli import main; assert main(['check', '--json']) == 3"
    assert '"opencv"' in _python(BLOCKER.format(blocked=blocked) + code)


def test_detection_needs_neither_torch_nor_onnx(tmp_path: Path) -> None:
    from y7edge.export.pipeline import export
    from y7edge.nn.source import open_checkpoint

    artifact = tmp_path / "tiny.onnx"
    export(open_checkpoint("yolov7-tiny"), artifact, imgsz=(64, 96))
    code = """
import numpy
from y7edge import Detector
with Detector(sys.argv[1], conf=0.05) as detector:
    image = numpy.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=numpy.uint8)
    print(len(detector(image)))
"""
    blocked = {"torch", "onnx", "onnxsim", "safetensors", "typer", "rich"}
    assert int(_python(BLOCKER.format(blocked=blocked) + code, str(artifact))) > 0
