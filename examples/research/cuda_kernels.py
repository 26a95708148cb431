"""Compile the CUDA kernels of the package to PTX.

    pip install nvidia-cuda-nvrtc-cu12==12.1.105 nvidia-cuda-runtime-cu12==12.1.105
    python examples/research/cuda_kernels.py
    python examples/research/cuda_kernels.py --check

It reads ``runtimes/_cuda_kernels.cu`` and writes ``runtimes/_cuda_kernels.ptx``, which is committed
and installed, so that users need no compiler. NVRTC is called through ctypes and needs no GPU. Only
CUDA 12.1 and 12.2 are accepted: drivers refuse PTX of a newer CUDA than their own, and JetPack 6.0
has 12.2. ``compute_75`` is the oldest architecture; a driver compiles the PTX for its own GPU.

With ``--check``, nothing is written; the exit code is 4 if the file differs from a new compilation.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from y7edge.errors import RuntimeMissing, Y7EdgeError
from y7edge.files import atomic_write

SOURCE = Path(__file__).parents[2] / "runtimes" / "_cuda_kernels.cu"
OPTIONS = ("--gpu-architecture=compute_75", "--fmad=false", "--std=c++17")
_COMPILER = "nvidia-cuda-nvrtc-cu12"
_HEADERS = "nvidia-cuda-runtime-cu12"
_VERSIONS = ((12, 1), (12, 2))


def header(source: bytes, version: tuple[int, int]) -> str:
    """Return the comment at the top of the PTX, with the digest of the source."""
    return (
        f"// CUDA kernels of y7edge, compiled from {SOURCE.name}\n"
        f"// source sha256 {hashlib.sha256(source).hexdigest()}\n"
        f"// compiler NVRTC {version[0]}.{version[1]} {' '.join(OPTIONS)}\n"
    )


def compile_kernels(source: bytes) -> str:
    """Return the PTX of CUDA C, with its header.

    Raises:
        RuntimeMissing: a package is not installed, or has another version.
        Y7EdgeError: the source cannot be compiled.
    """
    library = ctypes.CDLL(str(_installed(_COMPILER, "libnvrtc.so.12")))
    include = _installed(_HEADERS, "cuda_fp16.h").parent
    numbers = ctypes.c_int(), ctypes.c_int()
    _call(library, "nvrtcVersion", *map(ctypes.byref, numbers))
    version = (numbers[0].value, numbers[1].value)
    if version not in _VERSIONS:
        raise RuntimeMissing(
            f"NVRTC is {version[0]}.{version[1]}, expected 12.1 or 12.2: "
            f"pip install {_COMPILER}==12.1.105 {_HEADERS}==12.1.105"
        )
    program = ctypes.c_void_p()
    name = SOURCE.name.encode()
    _call(library, "nvrtcCreateProgram", ctypes.byref(program), source, name, 0, None, None)
    options = [option.encode() for option in (*OPTIONS, f"--include-path={include}")]
    array = (ctypes.c_char_p * len(options))(*options)
    failed = library.nvrtcCompileProgram(program, len(options), array)
    if failed:
        raise Y7EdgeError(f"{SOURCE.name}: {_text(library, program, 'nvrtcGetProgramLog')}")
    return header(source, version) + _text(library, program, "nvrtcGetPTX")


def _installed(package: str, name: str) -> Path:
    """Return the path of a file of an installed package."""
    try:
        found = [file for file in files(package) or () if file.name == name]
    except PackageNotFoundError:
        found = []
    if not found:
        raise RuntimeMissing(f"{name} is not installed: pip install {package}==12.1.105")
    return Path(str(found[0].locate()))


def _call(library: ctypes.CDLL, function: str, *arguments: object) -> None:
    """Call a function of NVRTC; raise Y7EdgeError unless it returns 0."""
    code = getattr(library, function)(*arguments)
    if code:
        raise Y7EdgeError(f"{function} failed with code {code}")


def _text(library: ctypes.CDLL, program: ctypes.c_void_p, function: str) -> str:
    """Return the result of ``nvrtcGetPTX`` or ``nvrtcGetProgramLog``."""
    size = ctypes.c_size_t()
    _call(library, f"{function}Size", program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    _call(library, function, program, text)
    return text.value.decode()


def main() -> int:
    """Run the program; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    arguments = parser.parse_args()
    target = SOURCE.with_suffix(".ptx")
    try:
        text = compile_kernels(SOURCE.read_bytes())
    except Y7EdgeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if not arguments.check:
        with atomic_write(target) as path:
            path.write_text(text)
        print(f"{target}: {len(text)} bytes")
        return 0
    same = target.is_file() and target.read_bytes() == text.encode()
    print(f"{target}: {'equals' if same else 'differs from'} a new compilation of {SOURCE.name}")
    return 0 if same else 4


if __name__ == "__main__":
    raise SystemExit(main())
