"""Run TensorRT engines on NVIDIA GPUs and on the DLA cores of a Jetson.

An artifact is an .engine file, as ``trtexec --loadEngine`` reads it, and the manifest in a
.engine.json file. TensorRT 8.6 or later and pycuda are needed; with cuda-python, models of a fixed
batch size run as CUDA graphs. API: https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api

An engine file runs only on the kind of GPU and with the version of TensorRT that built it. The
manifest's field ``engine`` is compared with this machine before TensorRT reads the file. The file
contains code: TensorRT reads the same bytes whose digest was checked.

Provider options: ``{"cuda_graph": False}`` enqueues every layer in each call, for profilers, and
``{"kernels": False}`` pre-processes images and selects candidates with numpy instead of on the GPU.
"""

from __future__ import annotations

import platform
import sys
import sysconfig
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge import jetson
from y7edge.artifact.artifact import Artifact, digest_files, read_sidecar, sidecar, write_sidecar
from y7edge.artifact.manifest import Manifest
from y7edge.errors import ConfigError, DeviceError, Y7EdgeError
from y7edge.frames import Arrays, OnDevice, Placed
from y7edge.runtimes import _cuda, _trt_engine
from y7edge.runtimes._cuda_frames import FrameKernels
from y7edge.runtimes.base import Session, SessionOptions, installed_versions, one_line

FORMATS = (".engine",)
TARGETS = ("tensorrt",)
NEEDS = {"tensorrt": "y7edge[tensorrt]", "pycuda": "y7edge[tensorrt]"}
DEVICES = ("cuda", "cuda:N", "dla:N")
DEVIATION = 1e-3  # the largest allowed value: no GPU was available to measure it

# The manifest is in the file beside the artifact.
read_manifest, write_manifest = read_sidecar, write_sidecar

_OPTIONS = ("cuda_graph", "kernels")
_ARITHMETIC = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}
_SYSTEM = Path("/usr/lib")  # JetPack installs tensorrt in python3.N/dist-packages of this folder


def load_engine() -> Any:
    """Import tensorrt and pycuda, which need NVIDIA's driver."""
    _cuda.load_driver()
    import tensorrt

    return tensorrt


def files(path: Path) -> tuple[Path, ...]:
    """Return the .engine file and the manifest."""
    return (path, sidecar(path))


def payload_digest(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the .engine file."""
    return digest_files(files[:1])


def versions() -> dict[str, str]:
    """Return the versions of the packages; that of JetPack's tensorrt only after its import."""
    found = installed_versions("tensorrt", "pycuda", "cuda-python")
    loaded = sys.modules.get("tensorrt")
    return found if loaded is None else {**found, "tensorrt": str(loaded.__version__)}


def available_devices() -> list[str]:
    """Return the GPUs, and the DLA cores."""
    trt, gpus = load_engine(), _cuda.count()
    cores = 0
    if gpus:
        with _cuda.open_gpu(0).current():
            cores = trt.Runtime(_trt_engine.logger(trt)).num_DLA_cores
    return [*(f"cuda:{n}" for n in range(gpus)), *(f"dla:{n}" for n in range(cores))]


def misplaced() -> str | None:
    """Return how to import the tensorrt that the system has installed; None if that is not needed.

    JetPack installs it for the system's Python. A virtual environment does not find it, and on a
    Jetson a copy from PyPI hides it, which before JetPack 7 is built for servers.
    """
    copies = sorted(_SYSTEM.glob("python3*/dist-packages/tensorrt/__init__.py"))
    if not copies:
        absent = find_spec("tensorrt") is None and jetson.find() is not None
        return "run `sudo apt install nvidia-jetpack`, which installs tensorrt" if absent else None
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    own = [copy.parent for copy in copies if copy.parts[-4] == version]
    spec = find_spec("tensorrt")
    found = None if spec is None or spec.origin is None else Path(spec.origin).parent
    if not own and found is None:
        folder, other = copies[-1].parent, copies[-1].parts[-4]
        return (
            f"the system's tensorrt in {folder} is for {other}, this is {version}: make the "
            f"environment with {other}"
        )
    if not own:
        return None
    link = f"ln -sfn {own[0]} {_site_packages() / 'tensorrt'}"
    if found is None:
        return f"the system's tensorrt is not in this environment: run `{link}`"
    if found.resolve() == own[0].resolve() or platform.machine() != "aarch64":
        return None
    return (
        f"{found} hides the system's tensorrt in {own[0]}: run `pip uninstall tensorrt`, then "
        f"`{link}`"
    )


def _site_packages() -> Path:
    """Return the folder of this environment's packages."""
    return Path(sysconfig.get_path("purelib"))


def open(artifact: Artifact, options: SessionOptions) -> Session:
    """Open a session in TensorRT; device "auto" is the GPU or DLA core that the engine is for."""
    return _TrtSession(artifact, options)


class _TrtSession(Session):
    """An execution context with its own stream and memory. All addresses are fixed."""

    ENGINE = "TensorRT"

    def __init__(self, artifact: Artifact, options: SessionOptions) -> None:
        manifest = artifact.manifest
        index, core = _trt_engine.place(artifact, options.device, DEVICES)
        self._options = _checked(options)
        gpu = _cuda.open_gpu(index)
        _trt_engine.require_match(artifact, gpu, str(load_engine().__version__))
        plan = _trt_engine.read(artifact, options)
        device = f"cuda:{index}" if core is None else f"dla:{core}"
        super().__init__(
            str(artifact.path),
            manifest,
            device=device,
            arithmetic=f"{_ARITHMETIC[manifest.precision]} (TensorRT, {device})",
            versions=versions(),
        )
        self._gpu = gpu
        self._memory: _cuda.Memory | None = None
        self._network = _trt_engine.Network(load_engine(), str(artifact.path))
        self._graph: _cuda.Graph | None = None
        try:
            with gpu.current():
                # A version-compatible file contains TensorRT's lean runtime, which is executed.
                host_code = manifest.engine.get("version_compatible") is True
                self._network.load(plan, core, host_code=host_code)
                self._open(manifest, core)
        except BaseException as error:
            self._free_after(error)
            if isinstance(error, Y7EdgeError) or not isinstance(error, Exception):
                raise
            raise DeviceError(
                f"TensorRT cannot open {artifact.path} on {device}: {one_line(error)}"
            ) from error

    def _open(self, manifest: Manifest, core: int | None) -> None:
        """Allocate the tensors, create the execution context, and run it once."""
        network, image = self._network, self.inputs[0]
        self._require_tensors(
            network.tensors(self.inputs, inputs=True), network.tensors(self.outputs, inputs=False)
        )
        self._most = network.largest_batch(image)
        self._dynamic = image.shape[0] == "dynamic"
        self._batch = 0  # images of the last call
        self._memory = memory = _cuda.Memory(self._gpu)
        memory.open_stream()
        # With kernels, an image is used in place, and its tensor is read by the network only. It is
        # not documented that a DLA core can use page-locked memory.
        in_place = core is None and not self._options["kernels"]
        self._input, *self._outputs = (
            memory.buffer(
                (self._most, *map(int, spec.shape[1:])),
                spec.dtype,
                output=spec is not image,
                in_place=in_place,
            )
            for spec in (image, *self.outputs)
        )
        memory.add(network.drop)
        buffers = (self._input, *self._outputs)
        names = [spec.name for spec in (image, *self.outputs)]
        network.start({n: buffer.address for n, buffer in zip(names, buffers, strict=True)})
        self._kernels, self._frames = self._load_kernels(memory, manifest)
        self._input.host.fill(0)
        count = 1 if self._dynamic else self._most
        self._input.upload(memory, 0, count)
        self._enqueue(count)
        memory.stream.synchronize()
        self._graph, self._execution = self._capture(memory, core)

    def _load_kernels(
        self, memory: _cuda.Memory, manifest: Manifest
    ) -> tuple[FrameKernels | None, str]:
        """Return the kernels for frames, or None, and a description."""
        if not self._options["kernels"]:
            return None, "numpy (kernels is False)"
        tensors = (self._input, *self._outputs)
        try:
            found = FrameKernels(self._gpu, memory, manifest, tensors)
        except ConfigError as error:  # of a model or driver that the kernels do not support
            return None, f"numpy ({error})"
        return found, f"cuda:{self._gpu.index}"

    def _capture(self, memory: _cuda.Memory, core: int | None) -> tuple[_cuda.Graph | None, str]:
        """Capture a call as a CUDA graph; return the graph, or None, and a description."""
        driver = _cuda.graphs()
        if not self._options["cuda_graph"]:
            problem = "cuda_graph is False"
        elif self._dynamic:
            problem = "the batch is dynamic"
        elif core is not None:
            problem = "not supported on a DLA core"
        elif driver is None:
            problem = "cuda-python is not installed"
        else:
            enqueue = partial(self._enqueue, self._most)
            try:
                graph = _cuda.Graph(driver, memory.stream.handle, enqueue)
            except DeviceError as error:  # the work of this network cannot be captured
                return None, f"enqueue (no CUDA graph: {error})"
            memory.add(graph.destroy)
            return graph, "CUDA graph"
        return None, f"enqueue (no CUDA graph: {problem})"

    @property
    def on_device(self) -> OnDevice | None:
        """The session itself, unless images are pre-processed by numpy."""
        return self if self._kernels is not None else None

    @property
    def info(self) -> dict[str, Any]:
        """As of every session, and two entries more.

        ``execution``: whether calls run as a CUDA graph. ``frames``: where images are pre-processed
        and candidates selected.
        """
        return {**super().info, "execution": self._execution, "frames": self._frames}

    def bare(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], object] | None:
        """Return a function that copies the input to the GPU, runs, and copies the outputs back."""
        images = feeds[self.inputs[0].name]
        if len(images) > self._most:
            return None

        def run() -> object:
            self._run_batch(images)
            return [buffer.host[: len(images)] for buffer in self._outputs]

        return run

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        images = feeds[self.inputs[0].name]
        parts = []
        for start in range(0, len(images), self._most):
            part = images[start : start + self._most]
            self._run_batch(part)
            parts.append(self._results(len(part)))
        return _joined(parts)

    def run(self, images: Sequence[Placed], conf: float | None) -> list[Arrays] | dict[str, Any]:
        """Run images of any sizes, in host memory or on this GPU; see ``OnDevice.run``."""
        self._require_open()
        parts = [images[i : i + self._most] for i in range(0, len(images), self._most)]
        found = [self._call(self._run_images, part, conf) for part in parts]
        selected = [part for part in found if isinstance(part, list)]
        if len(selected) == len(found):
            return [one for part in selected for one in part]
        if selected:  # of another part there were too many candidates
            return self.run(images, None)
        return _joined([part for part in found if isinstance(part, dict)])

    def _run_images(
        self, images: Sequence[Placed], conf: float | None
    ) -> list[Arrays] | dict[str, NDArray[Any]]:
        count, memory, kernels = len(images), self._memory, self._kernels
        assert memory is not None
        assert kernels is not None
        with self._gpu.current():
            kernels.letterbox(images)
            self._execute(count)
            if conf is not None and kernels.selects:
                found = kernels.select(conf, count)
                if found is not None:
                    return found
            self._download(memory, count)
        return self._results(count)

    def _run_batch(self, images: NDArray[Any]) -> None:
        """Run at most ``_most`` images; the results are in the host memory of ``_outputs``."""
        count, memory = len(images), self._memory
        assert memory is not None
        with self._gpu.current():
            np.copyto(self._input.host[:count], images)
            self._input.upload(memory, 0, count)
            self._execute(count)
            self._download(memory, count)

    def _download(self, memory: _cuda.Memory, count: int) -> None:
        """Copy the outputs to the host, and wait until the stream has finished."""
        for buffer in self._outputs:
            buffer.download(memory, 0, count)
        memory.stream.synchronize()

    def _results(self, count: int) -> dict[str, NDArray[Any]]:
        """Return copies of the outputs, because the next call overwrites them."""
        outputs = zip(self.outputs, self._outputs, strict=True)
        return {spec.name: np.array(buffer.host[:count]) for spec, buffer in outputs}

    def _execute(self, count: int) -> None:
        """Start the network for the first ``count`` images; it runs on the stream."""
        if self._graph is not None:
            self._graph.launch()
        else:
            self._enqueue(count)

    def _enqueue(self, count: int) -> None:
        """Add the network for the first ``count`` images to the stream."""
        assert self._memory is not None
        image = self.inputs[0]
        if self._dynamic and count != self._batch:
            self._batch = 0
            self._network.set_shape(image.name, (count, *map(int, image.shape[1:])))
            self._batch = count
        self._network.enqueue(self._memory.stream.handle)

    def _close(self) -> None:
        with self._gpu.current():  # if this fails, nothing was freed, and another call tries again
            memory, self._memory, self._graph = self._memory, None, None
            try:
                if memory is not None:
                    memory.free()
            finally:
                self._network.drop()

    def __del__(self) -> None:
        """Free the GPU's memory; pycuda would lose what is freed without a current context."""
        if not getattr(self, "_closed", True):
            self.close()

    def _free_after(self, error: BaseException) -> None:
        """Free everything after an error of the constructor, which is raised afterwards."""
        self._closed = True
        try:
            self._close()
        except DeviceError as second:
            warnings.warn(f"{second} (after: {error})", stacklevel=2)


def _checked(options: SessionOptions) -> dict[str, bool]:
    """Return the provider options with their defaults; raise ConfigError for unknown ones."""
    own = dict(options.provider_options)
    for name, value in own.items():
        if name not in _OPTIONS or not isinstance(value, bool):
            raise ConfigError(
                f"the provider option {name!r} is {value!r}, expected True or False for "
                f"{' or '.join(_OPTIONS)}"
            )
    return {**dict.fromkeys(_OPTIONS, True), **own}


def _joined(parts: Sequence[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Return the outputs of all parts of a batch."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
