"""Find another Python interpreter, in which a vendor's packages are installed.

A package that needs other versions of numpy, onnx or torch than y7edge lives in its own virtual
environment. The environment variable ``Y7EDGE_<NAME>_PYTHON`` names its interpreter.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from y7edge.errors import RuntimeMissing

_ASK = (
    "import json, sys\n"
    "from importlib.metadata import PackageNotFoundError, version\n"
    "found = {}\n"
    "for name in sys.argv[1:]:\n"
    "    try: found[name] = version(name)\n"
    "    except PackageNotFoundError: pass\n"
    "print(json.dumps(found))\n"
)


_SDKS = ("ai-edge-litert-sdk-mediatek", "ai-edge-litert-sdk-qualcomm", "ai-edge-litert-sdk-intel")
_LOCATE = (
    "import json, sys\n"
    "from importlib.metadata import PackageNotFoundError, distribution\n"
    "found = {}\n"
    "for name in sys.argv[1:]:\n"
    "    try: package = distribution(name)\n"
    "    except PackageNotFoundError: continue\n"
    "    folder = package.locate_file(name.replace('-', '_') + '/data')\n"
    "    found[name] = [package.version, str(folder)]\n"
    "print(json.dumps(found))\n"
)


def empty_packages() -> tuple[str, ...]:
    """Return a description of each vendor's package that was installed without its libraries.

    The packages with compilers for LiteRT download the vendor's libraries into their folder
    ``data`` when they are installed. If that fails, pip reports success all the same. They are
    looked for in this interpreter and in the one that ``Y7EDGE_LITERT_PYTHON`` names.
    """
    found = []
    named = os.environ.get("Y7EDGE_LITERT_PYTHON")
    pythons = dict.fromkeys((sys.executable, *filter(None, [named and shutil.which(named)])))
    for python in pythons:
        try:
            installed = _answer(Path(python), _LOCATE, _SDKS)
        except RuntimeMissing:
            continue  # the target reports an interpreter that does not work
        for name, (version, folder) in installed.items():
            data = Path(folder)
            if not data.is_dir() or not any(data.iterdir()):
                found.append(
                    f"{name} {version} of {python} is empty: pip could not download the vendor's "
                    "libraries and did not fail. Where the vendor's server can be reached: "
                    f"{python} -m pip install --force-reinstall --no-deps --no-cache-dir {name}"
                )
    return tuple(found)


def find_interpreter(target: str, module: str, recipe: str) -> Path:
    """Return the interpreter that has a target's converter.

    The environment variable ``Y7EDGE_<TARGET>_PYTHON`` names it. If the variable is not set, the
    converter's ``module`` must be installed in this interpreter, which is then returned.

    Raises:
        RuntimeMissing: no interpreter was found. The message contains ``recipe``, the commands that
            create one.
    """
    variable = f"Y7EDGE_{target.upper()}_PYTHON"
    named = os.environ.get(variable)
    if not named:
        if find_spec(module) is not None:
            return Path(sys.executable)
        raise RuntimeMissing(
            f"target {target} needs an interpreter with {module}, which is not installed here: "
            f"{recipe}; then set {variable}=ENV/bin/python"
        )
    found = shutil.which(named)
    if found is None:
        raise RuntimeMissing(f"{variable} is {named}, expected a Python interpreter: {recipe}")
    return Path(found).absolute()


def require_packages(python: Path, packages: Sequence[str], recipe: str) -> dict[str, str]:
    """Return the versions of packages in another interpreter.

    ``packages``: names on PyPI, such as "onnx", or "onnx>=1.17" for this version or a later one.

    Raises:
        RuntimeMissing: a package is not installed there or too old, or ``python`` is not an
            interpreter. The message contains ``recipe``, the commands that create one.
    """
    least = {name: version for name, _, version in (text.partition(">=") for text in packages)}
    found = _versions(python, tuple(least))
    absent = [name for name in least if name not in found]
    if absent:
        raise RuntimeMissing(f"{python} does not have {', '.join(absent)}: {recipe}")
    for name, version in least.items():
        if version_numbers(found[name]) < version_numbers(version):
            raise RuntimeMissing(
                f"{python} has {name} {found[name]}, expected {version} or later: {recipe}"
            )
    return found


def version_numbers(version: str) -> list[int]:
    """Return the leading numbers of a version: [2024, 4] for "2024.4rc1"."""
    release = re.match(r"[0-9.]*", version)
    numbers = [int(part) for part in (release[0] if release else "").split(".") if part]
    while numbers and not numbers[-1]:
        numbers.pop()  # 1.0 equals 1
    return numbers


@cache
def _versions(python: Path, packages: tuple[str, ...]) -> dict[str, str]:
    return {name: str(value) for name, value in _answer(python, _ASK, packages).items()}


def _answer(python: Path, program: str, names: Sequence[str]) -> dict[str, Any]:
    """Run a program with arguments in an interpreter; return the JSON object that it prints."""
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", program, *names],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return {str(name): value for name, value in json.loads(done.stdout).items()}
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError) as error:
        raise RuntimeMissing(f"{python} is not a Python interpreter: {error}") from error
