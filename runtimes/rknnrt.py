"""Run RKNN artifacts on the NPUs of Rockchip, or in the vendor's simulator on a PC.

An artifact is a .rknn file, the graph that it was built from in a .rknn.onnx file, and the manifest
in a .rknn.json file. On a board, rknn-toolkit-lite2 runs the .rknn file; its API is that of the
package's ``rknnlite/api/rknn_lite.py``, version 2.5.0 (https://github.com/airockchip/rknn-toolkit2).
No board was available: this part was not run.

On a PC, the simulator of rknn-toolkit2 runs the graph. It cannot read .rknn files, only a graph
that it has just built, so a child process in the interpreter that has the toolkit
(``Y7EDGE_RKNN_PYTHON``) builds the graph when the session is opened. The simulator gives the
results of the quantised or float16 graph, not the time on a device.

Provider option ``core_mask``, for boards with several cores: "auto" (the default), "0", "1", "2",
"0_1", "0_1_2" or "all". Device "npu:N" is core N.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge import interpreters
from y7edge.artifact.artifact import (
    Artifact,
    digest_files,
    read_sidecar,
    sidecar,
    write_sidecar,
)
from y7edge.artifact.manifest import Manifest
from y7edge.errors import ArtifactError, ConfigError, DeviceError, RuntimeMissing
from y7edge.runtimes import _modelproto
from y7edge.runtimes._rknn_simulator import Simulator
from y7edge.runtimes.base import (
    Session,
    SessionOptions,
    installed_versions,
    parse_device,
)

FORMATS = (".rknn",)
TARGETS = ("rknn",)
NEEDS: Mapping[str, str] = {}  # on a board rknn-toolkit-lite2, on a PC another interpreter
DEVICES = ("simulator", "npu", "npu:N")
DEVIATION = 1e-3

PLATFORMS = (
    *("rk2118", "rk3562", "rk3566", "rk3568", "rk3576", "rk3588"),
    *("rv1103", "rv1103b", "rv1106", "rv1106b", "rv1126b"),
)
"""Values of ``target_platform`` of rknn-toolkit2 2.5.0."""

RECIPE = (
    "python3.11 -m venv ENV && "
    "ENV/bin/pip install --no-deps rknn-toolkit2==2.5.0 && "
    "ENV/bin/pip install 'numpy==1.26.4' 'onnx==1.18.0' 'protobuf==4.25.4' 'onnxruntime==1.23.2' "
    "'setuptools>=77,<81' opencv-python-headless==4.11.0.86 psutil ruamel.yaml scipy==1.14.1 tqdm "
    "fast-histogram && "
    "ENV/bin/pip install --index-url https://download.pytorch.org/whl/cpu torch==2.13.0"
)
"""The commands that create an interpreter with rknn-toolkit2."""

# The manifest is in the file beside the artifact.
read_manifest, write_manifest = read_sidecar, write_sidecar

_LITE = "pip install rknn-toolkit-lite2"
_ARM = ("aarch64", "armv7l")
_COMPATIBLE = Path("/proc/device-tree/compatible")  # board and chip, separated by zero bytes
_MASKS = {
    **{"auto": "NPU_CORE_AUTO", "0": "NPU_CORE_0", "1": "NPU_CORE_1", "2": "NPU_CORE_2"},
    **{"0_1": "NPU_CORE_0_1", "0_1_2": "NPU_CORE_0_1_2", "all": "NPU_CORE_ALL"},
}


def load_engine() -> Any:
    """Import the class ``RKNNLite`` of rknn-toolkit-lite2; None if it is not installed."""
    if find_spec("rknnlite") is None:
        return None
    from rknnlite.api import RKNNLite

    return RKNNLite


def files(path: Path) -> tuple[Path, ...]:
    """Return the .rknn file, the graph that it was built from, and the manifest."""
    return (path, graph_of(path), sidecar(path))


def graph_of(path: Path) -> Path:
    """Return the path of the graph that a .rknn file was built from."""
    return path.parent / f"{path.name}.onnx"


def payload_digest(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the .rknn file and the graph."""
    return digest_files(files[:2])


def versions() -> dict[str, str]:
    """Return the versions of rknn-toolkit-lite2, and of the toolkit in the other interpreter."""
    found = installed_versions("rknn-toolkit-lite2")
    if not found:
        try:
            found = toolkit()[1]
        except RuntimeMissing:
            return {}
    return found


def toolkit() -> tuple[Path, dict[str, str]]:
    """Return the interpreter that has rknn-toolkit2, and the package's version.

    Raises:
        RuntimeMissing: there is none; the message has the commands that create it.
    """
    python = interpreters.find_interpreter("rknn", "rknn", RECIPE)
    return python, interpreters.require_packages(python, ("rknn-toolkit2>=2.5",), RECIPE)


def available_devices() -> list[str]:
    """Return the NPU if rknn-toolkit-lite2 is installed, else the simulator if it is there."""
    if load_engine() is not None:
        return ["npu"]
    return ["simulator"] if versions() else []


def misplaced() -> str | None:
    """Return how to install what runs the files; None if it is there."""
    if load_engine() is not None:
        return None
    if on_board():
        return f"on this board, install rknn-toolkit-lite2: {_LITE}"
    try:
        _simulator()
    except RuntimeMissing as error:
        return str(error)
    return None


def _simulator() -> Path:
    """Return the interpreter with the simulator.

    Raises:
        RuntimeMissing: there is none. The message names the package for boards first.
    """
    try:
        return toolkit()[0]
    except RuntimeMissing as error:
        board = f"on a Rockchip board, install rknn-toolkit-lite2: {_LITE}"
        if platform.machine() in _ARM:
            raise RuntimeMissing(board) from error
        raise RuntimeMissing(f"{board}; on a PC, for the simulator: {error}") from error


def on_board() -> bool:
    """Return whether this machine is a board with a chip of Rockchip.

    Read from the device tree
    (https://www.kernel.org/doc/Documentation/devicetree/bindings/arm/rockchip.yaml).
    """
    try:
        names = _COMPATIBLE.read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return any(name.startswith("rockchip,") for name in names)


def platform_of(manifest: Manifest, path: Path) -> str:
    """Return the chip that an artifact was built for.

    Raises:
        ArtifactError: the manifest does not have one.
    """
    found = manifest.engine.get("platform")
    if found not in PLATFORMS:
        raise ArtifactError(
            f"{path} was built for the platform {found!r:.40}, expected {', '.join(PLATFORMS)}: "
            "export it again"
        )
    return str(found)


def open(artifact: Artifact, options: SessionOptions) -> Session:
    """Open a session; device "auto" is the NPU on a board, and the simulator on a PC.

    Raises:
        RuntimeMissing: neither rknn-toolkit-lite2 nor an interpreter with rknn-toolkit2 was found.
        ArtifactError: the manifest has another input or another platform than RKNN files have.
    """
    _require_pixels(artifact)
    kind, core = parse_device(options.device, DEVICES)
    mask = _mask(options.provider_options, core)
    if kind == "auto":
        kind = "npu" if find_spec("rknnlite") is not None or on_board() else "simulator"
    if kind == "npu":
        return _NpuSession(artifact, "npu" if core is None else f"npu:{core}", mask)
    if options.provider_options:
        raise ConfigError("the simulator has no option 'core_mask', which is for boards: omit it")
    return _SimulatorSession(artifact, options)


def _require_pixels(artifact: Artifact) -> None:
    """Raise ArtifactError unless the manifest's input is what the engines take: uint8 in NHWC.

    The engines get bytes without shape and dtype, and would take others for pixels.
    """
    image = artifact.manifest.input
    if (image.dtype, image.layout) != ("uint8", "NHWC") or image.batch == "dynamic":
        raise ArtifactError(
            f"the manifest of {artifact.path} has the input {image.dtype} {image.shape}, expected "
            f"uint8 {(image.images, image.height, image.width, 3)}: export it again"
        )


def _mask(given: Mapping[str, Any], core: int | None) -> str:
    """Return the name of the core mask in ``RKNNLite``.

    Raises:
        ConfigError: an option does not exist.
        DeviceError: the core does not exist.
    """
    unknown = set(given) - {"core_mask"}
    if unknown:
        raise ConfigError(f"RKNN has no option {min(unknown)!r:.40}, expected core_mask: omit it")
    if core is not None and given:
        raise ConfigError(f"device is 'npu:{core}', and core_mask is given: give only one")
    if core is not None:
        if str(core) not in _MASKS:
            raise DeviceError(f"device 'npu:{core}' does not exist, expected npu:0, npu:1 or npu:2")
        return _MASKS[str(core)]
    chosen = given.get("core_mask", "auto")
    if not isinstance(chosen, str) or chosen not in _MASKS:
        raise ConfigError(f"core_mask is {chosen!r:.40}, expected {', '.join(_MASKS)}")
    return _MASKS[chosen]


def _arithmetic(manifest: Manifest) -> str:
    """Return the arithmetic of the NPU."""
    return "int8 and float16" if manifest.precision == "int8" else "float16"


class _NpuSession(Session):
    """One ``RKNNLite`` with a .rknn file. Not run: no board was available."""

    ENGINE = "RKNN"

    def __init__(self, artifact: Artifact, device: str, mask: str) -> None:
        self._path, manifest = artifact.path, artifact.manifest
        chip, lite = platform_of(manifest, artifact.path), load_engine()
        if platform.machine() not in _ARM or not (lite or on_board()):
            raise DeviceError(
                f"device {device!r}: {artifact.path} runs on a board with {chip}, and this machine "
                "is none: use device='simulator'"
            )
        if lite is None:
            raise RuntimeMissing(
                f"opening {artifact.path.name} on the NPU needs rknnlite, which is not installed: "
                f"{_LITE}"
            )
        super().__init__(
            str(artifact.path),
            manifest,
            device=device,
            arithmetic=f"{_arithmetic(manifest)} (RKNN, {chip})",
            versions=installed_versions("rknn-toolkit-lite2"),
        )
        self._lite: Any = lite(verbose=False)
        try:
            self._require("load_rknn", self._lite.load_rknn(str(artifact.path)), chip)
            core_mask = getattr(lite, mask)
            self._require("init_runtime", self._lite.init_runtime(core_mask=core_mask), chip)
        except BaseException:
            self._lite.release()
            raise

    def _require(self, step: str, code: int, chip: str) -> None:
        """Raise DeviceError if a function of the package returned an error."""
        if code != 0:
            raise DeviceError(
                f"RKNN cannot open {self._path}: {step} failed with code {code}, and the package "
                f"printed the reason: check that this board has the chip {chip}, and that its "
                "librknnrt.so is not older than the toolkit that built the file"
            )

    def bare(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        """Return a function that runs the package on the images."""
        (pixels,) = feeds.values()
        given = [np.ascontiguousarray(pixels)]
        return partial(self._lite.inference, inputs=given, data_format=["nhwc"])

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        (pixels,) = feeds.values()
        found = self._lite.inference(inputs=[np.ascontiguousarray(pixels)], data_format=["nhwc"])
        if found is None or len(found) != len(self.outputs):
            what = "nothing" if found is None else f"{len(found)} outputs"
            raise DeviceError(f"RKNN returned {what} for {self._path}, see what it printed")
        # Copied, because the package may use its buffers again.
        arrays = [np.array(array, np.float32) for array in found]
        return dict(zip((spec.name for spec in self.outputs), arrays, strict=True))

    def _close(self) -> None:
        self._lite.release()


class _SimulatorSession(Session):
    """A graph in the simulator of rknn-toolkit2."""

    ENGINE = "RKNN's simulator"

    def __init__(self, artifact: Artifact, options: SessionOptions) -> None:
        manifest, graph = artifact.manifest, graph_of(artifact.path)
        chip = platform_of(manifest, artifact.path)
        python = _simulator()
        image = manifest.input
        shape = (image.images, image.height, image.width)
        found = _modelproto.read_interface(graph, 1 << 26)  # refuses tensors in other files
        expected = [(image.name,), tuple(output.name for output in manifest.outputs)]
        names = [tuple(t.name for t in tensors) for tensors in (found.inputs, found.outputs)]
        if names != expected:
            raise ArtifactError(
                f"{graph} has the tensors {names}, its manifest has {expected}: export it again"
            )
        child = Simulator(python, chip, graph, shape, options.thread_count)
        super().__init__(
            str(artifact.path),
            manifest,
            device="simulator",
            arithmetic=f"{_arithmetic(manifest)} (RKNN simulator, {chip})",
            versions=child.versions,
            threads=options.thread_count,
        )
        self._child = child

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        (pixels,) = feeds.values()
        shapes = [tuple(map(int, spec.shape)) for spec in self.outputs]
        arrays = self._child.run(pixels, shapes)
        return dict(zip((spec.name for spec in self.outputs), arrays, strict=True))

    def _close(self) -> None:
        self._child.close()
