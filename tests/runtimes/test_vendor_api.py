"""Every call into tensorrt, pycuda and cuda-python exists with this signature in each release.

The modules that use these packages are checked by mypy against type stubs of one release after the
other (``vendor_stubs``, from the tables of ``examples/research/vendor_api.py``). The packages are
not installed, so in our modules their objects are of type ``Any``; ``KINDS`` says what they are.
Conditions on ``_trt_versions.value`` are replaced by their values (``facts``), so each branch is
checked with the releases that execute it.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.runtimes import vendor_check, vendor_source, vendor_stubs
from y7edge.runtimes import _trt_versions

ROOT = Path(__file__).parents[2]
PACKAGES = {"tensorrt", "pycuda", "cuda"}
# Versions of TensorRT, and their releases in the table. 11.4.1 is not on PyPI: it has the API of
# 11.4.0, and supports the DLA.
VERSIONS = {**vendor_stubs.versions("tensorrt"), "11.4.1": "11.4"}
TOPICS = {difference.topic for difference in _trt_versions.DIFFERENCES}
# What a variable, attribute or argument of type Any is, by "NAME" or "SCOPE.NAME"; "NAME()" is what
# a function returns. ``vendor.tensorrt`` is the module tensorrt, and so on.
KINDS = {
    "trt": "vendor.tensorrt",
    "load_engine()": "vendor.tensorrt",
    "load_driver()": "vendor.pycuda",
    "graphs()": "vendor.cuda_python",
    "Gpu.driver": "vendor.pycuda",
    "Graph.driver": "vendor.cuda_python",
    "Gpu._context": "pycuda.driver.Context",
    "pinned.array": "vendor.pagelocked",
    "stream": "pycuda.driver.Stream",
    "_runtime": "tensorrt.Runtime",
    "engine": "tensorrt.ICudaEngine",
    "context": "tensorrt.IExecutionContext",
    "builder": "tensorrt.Builder",
    "config": "tensorrt.IBuilderConfig",
    "network": "tensorrt.INetworkDefinition",
    "layers": "tensorrt.ILayer",
    "_config()": "tensorrt.IBuilderConfig",
    "_module": "pycuda.driver.Module",
    "_functions": "pycuda.driver.Function",
}


def facts(version: str) -> dict[str, object]:
    """Return the values of expressions in our modules with a version of TensorRT."""
    values = {topic: _trt_versions.value(topic, version) for topic in TOPICS}
    ways = {values["precision"] == "flags", values["precision on DLA"] == "flags"}
    known = {f"value({topic!r})": value for topic, value in values.items()}
    # Of export/targets/trt.py: whether builder flags ask for the precision, here or on a DLA core.
    return known | ({"self._flags": ways.pop()} if len(ways) == 1 else {})


@cache
def sources() -> dict[str, str]:
    """Return the modules of the package by path, such as "y7edge/runtimes/trt.py"."""
    folders = {"y7edge": "y7edge", "export": "y7edge/export", "runtimes": "y7edge/runtimes"}
    return {
        f"{inside}/{path.relative_to(ROOT / folder)}": path.read_text()
        for folder, inside in folders.items()
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


@cache
def users() -> dict[str, str]:
    """Return the modules that import one of the packages, or a module of ours that does."""
    imported = {name: set(_imports(ast.parse(source))) for name, source in sources().items()}
    found = {name for name, modules in imported.items() if modules & PACKAGES}
    modules = {name.removesuffix(".py").replace("/", ".") for name in found}
    found |= {name for name, others in imported.items() if others & modules}
    return {name: sources()[name] for name in sorted(found)}


def _imports(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, node.module.partition(".")[0])
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """Return a function that checks sources with a version of TensorRT, and others as old."""
    folder = tmp_path_factory.mktemp("vendor")

    def run(modules: dict[str, str], version: str) -> list[str]:
        chosen = {"tensorrt": VERSIONS[version]}
        for package in ("pycuda", "cuda-python"):
            chosen[package] = vendor_stubs.releases(package)[-1 if version[:3] == "11." else 0]
        return vendor_check.findings(modules, KINDS, chosen, facts(version), folder)

    return run


@pytest.mark.parametrize("version", VERSIONS)
def test_every_call_exists_in(version, check):
    found = check(users(), version)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_differences_between_versions_are_those_of_the_bindings(version):
    names = vendor_stubs.names("tensorrt", VERSIONS[version])
    values = {topic: _trt_versions.value(topic, version) for topic in TOPICS}
    assert (values["progress monitor"] == "yes") is ("IProgressMonitor" in names)
    for topic in ("network flag", "typed network flag"):
        assert not values[topic] or f"NetworkDefinitionCreationFlag.{values[topic]}" in names
    for topic in ("precision", "precision on DLA"):
        assert values[topic] != "flags" or "BuilderFlag.OBEY_PRECISION_CONSTRAINTS" in names


def test_all_kinds_are_of_use():
    for name, kind in KINDS.items():
        assert any(
            vendor_source.with_kinds(source, {name: kind}) != vendor_source.with_kinds(source, {})
            for source in users().values()
        ), name


def test_every_call_is_executed_in_a_release():
    for name, source in users().items():
        lines = {node.lineno for node in vendor_check.vendor_names(ast.parse(source))}
        for version in VERSIONS:
            lines &= vendor_source.skipped(vendor_source.at_version(source, facts(version)))
        assert not lines, f"no release of TensorRT reaches the calls in these lines of {name}"


def test_every_call_is_checked(check):
    own = {name for source in sources().values() for name in re.findall(r"def (\w+)", source)}

    class Plant(ast.NodeTransformer):
        def visit_Call(self, node):  # an argument that no function has
            self.generic_visit(node)
            if node.func in calls and node.func.attr not in own:
                node.keywords.append(ast.keyword("planted", ast.Constant(0)))
            return node

    planted, expected = {}, set()
    for name, source in users().items():
        tree = ast.parse(source)
        # Not the constructors: mypy would not know what the result is.
        calls = {n for n in vendor_check.vendor_names(tree) if n.attr[0].islower()}
        planted[name] = ast.unparse(Plant().visit(tree))
        expected |= {
            f"{name}:{node.lineno}"
            for node in ast.walk(ast.parse(planted[name]))
            if isinstance(node, ast.Call) and "planted" in [k.arg for k in node.keywords]
        }
    assert len(expected) > 50
    for version in VERSIONS:
        if not expected:
            break
        found = check(planted, version)
        wrong = (line for line in found if "planted" in line or "overload" in line)
        expected -= {":".join(line.split(":")[:2]) for line in wrong}
    assert not expected, "\n".join(sorted(expected))


HEAD = """\
from __future__ import annotations
from typing import Any
from y7edge.runtimes import _trt_versions


def load_driver() -> Any:
    import pycuda.driver

    return pycuda.driver


def graphs() -> Any:
    from cuda.bindings import driver

    return driver


def plant(trt: Any, builder: Any, config: Any, engine: Any, unlisted: Any, version: str) -> None:
    cuda, bindings = load_driver(), graphs()
"""
PLACE = "y7edge/runtimes/planted.py"
# A statement, and the first and the last release of TensorRT in which it is right.
ALL = ("8.6", "11.4")
PLANTED = {
    "builder.create_network(flags=0)": ALL,
    "builder.create_network(flag=0)": (),
    "builder.create_network(0, 1)": (),
    "config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 30)": ALL,
    "config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size=1 << 30)": (),
    "config.set_memory_pool_limit(1 << 30, trt.MemoryPoolType.WORKSPACE)": (),
    "trt.Runtime(trt.Logger()).dla_workspace_allocation_strategy": ("11.4", "11.4"),
    "builder.build_engine(builder.create_network(), config)": ("8.6", "8.6"),
    "builder.build_engine_with_config(builder.create_network(), config)": ("10.7", "11.4"),
    "config.set_flag(trt.BuilderFlag.FP16)": ("8.6", "10.16"),
    "engine.num_bindings": ("8.6", "8.6"),
    "engine.num_io_tensors": ALL,
    "engine.create_execution_context(trt.ExecutionContextAllocationStrategy.STATIC)": (
        "10.0",
        "11.4",
    ),
    "bytes(builder.build_serialized_network(builder.create_network(), config))": ALL,
    "[int(size) for size in engine.get_tensor_shape('images')]": ALL,
    "engine.get_tensor_shape(0)": (),
    "unlisted.num_io_tensors": (),
    # Names that are looked up, and conditions.
    "getattr(trt.BuilderFlag, 'FP16')": ("8.6", "10.16"),
    "getattr(trt.BuilderFlag, version)": (),
    "hasattr(config, 'algorithm_selector') and config.algorithm_selector": ALL,
    "hasattr(config, 'algorithm_selektor')": (),
    "if _trt_versions.value('precision', version) == 'flags': trt.BuilderFlag.FP16": ALL,
    "if _trt_versions.value('precision', version) == 'graph': trt.BuilderFlag.FP16": (
        "8.6",
        "10.16",
    ),
    "if version and _trt_versions.value('precision', version) == 'flags': config.flags": ALL,
    # pycuda and cuda-python
    "cuda.memcpy_htod_async(dest=1, src=b'', stream=cuda.Stream(1))": ALL,
    "cuda.memcpy_htod_async(dst=1, src=b'', stream=cuda.Stream(1))": (),
    "cuda.pagelocked_empty((1,), 'uint8', mem_flags=cuda.host_alloc_flags.DEVICEMAP)": ALL,
    "cuda.pagelocked_empty((1,), 'uint8', flags=cuda.host_alloc_flags.DEVICEMAP)": (),
    "cuda.Context.pop()": ALL,
    "cuda.Context.push()": (),
    "cuda.Stream(1).handle": ALL,
    "cuda.Stream(1).begin_capture()": (),
    "cuda.module_from_buffer(b'').get_function('f')(cuda.Stream(1), grid=(1, 1))": ALL,
    "cuda.module_from_buffer(b'').get_function('f')(grids=(1, 1))": (),
    "bindings.cuStreamEndCapture(bindings.CUstream(1))[1].getPtr()": ALL,
    "bindings.cuStreamEndCapture(bindings.CUstream(1))[2]": (),
    "bindings.cuStreamEndCapture_v2(bindings.CUstream(1))": (),
    "bindings.cuGraphInstantiate(bindings.CUgraph(1))": (),
}


def test_planted_mistakes_are_found(check):
    releases = list(vendor_stubs.releases("tensorrt"))
    found = {
        version: " ".join(check({PLACE: HEAD + "".join(f"    {s}\n" for s in PLANTED)}, version))
        for version in VERSIONS
    }
    for number, (statement, right) in enumerate(PLANTED.items(), HEAD.count("\n") + 1):
        accepted = [VERSIONS[v] for v in VERSIONS if f"{PLACE}:{number}:" not in found[v]]
        first, last = map(releases.index, right) if right else (1, 0)
        assert list(dict.fromkeys(accepted)) == releases[first : last + 1], statement


def test_a_branch_that_no_release_executes_is_found():
    source = f"""{HEAD}    how = _trt_versions.value("precision", version)
    if how == "flags":
        return config.flags
    if how == "graph":
        return None
    return config.quantization_flags
"""
    skipped = [vendor_source.skipped(vendor_source.at_version(source, facts(v))) for v in VERSIONS]
    assert set.intersection(*skipped) == {source.count("\n")}
