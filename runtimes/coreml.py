"""Run .mlpackage artifacts in Core ML, through coremltools, on macOS.

An artifact is a folder NAME.mlpackage with an ML program, and the manifest in NAME.mlpackage.json.
coremltools compiles the program whenever it opens one
(https://apple.github.io/coremltools/docs-guides/source/model-prediction.html). On other systems it
reads and writes packages, but cannot run them.

The device selects the compute units that Core ML may use: "cpu", "gpu" (with the CPU), "npu" (the
Neural Engine, with the CPU), or "auto" (all). Core ML decides for each operation which of them
computes it; ``examples/coreml_placement.py`` prints its plan.

Not run: the tests have no Mac. They use a stand-in for the classes of coremltools, and
compare calls and arguments with the package itself where it is installed.
"""

from __future__ import annotations

import platform
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
from y7edge.errors import ArtifactError, ConfigError, DeviceError
from y7edge.runtimes.base import (
    Session,
    SessionOptions,
    claim_engine,
    installed_versions,
    one_line,
    parse_device,
    require,
)

FORMATS = (".mlpackage",)
TARGETS = ("coreml",)
NEEDS = {"coremltools": "y7edge[coreml]"}
DEVICES = ("cpu", "gpu", "npu")
DEVIATION = 1e-4

# The manifest is in the file beside the artifact.
read_manifest, write_manifest = read_sidecar, write_sidecar

# Members of coremltools.ComputeUnit.
_UNITS = {"auto": "ALL", "cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "npu": "CPU_AND_NE"}
_ARITHMETIC = {"fp32": "float32", "fp16": "float16"}
_KINDS = {"MLCPUComputeDevice": "cpu", "MLGPUComputeDevice": "gpu"}
_KINDS["MLNeuralEngineComputeDevice"] = "npu"
# ArrayFeatureType.ArrayDataType and ImageFeatureType.ColorSpace of FeatureTypes.proto.
_DTYPES = {65568: "float32", 65552: "float16", 131104: "int32", 131080: "int8"}
_COLORS = {20: "rgb", 30: "bgr"}


def on_macos() -> bool:
    """Return whether Core ML exists on this system."""
    return platform.system() == "Darwin"


def misplaced() -> str | None:
    """Return why installing the package does not help."""
    return None if on_macos() else "but Core ML runs on macOS only"


def load_engine() -> Any:
    """Import coremltools, which has no telemetry."""
    import coremltools

    return coremltools


def files(path: Path) -> tuple[Path, ...]:
    """Return the package, a folder, and the manifest."""
    return (path, sidecar(path))


def payload_digest(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the names and contents of all files in the package."""
    return digest_files(files[:1])


def versions() -> dict[str, str]:
    """Return the versions of coremltools, and of macOS, which contains Core ML."""
    found = installed_versions("coremltools")
    release = platform.mac_ver()[0]
    return found | ({"macos": release} if release else {})


def available_devices() -> list[str]:
    """Return the kinds of devices that Core ML finds."""
    if not on_macos():
        return []
    from coremltools.models.compute_device import MLComputeDevice

    found = {type(device).__name__ for device in MLComputeDevice.get_all_compute_devices()}
    return [kind for name, kind in _KINDS.items() if name in found]


def open(artifact: Artifact, options: SessionOptions) -> Session:
    """Open a session in Core ML.

    Raises:
        DeviceError: the system is not macOS, it has no such device, or Core ML refuses the package.
        ArtifactError: the package's tensors differ from the manifest's.
    """
    return _CoreMlSession(artifact, options)


class _CoreMlSession(Session):
    """One loaded model."""

    ENGINE = "Core ML"

    def __init__(self, artifact: Artifact, options: SessionOptions) -> None:
        device = _device(options)
        units = _UNITS[device]
        super().__init__(
            str(artifact.path),
            artifact.manifest,
            device=device,
            arithmetic=f"{_ARITHMETIC[artifact.manifest.precision]} (Core ML, {units})",
            versions=versions(),
        )
        self._image = artifact.manifest.input.dtype == "uint8"
        if self._image:
            require({"PIL": "y7edge[coreml]"}, f"opening {artifact.path.name}")
        claim_engine(self.ENGINE)
        engine = load_engine()
        self._model: Any = None
        try:
            self._model = engine.models.MLModel(
                str(artifact.path), compute_units=getattr(engine.ComputeUnit, units)
            )
            spec = self._model.get_spec()
        except Exception as error:  # coremltools has no common exception class
            raise DeviceError(f"Core ML cannot open {artifact.path}: {one_line(error)}") from error
        color = artifact.manifest.input.color
        self._require_tensors(
            (_input(feature, color) for feature in spec.description.input),
            (_array(feature) for feature in _ordered(spec.description.output, self.outputs)),
        )

    def bare(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        """Return a function that calls coremltools' ``predict``."""
        model, given = self._model, self._given(feeds)

        def run() -> object:
            return model.predict(dict(given))

        return run

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        results = self._model.predict(self._given(feeds))
        return {
            spec.name: np.array(results[spec.name]) for spec in self.outputs if spec.name in results
        }

    def _given(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Return the input as coremltools takes it: images as PIL images, in the order RGB."""
        if not self._image:
            return {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        from PIL import Image

        return {name: Image.fromarray(np.ascontiguousarray(a[0])) for name, a in feeds.items()}

    def _close(self) -> None:
        self._model = None


def _device(options: SessionOptions) -> str:
    kind, _ = parse_device(options.device, DEVICES)
    if options.provider_options:
        name = next(iter(options.provider_options))
        raise ConfigError(f"Core ML has no option {name!r}: omit it")
    if not on_macos():
        raise DeviceError(
            "Core ML runs on macOS only: run the package on a Mac, with `y7edge selftest`"
        )
    if kind not in ("auto", "cpu") and kind not in (found := available_devices()):
        raise DeviceError(
            f"device is {kind!r}, but Core ML finds only {', '.join(found)}: use one of them, or "
            "'auto'"
        )
    return kind


def _input(feature: Any, color: str) -> tuple[str, str, tuple[Dim, ...]]:
    """Return name, dtype and shape of an input, which is an image or an array."""
    if feature.type.WhichOneof("Type") != "imageType":
        return _array(feature)
    image = feature.type.imageType
    found = _COLORS.get(int(image.colorSpace), "another order")
    if found != color:
        raise ArtifactError(
            f"the input {feature.name} takes {found}, its manifest has {color}: export it again"
        )
    return feature.name, "uint8", (1, int(image.height), int(image.width), 3)


def _array(feature: Any) -> tuple[str, str, tuple[Dim, ...]]:
    """Return name, dtype and shape of an array."""
    if feature.type.WhichOneof("Type") != "multiArrayType":
        raise ArtifactError(f"{feature.name} is not an array: export the package again")
    array = feature.type.multiArrayType
    dtype = _DTYPES.get(int(array.dataType), f"type {int(array.dataType)}")
    return feature.name, dtype, tuple(map(int, array.shape))


def _ordered(features: Sequence[Any], specs: Sequence[Any]) -> list[Any]:
    """Return the outputs in the order of ``specs``, others last."""
    order = {spec.name: index for index, spec in enumerate(specs)}
    return sorted(features, key=lambda feature: order.get(feature.name, len(order)))
