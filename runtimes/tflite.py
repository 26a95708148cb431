"""Run .tflite artifacts in LiteRT, the successor of TensorFlow Lite (https://ai.google.dev/edge/litert).

An artifact is one .tflite file and the manifest in a .tflite.json file. The names of tensors are
those of the file's only signature. On the CPU, LiteRT runs float operations with XNNPACK, which is
on by default, and all other operations with its own kernels. LiteRT's default of one thread is not
used. LiteRT writes one line to standard error when the first model is opened. Version 2.3 has
neither an option nor an environment variable that switches this off. The file descriptor is not
redirected, because messages of other threads would be lost.

Another device is used through a delegate, a shared library of the device's vendor. The device is
then "delegate", and the provider option ``delegate`` is the path of the library. All other provider
options are passed to the delegate as strings.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from y7edge.errors import ArtifactError, ConfigError, DeviceError
from y7edge.files import read_regular, reason
from y7edge.runtimes.base import (
    Session,
    SessionOptions,
    TensorSpec,
    installed_versions,
    one_line,
    parse_device,
)

FORMATS = (".tflite",)
TARGETS = ("litert",)
NEEDS = {"ai_edge_litert": "y7edge[litert]"}
DEVICES = ("cpu", "delegate")
DEVIATION = 1e-4

# The manifest is in the file beside the artifact.
read_manifest, write_manifest = read_sidecar, write_sidecar

_LARGEST = 2 << 30  # bytes; offsets in a flatbuffer have 31 bits


def load_engine() -> Any:
    """Import LiteRT's interpreter, which has no telemetry."""
    from ai_edge_litert import interpreter

    return interpreter


def files(path: Path) -> tuple[Path, ...]:
    """Return the .tflite file and the manifest."""
    return (path, sidecar(path))


def payload_digest(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the .tflite file."""
    return digest_files(files[:1])


def versions() -> dict[str, str]:
    """Return the version of the installed ai-edge-litert package."""
    return installed_versions("ai-edge-litert")


def available_devices() -> list[str]:
    """Return only the CPU, because delegates cannot be found automatically."""
    return ["cpu"]


def open(artifact: Artifact, options: SessionOptions) -> Session:
    """Open a session in LiteRT; device "auto" is the CPU, or the delegate if one is given."""
    return _LiteRtSession(artifact, options)


class Quantized(NamedTuple):
    """Dtype of a tensor, and scale and zero point if it is quantised."""

    dtype: str
    scale: float | None
    zero_point: int | None


def quantization(path: Path) -> dict[str, Quantized]:
    """Return dtype, scale and zero point of the inputs and outputs of a file, by name.

    Raises:
        ArtifactError, DeviceError: the file cannot be read.
    """
    inputs, outputs = _tensors(_load(path, SessionOptions(threads=1), "cpu"), path)
    return {name: _quantized(tensor) for name, tensor in {**inputs, **outputs}.items()}


class _LiteRtSession(Session):
    """One interpreter, which reads the file once: its weights stay in memory."""

    ENGINE = "LiteRT"

    def __init__(self, artifact: Artifact, options: SessionOptions) -> None:
        device = _device(options)
        super().__init__(
            str(artifact.path),
            artifact.manifest,
            device=device,
            arithmetic=_arithmetic(artifact.manifest.precision, options, device),
            versions=versions(),
            threads=options.thread_count,
        )
        self._interpreter: Any = _load(artifact.path, options, device)
        inputs, outputs = _tensors(self._interpreter, artifact.path)
        self._input, self._outputs = (
            {name: tensor["index"] for name, tensor in named.items()} for named in (inputs, outputs)
        )
        self._require_tensors(
            _ordered(inputs, self.inputs, artifact.path),
            _ordered(outputs, self.outputs, artifact.path),
        )
        _require_quantization(inputs, outputs, artifact)

    def bare(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        """Return a function that sets the input, invokes the interpreter, and reads the outputs."""
        interpreter, ((name, array),) = self._interpreter, feeds.items()
        source, outputs = self._input[name], list(self._outputs.values())
        pixels = np.ascontiguousarray(array)

        def run() -> object:
            interpreter.set_tensor(source, pixels)
            interpreter.invoke()
            return [interpreter.get_tensor(index) for index in outputs]

        return run

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        for name, array in feeds.items():
            self._interpreter.set_tensor(self._input[name], np.ascontiguousarray(array))
        self._interpreter.invoke()
        return {
            spec.name: self._interpreter.get_tensor(self._outputs[spec.name])
            for spec in self.outputs
        }

    def _close(self) -> None:
        self._interpreter = None


def _device(options: SessionOptions) -> str:
    """Return "cpu" or "delegate"."""
    kind, _ = parse_device(options.device, DEVICES)
    given = "delegate" in options.provider_options
    if kind == "delegate" and not given:
        raise DeviceError(
            "device 'delegate' was asked for without a delegate: pass the path of its library as "
            "provider option 'delegate'"
        )
    if kind == "cpu" and given:
        raise ConfigError("a delegate was given for device 'cpu': use device 'delegate' or 'auto'")
    if options.provider_options and not given:
        raise ConfigError(
            f"LiteRT has no option {next(iter(options.provider_options))!r}: options belong to a "
            "delegate, whose library is the provider option 'delegate'"
        )
    return "delegate" if given else "cpu"


def _load(path: Path, options: SessionOptions, device: str) -> Any:
    try:
        content = read_regular(path, _LARGEST)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {reason(error)}") from error
    engine = load_engine()
    delegates = [_delegate(engine, options)] if device == "delegate" else None
    try:
        loaded = engine.Interpreter(
            model_content=content,
            num_threads=options.thread_count,
            experimental_delegates=delegates,
        )
        loaded.allocate_tensors()
    except Exception as error:  # ValueError, RuntimeError, and what a delegate raises
        raise DeviceError(f"LiteRT cannot open {path}: {one_line(error)}") from error
    return loaded


def _delegate(engine: Any, options: SessionOptions) -> Any:
    own = dict(options.provider_options)
    library = str(own.pop("delegate"))
    try:
        # Look for this function first: without it, LiteRT's own class prints a traceback.
        _ = ctypes.CDLL(library).tflite_plugin_destroy_delegate
        return engine.load_delegate(library, {name: str(value) for name, value in own.items()})
    except Exception as error:  # OSError, AttributeError and ValueError
        raise DeviceError(
            f"LiteRT cannot load the delegate {library}: {one_line(error)}"
        ) from error


def _arithmetic(precision: str, options: SessionOptions, device: str) -> str:
    """Describe the arithmetic. The arithmetic of a delegate is not known."""
    if device == "delegate":
        library = Path(str(options.provider_options["delegate"])).name
        return f"chosen by the delegate {library} (LiteRT, delegate)"
    computed = {"fp16": "float16 weights, float32", "int8": "int8"}.get(precision, "float32")
    return f"{computed} (LiteRT with XNNPACK, cpu)"


def _tensors(interpreter: Any, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the inputs and outputs of the file's only signature, by name."""
    names = list(interpreter.get_signature_list())
    if len(names) != 1:
        raise ArtifactError(f"{path} has {len(names)} signatures, expected 1: export it again")
    signature = interpreter.get_signature_runner(names[0])
    return signature.get_input_details(), signature.get_output_details()


def _ordered(
    named: Mapping[str, Any], specs: Sequence[TensorSpec], path: Path
) -> list[tuple[str, str, tuple[Dim, ...]]]:
    """Return name, dtype and shape of the engine's tensors in the order of ``specs``."""
    expected = [spec.name for spec in specs]
    if sorted(named) != sorted(expected):
        raise ArtifactError(
            f"{path} has the tensors {sorted(named)}, its manifest has {sorted(expected)}: export "
            "it again"
        )
    return [
        (name, np.dtype(named[name]["dtype"]).name, tuple(map(int, named[name]["shape"])))
        for name in expected
    ]


def _quantized(tensor: Mapping[str, Any]) -> Quantized:
    scale, zero_point = tensor["quantization"]
    found = (float(scale), int(zero_point)) if scale else (None, None)
    return Quantized(np.dtype(tensor["dtype"]).name, *found)


def _require_quantization(
    inputs: Mapping[str, Any], outputs: Mapping[str, Any], artifact: Artifact
) -> None:
    """Raise ArtifactError unless scales and zero points are those of the manifest.

    The values that an integer input stands for must be pixels from 0 to 1.
    """
    image = artifact.manifest.input
    scale, zero = (1 / 255, image.zero_point) if image.dtype in ("int8", "uint8") else (None, None)
    expected = [(inputs[image.name], image.name, scale, zero)]
    expected += [
        (outputs[o.name], o.name, o.scale, o.zero_point) for o in artifact.manifest.outputs
    ]
    for tensor, name, scale, zero in expected:
        found = _quantized(tensor)
        same = (scale is None) == (found.scale is None) and zero == found.zero_point
        if not same or (scale and not math.isclose(scale, found.scale or 0, rel_tol=1e-6)):
            raise ArtifactError(
                f"{artifact.path} has the tensor {name} with scale and zero point "
                f"({found.scale}, {found.zero_point}), its manifest has ({scale}, {zero}): export "
                "it again"
            )
