"""Every call into tensorrt, pycuda and cuda-python exists with this signature in each release.

The modules that use these packages are checked by mypy against type stubs of one release after the
other (``vendor_stubs``). The packages are not installed, so in the modules their objects are of
type ``Any``; ``KINDS`` says what they are. Conditions on ``_trt_versions.value`` are replaced by
their value in each release, so a branch is checked with the releases that execute it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import mypy.api
import numpy as np
import pytest

from tests.runtimes import vendor_stubs
from y7edge.runtimes import _trt_versions

ROOT = Path(__file__).parents[2]
PACKAGES = ("tensorrt", "pycuda", "cuda")

# What a variable, attribute or argument of type Any is, by its name or by "SCOPE.NAME". "NAME()" is
# the result of a function. ``vendor.tensorrt`` is the module tensorrt.
KINDS = {
    "trt": "vendor.tensorrt",
    "load_driver()": "vendor.pycuda",
    "load_engine()": "vendor.tensorrt",
    "graphs()": "vendor.cuda_python",
    "Gpu.driver": "vendor.pycuda",
    "Graph.driver": "vendor.cuda_python",
    "_context": "tensorrt.IExecutionContext",
    "Gpu._context": "pycuda.driver.Context",
    "_engine": "tensorrt.ICudaEngine",
    "engine": "tensorrt.ICudaEngine",
    "builder": "tensorrt.Builder",
    "config": "tensorrt.IBuilderConfig",
    "network": "tensorrt.INetworkDefinition",
    "layer": "tensorrt.ILayer",
    "stream": "pycuda.driver.Stream",
}


def users() -> list[Path]:
    """Return the modules that import one of the packages, and those that import these modules."""
    files = [path for folder in ("runtimes", "export", "y7edge") for path in sorted((ROOT / folder).rglob("*.py"))]
    ...
