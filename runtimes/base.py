"""What a runtime is: three constants and four functions; what a session is: numpy in, numpy out.

A runtime is a module in this folder (or one named by an entry point of the group
``y7edge.runtimes``) that fits the protocol ``Runtime``. It imports its engine inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Dim, InputInfo, Manifest, OutputInfo
from y7edge.errors import ConfigError, RuntimeMissing


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
    """How to run: on which device, with how many threads.

    ``device`` is "auto", "cpu", "cuda" or "cuda:1"; ``threads=None`` leaves it to the engine.
    ``provider_options`` goes to the engine as it is. ``precision`` is a hint for engines that could
    compute in less than the artifact's own; it is never a licence to do so.
    """

    device: str = "auto"
    threads: int | None = None
    provider_options: Mapping[str, Any] = field(default_factory=dict)
    precision: str | None = None


class Session(Protocol):
    """An opened model. Single-threaded by contract: callers lock."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Tensors that ``infer`` takes."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Tensors that ``infer`` gives."""

    @property
    def device(self) -> str:
        """Where it really runs: "cpu", "cuda:0"..."""

    @property
    def arithmetic(self) -> str:
        """What is really computed, in words: an engine may emulate what the device lacks."""

    def infer(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once; arrays by name in, new arrays by name out, in the engine's own dtypes."""

    def close(self) -> None:
        """Free the engine's memory; closing twice is allowed, inferring afterwards is not."""


class Runtime(Protocol):
    """A module that opens one family of files with one engine."""

    FORMATS: tuple[str, ...]
    """Suffixes, with the dot."""
    TARGETS: tuple[str, ...]
    """Export targets (``manifest.target``) whose files it runs."""
    NEEDS: Mapping[str, str]
    """Import name of each package that it needs -> what to install."""
    DEVIATION: float
    """Largest deviation of its fp32 arithmetic from the reference, as a fraction of the scale."""

    def open(self, artifact: Artifact, options: SessionOptions) -> Session:
        """Start a session; DeviceError if the device does not exist, never another one instead."""

    def read_manifest(self, path: Path) -> Manifest:
        """The manifest of a file, its own digest checked; needs no engine."""

    def payload_digest(self, path: Path) -> str:
        """SHA-256 of graph and tensors, metadata apart; needs no engine."""

    def versions(self) -> dict[str, str]:
        """Versions of the engine's packages, for reports."""


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
