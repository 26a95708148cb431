"""Run OpenVINO IR artifacts on CPUs, Intel GPUs and NPUs (https://docs.openvino.ai).

An artifact is an .xml file (the graph) and a .bin file (the weights). The manifest is the attribute
``value`` of the element ``/net/rt_info/y7edge/manifest`` in the .xml file. It is read and written
without the engine. The payload is the rest of the .xml file and the whole .bin file.

Provider options are OpenVINO's properties. Device "AUTO" lets OpenVINO choose a device, unlike
"auto", which is the CPU. With
``{"PERFORMANCE_HINT": "THROUGHPUT"}``, the images of a dynamic batch are run in parallel, in as
many requests as OpenVINO recommends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.artifact import Artifact, digest_files
from y7edge.artifact.manifest import Dim, Manifest
from y7edge.errors import ArtifactError, ConfigError, DeviceError
from y7edge.files import atomic_write, read_regular, reason
from y7edge.runtimes.base import (
    Session,
    SessionOptions,
    TensorSpec,
    claim_engine,
    decode_manifest,
    installed_versions,
    keep,
    one_line,
    parse_device,
)

FORMATS = (".xml",)
TARGETS = ("openvino",)
NEEDS = {"openvino": "y7edge[openvino]"}
DEVICES = ("cpu", "gpu", "gpu:N", "npu", "AUTO")
DEVIATION = 1e-4

_PLACE = ["net", "rt_info", "y7edge"]  # path of the element that contains the manifest
_MAX_XML = 32 << 20  # bytes of an .xml file; the largest variant has 2 MB
_MAX_ELEMENTS = 500_000  # in an .xml file; the largest variant has 40,000
# Options that users cannot set, because the artifact's precision determines the arithmetic.
_PRECISION = "INFERENCE_PRECISION_HINT"
_RESERVED = (_PRECISION, "EXECUTION_MODE_HINT")
_ON_CPU = ("cpu", "AUTO")  # kinds of devices that may use the CPU


def load_engine() -> Any:
    """Import openvino with its telemetry off.

    On import, openvino sends telemetry and writes into the home directory, unless the package
    ``openvino_telemetry`` cannot be imported. An entry of None in ``sys.modules`` prevents the
    import of this package.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def open_core() -> Any:
    """Return the only ``openvino.Core`` of this process, which is never freed.

    A core installs an alternate signal stack in the thread that first compiles a model, and unmaps
    this stack when it is freed. After several cores are freed, the thread may still use an unmapped
    stack, and the next signal, such as Ctrl-C, would crash the process.

    Raises:
        DeviceError: the core was created in another process, before a fork.
    """
    claim_engine("OpenVINO")
    return _core()


@cache
def _core() -> Any:
    """Create the core."""
    core = load_engine().Core()
    # Memory-mapped weights would change with the file, and truncation would kill the process.
    core.set_property({"ENABLE_MMAP": False})
    keep(core)
    return core


def files(path: Path) -> tuple[Path, ...]:
    """Return the .xml file and the .bin file of the same name."""
    return (path, path.with_suffix(".bin"))


def read_manifest(path: Path) -> Manifest:
    """Read the manifest in an .xml file, and check the manifest's digest."""
    return decode_manifest(_Document(path).manifest, path, "--target openvino --out FILE.xml")


def write_manifest(artifact: Artifact) -> None:
    """Write the artifact's manifest into its .xml file, replacing an older one."""
    document = _Document(artifact.path)
    head, tail = document.without_manifest()
    with atomic_write(artifact.path) as temporary:
        temporary.write_bytes(head + _element(artifact.manifest.to_json()) + tail)


def payload_digest(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the .xml file without its manifest, and of the .bin file."""
    return digest_files(files, first=b"".join(_Document(files[0]).without_manifest()))


def versions() -> dict[str, str]:
    """Return the version of the installed openvino package."""
    return installed_versions("openvino")


def available_devices() -> list[str]:
    """Return the devices that OpenVINO finds, and AUTO, which chooses one of them."""
    found = [device.lower().replace(".", ":") for device in open_core().available_devices]
    return [*found, "AUTO"]


def open(artifact: Artifact, options: SessionOptions) -> Session:
    """Open a session in OpenVINO; device "auto" is the CPU."""
    return _OpenVinoSession(artifact, options)


class _OpenVinoSession(Session):
    """A compiled model with one inference request, or with a queue of them for throughput."""

    ENGINE = "OpenVINO"

    def __init__(self, artifact: Artifact, options: SessionOptions) -> None:
        manifest = artifact.manifest
        kind, index = parse_device(options.device, DEVICES)
        kind = "cpu" if kind == "auto" else kind
        compiled = _compile(artifact, options, kind, index)
        device = kind if index is None else f"{kind}:{index}"
        super().__init__(
            str(artifact.path),
            manifest,
            device=device,
            arithmetic=_arithmetic(compiled, manifest.precision, device),
            versions=versions(),
            threads=_threads(compiled, kind),
        )
        self._require_tensors(
            _tensors(compiled.inputs, self.inputs), _tensors(compiled.outputs, self.outputs)
        )
        self._tensor = load_engine().Tensor
        self._request: Any = compiled.create_infer_request()
        self._queue: Any = None
        hint = str(options.provider_options.get("PERFORMANCE_HINT", "")).upper()
        if hint.endswith("THROUGHPUT") and manifest.input.batch == "dynamic":
            self._queue = load_engine().AsyncInferQueue(compiled)

    def bare(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        """Return a function that runs a separate inference request."""
        request = self._request.get_compiled_model().create_infer_request()
        for index, spec in enumerate(self.inputs):
            array = np.ascontiguousarray(feeds[spec.name])
            request.set_input_tensor(index, self._tensor(array, shared_memory=True))

        def run() -> object:
            request.infer()
            return [request.get_output_tensor(index).data for index in range(len(self.outputs))]

        return run

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        # The engine uses the inputs without copying them. Outputs are copied, because the next run
        # overwrites them.
        given = [np.ascontiguousarray(feeds[spec.name]) for spec in self.inputs]
        if self._queue is not None and len(given[0]) > 1:
            return self._run_queue(given[0])
        for index, array in enumerate(given):
            self._request.set_input_tensor(index, self._tensor(array, shared_memory=True))
        self._request.infer()
        return {
            spec.name: np.array(self._request.get_output_tensor(index).data)
            for index, spec in enumerate(self.outputs)
        }

    def _run_queue(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run the images of a batch one by one, several at the same time."""
        found: list[list[NDArray[Any]]] = [[] for _ in images]
        problems: list[Exception] = []

        def keep_outputs(request: Any, index: int) -> None:
            try:
                found[index] = [np.array(tensor.data) for tensor in request.output_tensors]
            except Exception as error:  # raised in the queue, it would end the process
                problems.append(error)

        self._queue.set_callback(keep_outputs)
        try:
            for index in range(len(images)):
                tensor = self._tensor(images[index : index + 1], shared_memory=True)
                self._queue.start_async({0: tensor}, userdata=index)
        finally:  # also after Ctrl-C: requests that still run would mix with the next batch
            self._queue.wait_all()
        if problems:
            raise problems[0]
        parts = zip(*found, strict=True)
        return {
            spec.name: np.concatenate(part) for spec, part in zip(self.outputs, parts, strict=True)
        }

    def _close(self) -> None:
        self._request = self._queue = None


def _compile(artifact: Artifact, options: SessionOptions, kind: str, index: int | None) -> Any:
    """Compile an artifact for a device; raise DeviceError if that fails."""
    own = dict(options.provider_options)
    if taken := sorted(set(own) & set(_RESERVED)):
        raise ConfigError(
            f"{taken[0]} cannot be set: the artifact was proved with its own precision; export it "
            "with another --precision"
        )
    # Without the hint, CPUs with AMX compute fp32 models in bfloat16. On a CPU, float16 arithmetic
    # is slower than float32 arithmetic with float16 weights.
    hints = {"bf16": "bf16", "fp16": "f32" if kind in _ON_CPU else "f16"}
    settings: dict[str, Any] = {
        _PRECISION: hints.get(artifact.manifest.precision, "f32"),
        "PERFORMANCE_HINT": "LATENCY",
    }
    if options.threads is not None and "INFERENCE_NUM_THREADS" in own:
        raise ConfigError("give threads or INFERENCE_NUM_THREADS, not both")
    if kind in _ON_CPU:
        settings["INFERENCE_NUM_THREADS"] = options.thread_count
        # Pinning would put the calling threads of all sessions on the same first processors.
        settings["ENABLE_CPU_PINNING"] = False
    name = kind.upper() if index is None else f"{kind.upper()}.{index}"
    try:
        core = open_core()
        available = core.available_devices
        if kind != "AUTO" and not any(d.split(".")[0] == kind.upper() for d in available):
            raise DeviceError(
                f"device {options.device!r} is not available: OpenVINO has only "
                f"{', '.join(available).lower() or 'none'}: install the driver, or use device='cpu'"
            )
        model = core.read_model(*map(str, artifact.files))
        return core.compile_model(model, name, {**settings, **own})
    except DeviceError:
        raise
    except Exception as error:  # OpenVINO has no common exception class
        raise DeviceError(f"OpenVINO cannot open {artifact.path}: {one_line(error)}") from error


def _threads(compiled: Any, kind: str) -> int | None:
    """Return the number of CPU threads that the compiled model uses; None if it uses no CPU."""
    found = _properties(compiled, kind, "INFERENCE_NUM_THREADS") if kind in _ON_CPU else []
    return max(map(int, found), default=None)


def _properties(compiled: Any, kind: str, name: str) -> list[Any]:
    """Return the values of a property: one, or for AUTO one for each device that has it."""
    if kind != "AUTO":
        return [compiled.get_property(name)]
    by_device = compiled.get_property("DEVICE_PROPERTIES").values()
    return [properties[name] for properties in by_device if name in properties]


def _arithmetic(compiled: Any, precision: str, device: str) -> str:
    """Return a description of the arithmetic that the compiled model uses.

    Raises:
        DeviceError: an fp32 or bf16 artifact would be computed in another precision.
    """
    names = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
    codes = {code.to_string() for code in _properties(compiled, device, _PRECISION)}
    expected = {"fp32": "float32", "bf16": "bfloat16"}.get(precision)
    for computed in (names.get(code, code) for code in codes):
        if computed != (expected or computed):
            raise DeviceError(
                f"OpenVINO would compute this {precision} artifact in {computed} on {device}, "
                f"expected {expected}: use another device, or export it with another --precision"
            )
    computed = " or ".join(sorted(names.get(code, code) for code in codes)) or "unknown arithmetic"
    stored = "float16 weights, " if precision == "fp16" and computed == "float32" else ""
    if precision == "int8":
        stored = f"int8 in {_integer_convolutions(compiled)} convolutions, else "
    if device == "AUTO":
        device += f": {', '.join(compiled.get_property('EXECUTION_DEVICES')).lower()}"
    return f"{stored}{computed} (OpenVINO, {device})"


def _integer_convolutions(compiled: Any) -> str:
    """Return how many of the convolutions are computed in integers, such as "55 of 58"."""
    found = [
        info["runtimePrecision"].astype(str)
        for info in (op.get_rt_info() for op in compiled.get_runtime_model().get_ops())
        if "layerType" in info and info["layerType"].astype(str) == "Convolution"
    ]
    return f"{sum(kind in ('i8', 'u8') for kind in found)} of {len(found)}"


def _tensors(
    ports: Sequence[Any], specs: Sequence[TensorSpec]
) -> list[tuple[str, str, tuple[Dim, ...]]]:
    """Return name, dtype and shape of the engine's tensors.

    A tensor may have several names; the one in ``specs`` is preferred.
    """
    expected = {spec.name for spec in specs}
    return [
        (
            min(port.names & expected or port.names, default=""),
            np.dtype(port.element_type.to_dtype()).name,
            tuple("dynamic" if dim.is_dynamic else dim.get_length() for dim in port.partial_shape),
        )
        for port in ports
    ]


def _element(value: str) -> bytes:
    """Return the XML element for a manifest. ``_Document`` accepts only these exact bytes."""
    return f"<y7edge><manifest value={quoteattr(value)}/></y7edge>".encode()


class _Document:
    """The bytes of an .xml file, with the position of the manifest in them.

    Raises:
        ArtifactError: the file is not the .xml file of an OpenVINO IR.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack: list[str] = []
        self._values: list[str] = []
        self._begin: int | None = None
        self._insert: int | None = None
        self._elements = 0
        try:
            self._data = read_regular(path, _MAX_XML)
        except OSError as error:
            raise ArtifactError(f"cannot read {path}: {reason(error)}") from error
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.StartDoctypeDeclHandler = self._doctype
        try:
            self._parser.Parse(self._data, True)
        except ArtifactError:
            raise
        except (expat.ExpatError, LookupError, ValueError) as error:  # also unknown encodings
            raise self._malformed(one_line(error)) from error
        if self._insert is None:
            raise self._malformed("it has no element net/rt_info")

    @property
    def manifest(self) -> str | None:
        """The manifest's text; None if there is none."""
        return self._values[0] if self._values else None

    def without_manifest(self) -> tuple[bytes, bytes]:
        """Return the bytes before and after the manifest's position."""
        assert self._insert is not None
        if self._begin is None:
            return self._data[: self._insert], self._data[self._insert :]
        end = self._begin + len(_element(self._values[0]))
        return self._data[: self._begin], self._data[end:]

    def _malformed(self, problem: str) -> ArtifactError:
        return ArtifactError(
            f"{self._path} is not the .xml file of an OpenVINO IR ({problem}): copy or export it "
            "again"
        )

    def _doctype(self, *_: Any) -> None:
        raise self._malformed("it declares a document type")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._stack.append(name)
        self._elements += 1
        if self._elements > _MAX_ELEMENTS:
            raise self._malformed(f"it has more than {_MAX_ELEMENTS} elements")
        if self._stack == _PLACE:
            if self._begin is not None:
                raise self._malformed("it has two elements rt_info/y7edge")
            self._begin = self._parser.CurrentByteIndex
        elif self._stack == [*_PLACE, "manifest"]:
            self._values.append(attributes.get("value", ""))
        elif self._stack[0] != "net":
            raise self._malformed(f"its root is {name!r}, expected 'net'")

    def _end(self, _: str) -> None:
        if self._stack == _PLACE:
            # Accept only the bytes that y7edge writes: without_manifest needs their exact length.
            begin = self._begin or 0
            whole = _element(self._values[0]) if len(self._values) == 1 else b""
            if not whole or self._data[begin : begin + len(whole)] != whole:
                raise self._malformed("its element rt_info/y7edge was not written by y7edge")
        elif self._stack == _PLACE[:2]:
            self._insert = self._parser.CurrentByteIndex
            if not self._data.startswith(b"</", self._insert):
                raise self._malformed("its element rt_info is empty")
        self._stack.pop()
