"""ONNX Runtime: .onnx files on CPUs and NVIDIA GPUs (https://onnxruntime.ai).

The manifest is the metadata property ``y7edge`` of the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import MAX_BYTES, Manifest
from y7edge.errors import ArtifactError, ConfigError, DeviceError
from y7edge.runtimes import _modelproto
from y7edge.runtimes.base import Session, SessionOptions, TensorSpec, check_feeds, require

# Since 1.29 ONNX Runtime reports to its maker over the network, also from Linux, unless this is set
# before its first import. Whoever wants that sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

FORMATS = (".onnx",)
TARGETS = ("onnx",)
NEEDS = {"onnxruntime": "y7edge[cpu]"}
DEVIATION = 1e-4  # it sums in nearly the reference's order; Winograd and FFT deviate more

_KEY = "y7edge"
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
}


def read_manifest(path: Path) -> Manifest:
    """The manifest inside an .onnx file, its own digest checked.

    Raises:
        ArtifactError: not an ONNX file, or one that y7edge did not make.
        DigestError: the manifest was changed after it was proved.
    """
    text = _modelproto.read_metadata(path, _KEY, MAX_BYTES)
    if text is None:
        raise ArtifactError(
            f"{path} has no y7edge manifest, so its classes, anchors and proof are unknown: make "
            "an artifact with `y7edge export CHECKPOINT --out FILE.onnx`"
        )
    return Manifest.from_json(text, str(path))


def payload_digest(path: Path) -> str:
    """SHA-256 of graph and tensors: of everything in the file but its metadata."""
    return _modelproto.payload_digest(path)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Put ``manifest`` into an .onnx file in place of all metadata that it had."""
    payload = _modelproto.without_metadata(path)
    path.write_bytes(payload + _modelproto.metadata_field(_KEY, manifest.to_json()))


def versions() -> dict[str, str]:
    """Versions of the installed onnxruntime packages; empty if there is none."""
    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def open(artifact: Artifact, options: SessionOptions) -> Session:
    """Start ONNX Runtime on an artifact.

    Raises:
        RuntimeMissing: onnxruntime is not installed.
        DeviceError: the device does not exist here, or the engine refuses the file.
        ArtifactError: the graph's inputs and outputs are not those of the manifest.
    """
    require(NEEDS, f"opening {artifact.path.name}")
    return _OnnxSession(artifact, options)


def run_once(path: Path, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run a bare .onnx file on the CPU, outputs by name: for graphs that are no artifacts yet.

    Raises:
        RuntimeMissing: onnxruntime is not installed.
        DeviceError: the engine refuses the file or fails on it.
    """
    require(NEEDS, f"running {path.name}")
    engine = _start(path, SessionOptions(device="cpu"))
    names = [output.name for output in engine.get_outputs()]
    try:
        results = engine.run(names, dict(feeds))
    except Exception as error:  # onnxruntime's exceptions share no base class but this
        raise DeviceError(f"{path} failed in ONNX Runtime: {_line(error)}") from error
    return dict(zip(names, results, strict=True))


class _OnnxSession:
    """One ``onnxruntime.InferenceSession`` and the tensors that the manifest promises."""

    def __init__(self, artifact: Artifact, options: SessionOptions) -> None:
        manifest = artifact.manifest
        self.inputs = (TensorSpec.of_input(manifest.input),)
        self.outputs = tuple(TensorSpec.of_output(output) for output in manifest.outputs)
        self._names = [output.name for output in self.outputs]
        self._path = artifact.path
        self._engine: Any = _start(artifact.path, options)
        self.device = _device_of(self._engine, artifact.path, options)
        self.arithmetic = _arithmetic(manifest.precision, self.device)
        self._compare(self._engine.get_inputs(), self.inputs)
        self._compare(self._engine.get_outputs(), self.outputs)

    def infer(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once; the outputs are new arrays.

        Raises:
            ConfigError: the feeds are not the inputs that the model takes.
            DeviceError: the engine failed, or the session was closed.
        """
        if self._engine is None:
            raise DeviceError(f"the session of {self._path} was closed: open it again")
        check_feeds(self.inputs, feeds)
        try:
            results = self._engine.run(self._names, dict(feeds))
        except Exception as error:  # onnxruntime's exceptions share no base class but this
            raise DeviceError(f"{self._path} failed in ONNX Runtime: {_line(error)}") from error
        return dict(zip(self._names, results, strict=True))

    def close(self) -> None:
        """Free the engine's memory."""
        self._engine = None

    def _compare(self, found: list[Any], expected: tuple[TensorSpec, ...]) -> None:
        """The graph's own tensors against the manifest's."""
        for tensor, spec in zip(found, expected, strict=False):
            shape = tuple(d if isinstance(d, int) else "dynamic" for d in tensor.shape)
            dtype = _DTYPES.get(tensor.type, tensor.type)
            if (tensor.name, shape, dtype) != (spec.name, spec.shape, spec.dtype):
                raise ArtifactError(
                    f"{self._path} has {tensor.name} {dtype} {shape} where its manifest says "
                    f"{spec.name} {spec.dtype} {spec.shape}: export it again"
                )
        if len(found) != len(expected):
            raise ArtifactError(
                f"{self._path} has {len(found)} inputs or outputs where its manifest says "
                f"{len(expected)}: export it again"
            )


def _start(path: Path, options: SessionOptions) -> Any:
    import onnxruntime as ort

    providers = _providers(options, ort.get_available_providers())
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.log_severity_level = 4  # what matters arrives as an exception
    # fp32 is computed in fp32: on ARM, bf16 would be faster and differ by 0.1 %.
    settings.add_session_config_entry("mlas.enable_gemm_fastmath_arm64_bfloat16", "0")
    if options.threads is not None:
        if options.threads < 1:
            raise ConfigError(f"threads is {options.threads}, expected 1 or more")
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
    try:
        return ort.InferenceSession(str(path), settings, providers=providers)
    except Exception as error:  # onnxruntime's exceptions share no base class but this
        raise DeviceError(f"ONNX Runtime cannot open {path}: {_line(error)}") from error


def _providers(options: SessionOptions, available: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Execution providers for a device; CPU stays last, for nodes that a GPU cannot run."""
    match = re.fullmatch(r"(auto|cpu|cuda)(?::(\d+))?", options.device)
    if match is None or (match[2] and match[1] != "cuda"):
        raise ConfigError(f"device is {options.device!r}, expected auto, cpu, cuda or cuda:N")
    own = dict(options.provider_options)
    if match[1] == "cuda" and _CUDA not in available:
        raise DeviceError(
            f"device {options.device!r} was asked for, but this ONNX Runtime has only "
            f"{', '.join(available)}: pip install onnxruntime-gpu, or use device='cpu'"
        )
    if match[1] == "cpu" or _CUDA not in available:
        return [(_CPU, own)]
    # TF32 keeps 10 bits of the mantissa: not fp32.
    cuda = {"device_id": int(match[2] or 0), "use_tf32": 0, **own}
    return [(_CUDA, cuda), (_CPU, {})]


def _device_of(engine: Any, path: Path, options: SessionOptions) -> str:
    """Where the session ended up; ONNX Runtime falls back to the CPU without a word."""
    if engine.get_providers()[0] == _CUDA:
        return f"cuda:{engine.get_provider_options()[_CUDA].get('device_id', 0)}"
    if options.device.startswith("cuda"):
        raise DeviceError(
            f"device {options.device!r} was asked for, but ONNX Runtime opened {path} on the CPU: "
            "check the driver and the CUDA and cuDNN that onnxruntime-gpu needs"
        )
    return "cpu"


def _arithmetic(precision: str, device: str) -> str:
    """What the engine computes with for an artifact of this precision."""
    if precision == "fp16" and device == "cpu":
        # Measured with 1.32 on x86-64, at every level of optimisation: what ONNX Runtime inserts to
        # convert between layers, it also removes.
        return "float16 weights, float32 between layers (ONNX Runtime, cpu)"
    names = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}
    return f"{names[precision]} (ONNX Runtime, {device})"


def _line(error: Exception) -> str:
    """The engine's message on one line, of bounded length."""
    return " ".join(str(error).split())[:300]
