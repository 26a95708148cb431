"""Find another Python interpreter, in which a vendor's packages are installed.

A package that needs other versions of numpy, onnx or torch than y7edge lives in its own virtual
environment. The environment variable ``Y7EDGE_<NAME>_PYTHON`` names its interpreter.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

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
    """Return the versions of the packages (names on PyPI) in another interpreter.

    Raises:
        RuntimeMissing: a package is not installed there, or ``python`` is not an interpreter. The
            message contains ``recipe``, the commands that create one.
    """
    found = _versions(python, tuple(packages))
    absent = [name for name in packages if name not in found]
    if absent:
        raise RuntimeMissing(f"{python} does not have {', '.join(absent)}: {recipe}")
    return found


@cache
def _versions(python: Path, packages: tuple[str, ...]) -> dict[str, str]:
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", _ASK, *packages],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return {str(name): str(value) for name, value in json.loads(done.stdout).items()}
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise RuntimeMissing(f"{python} is not a Python interpreter: {error}") from error
