"""What a runtime is, and what an opened model (a session) is: numpy in, numpy out.

A runtime is a module in this folder, or one named by an entry point of the group
``y7edge.runtimes``, with the members of the protocol :class:`Runtime`. It imports its engine inside
functions only.
"""

from __future__ import annotations

import ctypes
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Dim, InputInfo, Manifest, OutputInfo
from y7edge.artifact.schema import require_fit
from y7edge.errors import (
    ArtifactError,
    ConfigError,
    DetectorClosed,
    DeviceError,
    RuntimeMissing,
    Y7EdgeError,
)

MAX_THREADS = 1024


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a session; integer ones have ``scale`` and ``zero_point``."""

    name: str
    shape: tuple[Dim, ...]
    dtype: str
    role: str
    layout: str
    scale: float | None = None
    zero_point: int | None = None

    @staticmethod
    def of_input(info: InputInfo) -> TensorSpec:
        """The manifest's input as a tensor."""
        return TensorSpec(info.name, info.shape, info.dtype, "images", info.layout)

    @staticmethod
    def of_output(info: OutputInfo) -> TensorSpec:
        """One of the manifest's outputs as a tensor."""
        return TensorSpec(
            info.name,
            info.shape,
            info.dtype,
            info.role,
            info.layout,
            info.scale,
            info.zero_point,
        )


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How to run an artifact.

    Attributes:
        device: "auto", or a name of the runtime's ``DEVICES``: "cpu", "cuda:1".
        threads: Of the engine; None: the engine's own choice.
        provider_options: Passed to the engine as they are.
        check_payload: Compare the payload digest before opening. None: if the artifact has several
            files, because a mix-up of files is likelier than tampering.
    """

    device: str = "auto"
    threads: int | None = None
    provider_options: Mapping[str, Any] = field(default_factory=dict)
    check_payload: bool | None = None

    def __post_init__(self) -> None:
        require_fit(SessionOptions, {f.name: getattr(self, f.name) for f in fields(self)})
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise ConfigError(f"threads is {self.threads}, expected 1 to {MAX_THREADS}")


class Session(ABC):
    """An opened model. Not thread-safe: callers lock.

    An engine's session implements ``_run`` and ``_close``. Whatever ``_run`` raises beside our own
    errors is wrapped in a DeviceError here, once.

    Attributes:
        inputs: Tensors that ``infer`` takes.
        outputs: Tensors that ``infer`` returns.
        device: Where it runs: "cpu", "cuda:0".
        arithmetic: What is computed, in words; an engine may emulate what the device lacks.
        versions: Of the engine's packages.
    """

    ENGINE: ClassVar[str]

    def __init__(
        self,
        label: str,
        manifest: Manifest,
        *,
        device: str,
        arithmetic: str,
        versions: Mapping[str, str],
    ) -> None:
        self.inputs = (TensorSpec.of_input(manifest.input),)
        self.outputs = tuple(TensorSpec.of_output(output) for output in manifest.outputs)
        self.device = device
        self.arithmetic = arithmetic
        self.versions = dict(versions)
        self._label = label
        self._closed = False
        self._process = os.getpid()
        _SESSIONS.add(self)

    def infer(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once: arrays by name in, new arrays by name out, in the engine's own dtypes.

        Raises:
            ConfigError: the feeds are not the inputs that the model takes.
            DetectorClosed: the session was closed.
            DeviceError: the engine failed.
        """
        if self._closed:
            raise DetectorClosed(f"the session of {self._label} was closed: open it again")
        require_process(self._process, f"the session of {self._label}")
        check_feeds(self.inputs, feeds)
        try:
            return self._run(feeds)
        except Y7EdgeError:
            raise
        except Exception as error:  # vendors' exceptions share no base class but this
            raise DeviceError(
                f"{self._label} failed in {self.ENGINE}: {one_line(error)}"
            ) from error

    def close(self) -> None:
        """Free the engine's memory; closing twice is allowed.

        In a forked child nothing is freed: engines wait there for threads that do not exist.
        """
        if not self._closed and self._process == os.getpid():
            self._close()
        self._closed = True

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied."""
        refuse_copy(f"the session of {self._label}")

    @abstractmethod
    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the engine on checked feeds; return new arrays."""

    @abstractmethod
    def _close(self) -> None:
        """Free the engine's memory."""

    def _require_tensors(
        self, inputs: Iterable[tuple[str, str, tuple[Dim, ...]]], outputs: Iterable[Any]
    ) -> None:
        """Raise ArtifactError unless these (name, dtype, shape) are the manifest's tensors."""
        for found, specs in ((list(inputs), self.inputs), (list(outputs), self.outputs)):
            expected = [(spec.name, spec.dtype, spec.shape) for spec in specs]
            for (name, dtype, shape), wanted in zip(found, expected, strict=False):
                if (name, dtype, shape) != wanted:
                    raise ArtifactError(
                        f"{self._label} has {name} {dtype} {shape} where its manifest says "
                        f"{wanted[0]} {wanted[1]} {wanted[2]}: export it again"
                    )
            if len(found) != len(expected):
                raise ArtifactError(
                    f"{self._label} has {len(found)} inputs or outputs where its manifest says "
                    f"{len(expected)}: export it again"
                )


_SESSIONS: WeakSet[Session] = WeakSet()


def keep(thing: object) -> None:
    """Keep an object for good: not even the end of the process frees it."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _keep_sessions() -> None:
    for session in list(_SESSIONS):
        keep(session)


if hasattr(os, "register_at_fork"):  # in the child, freeing would wait for threads not there
    os.register_at_fork(after_in_child=_keep_sessions)


class Runtime(Protocol):
    """A module that opens one family of files with one engine."""

    FORMATS: tuple[str, ...]
    """Suffixes that it opens, in lower case, with the dot."""
    TARGETS: tuple[str, ...]
    """Export targets (``manifest.target``) whose artifacts it runs and proves."""
    NEEDS: Mapping[str, str]
    """Import name of each package that it needs -> what to install."""
    DEVICES: tuple[str, ...]
    """Device names that it understands beside "auto"; "cuda:N" stands for any index."""
    DEVIATION: float
    """Largest deviation of its fp32 results, as a fraction of an output's largest magnitude."""

    def load_engine(self) -> Any:
        """Import the engine, its telemetry switched off first: the one place that imports it."""

    def files(self, path: Path) -> tuple[Path, ...]:
        """All files of the artifact at ``path``, the main one first, whether they exist or not."""

    def read_manifest(self, path: Path) -> Manifest:
        """Read the manifest of a file; needs no engine.

        Raises:
            ArtifactError: a file of another format, or one that y7edge did not make.
            DigestError: the manifest was changed after it was proved.
        """

    def write_manifest(self, artifact: Artifact) -> None:
        """Put the artifact's manifest into its files, in place of the one there."""

    def payload_digest(self, files: Sequence[Path]) -> str:
        """SHA-256 of everything but the manifest, over all files; needs no engine."""

    def open(self, artifact: Artifact, options: SessionOptions) -> Session:
        """Start a session; the registry has checked that files and engine are there.

        Raises:
            DeviceError: the device does not exist (never another one instead), or the engine
                refuses the files.
            ArtifactError: inputs or outputs are not those of the manifest.
        """

    def versions(self) -> dict[str, str]:
        """Versions of the engine's installed packages."""


def require_process(process: int, what: str) -> None:
    """Raise DeviceError unless ``what`` was opened in this process, by its id.

    An engine's threads are not there after a fork; a call would wait for them for ever.
    """
    if process != os.getpid():
        raise DeviceError(
            f"{what} was opened in another process, and engines do not survive a fork: open it in "
            "this process"
        )


def refuse_copy(what: str) -> NoReturn:
    """Raise the DeviceError for ``what`` that was pickled or copied: engines stay in a process."""
    raise DeviceError(
        f"{what} cannot be pickled or copied: give the artifact's path to the other process, and "
        "open it there with Detector(path)"
    )


def decode_manifest(text: str | bytes | None, path: Path, options: str) -> Manifest:
    """Decode the manifest found in a file; ArtifactError if there is none (None).

    ``options`` are those of ``y7edge export`` that would have made such a file.
    """
    if text is None:
        raise ArtifactError(
            f"{path} has no y7edge manifest, so its classes, anchors and proof are unknown: make "
            f"an artifact with `y7edge export CHECKPOINT {options}`"
        )
    return Manifest.from_json(text, str(path))


def parse_device(text: str, devices: Sequence[str]) -> tuple[str, int | None]:
    """Split a device name into its kind and its index.

    Args:
        text: as a user wrote it: "auto", "cpu", "cuda:1".
        devices: what is understood beside "auto"; "cuda:N" allows an index.

    Raises:
        ConfigError: ``text`` is none of them.
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
    """Import names from ``needs`` that are not installed; nothing is imported."""
    return [name for name in needs if find_spec(name) is None]


def require(needs: Mapping[str, str], purpose: str) -> None:
    """Raise RuntimeMissing, saying what to install, unless everything in ``needs`` is there."""
    absent = missing(needs)
    if absent:
        how = " ".join(sorted({f'"{needs[name]}"' for name in absent}))
        raise RuntimeMissing(
            f"{purpose} needs {', '.join(absent)}, which is not installed: pip install {how}"
        )


def installed_versions(*packages: str) -> dict[str, str]:
    """Versions of those of ``packages`` (names on PyPI) that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def one_line(error: Exception) -> str:
    """An engine's message on one line, of bounded length."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def check_feeds(inputs: tuple[TensorSpec, ...], feeds: Mapping[str, NDArray[Any]]) -> None:
    """Raise ConfigError unless ``feeds`` has exactly the inputs, in their shapes and dtypes."""
    names = [spec.name for spec in inputs]
    if sorted(feeds) != sorted(names):
        raise ConfigError(
            f"the model takes {', '.join(names)}; got {', '.join(feeds) or 'nothing'}"
        )
    for spec in inputs:
        array = feeds[spec.name]
        fits = len(array.shape) == len(spec.shape) and all(
            size == expected or (expected == "dynamic" and size > 0)
            for size, expected in zip(array.shape, spec.shape, strict=True)
        )
        if not fits or array.dtype != np.dtype(spec.dtype):
            raise ConfigError(
                f"{spec.name} is {array.dtype} {array.shape}, expected {spec.dtype} {spec.shape}"
            )
