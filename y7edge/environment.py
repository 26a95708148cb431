"""Report the installed packages, and which backends are usable, for ``y7edge check``.

Most packages are looked up without importing them. OpenCV is imported to read its build options.
Engines are imported because an installed engine may fail to import.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

from y7edge import __version__
from y7edge.errors import RuntimeMissing
from y7edge.runtimes import registry
from y7edge.runtimes.base import missing

# Import name -> (name on PyPI, extra that installs it), in the order of the report.
PACKAGES = {
    "numpy": ("numpy", None),
    "cv2": ("opencv-python", "opencv"),
    "yaml": ("pyyaml", "eval"),
    "faster_coco_eval": ("faster-coco-eval", "eval"),
    "safetensors": ("safetensors", "export"),
    "onnx": ("onnx", "export"),
    "onnxsim": ("onnxsim", "export"),
    "torch": ("torch", "export"),
    "lightning_fabric": ("lightning-fabric", "train"),
    "matplotlib": ("matplotlib", "train"),
    "tensorboard": ("tensorboard", "train"),
}


@dataclass(frozen=True, slots=True)
class Backend:
    """A runtime, its file formats, and whether it can be used on this machine."""

    name: str
    formats: tuple[str, ...]
    usable: bool
    reason: str  # why it is usable or not
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Report:
    """The result of ``y7edge check``."""

    y7edge: str
    python: str
    system: str
    packages: dict[str, str | None]  # name on PyPI -> version; None: not installed
    opencv: dict[str, Any]  # installed, version, gstreamer, problem
    backends: tuple[Backend, ...]
    ready: dict[str, bool]  # by purpose: detect, val, export, train
    missing: dict[str, tuple[str, ...]]  # by purpose: packages to install

    @property
    def exit_code(self) -> int:
        """0 if detection works, else the exit code for a missing dependency."""
        return 0 if self.ready["detect"] else RuntimeMissing.exit_code


def extra_of(package: str) -> str:
    """Return the extra of y7edge that installs a package, such as "export" for "onnx"."""
    for runtime in registry.loadable():
        if package in runtime.NEEDS:
            return runtime.NEEDS[package].removeprefix("y7edge[").removesuffix("]")
    return PACKAGES.get(package, ("", None))[1] or "train"


def check() -> Report:
    """Find the installed packages, the usable backends, and what is missing for each purpose."""
    versions = {pypi: _version(module, pypi) for module, (pypi, _) in PACKAGES.items()}
    opencv = _opencv()
    backends = tuple(_backend(name) for name in registry.names())
    lacking = {
        purpose: tuple(pypi for pypi in needs if versions[pypi] is None)
        for purpose, needs in _needs().items()
    }
    if not any(backend.usable for backend in backends):
        engines = sorted({name for runtime in registry.loadable() for name in runtime.NEEDS})
        lacking["detect"] += (f"an engine (one of {', '.join(engines)})",)
    if not opencv["installed"]:
        lacking["detect"] += ("opencv-python",)
    return Report(
        y7edge=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        packages=versions,
        opencv=opencv,
        backends=backends,
        ready={purpose: not packages for purpose, packages in lacking.items()},
        missing={purpose: packages for purpose, packages in lacking.items() if packages},
    )


def _needs() -> dict[str, tuple[str, ...]]:
    """Return the required packages (names on PyPI) for each purpose, such as "export"."""
    by_extra: dict[str | None, tuple[str, ...]] = {}
    for pypi, extra in PACKAGES.values():
        by_extra[extra] = (*by_extra.get(extra, ()), pypi)
    export = (*by_extra["opencv"], "pyyaml", *by_extra["export"])
    return {
        "detect": (),
        "val": (*by_extra["opencv"], *by_extra["eval"]),
        "export": export,
        "train": (*export, "faster-coco-eval", *by_extra["train"]),
    }


def _version(module: str, pypi: str) -> str | None:
    """Return a package's version: None if not installed, "unknown" if installed without pip."""
    if find_spec(module) is None:
        return None
    try:
        return metadata.version(pypi)
    except metadata.PackageNotFoundError:
        # Installed by another distribution, such as opencv-python-headless, or without pip.
        others = metadata.packages_distributions().get(module, [])
        return metadata.version(others[0]) if others else "unknown"


def _opencv() -> dict[str, Any]:
    """Return OpenCV's version, and whether it has GStreamer (needed for cameras on a Jetson)."""
    try:
        cv2 = import_module("cv2")
    except ImportError as error:
        return {"installed": False, "version": None, "gstreamer": False, "problem": str(error)}
    built_with = re.search(r"GStreamer:\s*(\w+)", cv2.getBuildInformation())
    gstreamer = built_with is not None and built_with[1] == "YES"
    return {"installed": True, "version": cv2.__version__, "gstreamer": gstreamer, "problem": None}


def _backend(name: str) -> Backend:
    """Check whether a runtime can be used on this machine."""
    try:
        runtime = registry.get(name)
    except RuntimeMissing as error:
        return Backend(name, (), False, str(error), {})
    absent = missing(runtime.NEEDS)
    if absent:
        how = " ".join(f"'{runtime.NEEDS[package]}'" for package in absent)
        reason = f"{', '.join(absent)} is not installed: pip install {how}"
        return Backend(name, runtime.FORMATS, False, reason, {})
    try:
        runtime.load_engine()
    except Exception as error:  # report any failure of the engine's import
        line = " ".join(str(error).split())
        return Backend(name, runtime.FORMATS, False, f"installed, but cannot be used: {line}", {})
    reason = f"will be used for {', '.join(runtime.FORMATS)}"
    return Backend(name, runtime.FORMATS, True, reason, runtime.versions())
