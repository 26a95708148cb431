"""Sessions of the TensorRT runtime with the real pycuda and cuda-python, on a driver without a GPU.

The packages must be installed and gcc available; a GPU is not needed. TensorRT is a fake.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from y7edge.runtimes import _cuda_kernels

HERE = Path(__file__).parent


def installed() -> bool:
    return all(find_spec(name) for name in ("pycuda", "cuda")) and shutil.which("gcc") is not None


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    """Compile the fake driver, with failing functions for all others that pycuda needs."""
    folder = tmp_path_factory.mktemp("driver")
    source = (HERE / "fake_driver.c").read_text()
    (extension,) = Path(find_spec("pycuda").origin).parent.glob("_driver*.so")
    wanted = subprocess.check_output(["nm", "-D", "--undefined-only", extension], text=True)
    missing = set(re.findall(r" U (cu\w+)", wanted)) - set(
        re.findall(r"^int (cu\w+)", source, re.M)
    )
    source += "".join(f"int {name}(void) {{ return 801; }}\n" for name in sorted(missing))
    command = ["gcc", "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", "-xc", "-", "-ldl"]
    subprocess.run([*command, "-o", folder / "libcuda.so.1"], input=source, text=True, check=True)
    return folder


@pytest.mark.skipif(not installed(), reason="pycuda, cuda-python or gcc is not installed")
@pytest.mark.parametrize("integrated", [False, True])
def test_everything_is_freed_after_an_error_of_each_call(driver, integrated):
    environment = {**os.environ, "LD_LIBRARY_PATH": str(driver)}
    environment |= {"FAKE_INTEGRATED": "1"} if integrated else {}
    command = [sys.executable, "-m", "tests.runtimes.session_on_pycuda"]
    output = subprocess.run(
        command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True
    )
    assert output.returncode == 0, output.stderr
    *launches, report = output.stdout.splitlines()
    report = json.loads(report)
    assert report["wrong"] == report["problems"] == []
    assert report["injected"] > 100
    assert "without a context" not in output.stderr
    assert report["executions"][:4] == ["CUDA graph"] * 4
    sizes = {line.split()[0]: int(line.split()[-1]) for line in launches}
    assert sizes == {name: declared(name) for name in sizes}
    assert {"letterbox_float32", "select_float32"} <= set(sizes)


def declared(kernel: str) -> int:
    """Return the size of a kernel's parameters in the PTX."""
    text = _cuda_kernels.ptx()
    text = text if isinstance(text, str) else text.decode()
    entry = re.search(rf"\.entry {kernel}\((.*?)\)", text, re.DOTALL)[1]
    size = 0
    for parameter in re.findall(r"\.param (.*?),?$", entry, re.MULTILINE):
        kind, count = (
            re.search(r"\.[busf](8|16|32|64)\b", parameter)[1],
            re.search(r"\[(\d+)\]", parameter),
        )
        align = re.search(r"\.align (\d+)", parameter)
        bytes_ = int(kind) // 8
        step = int(align[1]) if align else bytes_
        size = (size + step - 1) // step * step + bytes_ * (int(count[1]) if count else 1)
    return size
