"""Run artifacts on Qualcomm's Hexagon Tensor Processor (HTP), the NPU of Snapdragon and QCS chips.

An artifact is a context binary (.qnn.bin) and the .qnn.onnx file that refers to it, with one node
``EPContext`` and the manifest. They were compiled for one version of the HTP, by one version of
Qualcomm's SDK (QAIRT). ONNX Runtime opens them with Qualcomm's plugin execution provider,
https://github.com/onnxruntime/onnxruntime-qnn/blob/main/docs/execution_providers/QNN-ExecutionProvider.md
and https://onnxruntime.ai/docs/execution-providers/EP-Context-Design.html describe the files. The
fallback to the CPU is switched off.

On x86-64, the provider's libraries emulate the HTP: device "emulator". An image takes seconds.

Provider options are those in ``_SETTABLE``, which do not change results.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from y7edge.artifact.artifact import Artifact, digest_files
from y7edge.artifact.manifest import MAX_BYTES, Manifest
from y7edge.errors import ArtifactError, ConfigError, DeviceError
from y7edge.files import atomic_write
from y7edge.runtimes import _modelproto, onnxrt
from y7edge.runtimes._stdout import silent_stdout
from y7edge.runtimes.base import (
    Session,
    SessionOptions,
    claim_engine,
    decode_manifest,
    installed_versions,
    one_line,
    parse_device,
)

FORMATS = (".qnn.onnx",)
TARGETS = ("qnn",)
NEEDS = {"onnxruntime_qnn": "y7edge[qnn]"}
DEVICES = ("npu", "emulator")
DEVIATION = 1e-3  # fp32 artifacts do not exist

PROVIDER = "QNNExecutionProvider"
BINARY = "ep_cache_context"
"""Attribute of the node ``EPContext``: the name of the context binary, in the same folder."""

_LARGEST = 16 << 20  # bytes of the .qnn.onnx file, which has no weights
_LEVELS = ("low", "normal", "normal_high", "high")
_MODES = (
    *("burst", "balanced", "default", "high_performance", "high_power_saver", "low_balanced"),
    *("low_power_saver", "power_saver", "extreme_power_saver", "sustained_high_performance"),
)
_SETTABLE = {"htp_performance_mode": _MODES, "qnn_context_priority": _LEVELS}
# An NPU of another vendor, or the CPU, would compute other results than those that were proved.
_ENTRIES = {"session.disable_cpu_ep_fallback": "1"}
# In this process, and in a forked child, where a call of ONNX Runtime may wait forever.
_REGISTERED: set[str] = set()


def load_engine() -> Any:
    """Import ONNX Runtime with its telemetry off, and register Qualcomm's execution provider.

    The line that the library of the HTP prints when it is loaded is discarded.

    Raises:
        ImportError: ONNX Runtime is too old for plugins, or the provider cannot be loaded.
    """
    engine, package = onnxrt.load_engine(), import_module("onnxruntime_qnn")
    if not hasattr(engine, "register_execution_provider_library"):
        raise ImportError(
            f"onnxruntime {engine.__version__} has no plugin execution providers: "
            'pip install "onnxruntime>=1.24.2"'
        )
    if PROVIDER not in _REGISTERED:
        with silent_stdout():
            ctypes.CDLL(package.get_qnn_htp_path())
        engine.register_execution_provider_library(PROVIDER, package.get_library_path())
        _REGISTERED.add(PROVIDER)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_exit_at_once)
    return engine


def _exit_at_once() -> None:
    """Skip the exit handler of the library of the HTP in a forked child.

    It would wait forever for threads that exist only in the parent process. Handlers run in the
    order opposite to their registration, and glibc passes the exit code to those of ``on_exit``.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "on_exit"):
        library.on_exit(ctypes.cast(library._exit, ctypes.c_void_p), None)


def files(path: Path) -> tuple[Path, ...]:
    """Return the .qnn.onnx file and the .qnn.bin file of the same name."""
    return (path, path.with_suffix(".bin"))


def read_manifest(path: Path) -> Manifest:
    """Read the manifest in a .qnn.onnx file, and check the manifest's digest."""
    text = _modelproto.read_metadata(path, _modelproto.MANIFEST, MAX_BYTES)
    return decode_manifest(text, path, "--target qnn --out FILE.qnn.onnx")


def write_manifest(artifact: Artifact) -> None:
    """Write the artifact's manifest into the .qnn.onnx file, replacing an older one."""
    payload = _modelproto.without_manifest(artifact.path)
    text = artifact.manifest.to_json()
    with atomic_write(artifact.path) as temporary:
        temporary.write_bytes(payload + _modelproto.metadata_field(_modelproto.MANIFEST, text))


def payload_digest(files: Sequence[Path]) -> str:
    """Return the SHA-256 of both files, without the manifest."""
    return digest_files(files, first=_modelproto.without_manifest(files[0]))


def versions() -> dict[str, str]:
    """Return the versions of the installed packages, and of the QAIRT SDK in Qualcomm's."""
    found = installed_versions("onnxruntime", "onnxruntime-qnn")
    if "onnxruntime-qnn" in found:
        package = import_module("onnxruntime_qnn")
        found["qairt"] = str(package.build_and_package_info.qnn_version)
    return found


def available_devices() -> list[str]:
    """Return the device of this machine."""
    return [_here()] if _devices(load_engine()) else []


def open(artifact: Artifact, options: SessionOptions) -> Session:
    """Open a session; device "auto" is the NPU, or the emulator on x86-64."""
    return _QnnSession(artifact, options)


def compile_context(graph: str, made: str, settings: str) -> None:
    """Compile an ONNX file for the HTP, and run the result once; for a process of its own.

    In a process that has compiled before, or from another path, the same graph gives other bytes.
    So this function takes the graph from memory, and its process compiles nothing else.

    Args:
        graph: path of the ONNX file.
        made: path of the .onnx file to write. The context binary gets the name of this file, with
            ``_qnn.bin`` instead of the suffix; ``made``.json gets the seconds of the compilation
            and of one call.
        settings: options of the execution provider, as JSON.

    Raises:
        SystemExit: the graph cannot be compiled or run, for the reason in the message.
    """
    entries = {"ep.context_enable": "1", "ep.context_embed_mode": "0", "ep.context_file_path": made}
    began = time.perf_counter()
    try:
        session = _start(load_engine(), Path(graph).read_bytes(), entries, json.loads(settings))
        compiled = time.perf_counter()
        (image,) = session.get_inputs()
        dtype = np.uint8 if "uint8" in image.type else np.float32
        session.run(None, {image.name: np.zeros(image.shape, dtype)})
    except Exception as error:  # onnxruntime has no common exception class
        text = one_line(error)
        if "fallback to CPU EP" in text:
            text = "the HTP refuses nodes of the graph, or there is no such soc-model"
        raise SystemExit(text) from error
    seconds = (compiled - began, time.perf_counter() - compiled)
    Path(f"{made}.json").write_text(json.dumps(seconds), "utf-8")


class _QnnSession(onnxrt.EngineSession):
    """One ``onnxruntime.InferenceSession`` with Qualcomm's execution provider."""

    ENGINE = "QNN"

    def __init__(self, artifact: Artifact, options: SessionOptions) -> None:
        claim_engine("QNN")  # all sessions share the threads of the backend
        device, manifest = _device(options.device), artifact.manifest
        _require_versions(artifact)
        self._engine = _opened(artifact, _settings(options.provider_options))
        super().__init__(
            str(artifact.path),
            manifest,
            device=device,
            arithmetic=_arithmetic(manifest, device),
            versions=versions(),
        )
        self._names = [output.name for output in self.outputs]
        found = self._engine.get_inputs(), self._engine.get_outputs()
        self._require_tensors(*map(onnxrt.tensors, found))


def _here() -> str:
    """Return the device of this machine: the packages for x86-64 contain the emulation only."""
    return "emulator" if platform.machine().lower() in ("x86_64", "amd64") else "npu"


def _device(name: str) -> str:
    """Return the device to use; raise DeviceError if this machine does not have it."""
    kind, here = parse_device(name, DEVICES)[0], _here()
    if kind not in ("auto", here):
        why = "x86-64 emulates the NPU" if here == "emulator" else "it has the NPU itself"
        raise DeviceError(
            f"device {kind!r} is not available: {why}: use device={here!r} or device='auto'"
        )
    return here


def _devices(engine: Any) -> list[Any]:
    """Return what ONNX Runtime offers for the provider, NPUs first; empty if not registered."""
    found = [device for device in engine.get_ep_devices() if device.ep_name == PROVIDER]
    npu = engine.OrtHardwareDeviceType.NPU
    return sorted(found, key=lambda device: bool(device.device.type != npu))


def _settings(given: Mapping[str, Any]) -> dict[str, str]:
    """Return the user's options; raise ConfigError for those that are not in ``_SETTABLE``."""
    for name, value in given.items():
        known = _SETTABLE.get(name)
        if known is None:
            raise ConfigError(
                f"QNN has no option {name!r} that can be set, expected one of "
                f"{', '.join(_SETTABLE)}: the others are fixed when the artifact is exported"
            )
        if value not in known:
            raise ConfigError(f"QNN's option {name} is {value!r}, expected {', '.join(known)}")
    return {name: str(value) for name, value in given.items()}


def _require_versions(artifact: Artifact) -> None:
    """Check for which HTP and by which SDK the artifact was compiled.

    Raises:
        ArtifactError: the manifest has no version of the HTP.
        DeviceError: another version of the SDK compiled it.
    """
    manifest, here = artifact.manifest, versions()
    arch, built = (str(manifest.engine.get(name))[:40] for name in ("htp_arch", "qairt"))
    if not re.fullmatch(r"v[0-9]{2,3}", arch):
        raise ArtifactError(
            f"{artifact.path} was compiled for HTP {arch!r}, expected a version such as v73: "
            "export it again"
        )
    if built != here.get("qairt"):
        package = str(manifest.tools.get("onnxruntime-qnn"))
        if not re.fullmatch(r"[0-9a-z.]{1,20}", package):  # it is part of a command
            package = "VERSION"
        raise DeviceError(
            f"{artifact.path} was compiled by QAIRT {built} (onnxruntime-qnn {package}), but the "
            f"installed onnxruntime-qnn {here.get('onnxruntime-qnn')} contains QAIRT "
            f"{here.get('qairt')}: pip install onnxruntime-qnn=={package}, or export it again"
        )


def _opened(artifact: Artifact, settings: Mapping[str, str]) -> Any:
    """Open the files; the name of the context binary in the first one does not matter.

    Raises:
        ArtifactError: the name of the binary cannot be opened.
        DeviceError: the execution provider refuses the files.
    """
    engine, (main, binary) = load_engine(), files(artifact.path)
    require_name(binary)
    # The provider reads the binary that the node names, from the folder of this path.
    model = _modelproto.with_attribute(main, BINARY, binary.name, _LARGEST)
    entries = {"ep.context_file_path": os.fspath(main.absolute())}
    try:
        return _start(engine, model, entries, settings)
    except DeviceError as error:
        raise DeviceError(f"QNN cannot open {artifact.path}: {error}") from error


def require_name(binary: Path) -> None:
    """Raise ArtifactError if the execution provider would refuse the name of a context binary."""
    if ".." in binary.name:
        raise ArtifactError(f"{binary}: QNN opens no name with two dots in a row: rename it")


def _start(
    engine: Any, model: bytes, entries: Mapping[str, str], settings: Mapping[str, str]
) -> Any:
    """Open an ``InferenceSession``; raise DeviceError if the execution provider refuses it."""
    devices, package = _devices(engine), import_module("onnxruntime_qnn")
    if not devices:
        raise DeviceError(f"{PROVIDER} finds no device: check the driver of the NPU")
    options = engine.SessionOptions()
    options.log_severity_level = 4  # fatal only: errors are raised as exceptions
    for key, value in {**_ENTRIES, **entries}.items():
        options.add_session_config_entry(key, value)
    backend = {"backend_path": package.get_qnn_htp_path()}
    options.add_provider_for_devices(devices[:1], {**backend, **settings})
    try:
        return engine.InferenceSession(model, options)
    except Exception as error:  # onnxruntime has no common exception class
        raise DeviceError(one_line(error)) from error


def _arithmetic(manifest: Manifest, device: str) -> str:
    """Describe the arithmetic, such as "int8, u16s8 (QNN, emulated HTP v73)"."""
    kind = "float16" if manifest.precision == "fp16" else manifest.precision
    profile = f", {manifest.quantization.profile}" if manifest.quantization else ""
    emulated = "emulated " if device == "emulator" else ""
    return f"{kind}{profile} (QNN, {emulated}HTP {manifest.engine.get('htp_arch')})"
