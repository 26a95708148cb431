"""Run MNN artifacts on CPUs (https://github.com/alibaba/MNN).

An artifact is an .mnn file (graph and weights) and the manifest in a .mnn.json file. MNN computes
in float32; the weights of an fp16 artifact are converted when the artifact is opened.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.artifact import (
    Artifact,
    digest_files,
    read_sidecar,
    sidecar,
    write_sidecar,
)
from y7edge.artifact.manifest import Dim
from y7edge.errors import ConfigError, DeviceError
from y7edge.runtimes._openmp import openmp_waits_briefly
from y7edge.runtimes._stdout import silent_stdout
from y7edge.runtimes.base import (
    Session,
    SessionOptions,
    TensorSpec,
    claim_engine,
    installed_versions,
    one_line,
    parse_device,
)

FORMATS = (".mnn",)
TARGETS = ("mnn",)
NEEDS = {"MNN": "y7edge[mnn]"}
DEVICES = ("cpu",)
DEVIATION = 1e-4

# The manifest is in the file beside the artifact.
read_manifest, write_manifest = read_sidecar, write_sidecar

# ``MNN.expr.PrecisionMode.High``. If the name "high" is used instead, MNN prints a line.
_HIGH = 1
# Interpreter::HintMode WINOGRAD_MEMORY_LEVEL and its value. The default, 3, permits Winograd
# convolutions with large tiles. They are a little faster, but deviate up to 50 times as much.
_WINOGRAD = (3, 1)
_TYPES = {"float32": "Halide_Type_Float", "uint8": "Halide_Type_Uint8"}


def load_engine() -> Any:
    """Import MNN, with OpenMP threads that soon sleep while they wait.

    The line about the CPU that the import prints is discarded.

    The package ``MNN.tools``, which installs packages and uploads usage logs, is not imported.
    """
    if "MNN" in sys.modules:
        import MNN

        return MNN
    with silent_stdout(), openmp_waits_briefly():
        import MNN
    return MNN


def files(path: Path) -> tuple[Path, ...]:
    """Return the .mnn file and the manifest."""
    return (path, sidecar(path))


def payload_digest(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the .mnn file."""
    return digest_files(files[:1])


def versions() -> dict[str, str]:
    """Return the version of the installed mnn package."""
    return installed_versions("mnn")


def available_devices() -> list[str]:
    """Return the only device."""
    return ["cpu"]


def open(artifact: Artifact, options: SessionOptions) -> Session:
    """Open a session in MNN; device "auto" is the CPU."""
    return _MnnSession(artifact, options)


class _MnnSession(Session):
    """One ``MNN.Interpreter`` with one ``MNN.Session``."""

    ENGINE = "MNN"

    def __init__(self, artifact: Artifact, options: SessionOptions) -> None:
        parse_device(options.device, DEVICES)
        if options.provider_options:
            raise ConfigError(
                f"MNN has no option {min(options.provider_options)!r}, expected none: leave it out"
            )
        claim_engine("MNN")  # all sessions share one pool of threads
        manifest = artifact.manifest
        stored = "float16 weights, " if manifest.precision == "fp16" else ""
        super().__init__(
            str(artifact.path),
            manifest,
            device="cpu",
            arithmetic=f"{stored}float32 (MNN, cpu)",
            versions=versions(),
            threads=options.thread_count,
        )
        self._engine: Any = load_engine()
        settings = {"backend": "CPU", "numThread": options.thread_count, "precision": _HIGH}
        try:
            self._net: Any = self._engine.Interpreter(str(artifact.path))
            self._net.setSessionHint(*_WINOGRAD)
            self._session: Any = self._net.createSession(settings)
            inputs = self._net.getSessionInputAll(self._session)
            outputs = self._net.getSessionOutputAll(self._session)
        except Exception as error:  # MNN has no exception class of its own
            raise DeviceError(f"MNN cannot open {artifact.path}: {one_line(error)}") from error
        self._require_tensors(
            self._tensors(inputs, self.inputs), self._tensors(outputs, self.outputs)
        )

    def _tensors(
        self, tensors: Mapping[str, Any], specs: Sequence[TensorSpec]
    ) -> list[tuple[str, str, tuple[Dim, ...]]]:
        """Return name, dtype and shape of the engine's tensors.

        MNN opens a dynamic batch with size 1; here its size is "dynamic".
        """
        dynamic = {spec.name for spec in specs if spec.shape[0] == "dynamic"}
        return [
            (
                name,
                self._dtype(tensor),
                ("dynamic", *tensor.getShape()[1:]) if name in dynamic else tensor.getShape(),
            )
            for name, tensor in tensors.items()
        ]

    def _dtype(self, tensor: Any) -> str:
        """Return the dtype of a tensor; MNN compares types by identity."""
        found = tensor.getDataType()
        for dtype, name in _TYPES.items():
            if found is getattr(self._engine, name):
                return dtype
        return "unknown"

    def bare(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        """Return a function that copies the inputs, runs the session, and copies the outputs.

        If the batch is dynamic, the function first checks the size of the session, as every program
        must: MNN would copy an input of another size beyond the end of the tensor.
        """
        net, session = self._net, self._session
        tensors = self._sized(feeds)
        dynamic = any(spec.shape[:1] == ("dynamic",) for spec in self.inputs)
        given = [
            (tensors[spec.name], self._wrapped(np.ascontiguousarray(feeds[spec.name]), spec))
            for spec in self.inputs
        ]

        def run() -> object:
            if dynamic:
                self._sized(feeds)
            for tensor, array in given:
                tensor.copyFrom(array)
            net.runSession(session)
            return [self._output(spec) for spec in self.outputs]

        return run

    def _sized(self, feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, Any]:
        """Return the session's inputs by name, after giving them the sizes of the feeds."""
        tensors: Mapping[str, Any] = self._net.getSessionInputAll(self._session)
        resized = False
        for spec in self.inputs:
            if tensors[spec.name].getShape() != feeds[spec.name].shape:
                self._net.resizeTensor(tensors[spec.name], feeds[spec.name].shape)
                resized = True
        if resized:
            self._net.resizeSession(self._session)
        return tensors

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        tensors = self._sized(feeds)
        # The session overwrites its inputs while it runs, so they are copied before every run.
        for spec in self.inputs:
            array = np.ascontiguousarray(feeds[spec.name])
            tensors[spec.name].copyFrom(self._wrapped(array, spec))
        if status := self._net.runSession(self._session):
            raise DeviceError(f"MNN failed with status {status}")
        return {spec.name: self._output(spec) for spec in self.outputs}

    def _output(self, spec: TensorSpec) -> NDArray[Any]:
        """Copy an output, in the order of its dimensions, to a new array."""
        tensor = self._net.getSessionOutput(self._session, spec.name)
        host = self._wrapped(np.empty(tensor.getShape(), spec.dtype), spec)
        tensor.copyToHostTensor(host)
        return np.array(host.getNumpyData())

    def _wrapped(self, array: NDArray[Any], spec: TensorSpec) -> Any:
        """Return a tensor with the values of an array, which MNN copies."""
        return self._engine.Tensor(
            array.shape,
            getattr(self._engine, _TYPES[spec.dtype]),
            array,
            self._engine.Tensor_DimensionType_Caffe,
        )

    def _close(self) -> None:
        self._session = None
        self._net = None
