"""Report the installed packages, and which backends are usable, for ``y7edge check``.

Most packages are looked up without importing them. OpenCV is imported to read its build options.
Engines are imported, each in a process of its own, because an installed engine may fail to import.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal as signals
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

from y7edge import __version__, jetson, machine
from y7edge.errors import RuntimeMissing
from y7edge.interpreters import empty_packages, version_numbers
from y7edge.packages import hidden
from y7edge.runtimes import registry
from y7edge.runtimes.base import Runtime, missing, one_line
from y7edge.sources.launch import JETSON, install

_JETPACK_OPENCV = "JetPack's OpenCV (sudo apt install nvidia-opencv)"
_SECONDS = 60  # to load an engine; it takes less than a second

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
    "gi": ("PyGObject", "camera"),
    "aiohttp": ("aiohttp", "web"),
    "trackers": ("trackers", "tracking"),
    "supervision": ("supervision", "tracking"),
    "pyarrow": ("pyarrow", "parquet"),
}


@dataclass(frozen=True, slots=True)
class Backend:
    """A runtime, its file formats, and whether it can be used on this machine."""

    name: str
    formats: tuple[str, ...]
    usable: bool
    reason: str  # why it is usable or not
    versions: dict[str, str]
    devices: tuple[str, ...] = ()  # that exist on this machine


@dataclass(frozen=True, slots=True)
class Processor:
    """The CPU, and the part of it that this process may use."""

    model: str
    features: dict[str, str]  # name in /proc/cpuinfo -> purpose
    absent: dict[str, str]  # features of other CPUs of this architecture
    processors: int  # of the machine; two for each core with SMT
    cores: int  # physical cores of the machine
    allowed: int  # processors in the affinity mask
    quota: float | None  # CPU quota of the cgroup, in processors
    usable_cores: int  # physical cores that this process may use: the default number of threads
    memory_limit: int | None  # of the cgroup, in bytes


@dataclass(frozen=True, slots=True)
class GStreamer:
    """GStreamer with PyGObject, which captures from cameras and streams."""

    usable: bool
    problem: str | None  # why it is not usable, and what to do
    version: str | None
    missing: dict[str, str]  # element -> command that installs it
    jetson: tuple[str, ...]  # elements of a Jetson that were found


@dataclass(frozen=True, slots=True)
class Report:
    """The result of ``y7edge check``."""

    y7edge: str
    python: str
    system: str
    processor: Processor
    jetson: jetson.Jetson | None  # None: not a Jetson
    packages: dict[str, str | None]  # name on PyPI -> version; None: not installed
    opencv: dict[str, Any]  # installed, version, gstreamer, video, file, problem
    gstreamer: GStreamer
    backends: tuple[Backend, ...]
    ready: dict[str, bool]  # by purpose, such as "detect"
    missing: dict[str, tuple[str, ...]]  # by purpose: packages to install
    empty: tuple[str, ...] = ()  # vendors' packages without their libraries, and what to do

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
    board = jetson.find()
    opencv = _opencv(on_jetson=board is not None)
    find_gstreamer = _look_for_gstreamer()
    backends, gstreamer = _backends(), find_gstreamer()
    if board and gstreamer.usable:
        lost = {name: install(name) for name in JETSON if name not in gstreamer.jetson}
        gstreamer = replace(gstreamer, missing={**gstreamer.missing, **lost})
    lacking = {
        purpose: tuple(pypi for pypi in needs if versions[pypi] is None)
        for purpose, needs in _needs().items()
    }
    # A runtime without packages of its own opens the files of other runtimes.
    if not any(backend.usable and registry.get(backend.name).NEEDS for backend in backends):
        engines = sorted({name for runtime in registry.loadable() for name in runtime.NEEDS})
        lacking["detect"] += (f"an engine (one of {', '.join(engines)})",)
    if not opencv["installed"]:
        lacking["detect"] += (_JETPACK_OPENCV if board else "opencv-python",)
    return Report(
        y7edge=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        jetson=board,
        packages=versions,
        opencv=opencv,
        gstreamer=gstreamer,
        backends=backends,
        ready={purpose: not packages for purpose, packages in lacking.items()},
        missing={purpose: packages for purpose, packages in lacking.items() if packages},
        empty=empty_packages(),
    )


def _processor() -> Processor:
    """Return what is known of the CPU and the limits of this process."""
    found = machine.processor_features()
    return Processor(
        model=machine.processor_model(),
        features={name: machine.FEATURES[name] for name in found},
        absent={name: text for name, text in machine.known_features().items() if name not in found},
        processors=os.cpu_count() or 1,
        cores=machine.physical_cores(),
        allowed=len(machine.allowed_processors()),
        quota=machine.processor_quota(),
        usable_cores=machine.usable_cores(),
        memory_limit=machine.memory_limit(),
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
        "web page": by_extra["web"],
        "tracking": by_extra["tracking"],
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


def _opencv(*, on_jetson: bool) -> dict[str, Any]:
    """Return OpenCV's version, and which libraries it captures video with."""
    found: dict[str, Any] = {"installed": False, "version": None, "gstreamer": False, "file": None}
    found["video"] = []
    try:
        cv2 = import_module("cv2")
        built_with = import_module("y7edge.sources.video_capture").video_backends()
        found |= {"installed": True, "version": cv2.__version__, "file": cv2.__file__}
        found["gstreamer"] = built_with["GStreamer"]
        found["video"] = [name for name, built in built_with.items() if built]
    except (ImportError, AttributeError) as error:  # AttributeError: another module named cv2
        return {**found, "problem": hidden("cv2") or one_line(error)}
    copied = _pip_on_jetson() if on_jetson else None
    return {**found, "problem": _two_packages("cv2") or hidden("cv2") or copied}


def _pip_on_jetson() -> str | None:
    """Say that a package of PyPI is used instead of JetPack's OpenCV, if it is so."""
    packages = metadata.packages_distributions().get("cv2", [])
    if not (copies := sorted({name for name in packages if name.startswith("opencv-")})):
        return None
    return (
        f"{copies[0]} of PyPI hides JetPack's OpenCV, which fits JetPack's NumPy and has GStreamer "
        f"for other programs: pip uninstall {copies[0]}"
    )


def _two_packages(module: str) -> str | None:
    """Return a description of the packages that all contain ``module``, if there are several."""
    packages = sorted(set(metadata.packages_distributions().get(module, [])))
    if len(packages) < 2:
        return None
    return (
        f"{' and '.join(packages)} are installed in the same folder: uninstall all of them, then "
        "install one"
    )


def _too_old(package: str, version: str, extras: set[str]) -> str | None:
    """Return the least version that y7edge needs of ``package``; None if ``version`` is enough.

    Only requirements of these extras count: qnn needs a newer ONNX Runtime than onnxruntime does.
    """
    try:
        requirements = metadata.requires("y7edge") or []
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return None
    for requirement in requirements:
        stated = re.match(rf"{re.escape(package)}\s*\(?>=\s*([0-9.]+)", requirement, re.IGNORECASE)
        extra = re.search(r"""extra == ["']([^"']+)""", requirement)
        if not stated or (extra and extra[1] not in extras):
            continue
        if version_numbers(version) < version_numbers(stated[1]):
            return stated[1]
    return None


# GStreamer loads plugins that may end the process.
_GSTREAMER = """
import json, sys
sys.path[:] = {path!r}
from y7edge.sources.appsink import describe
from y7edge.sources.launch import gstreamer_problem
try:
    problem = gstreamer_problem()
    found = {{"problem": problem}} if problem else describe()
except Exception as error:
    found = {{"problem": " ".join(str(error).split())[:400] or type(error).__name__}}
print("\\n" + json.dumps(found))
"""


def _look_for_gstreamer() -> Callable[[], GStreamer]:
    """Begin to look for GStreamer; return a function that waits for the result."""
    child = subprocess.Popen(
        [sys.executable, "-c", _GSTREAMER.format(path=sys.path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def finish() -> GStreamer:
        try:
            output, _ = child.communicate(timeout=_SECONDS)
            found = json.loads(output.strip().rpartition("\n")[2] or "{}")
            problem = found.get("problem", None if found else "loading it ended the process")
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            found, problem = {}, f"loading it takes more than {_SECONDS} s"
        return GStreamer(
            usable=problem is None,
            problem=problem,
            version=found.get("version"),
            missing=found.get("missing", {}),
            jetson=tuple(found.get("jetson", ())),
        )

    return finish


# Loads an engine in a process of its own, which ends if the CPU does not support the engine.
_PROBE = """
import json, sys
sys.path[:] = {path!r}
from y7edge.runtimes import registry
runtime = registry.get({name!r})
try:
    runtime.load_engine()
    found = {{"devices": runtime.available_devices()}}
except Exception as error:
    found = {{"error": " ".join(str(error).split())[:300] or type(error).__name__}}
print("\\n" + json.dumps(found))
"""


def _backends() -> tuple[Backend, ...]:
    """Check whether the runtimes can be used; all engines are loaded in parallel."""
    checks = [_check(name) for name in registry.names()]
    return tuple(finish() for finish in checks)


def _check(name: str) -> Callable[[], Backend]:
    """Begin to check a runtime; return a function that waits for the result."""
    try:
        runtime = registry.get(name)
    except RuntimeMissing as error:
        refused = Backend(name, (), False, str(error), {})
        return lambda: refused
    reason = _static_reason(runtime)
    if reason is not None:
        refused = Backend(name, runtime.FORMATS, False, reason, runtime.versions())
        return lambda: refused
    child = subprocess.Popen(
        [sys.executable, "-c", _PROBE.format(path=sys.path, name=name)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return partial(_finish, name, runtime, child)


def _static_reason(runtime: Runtime) -> str | None:
    """Return why a runtime cannot be used, as far as that is known without loading its engine."""
    absent = missing(runtime.NEEDS)
    if absent:
        extras = sorted({runtime.NEEDS[package] for package in absent})
        steps = [f"pip install {' '.join(map(repr, extras))}"]
        if advice := _advice(runtime):
            steps = [advice, *(steps if len(absent) > 1 else [])]
        are = "is" if len(absent) == 1 else "are"
        return f"{', '.join(absent)} {are} not installed: {'; then '.join(steps)}"
    for module in runtime.NEEDS:
        if problem := hidden(module):
            return problem
    own = {need.removeprefix("y7edge[").removesuffix("]") for need in runtime.NEEDS.values()}
    for package, version in runtime.versions().items():
        if least := _too_old(package, version, own):
            return f"{package} is {version}, expected {least} or later: pip install -U {package}"
    return None


def _advice(runtime: Runtime) -> str | None:
    """Return what a runtime says about a package that is installed elsewhere, or hidden."""
    find: Callable[[], str | None] = getattr(runtime, "misplaced", lambda: None)
    return find()


def _finish(name: str, runtime: Runtime, child: subprocess.Popen[str]) -> Backend:
    """Wait until an engine is loaded, and return what was found."""
    try:
        output, _ = child.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        error: str | None = f"importing it takes more than {_SECONDS} s"
        record: dict[str, Any] = {}
    else:
        if child.returncode < 0:
            signal = signals.Signals(-child.returncode).name
            error = f"importing it ended with {signal}"
            if signal == "SIGILL":
                flags = ", ".join(machine.processor_features()) or "none of the known features"
                error += f": this build needs CPU instructions that are missing (found: {flags})"
            record = {}
        else:
            record = json.loads(output.strip().rpartition("\n")[2] or "{}")
            error = record.get("error", None if record else "importing it ended the process")
    versions = runtime.versions()
    if error is not None:
        reason = f"installed, but cannot be used: {error}"
        return Backend(name, runtime.FORMATS, False, reason, versions)
    devices = tuple(record["devices"])
    if not devices and (advice := _advice(runtime)):  # its engine is in another interpreter
        return Backend(name, runtime.FORMATS, False, advice, versions)
    kinds = {device.partition(":")[0] for device in devices}
    lacking = {known.partition(":")[0] for known in runtime.DEVICES} - kinds
    reason = f"will be used for {', '.join(runtime.FORMATS)} on {', '.join(devices)}"
    if lacking:
        reason += f"; no device {', '.join(sorted(lacking))}"
    if advice := _advice(runtime):
        reason += f"; {advice}"
    return Backend(name, runtime.FORMATS, True, reason, versions, devices)
