"""Check TensorRT engine files: before TensorRT reads them, and what TensorRT found in them."""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from y7edge.artifact.artifact import Artifact, digest_files
from y7edge.artifact.bounds import MAX_BATCH
from y7edge.artifact.manifest import Dim
from y7edge.errors import ArtifactError, ConfigError, DeviceError, DigestError
from y7edge.files import read_regular, reason
from y7edge.runtimes import _trt_versions
from y7edge.runtimes._cuda import Gpu
from y7edge.runtimes.base import SessionOptions, TensorSpec, one_line, parse_device

_MAX_BYTES = 4 << 30  # of an engine file, as in ``digest_files``
_MAX_CORE = 7  # of the DLA; an AGX Orin has cores 0 and 1
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
}
_said = threading.local()


def place(artifact: Artifact, device: str, devices: Sequence[str]) -> tuple[int, int | None]:
    """Return the index of the GPU, and the DLA core or None.

    Raises:
        ConfigError: the device is not supported.
        DeviceError: the engine was built for the other kind of device.
        ArtifactError: the manifest names an impossible core.
    """
    kind, number = parse_device(device, devices)
    if artifact.manifest.outputs[0].role == "detections":
        raise ArtifactError(
            f"{artifact.path} returns boxes after NMS, whose number TensorRT does not know before "
            "it has run: build it with outputs heads or decoded"
        )
    core = artifact.manifest.engine.get("dla")
    if core is not None and (type(core) is not int or not 0 <= core <= _MAX_CORE):
        raise ArtifactError(
            f"{artifact.path} was built for DLA core {core!r}, expected 0 to {_MAX_CORE}: build it "
            "again"
        )
    if kind == "auto":
        return 0, core
    if (kind == "dla") != (core is not None):
        built = "the GPU" if core is None else "a DLA core"
        raise DeviceError(
            f"device {device!r} cannot run {artifact.path}, which was built for {built}: omit "
            "device, or build the engine for this device"
        )
    return (0, number) if kind == "dla" else (number or 0, None)


def require_match(artifact: Artifact, gpu: Gpu, version: str) -> None:
    """Raise DeviceError if the engine file is for another machine or version of TensorRT."""
    if warning := _trt_versions.unknown(version):
        warnings.warn(warning, stacklevel=2)
    found = {
        "tensorrt": version,
        "compute_capability": f"{gpu.capability[0]}.{gpu.capability[1]}",
        "device": gpu.name,
        "platform": _trt_versions.this_platform(),
    }
    if problem := _trt_versions.mismatch(artifact.manifest.engine, found):
        raise DeviceError(f"{artifact.path} cannot run here: {problem}")


def read(artifact: Artifact, options: SessionOptions) -> bytes:
    """Read the engine file, and check the digest of the bytes that were read.

    Raises:
        ArtifactError: the file cannot be read.
        DigestError: the file was changed after it was proved.
        ConfigError: a file with code for the CPU would be opened without checking its digest.
    """
    path = artifact.path
    try:
        plan = read_regular(path, _MAX_BYTES)
        # The manifest has the digest, so whoever writes both can replace the engine unnoticed.
        for file in artifact.files:
            if warning := _trt_versions.exposed(file):
                warnings.warn(warning, stacklevel=2)
                break
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {reason(error)}") from error
    if options.check_payload is False:
        if artifact.manifest.engine.get("version_compatible") is True:
            raise ConfigError(
                f"check_payload is False, but {path} is version-compatible, and so contains code "
                "for the CPU, which runs only if its digest was checked: omit check_payload"
            )
        return plan
    digest, expected = digest_files((path,), first=plan), artifact.manifest.payload_digest
    if digest != expected:
        raise DigestError(
            f"{path} was changed after it was proved: its payload digest is {digest[:16]}, "
            f"expected {expected[:16]}: use the original file, or build it again"
        )
    return plan


class Network:
    """TensorRT's objects of one session; each is freed with its last reference, see ``_cuda``.

    Attributes:
        engine: The ``ICudaEngine``.
        context: The ``IExecutionContext``, after ``start``.
    """

    def __init__(self, trt: Any, label: str) -> None:
        self._trt, self._label = trt, label
        self._runtime: Any = None
        self.engine: Any = None
        self.context: Any = None

    def load(self, plan: bytes, core: int | None, *, host_code: bool) -> None:
        """Let TensorRT read an engine file.

        Args:
            plan: the content of the file.
            core: the DLA core to run on; None: the GPU.
            host_code: whether TensorRT may execute code of the file on the CPU.

        Raises:
            DeviceError: TensorRT cannot read it, or there is no such core.
            ArtifactError: a tensor is not in GPU memory, or not in the order of its dimensions.
        """
        reasons()  # forget those of earlier calls
        self._runtime = self._trt.Runtime(logger(self._trt))
        if host_code:
            self._runtime.engine_host_code_allowed = True
        if core is not None:
            if core >= (cores := self._runtime.num_DLA_cores):
                raise DeviceError(
                    f"device 'dla:{core}' is not available: this machine has {cores} DLA cores "
                    "that TensorRT can use"
                )
            self._runtime.DLA_core = core
        self.engine = self._runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise DeviceError(f"TensorRT cannot open {self._label}{reasons()}")
        for name in self._names():
            form, place = self.engine.get_tensor_format(name), self.engine.get_tensor_location(name)
            if form != self._trt.TensorFormat.LINEAR or place != self._trt.TensorLocation.DEVICE:
                raise ArtifactError(
                    f"tensor {name} of {self._label} has format {form.name} in {place.name} "
                    "memory, expected LINEAR in DEVICE memory: build it with y7edge"
                )

    def _names(self) -> list[str]:
        return [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]

    def tensors(
        self, specs: Sequence[TensorSpec], *, inputs: bool
    ) -> list[tuple[str, str, tuple[Dim, ...]]]:
        """Return name, dtype and shape of all inputs or outputs, in the order of ``specs``."""
        order = {spec.name: index for index, spec in enumerate(specs)}
        mode = self._trt.TensorIOMode.INPUT
        names = [n for n in self._names() if (self.engine.get_tensor_mode(n) == mode) == inputs]
        found: list[tuple[str, str, tuple[Dim, ...]]] = []
        for name in sorted(names, key=lambda name: order.get(name, len(order))):
            kind = self.engine.get_tensor_dtype(name).name
            shape = self.engine.get_tensor_shape(name)
            found.append((name, _DTYPES.get(kind, kind), tuple(map(_dim, shape))))
        return found

    def largest_batch(self, spec: TensorSpec) -> int:
        """Return the largest batch of one call: the artifact's, or that of the engine's profile.

        Raises:
            ArtifactError: the profile does not begin with one image, or is too large.
        """
        if spec.shape[0] != "dynamic":
            return spec.shape[0]
        least, _, most = self.engine.get_tensor_profile_shape(spec.name, 0)
        if least[0] != 1 or not 1 <= most[0] <= MAX_BATCH:
            raise ArtifactError(
                f"{self._label} was built for batches of {least[0]} to {most[0]} images, expected "
                f"1 to at most {MAX_BATCH}: build it again"
            )
        return int(most[0])

    def start(self, addresses: Mapping[str, int]) -> None:
        """Create the execution context; ``addresses``: of all tensors.

        Raises:
            DeviceError: there is not enough memory, or TensorRT refuses an address.
        """
        self.context = self.engine.create_execution_context()
        if self.context is None:
            raise DeviceError(f"TensorRT cannot prepare {self._label}{reasons()}")
        for name, address in addresses.items():
            if not self.context.set_tensor_address(name, address):
                raise DeviceError(f"TensorRT refuses the memory for {name}{reasons()}")

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Set the shape of a dynamic input; raise DeviceError if TensorRT refuses it."""
        if not self.context.set_input_shape(name, shape):
            raise DeviceError(f"TensorRT refuses a batch of {shape[0]} images{reasons()}")

    def enqueue(self, stream: int) -> None:
        """Add the network to a stream, by its handle; raise DeviceError if that fails."""
        if not self.context.execute_async_v3(stream):
            raise DeviceError(f"TensorRT cannot run {self._label}{reasons()}")

    def drop(self) -> None:
        """Free TensorRT's objects. Calling it again has no effect."""
        self.context = None
        self.engine = None
        self._runtime = None


def _dim(size: int) -> Dim:
    return "dynamic" if size < 0 else size


@cache
def logger(trt: Any) -> Any:
    """Return the logger of all sessions; TensorRT ignores those of later runtimes."""
    severe = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)

    class _Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in severe:
                _messages().append(one_line(Exception(msg)))

    return _Logger()


def _messages() -> deque[str]:
    """Return the last errors that TensorRT logged in this thread."""
    if not hasattr(_said, "messages"):
        _said.messages = deque(maxlen=3)
    found: deque[str] = _said.messages
    return found


def reasons() -> str:
    """Return the errors that TensorRT logged in this thread, for a message, and forget them."""
    found = "; ".join(_messages())
    _messages().clear()
    return f": {found}" if found else ""
