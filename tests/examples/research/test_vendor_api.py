"""The script that lists NVIDIA's packages: docstrings to signatures, releases to one table."""

from __future__ import annotations

import importlib.util
import json
from enum import Enum
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
spec = importlib.util.spec_from_file_location(
    "vendor_api", ROOT / "examples" / "research" / "vendor_api.py"
)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)

PARSE = """parse(self: tensorrt_bindings.tensorrt.OnnxParser, model: typing_extensions.Buffer, \
path: str = None) -> bool

    :arg model: parse(x: int) -> str is not a signature here.
"""
CONTEXT = """create(*args, **kwargs)
Overloaded function.

1. create(self: tensorrt.tensorrt.ICudaEngine, strategy: \
tensorrt.tensorrt.ExecutionContextAllocationStrategy = <ExecutionContextAllocationStrategy.STATIC: \
0>, sizes: List[Tuple[int, int]] = [(1, 2)]) -> List[tensorrt.tensorrt.IExecutionContext]

2. create(self: tensorrt.tensorrt.ICudaEngine, arg0: typing.SupportsInt) -> nvinfer1::v_1_0::IGone
"""


def test_docstrings_of_pybind():
    assert script.pybind_signatures("parse", PARSE, True) == [
        "(self, model: Buffer, path: str | None = ...) -> bool"
    ]
    assert script.pybind_signatures("create", CONTEXT, True) == [
        "(self, strategy: ExecutionContextAllocationStrategy = ..., "
        "sizes: Sequence[tuple[int, int]] = ...) -> list[IExecutionContext]",
        "(self, arg0: int, /) -> IGone",
    ]
    # In C++, an argument with a default can come first.
    doc = "add(self: tensorrt.INetwork, bias: object = None, kernel: numpy.ndarray) -> capsule"
    expected = ["(self, bias: Any | None, kernel: Any) -> Any"]
    assert script.pybind_signatures("add", doc, True) == expected


def test_docstrings_of_boost():
    doc = """
copy( (object)dest, (object)src [, (object)stream=None [, (int)flags=0]]) -> None :

    C++ signature :
        void copy(unsigned long long,pycudaboost::python::api::object)

copy( (object)dest) -> int :
"""
    assert script.boost_signatures("copy", doc, False) == [
        "(dest: Any, src: Any, stream: Any = ..., flags: int = ...) -> None",
        "(dest: Any) -> int",
    ]
    wait = "\nwait( (Stream)arg1, (Event)arg2) -> object :"
    assert script.boost_signatures("wait", wait, True) == ["(self, arg2: Event, /) -> Any"]


@pytest.mark.parametrize("indent", ["", "    "])
def test_docstrings_of_cython(indent):
    doc = f"""cuStart(hGraph, unsigned long long flags, char* path, mode: CUmode = None)
{indent}
{indent}Returns
{indent}-------
{indent}CUresult
{indent}    :py:obj:`~.CUDA_SUCCESS`
{indent}phGraphExec : :py:obj:`~.CUgraphExec`
{indent}    the graph

{indent}See Also
{indent}--------
{indent}cuStop
"""
    assert script.cython_signatures("cuStart", doc, False) == [
        "(hGraph: Any, flags: int, path: Any, mode: CUmode = ...) -> tuple[CUresult, CUgraphExec]"
    ]


def launch(func, *args, **kwargs):
    """Like those that pycuda adds to its classes."""
    block = kwargs.pop("block", None)
    return func, args, block, kwargs.pop("stream")


class Stream:
    launch = launch

    def __init__(self):
        self._hidden = 0

    @property
    def handle(self):
        return 0

    @staticmethod
    def count(first=1):
        return first


Color = Enum("Color", "RED GREEN")


def test_members_of_a_module():
    names = {"Stream": Stream, "Color": Color, "_private": 1, "VERSION": 2}
    assert dict(script.walk(names, "", script.boost_signatures)) == {
        "Stream": ["class()"],
        "Stream.launch": ["(func: Any, *args: Any, block: Any = ..., stream: Any = ...) -> Any"],
        "Stream.__init__": ["(self: Any) -> Any"],
        "Stream.handle": ["property -> Any"],
        "Stream.count": ["static (first: Any = ...) -> Any"],
        "Color": ["enum"],
        "Color.RED": ["member"],
        "Color.GREEN": ["member"],
        "VERSION": ["value: int"],
    }


def test_equal_declarations_are_written_once(tmp_path):
    tables = {
        "1": {"f": ["() -> int"], "old": ["member"]},
        "2": {"f": ["() -> int"]},
        "3": {"f": ["(a: int) -> int"]},
    }
    script.write_table(tmp_path / "t.json", "module", {"1": "a.whl"}, tables)
    assert json.loads((tmp_path / "t.json").read_text())["names"] == {
        "f": {"1 2": ["() -> int"], "3": ["(a: int) -> int"]},
        "old": {"1": ["member"]},
    }


@pytest.mark.parametrize("name", script.PACKAGES)
def test_the_tables_have_the_releases_of_the_script(name):
    table = json.loads((script.OUT / f"{name}.json").read_text())
    releases = script.PACKAGES[name].releases
    assert list(table["wheels"]) == list(releases)
    for release, requirement in releases.items():
        package, version = requirement.replace("-", "_").split("==")
        assert table["wheels"][release].startswith(f"{package}-{version}-")
