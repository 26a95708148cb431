"""Sessions with the real pycuda and cuda-python, over a library that stands in for the driver.

They run if ``Y7EDGE_CUDA_PACKAGES`` names a folder with pycuda and cuda-bindings, into which they
were unpacked or installed; examples/research/vendor_api.py has the recipe for building pycuda
without a GPU. TensorRT is that of ``fake_cuda``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtimes.cuda_on_cpu.machine import Machine

PACKAGES = os.environ.get("Y7EDGE_CUDA_PACKAGES", "")
SOURCE = Path(__file__).parent / "libcuda" / "libcuda.cpp"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PACKAGES, reason="Y7EDGE_CUDA_PACKAGES is not set"),
]

SCRIPT = r"""
import ctypes, gc, sys, threading
from importlib.machinery import ModuleSpec
from pathlib import Path
import numpy as np
import pycuda.driver as cuda
from tests.fake_model import make_manifest
from tests.runtimes import fake_cuda
from tests.runtimes.test_trt import build
from tests.runtimes.test_trt_frames import SHAPES, assert_equal, image, lively
from y7edge.detect.detector import Detector
from y7edge.errors import DeviceError, Y7EdgeError
from y7edge.runtimes.base import SessionOptions

library = ctypes.CDLL("libcuda.so.1")
library.fake_report.restype = ctypes.c_char_p

class Machine(fake_cuda.Machine):
    stack = property(lambda self: [1] if cuda.Context.get_current() is not None else [])
    inside = lambda self, address, size: True

class Streams(dict):
    captured = False
    def __getitem__(self, handle):
        assert type(handle) is int and handle
        return self
    def add(self, work):
        work()

machine = Machine()
machine.streams = Streams()
tensorrt = fake_cuda._tensorrt(machine)
tensorrt.__spec__ = ModuleSpec("tensorrt", None)
sys.modules["tensorrt"] = tensorrt
folder, errors = Path(sys.argv[1]), 0

def left():
    return library.fake_report().decode()

def opened(name="robot", batch=1, **options):
    artifact = build(folder, name, machine=machine, manifest=make_manifest(batch))
    machine.network = lively
    return Detector(artifact.path, provider_options=options)

class Array:
    def __init__(self, pixels, **entries):
        self.__cuda_array_interface__ = {
            "shape": pixels.shape, "typestr": "|u1", "data": (pixels.ctypes.data, False),
            "strides": pixels.strides, "version": 3, **entries,
        }

fast, slow = opened(cuda_graph=False), opened(cuda_graph=False, kernels=False)
assert fast.info["frames"] == "cuda:0", fast.info
for shape in SHAPES:
    assert_equal(fast(image(*shape)), slow(image(*shape)))
padded = np.zeros((128, 200, 3), np.uint8)
padded[:, :192] = image(128, 192)
for entries in ({}, {"stream": 1}, {"stream": None}):
    assert_equal(fast(Array(padded[:, :192], **entries)), slow(padded[:, :192]))
several = [image(seed=seed) for seed in range(6)]
dynamic = opened("dynamic", "dynamic")
for found, pixels in zip(dynamic.batch(several), several):
    assert_equal(found, slow(pixels))

def in_thread():
    assert_equal(fast(image()), slow(image()))
    fast.close()

thread = threading.Thread(target=in_thread)
thread.start()
thread.join()
for detector in (slow, dynamic):
    detector.close()
assert left() == "0 contexts", left()

graph = opened("graph")
assert graph.info["execution"] == "CUDA graph", graph.info
graph(image())
assert "1 executable graphs" in left(), left()
graph.close()
assert left() == "0 contexts", left()

dropped = opened("dropped")
dropped(image())
del dropped
gc.collect()
assert left() == "0 contexts", left()

for call in ("deserialize_cuda_engine", "create_execution_context", "set_tensor_address",
             "execute_async_v3"):
    machine.fail = {call}
    try:
        opened("failing")
        raise SystemExit(call)
    except DeviceError as error:
        assert call in str(error)
        machine.fail = set()
    assert left() == "0 contexts", (call, left())

library.fake_fail(0)
for options in ({}, {"kernels": False}, {"cuda_graph": False}):
    def run():
        with opened("errors", **options) as detector:
            detector(image())
    run()
    for number in range(1, library.fake_fail(0) + 1):
        library.fake_fail(number)
        try:
            run()
        except Y7EdgeError:
            errors += 1
        library.fake_fail(0)
        gc.collect()
        assert left() == "0 contexts", (options, number, left())
assert errors > 50, errors
assert not machine.problems, machine.problems
print("done")
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """Compile the library; pycuda needs further functions, which fail."""
    folder = tmp_path_factory.mktemp("libcuda")
    (driver,) = Path(PACKAGES).glob("pycuda/_driver*.so")
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", driver], capture_output=True, text=True
    )
    needed = {line.split()[-1] for line in listed.stdout.splitlines() if " cu" in line}
    source = SOURCE.read_text(encoding="utf-8")
    rest = [name for name in sorted(needed) if f"int {name}(" not in source]
    (folder / "rest.cpp").write_text(
        "".join(f'extern "C" int {name}() {{ return 999; }}\n' for name in rest)
    )
    command = ["g++", "-O1", "-std=c++17", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    sources = [str(SOURCE), str(folder / "rest.cpp"), "-ldl", "-o", str(folder / "libcuda.so.1")]
    subprocess.run([*command, *sources], check=True, timeout=120)
    Machine(folder)
    return folder


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.parametrize("integrated", [False, True])
def test_sessions(library, tmp_path, integrated):
    root = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(library),
        "PYTHONPATH": os.pathsep.join((root, PACKAGES)),
        "FAKE_KERNELS": str(library / "kernels.so"),
        **({"FAKE_INTEGRATED": "1"} if integrated else {}),
    }
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout == "done\n", done.stdout + done.stderr
    assert done.stderr == ""
