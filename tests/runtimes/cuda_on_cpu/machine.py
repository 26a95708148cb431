"""Run the CUDA kernels on the CPU: their source, compiled by g++ with a header for CUDA's words.

Arguments are packed as a driver packs them, and unpacked by the types of the kernel's parameters:
a wrong format or count fails. Threads run one after the other, forwards or backwards.
"""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from y7edge.runtimes import _cuda_kernels as kernels

FOLDER = Path(__file__).parent
SOURCE = Path(kernels.__file__).with_suffix(".cu").resolve()
COMPILER = shutil.which("g++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="g++ is not installed")


class Machine:
    """The kernels, compiled for the CPU into ``folder``."""

    def __init__(self, folder: Path, source: Path = SOURCE) -> None:
        library = folder / "kernels.so"
        words = " ".join(f"X({name})" for name in kernels.PARAMETERS)
        command = [
            *(COMPILER, "-O2", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off"),
            *("-Wall", "-Wextra", "-Werror", f"-I{FOLDER}", f"-DKERNELS={words}"),
            *(f'-DCUDA_SOURCE="{source}"', str(FOLDER / "cuda_on_cpu.cpp"), "-o", str(library)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        self._library = ctypes.CDLL(str(library))

    def run(self, launch: kernels.Launch, *, backwards: bool = False) -> None:
        packed = struct.pack(kernels.PARAMETERS[launch.kernel], *launch.arguments)
        sizes = [(ctypes.c_int * 3)(*size) for size in (launch.grid, launch.block)]
        function = getattr(self._library, f"cpu_{launch.kernel}")
        wrong = function(*sizes, packed, ctypes.c_size_t(len(packed)), int(backwards))
        assert not wrong, f"{launch.kernel} takes other arguments than {launch.arguments}"
