"""Run .onnx artifacts with ONNX Runtime, on CPUs and NVIDIA GPUs (https://onnxruntime.ai).

Other execution providers are selected by ``provider_options={"provider": NAME, ...}``, which also
contains the provider's own options. The CPU runs the nodes that a provider does not support.

The manifest is stored in the file's metadata property ``y7edge``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from y7edge.artifact import foreign
from y7edge.artifact.artifact import Artifact
from y7edge.artifact.foreign import Foreign
from y7edge.artifact.manifest import MAX_BYTES, Dim, Manifest
from y7edge.errors import ConfigError, DeviceError
from y7edge.files import atomic_write
from y7edge.runtimes import _modelproto
from y7edge.runtimes.base import (
    Session,
    SessionOptions,
    decode_manifest,
    installed_versions,
    one_line,
    parse_device,
)

FORMATS = (".onnx",)
TARGETS = ("onnx",)
NEEDS = {"onnxruntime": "y7edge[onnxruntime]"}
DEVICES = ("cpu", "cuda", "cuda:N")
DEVIATION = 1e-4

_KEY = _modelproto.MANIFEST
_PROVIDER = "provider"
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}


def load_engine() -> Any:
    """Import onnxruntime with its telemetry off.

    Since version 1.29 it sends telemetry on Linux too, unless ``ORT_DISABLE_TELEMETRY`` is set
    before the first import. A value set by the user is kept.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def files(path: Path) -> tuple[Path, ...]:
    """Return ``path``: an artifact is a single file."""
    return (path,)


def read_manifest(path: Path) -> Manifest:
    """Read the manifest in an .onnx file, and check the manifest's digest."""
    text = _modelproto.read_metadata(path, _KEY, MAX_BYTES)
    return decode_manifest(text, path, "--out FILE.onnx")


def read_foreign(
    path: Path, names: Sequence[str] | None = None, imgsz: tuple[int, int] | None = None
) -> Foreign | None:
    """Describe an .onnx file of another exporter by its tensors; None if it has our manifest.

    Raises:
        ArtifactError: the file is damaged, or the meaning of its tensors is not known.
        ConfigError: ``names`` or ``imgsz`` is missing or does not fit the file.
    """
    if _modelproto.read_metadata(path, _KEY, MAX_BYTES) is not None:
        return None
    interface = _modelproto.read_interface(path, MAX_BYTES)
    return foreign.describe(interface, str(path), path.stem, names=names, imgsz=imgsz)


def write_manifest(artifact: Artifact) -> None:
    """Write the artifact's manifest into its file, replacing all metadata."""
    payload = _modelproto.without_metadata(artifact.path)
    with atomic_write(artifact.path) as temporary:
        temporary.write_bytes(
            payload + _modelproto.metadata_field(_KEY, artifact.manifest.to_json())
        )


def payload_digest(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the file without its metadata."""
    return _modelproto.payload_digest(files[0])


def versions() -> dict[str, str]:
    """Return the versions of the installed onnxruntime packages."""
    return installed_versions("onnxruntime", "onnxruntime-gpu")


def available_devices() -> list[str]:
    """Return the devices that this build of ONNX Runtime supports."""
    return ["cpu", *(["cuda"] if _CUDA in load_engine().get_available_providers() else [])]


def open(artifact: Artifact, options: SessionOptions) -> Session:
    """Open a session in ONNX Runtime."""
    if artifact.foreign is not None:
        return _ForeignSession(artifact, artifact.foreign, options)
    return _OnnxSession(artifact, options)


def run_once(path: Path, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run an .onnx file once, on the CPU; it needs no manifest.

    Raises:
        DeviceError: ONNX Runtime cannot open or run the file.
    """
    return opened(path)(feeds)


def opened(
    path: Path, threads: int | None = None, *, small: bool = False
) -> Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]:
    """Open an .onnx file on the CPU, without manifest; return a function that runs it.

    Args:
        path: the file.
        threads: number of threads; None: the physical cores that this process may use.
        small: run the nodes in the order of the file, and free the memory of each tensor after its
            last use, instead of keeping it for the next run; for graphs with many outputs.

    Raises:
        DeviceError: ONNX Runtime cannot open the file; also raised by the function.
    """
    engine = _start(path, SessionOptions(device="cpu", threads=threads), small=small)
    names = [output.name for output in engine.get_outputs()]

    def run(feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            results = engine.run(names, dict(feeds))
        except Exception as error:  # onnxruntime has no common exception class
            raise DeviceError(f"{path} failed in ONNX Runtime: {one_line(error)}") from error
        return dict(zip(names, results, strict=True))

    return run


def node_times(
    paths: Sequence[Path],
    feeds: Mapping[str, NDArray[Any]],
    runs: int,
    threads: int | None = None,
) -> list[dict[str, float]]:
    """Measure the nodes of .onnx files on the CPU with ONNX Runtime's profiler; run them in turn.

    Args:
        paths: the files; they need no manifest. Profiles are written beside them.
        feeds: the inputs, equal for all files.
        runs: number of runs of each file, after one that is not counted.
        threads: number of threads; None: the physical cores that this process may use.

    Returns:
        For each file: name of a node of the optimised graph -> the shortest time in milliseconds.
        Other programs on the machine make a node slower, never faster.

    Raises:
        DeviceError: ONNX Runtime cannot open or run a file.
    """
    options = SessionOptions(device="cpu", threads=threads)
    engines = [_start(path, options, profile=path.with_suffix("")) for path in paths]
    for _ in range(runs + 1):
        for path, engine in zip(paths, engines, strict=True):
            try:
                engine.run(None, dict(feeds))
            except Exception as error:  # onnxruntime has no common exception class
                raise DeviceError(f"{path} failed in ONNX Runtime: {one_line(error)}") from error
    return [_node_times(json.loads(Path(e.end_profiling()).read_bytes())) for e in engines]


def _node_times(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the shortest time of each node, without its first run, in milliseconds."""
    found: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node":
            name = str(event["name"]).removesuffix("_kernel_time")
            found.setdefault(name, []).append(event["dur"] / 1000)
    return {name: min(times[1:]) for name, times in found.items() if times[1:]}


class EngineSession(Session):
    """Runs ``_engine``, an ``onnxruntime.InferenceSession`` with the outputs ``_names``."""

    _engine: Any
    _names: list[str]

    def bare(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        """Return a function that calls ``InferenceSession.run``."""
        return partial(self._engine.run, self._names, dict(feeds))

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        results = self._engine.run(self._names, dict(feeds))
        return dict(zip(self._names, results, strict=True))

    def _close(self) -> None:
        self._engine = None


class _OnnxSession(EngineSession):
    """One ``onnxruntime.InferenceSession``."""

    ENGINE = "ONNX Runtime"

    def __init__(self, artifact: Artifact, options: SessionOptions) -> None:
        manifest = artifact.manifest
        self._engine = _start(artifact.path, options)
        device = _device_of(self._engine, artifact.path, options)
        super().__init__(
            str(artifact.path),
            manifest,
            device=device,
            arithmetic=_arithmetic(manifest.precision, device, options),
            versions=versions(),
            threads=options.thread_count,
        )
        self._names = [output.name for output in self.outputs]
        self._check_tensors()

    def _check_tensors(self) -> None:
        inputs = [*self._engine.get_inputs(), *self._engine.get_overridable_initializers()]
        self._require_tensors(*map(tensors, (inputs, self._engine.get_outputs())))


class _ForeignSession(_OnnxSession):
    """A file of another exporter, whose outputs are converted to those of the manifest."""

    def __init__(self, artifact: Artifact, found: Foreign, options: SessionOptions) -> None:
        self._foreign = found
        try:
            super().__init__(artifact, options)
        except DeviceError as error:
            if "EfficientNMS" in str(error):
                raise DeviceError(
                    f"{artifact.path} contains TensorRT's EfficientNMS, which ONNX Runtime does "
                    "not have: export it without NMS"
                ) from error
            raise
        self._names = list(found.outputs)

    def _check_tensors(self) -> None:
        """Accept all tensors: the manifest was made from this file, and every result is checked."""

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return self._foreign.convert(self._engine.run(self._names, dict(feeds)))


def tensors(found: Sequence[Any]) -> list[tuple[str, str, tuple[Dim, ...]]]:
    """Return name, dtype and shape of tensors of ``onnxruntime.InferenceSession``."""
    return [
        (
            tensor.name,
            _DTYPES.get(tensor.type, tensor.type),
            tuple(d if isinstance(d, int) else "dynamic" for d in tensor.shape),
        )
        for tensor in found
    ]


def _start(
    path: Path, options: SessionOptions, profile: Path | None = None, *, small: bool = False
) -> Any:
    """Open an ``onnxruntime.InferenceSession``; raise DeviceError if that fails.

    ``profile``: how the name of the file begins to which the engine writes the time of each node.
    """
    ort = load_engine()
    providers = _providers(options, ort.get_available_providers())
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.log_severity_level = 4  # fatal only: errors are raised as exceptions
    # ARM CPUs would compute fp32 models in bf16, which is faster but deviates by 0.1 %.
    settings.add_session_config_entry("mlas.enable_gemm_fastmath_arm64_bfloat16", "0")
    # Waiting threads would spin instead of sleeping, which takes processors from a second session
    # and from the rest of the robot's software: examples/research/two_detectors.py measures it.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
    settings.intra_op_num_threads = options.thread_count
    if small:
        settings.enable_mem_pattern = settings.enable_cpu_mem_arena = False
        settings.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # else all outputs are last
        # The next level changes the layout of tensors, and then computes their other readers last.
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.inter_op_num_threads = 1
    if profile is not None:
        settings.enable_profiling, settings.profile_file_prefix = True, str(profile)
    try:
        return ort.InferenceSession(str(path), settings, providers=providers)
    except Exception as error:  # onnxruntime has no common exception class
        raise DeviceError(f"ONNX Runtime cannot open {path}: {one_line(error)}") from error


def _providers(options: SessionOptions, available: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return the execution providers for a device, each with its options, in order of preference.

    On a GPU, the CPU runs the nodes that the GPU's provider does not support.
    """
    kind, index = parse_device(options.device, DEVICES)
    own = dict(options.provider_options)
    provider = own.pop(_PROVIDER, None)
    if provider is not None:
        if kind != "auto":
            raise ConfigError(f"give device={options.device!r} or a provider, not both")
        if provider == _CUDA:  # the device has options that keep the precision
            raise ConfigError(f"provider {_CUDA} is device 'cuda': give device='cuda' instead")
        if provider not in available:
            raise DeviceError(
                f"provider {provider!r} is not available: this ONNX Runtime has only "
                f"{', '.join(available)}: install the package of ONNX Runtime that contains it"
            )
        return [_cpu(own)] if provider == _CPU else [(provider, own), _cpu({})]
    if "use_tf32" in own:
        raise ConfigError("use_tf32 cannot be set: an fp32 artifact is computed in fp32")
    if kind == "cuda" and _CUDA not in available:
        raise DeviceError(
            f"device {options.device!r} is not available: this ONNX Runtime has only "
            f"{', '.join(available)}: pip install onnxruntime-gpu, or use device='cpu'"
        )
    if kind == "cpu" or _CUDA not in available:
        return [_cpu(own)]
    # TF32 would round the inputs of multiplications to a mantissa of 10 bits.
    return [(_CUDA, {"device_id": index or 0, "use_tf32": 0, **own}), _cpu({})]


def _cpu(own: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the provider for CPUs; raise ConfigError for options, which it would ignore."""
    if own:
        raise ConfigError(
            f"ONNX Runtime has no option {next(iter(own))!r} on the CPU: omit it, or name the "
            f"execution provider that has it as provider option {_PROVIDER!r}"
        )
    return _CPU, {}


def _device_of(engine: Any, path: Path, options: SessionOptions) -> str:
    """Return the session's device, or the name of its provider if the user chose one.

    Raises:
        DeviceError: ONNX Runtime fell back to the CPU.
    """
    found, provider = engine.get_providers()[0], options.provider_options.get(_PROVIDER)
    if provider is not None:
        if found != provider:
            raise DeviceError(
                f"provider {provider!r} is not available: ONNX Runtime opened {path} with {found}: "
                "check the driver and the libraries that the provider needs"
            )
        return "cpu" if found == _CPU else str(found)
    if found == _CUDA:
        return f"cuda:{engine.get_provider_options()[_CUDA].get('device_id', 0)}"
    if options.device.startswith("cuda"):
        raise DeviceError(
            f"device {options.device!r} is not available: ONNX Runtime opened {path} on the CPU: "
            "check the driver and the CUDA and cuDNN that onnxruntime-gpu needs"
        )
    return "cpu"


def _arithmetic(precision: str, device: str, options: SessionOptions) -> str:
    """Return a description of the arithmetic for an artifact of this precision."""
    if device == options.provider_options.get(_PROVIDER):
        return f"chosen by {device} for {precision} (ONNX Runtime)"
    if precision == "fp16" and device == "cpu":
        # ONNX Runtime removes the casts to float16 between layers (measured with version 1.32 on
        # x86-64, at every optimization level).
        return "float16 weights, float32 between layers (ONNX Runtime, cpu)"
    names = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}
    return f"{names[precision]} (ONNX Runtime, {device})"
