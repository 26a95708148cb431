"""Check TensorRT engine files: before TensorRT reads them, and what TensorRT found in them."""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Sequence
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
        if path.stat().st_mode & 0o002:
            warnings.warn(
                f"every user of this machine can change {path}, and an engine file contains code "
                f"that runs with your rights: run `chmod o-w {path}`",
                stacklevel=2,
            )
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


def ports(trt: Any, engine: Any, label: str) -> dict[str, list[str]]:
    """Return the names of inputs and outputs.

    Raises:
        ArtifactError: a tensor is not in GPU memory, or not in the order of its dimensions.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    for name in names:
        layout, place = engine.get_tensor_format(name), engine.get_tensor_location(name)
        if layout != trt.TensorFormat.LINEAR or place != trt.TensorLocation.DEVICE:
            raise ArtifactError(
                f"tensor {name} of {label} has format {layout.name} in {place.name} memory, "
                "expected LINEAR in DEVICE memory: build it with y7edge"
            )
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    return {"INPUT": inputs, "OUTPUT": [name for name in names if name not in inputs]}


def tensors(
    engine: Any, names: Sequence[str], specs: Sequence[TensorSpec]
) -> list[tuple[str, str, tuple[Dim, ...]]]:
    """Return name, dtype and shape of the engine's tensors, in the order of ``specs``."""
    order = {spec.name: index for index, spec in enumerate(specs)}
    return [
        (
            name,
            _DTYPES.get(engine.get_tensor_dtype(name).name, engine.get_tensor_dtype(name).name),
            tuple("dynamic" if size < 0 else size for size in engine.get_tensor_shape(name)),
        )
        for name in sorted(names, key=lambda name: order.get(name, len(order)))
    ]


def largest_batch(engine: Any, spec: TensorSpec, label: str) -> int:
    """Return the largest batch of one call: the artifact's, or that of the engine's profile.

    Raises:
        ArtifactError: the profile does not begin with one image, or is too large.
    """
    if spec.shape[0] != "dynamic":
        return spec.shape[0]
    least, _, most = engine.get_tensor_profile_shape(spec.name, 0)
    if least[0] != 1 or not 1 <= most[0] <= MAX_BATCH:
        raise ArtifactError(
            f"{label} was built for batches of {least[0]} to {most[0]} images, expected 1 to at "
            f"most {MAX_BATCH}: build it again"
        )
    return int(most[0])


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
