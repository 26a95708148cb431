"""The interface of runtimes and sessions, and the checks that all runtimes share.

A runtime is a module with the members of ``Runtime``, in this folder or announced by an entry
point of the group ``y7edge.runtimes``. It imports its engine inside functions only. A session is a
model that was opened in an engine; its inputs and outputs are numpy arrays.
"""

from __future__ import annotations

import ctypes
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar, runtime_checkable
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.foreign import Foreign
from y7edge.artifact.manifest import THRESHOLD_INPUTS, Dim, Manifest
from y7edge.artifact.schema import require_fit
from y7edge.errors import (
    ArtifactError,
    ConfigError,
    DetectorClosed,
    DeviceError,
    ManifestMissing,
    RuntimeMissing,
    Y7EdgeError,
)
from y7edge.frames import OnDevice
from y7edge.machine import usable_cores

MAX_THREADS = 1024

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a session.

    Attributes:
        name: Name in the engine.
        shape: Sizes. "dynamic" stands for a dynamic batch, or for a number of rows that depends on
            the image.
        dtype: Name of the numpy dtype, such as "float32".
        role: "images", "threshold", "head", "boxes", "scores" or "detections".
        layout: Order of the axes, such as "NCHW".
        scale: Quantisation step of an integer tensor; None for floats.
        zero_point: Integer that stands for 0; None for floats.
        optional: Whether an input may be left out, because the graph has a default value for it.
    """

    name: str
    shape: tuple[Dim, ...]
    dtype: str
    role: str
    layout: str
    scale: float | None = None
    zero_point: int | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How to run an artifact.

    Attributes:
        device: "auto", or a device from the runtime's ``DEVICES``, such as "cpu" or "cuda:1".
        threads: Number of engine threads; None: the number of physical cores that this process may
            use (see ``y7edge.machine.usable_cores``), the same for all engines.
        provider_options: Options of the engine; the module of each runtime says which.
        check_payload: Whether to check the payload digest before opening the files. None: only for
            artifacts of several files, because files of different artifacts may be mixed up.
    """

    device: str = "auto"
    threads: int | None = None
    provider_options: Mapping[str, Any] = field(default_factory=dict)
    check_payload: bool | None = None

    def __post_init__(self) -> None:
        require_fit(SessionOptions, {f.name: getattr(self, f.name) for f in fields(self)})
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise ConfigError(f"threads is {self.threads}, expected 1 to {MAX_THREADS}")

    @property
    def thread_count(self) -> int:
        """Number of threads to run with on the CPU."""
        return int(self.threads or min(usable_cores(), MAX_THREADS))


class Session(ABC):
    """A model that was opened in an engine. Not thread-safe: callers must use a lock.

    Subclasses implement ``_run`` and ``_close``, and set ``ENGINE`` to the engine's name for
    messages.

    Attributes:
        inputs: Tensors that ``infer`` takes; those that are ``optional`` may be left out.
        outputs: Tensors that ``infer`` returns.
        device: The device in use, such as "cpu" or "cuda:0".
        arithmetic: Description of the arithmetic, such as "float32 (ONNX Runtime, cpu)". An engine
            may compute in another precision than the artifact's.
        versions: Versions of the engine's packages.
        threads: Number of CPU threads; None: unknown, or the engine does not use the CPU.
        backend: Name of the runtime; empty if the session was not opened by the registry.
        why: Why this runtime was chosen.
    """

    ENGINE: ClassVar[str]
    backend: str = ""
    why: str = ""

    def __init__(
        self,
        label: str,
        manifest: Manifest,
        *,
        device: str,
        arithmetic: str,
        versions: Mapping[str, str],
        threads: int | None = None,
    ) -> None:
        image = manifest.input
        self.inputs = (
            TensorSpec(image.name, image.shape, image.dtype, "images", image.layout),
            *(
                TensorSpec(name, (), THRESHOLD_INPUTS[name], "threshold", "", optional=True)
                for name in manifest.threshold_inputs
            ),
        )
        self.outputs = tuple(
            TensorSpec(o.name, o.shape, o.dtype, o.role, o.layout, o.scale, o.zero_point)
            for o in manifest.outputs
        )
        self.device = device
        self.arithmetic = arithmetic
        self.versions = dict(versions)
        self.threads = threads
        self._label = label
        self._closed = False
        self._process = os.getpid()
        _SESSIONS.add(self)

    @property
    def info(self) -> dict[str, Any]:
        """Backend, device, threads and versions, as JSON values for logs."""
        names = ("backend", "why", "device", "threads", "arithmetic")
        return {**{name: getattr(self, name) for name in names}, "versions": dict(self.versions)}

    @property
    def on_device(self) -> OnDevice | None:
        """What pre-processes images and selects candidates on the device; None: numpy does."""
        return None

    def infer(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model on arrays, by input name; return new arrays, by output name.

        Raises:
            ConfigError: names, shapes or dtypes of the feeds differ from the model's inputs.
            DetectorClosed: the session was closed.
            DeviceError: the engine failed.
        """
        self._require_open()
        check_feeds(self.inputs, feeds)
        results = self._call(self._run, feeds)
        images = len(feeds[self.inputs[0].name])
        for spec in self.outputs:
            found, rows = results.get(spec.name), spec.role == "detections"
            if found is None or not fits(found, spec) or not (rows or len(found) == images):
                shape = spec.shape if rows else (images, *spec.shape[1:])
                what = "nothing" if found is None else f"{found.dtype} {found.shape}"
                raise DeviceError(
                    f"{self.ENGINE} returned {what} for output {spec.name} of {self._label}, "
                    f"expected {spec.dtype} {shape}: export it again"
                )
        return results

    def _require_open(self) -> None:
        """Raise DetectorClosed or DeviceError if the session cannot be used in this process."""
        if self._closed:
            raise DetectorClosed(f"the session of {self._label} was closed: open it again")
        require_process(self._process, f"the session of {self._label}")

    def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call the engine; convert its exceptions to DeviceError."""
        try:
            return function(*arguments)
        except Y7EdgeError:
            raise
        except Exception as error:  # engines have no common exception class
            raise DeviceError(
                f"{self._label} failed in {self.ENGINE}: {one_line(error)}"
            ) from error

    def close(self) -> None:
        """Free the engine's memory. Calling it again has no effect.

        In a forked child nothing is freed, because the engine would wait forever for its threads,
        which exist only in the parent process.
        """
        if not self._closed and self._process == os.getpid():
            self._close()
        self._closed = True

    def __reduce__(self) -> NoReturn:
        """Raise DeviceError: a session cannot be pickled or copied."""
        refuse_copy(f"the session of {self._label}")

    def bare(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], object] | None:
        """Return a function that runs the engine on ``feeds`` through its own API only.

        ``y7edge benchmark`` compares this function with ``infer``. It makes all outputs readable as
        numpy arrays, without checks and without copies. Returns None if the runtime has no such
        function.
        """
        return None

    @abstractmethod
    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the engine on feeds that were checked; return new arrays by output name.

        ``infer`` converts exceptions other than Y7EdgeError to DeviceError.
        """

    @abstractmethod
    def _close(self) -> None:
        """Free the engine's memory."""

    def _require_tensors(
        self, inputs: Iterable[tuple[str, str, tuple[Dim, ...]]], outputs: Iterable[Any]
    ) -> None:
        """Raise ArtifactError if the engine's tensors differ from the manifest's.

        ``inputs`` and ``outputs`` are the engine's tensors, each (name, dtype, shape).
        """
        for kind, found, specs in (
            ("inputs", list(inputs), self.inputs),
            ("outputs", list(outputs), self.outputs),
        ):
            expected = [(spec.name, spec.dtype, spec.shape) for spec in specs]
            for (name, dtype, shape), wanted in zip(found, expected, strict=False):
                if (name, dtype, shape) != wanted:
                    raise ArtifactError(
                        f"{self._label} has the tensor {name} {dtype} {shape}, its manifest has "
                        f"{wanted[0]} {wanted[1]} {wanted[2]}: export it again"
                    )
            if len(found) != len(expected):
                raise ArtifactError(
                    f"{self._label} has {len(found)} {kind}, but its manifest lists "
                    f"{len(expected)}: export it again"
                )


_SESSIONS: WeakSet[Session] = WeakSet()  # all sessions of this process


def keep(thing: object) -> None:
    """Prevent an object from ever being freed, even when the process ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _keep_sessions() -> None:
    """Prevent the parent's sessions from being freed in a forked child (see ``Session.close``)."""
    for session in list(_SESSIONS):
        keep(session)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_sessions)


class Runtime(Protocol):
    """A module that opens artifacts with one engine."""

    FORMATS: tuple[str, ...]
    """Supported file suffixes, in lower case, with the dot."""
    TARGETS: tuple[str, ...]
    """Export targets (``manifest.target``) whose artifacts this runtime runs and proves."""
    NEEDS: Mapping[str, str]
    """Import name of each required package -> extra to install."""
    DEVICES: tuple[str, ...]
    """Supported device names besides "auto"; "cuda:N" allows any index."""
    DEVIATION: float
    """Tolerance for fp32 outputs, as a fraction of an output's largest magnitude."""

    def load_engine(self) -> Any:
        """Import the engine with its telemetry off. No other function imports the engine."""

    def files(self, path: Path) -> tuple[Path, ...]:
        """Return the paths of all files of an artifact, main file first; they need not exist."""

    def read_manifest(self, path: Path) -> Manifest:
        """Read the manifest of a file, without the engine.

        Raises:
            ArtifactError: the file has another format, or was not made by y7edge.
            DigestError: the manifest was changed after it was proved.
        """

    def write_manifest(self, artifact: Artifact) -> None:
        """Write the artifact's manifest into its files, replacing an older one."""

    def payload_digest(self, files: Sequence[Path]) -> str:
        """Return the SHA-256 over all files except the manifest, without the engine."""

    def open(self, artifact: Artifact, options: SessionOptions) -> Session:
        """Open a session. The registry checks before that the files and the engine exist.

        Raises:
            DeviceError: the device does not exist, or the engine refuses the files. There is no
                fallback to another device.
            ArtifactError: inputs or outputs differ from the manifest.
        """

    def available_devices(self) -> list[str]:
        """Return the devices of this machine that the engine finds, for ``y7edge check``."""

    def versions(self) -> dict[str, str]:
        """Return the versions of the engine's installed packages."""


SIMULATORS = frozenset({"emulator", "simulator"})
"""Names of devices that compute on the CPU as another device does, far more slowly."""


def is_simulated(runtime: Runtime) -> bool:
    """Return whether a runtime has no device of its own here, but an emulator or simulator."""
    if not SIMULATORS.intersection(runtime.DEVICES) or missing(runtime.NEEDS):
        return False
    return SIMULATORS.issuperset(runtime.available_devices())


@runtime_checkable
class ReadsForeign(Protocol):
    """A runtime that also opens files of other exporters."""

    def read_foreign(
        self, path: Path, names: Sequence[str] | None = None, imgsz: tuple[int, int] | None = None
    ) -> Foreign | None:
        """Describe a file without a manifest by its tensors; None if it has a manifest."""


def require_process(process: int, what: str) -> None:
    """Raise DeviceError if ``process``, which opened ``what``, is not the current process.

    An engine's threads do not exist in a forked child, so a call would wait for them forever.
    """
    if process != os.getpid():
        raise DeviceError(
            f"{what} was opened in another process; engines cannot be used after a fork: open it "
            "in this process"
        )


_OWNERS: dict[str, int] = {}  # engine -> process that used it first


def claim_engine(engine: str) -> None:
    """Raise DeviceError in a process that was forked after ``engine`` was used in its parent.

    For engines whose threads are shared by all sessions: these threads do not exist in a forked
    child, so that even a new session would wait for them forever.
    """
    if _OWNERS.setdefault(engine, os.getpid()) != os.getpid():
        raise DeviceError(
            f"{engine} was in use when this process was forked, and cannot be used after a fork: "
            "open artifacts only after the fork, or start processes with multiprocessing's 'spawn'"
        )


def refuse_copy(what: str) -> NoReturn:
    """Raise DeviceError for an attempt to pickle or copy ``what``."""
    raise DeviceError(
        f"{what} cannot be pickled or copied: pass the artifact's path to the other process, and "
        "open it there with Detector(path)"
    )


def decode_manifest(text: str | bytes | None, path: Path, options: str) -> Manifest:
    """Decode the manifest of a file, and check its digest.

    Args:
        text: JSON; None if the file has no manifest.
        path: the file, for messages.
        options: options of ``y7edge export`` that make such a file, for messages.

    Raises:
        ManifestMissing: there is no manifest.
        ArtifactError: the manifest is invalid.
        DigestError: the manifest was changed.
    """
    if text is None:
        raise ManifestMissing(
            f"{path} has no y7edge manifest with classes, anchors and proof (files of other "
            f"exporters have none): make an artifact with `y7edge export CHECKPOINT {options}`"
        )
    return Manifest.from_json(text, str(path))


def parse_device(text: str, devices: Sequence[str]) -> tuple[str, int | None]:
    """Split a device name into kind and index, such as ("cuda", 1), or ("cpu", None).

    Args:
        text: the user's text, such as "auto", "cpu" or "cuda:1".
        devices: the supported names besides "auto"; "cuda:N" allows an index.

    Raises:
        ConfigError: the device is not supported.
    """
    kind, colon, index = text.partition(":")
    known = {"auto", *devices}
    if not colon and kind in known:
        return kind, None
    if colon and f"{kind}:N" in known and re.fullmatch(r"[0-9]{1,3}", index):
        return kind, int(index)
    *most, last = "auto", *devices
    raise ConfigError(f"device is {text!r}, expected {', '.join(most)} or {last}")


def missing(needs: Mapping[str, str]) -> list[str]:
    """Return the import names from ``needs`` that are not installed, without importing them."""
    return [name for name in needs if find_spec(name) is None]


def require(
    needs: Mapping[str, str], purpose: str, advice: Callable[[], str | None] | None = None
) -> None:
    """Raise RuntimeMissing, which says what to install, if a package of ``needs`` is missing.

    ``advice`` is ``misplaced`` of a runtime: how to get a package that pip does not install.
    """
    absent = missing(needs)
    if absent:
        are = "is" if len(absent) == 1 else "are"
        how = " ".join(sorted({f'"{needs[name]}"' for name in absent}))
        if found := advice and advice():
            how += f"; {found}"
        raise RuntimeMissing(
            f"{purpose} needs {', '.join(absent)}, which {are} not installed: pip install {how}"
        )


def installed_versions(*packages: str) -> dict[str, str]:
    """Return the version of each package (PyPI name) that is installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def one_line(error: Exception) -> str:
    """Return the message of an engine's error as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def fits(array: NDArray[Any], spec: TensorSpec) -> bool:
    """Return whether an array has the shape and the dtype of a tensor."""
    pairs = zip(array.shape, spec.shape, strict=False)
    return (
        len(array.shape) == len(spec.shape)
        and array.dtype == spec.dtype
        and all(expected in (size, "dynamic") for size, expected in pairs)
    )


def check_feeds(inputs: tuple[TensorSpec, ...], feeds: Mapping[str, NDArray[Any]]) -> None:
    """Raise ConfigError if names, shapes or dtypes of ``feeds`` differ from the inputs."""
    names = [spec.name for spec in inputs]
    required = {spec.name for spec in inputs if not spec.optional}
    if not required <= set(feeds) <= set(names):
        raise ConfigError(
            f"the model takes {', '.join(names)}; got {', '.join(feeds) or 'nothing'}"
        )
    for spec in inputs:
        if spec.name not in feeds:
            continue
        array = feeds[spec.name]
        if not isinstance(array, np.ndarray):
            raise ConfigError(
                f"{spec.name} is a {type(array).__name__}, expected a numpy array of {spec.dtype} "
                f"{spec.shape}"
            )
        if not fits(array, spec) or not array.size:
            raise ConfigError(
                f"{spec.name} is {array.dtype} {array.shape}, expected {spec.dtype} {spec.shape}"
            )
