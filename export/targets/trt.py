"""Target ``tensorrt``: an engine file (plan) of TensorRT, for the GPU or the DLA of this machine.

The graph decides the precision: TensorRT builds the fp32, fp16 or int8 (QDQ) graph that was proved
as a strongly typed network. Only where a version cannot do that, builder flags ask for it
(``runtimes/_trt_versions.py``). After the build, the engine inspector is asked in which precision
each convolution is computed.

An engine runs only with the version of TensorRT and on the kind of GPU that built it. The field
``engine`` of its manifest names both. Two builds give different bytes, because TensorRT measures
which kernels are fast; an equal request gets the engine from the cache.

Boxes are suppressed by the Detector, not in the engine: TensorRT's INMSLayer returns indices and
needs outputs of unknown size, and NMS takes little time compared with the network.
"""

from __future__ import annotations

import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import groupby
from typing import Any

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Manifest
from y7edge.errors import DeviceError, ExportError, RuntimeMissing, Y7EdgeError, needing
from y7edge.export.targets import _trt_cache, _trt_settings
from y7edge.export.targets._trt_inspector import inspect
from y7edge.export.targets._trt_settings import Device, Settings
from y7edge.export.targets.base import BuildRequest
from y7edge.machine import free_memory
from y7edge.runtimes import _cuda, _trt_versions
from y7edge.runtimes import trt as runtime
from y7edge.runtimes._modelproto import payload_digest, read_quantizers, without_metadata
from y7edge.runtimes.base import one_line

NAME = "tensorrt"
SUFFIX = ".engine"
NEEDS = runtime.NEEDS
misplaced = runtime.misplaced
PRECISIONS = {"fp32": "fp32", "fp16": "fp16", "int8": "int8"}
PROFILES: tuple[str, ...] = ("s8s8",)
# TensorRT accepts uint8 tensors only as inputs of a Cast, and our graphs transpose them before.
INPUTS = ("float32",)
OUTPUTS = ("heads", "heads-sigmoid", "decoded")
BATCHES = ("1", "N", "dynamic")
RUNTIME = "trt"
OPTIONS = _trt_settings.OPTIONS
REWRITES: tuple[str, ...] = ()
INT8_HEADS = False
CALIBRATES = False
NEEDS_CHECKPOINT = False

_MIB = 1 << 20
_LOADABLES = 16  # networks that a DLA core can hold ("DLA Supported Layers and Restrictions")
# Messages of TensorRT and of the driver that ask for a smaller workspace.
_MEMORY = re.compile(r"out of ?memory|insufficient memory|NvMapMem|cudaMalloc|bad_alloc", re.I)


def require_fit(manifest: Manifest, options: Mapping[str, str]) -> None:
    """Raise ConfigError if an option is invalid."""
    Settings.of(manifest, options)


def build(request: BuildRequest) -> Artifact:
    """Build an engine, or take an equal one from the cache.

    Raises:
        ConfigError: an option is invalid, or the DLA cannot run such a graph.
        DeviceError: the GPU or the DLA core does not exist, or the version of TensorRT does not
            support it.
        ExportError: TensorRT does not accept the graph, cannot build it, or computes a convolution
            in another precision than the graph.
        RuntimeMissing: TensorRT or pycuda cannot be imported.
    """
    settings = Settings.of(request.manifest, request.options, request.device)
    if settings.dla is not None:
        _trt_settings.require_dla(request.manifest)
    require_graph(request)
    trt, tell = _load_engine(), request.progress
    version = str(trt.__version__)
    if warning := _trt_versions.unknown(version):
        warnings.warn(warning, stacklevel=2)
    settings.typing(version)  # refuses versions without support
    with _current(settings.gpu) as device:
        key = settings.key(payload_digest(request.model), version, device)
        kept = _trt_cache.read(key) if settings.cache else None
        if isinstance(kept, tuple):
            tell("the engine comes from the cache; --option cache=no builds it again")
            plan, tie = kept
        else:
            if kept is not None:
                tell(f"the engine in the cache is not used: {kept}")
            try:
                plan, tie = Build(trt, request, settings, device).run()
            except Exception as error:  # TensorRT has no common exception class
                # Free TensorRT's objects, which the frames keep, while their context is current.
                traceback.clear_frames(error.__traceback__)
                if isinstance(error, Y7EdgeError):
                    raise
                raise ExportError(
                    f"TensorRT cannot build {request.name}: {one_line(error)}"
                ) from error
            if settings.cache and (problem := _trt_cache.write(key, plan, tie)):
                tell(problem)
    if settings.trtexec:
        tell(_trt_settings.trtexec(request, settings, version, device, tie["workspace_mb"]))
    request.path.write_bytes(plan)
    return Artifact(request.path, replace(request.manifest, engine=tie, opset=None))


def versions() -> dict[str, str]:
    """Return the version of TensorRT.

    A virtual environment does not see the metadata of JetPack's package, so this imports it.

    Raises:
        RuntimeMissing: TensorRT or pycuda cannot be imported.
        DeviceError: there is no driver.
    """
    return {"tensorrt": str(_load_engine().__version__)}


def _load_engine() -> Any:
    """Import TensorRT and pycuda."""
    try:
        return runtime.load_engine()
    except ImportError as error:  # also if a library of a package is missing
        raise RuntimeMissing(
            f"TensorRT or pycuda cannot be imported: {one_line(error)}; see `y7edge check`"
        ) from error


@contextmanager
def _current(index: int) -> Iterator[Device]:
    """Make the primary context of a GPU current, in which TensorRT builds; yield the GPU."""
    gpu = _cuda.open_gpu(index)
    with gpu.current():
        free, total = gpu.driver.mem_get_info()
        if gpu.integrated:  # the driver does not count memory that holds the cache of files
            free = max(free, free_memory() or 0)
        capability = ".".join(map(str, gpu.capability))
        yield Device(gpu.name, capability, free, total, gpu.integrated)


def require_graph(request: BuildRequest) -> None:
    """Raise ExportError unless the graph is quantised as its precision says, and symmetrically."""
    precision, quantizers = request.manifest.precision, read_quantizers(request.model)
    if bool(quantizers) != (precision == "int8"):
        found = f"{len(quantizers)} nodes that quantise" if quantizers else "none"
        raise ExportError(
            f"the graph has precision {precision} and {found}, expected Q/DQ nodes in int8 graphs "
            "only: export it again"
        )
    for node in quantizers:
        if node.symmetric is None:
            problem = "a zero point that is not stored in the file"
        elif node.dtype not in ("int8", ""):
            problem = f"the type {node.dtype}"
        elif not node.symmetric:
            problem = "a zero point other than 0"
        else:
            continue
        raise ExportError(
            f"{node.operator} {node.name} has {problem}, expected int8 with zero point 0, for "
            "weights and activations only: quantise symmetrically, and without biases"
        )


class Build:
    """One build, with several attempts if memory runs out."""

    def __init__(self, trt: Any, request: BuildRequest, settings: Settings, device: Device) -> None:
        self._trt, self._request, self._settings, self._device = trt, request, settings, device
        self._version = str(trt.__version__)
        self._flags = settings.typing(self._version) == "flags"
        self._model = without_metadata(request.model)
        self._ranges: Mapping[str, float] = {}
        if self._flags and settings.dla is not None and settings.precision == "int8":
            with needing("onnx", "export", "an int8 build for the DLA with this TensorRT"):
                from y7edge.export.graph.ranges import without_quantizers

                self._model, self._ranges = without_quantizers(self._model)

    def run(self) -> tuple[bytes, dict[str, Any]]:
        """Return the plan and the field ``engine`` of the manifest."""
        tell, workspace = self._request.progress, self._settings.workspace or self._device.workspace
        while True:
            tell(f"TensorRT {self._version}, {self._device.name}, workspace {workspace} MiB")
            logger = logger_of(self._trt)
            logger.errors.clear()
            plan, asked, fallback = self.attempt(logger, workspace)
            if plan is not None:
                break
            problem = logger.errors[-1] if logger.errors else "no message"
            smaller = workspace // 2
            short = any(_MEMORY.search(text) for text in logger.errors)
            if not short or smaller < _trt_settings.LEAST_WORKSPACE:
                hint = "; stop other programs and the desktop, or export a smaller --imgsz"
                raise ExportError(
                    f"TensorRT cannot build {self._request.name}: {problem}{hint if short else ''}"
                )
            tell(f"memory ran out with a workspace of {workspace} MiB ({problem}): try {smaller}")
            workspace = smaller
        counts = self._inspect(logger, plan, asked)
        tie = _trt_settings.tie(self._settings, self._version, self._device, workspace, counts)
        return plan, {**tie, **({} if fallback is None else {"gpu_fallback": fallback})}

    def attempt(
        self, logger: Any, workspace: int
    ) -> tuple[bytes | None, dict[str, str], list[str] | None]:
        """Build once; return the plan, the convolutions' precisions, and what the DLA leaves.

        The plan is None if the builder failed.
        """
        builder = self._trt.Builder(logger)
        core, cores = self._settings.dla, builder.num_DLA_cores
        if core is not None and core >= cores:
            raise DeviceError(f"device dla:{core} does not exist: TensorRT finds {cores} DLA cores")
        network = builder.create_network(self._network_flags())
        parser = self._trt.OnnxParser(network, logger)
        if not parser.parse(self._model):
            problems = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            raise ExportError(
                f"TensorRT does not accept the graph: {'; '.join(problems) or 'no message'}"
            )
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        asked = self._asked(layers)
        config = self._config(builder, network, workspace)
        if self._flags:
            self._set_precision(config, network, layers, asked)
        fallback = None if core is None else self._place(config, layers)
        with _watched(self._trt, config, self._version) as stopped:
            plan = builder.build_serialized_network(network, config)
        if stopped:
            raise stopped[0]
        if plan is None:
            return None, asked, fallback
        timings = config.get_timing_cache()
        if timings is not None:
            data = bytes(timings.serialize())
            if problem := _trt_cache.write_timings(self._version, self._device, data):
                self._request.progress(problem)
        return bytes(plan), asked, fallback

    def _network_flags(self) -> int:
        kinds, flags = self._trt.NetworkDefinitionCreationFlag, 0
        if _trt_versions.value("network flag", self._version) == "EXPLICIT_BATCH":
            flags |= 1 << int(kinds.EXPLICIT_BATCH)
        typed = _trt_versions.value("typed network flag", self._version) == "STRONGLY_TYPED"
        if typed and not self._flags:
            flags |= 1 << int(kinds.STRONGLY_TYPED)
        return flags

    def _config(self, builder: Any, network: Any, workspace: int) -> Any:
        """Return the builder configuration, without the settings that depend on the layers."""
        trt, settings = self._trt, self._settings
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace * _MIB)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector
        config.clear_flag(trt.BuilderFlag.TF32)  # by default, fp32 is computed in TF32
        if settings.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        # TensorRT refuses damaged timings, and those of another driver.
        for data in (_trt_cache.read_timings(self._version, self._device), b""):
            timings = config.create_timing_cache(data)
            if timings is not None and config.set_timing_cache(timings, False):
                break
        if settings.profile is not None:
            image = network.get_input(0)
            profile = builder.create_optimization_profile()
            shapes = ((batch, *tuple(image.shape)[1:]) for batch in settings.profile)
            profile.set_shape(image.name, *shapes)
            config.add_optimization_profile(profile)
        if settings.dla is not None:
            config.default_device_type = trt.DeviceType.DLA
            config.DLA_core = settings.dla
            config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
            if self._device.small:
                pools = trt.MemoryPoolType
                local, shared = _trt_settings.DLA_LOCAL_DRAM, _trt_settings.DLA_GLOBAL_DRAM
                config.set_memory_pool_limit(pools.DLA_LOCAL_DRAM, local * _MIB)
                config.set_memory_pool_limit(pools.DLA_GLOBAL_DRAM, shared * _MIB)
        return config

    def _asked(self, layers: list[Any]) -> dict[str, str]:
        """Return the precision of each convolution in the network, by name.

        Raises:
            ExportError: it is not the artifact's precision. In int8 graphs, convolutions may be
                left out of the quantisation.
        """
        trt, precision = self._trt, self._settings.precision
        types = {trt.DataType.FLOAT: "fp32", trt.DataType.HALF: "fp16"}
        dequantised = {
            layer.get_output(0).name for layer in layers if layer.type == trt.LayerType.DEQUANTIZE
        }
        asked = {}
        for layer in layers:
            if layer.type != trt.LayerType.CONVOLUTION:
                continue
            source = layer.get_input(0)
            if source.name in dequantised or source.name in self._ranges:
                asked[layer.name] = "int8"
            elif self._flags:  # the types of tensors mean nothing in such networks
                rest = "fp16" if self._settings.dla is not None else "fp32"
                asked[layer.name] = rest if precision == "int8" else precision
            else:
                asked[layer.name] = types.get(source.dtype, str(source.dtype))
        wrong = [f"{name} in {found}" for name, found in asked.items() if found != precision]
        if len(wrong) == len(asked) or (wrong and precision != "int8"):
            raise ExportError(
                f"the {precision} graph computes {wrong[0] if wrong else 'no convolution'}, "
                f"expected {precision}: export it again"
            )
        return asked

    def _set_precision(
        self, config: Any, network: Any, layers: list[Any], asked: Mapping[str, str]
    ) -> None:
        """Ask for the precisions with builder flags, in versions without typed networks."""
        trt, precision = self._trt, self._settings.precision
        if precision == "fp32":
            return
        flags = trt.BuilderFlag
        if precision == "int8":
            config.set_flag(flags.INT8)
        if precision == "fp16" or self._settings.dla is not None:
            config.set_flag(flags.FP16)
        tensors = [layer.get_output(i) for layer in layers for i in range(layer.num_outputs)]
        for tensor in (network.get_input(0), *tensors):
            if largest := self._ranges.get(tensor.name):
                tensor.set_dynamic_range(-largest, largest)
        if precision == "int8" and not self._ranges:
            return  # the Q/DQ nodes decide
        config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS)
        types = {"fp32": trt.DataType.FLOAT, "fp16": trt.DataType.HALF, "int8": trt.DataType.INT8}
        for layer in layers:
            if layer.name in asked and layer.type == trt.LayerType.CONVOLUTION:
                layer.precision = types[asked[layer.name]]

    def _place(self, config: Any, layers: list[Any]) -> list[str]:
        """Report which layers cannot run on the DLA, and return their names.

        TensorRT does not say by itself that it runs them on the GPU.

        Raises:
            ExportError: the DLA can run no convolution.
        """
        trt, tell = self._trt, self._request.progress
        placed = [
            (bool(config.can_run_on_DLA(layer)), layer)
            for layer in layers
            if layer.type != trt.LayerType.CONSTANT
        ]
        fallback = [layer.name for fits, layer in placed if not fits]
        if not any(fits and layer.type == trt.LayerType.CONVOLUTION for fits, layer in placed):
            raise ExportError(
                "the DLA can run no convolution of this graph: build for the GPU with --device cuda"
            )
        tell(f"{len(placed) - len(fallback)} of {len(placed)} layers can run on the DLA")
        for name in fallback:
            tell(f"on the GPU: {name}")
        parts = sum(fits for fits, _ in groupby(placed, key=lambda pair: pair[0]))
        if parts > _LOADABLES:
            tell(f"the DLA gets {parts} parts, but one core can hold {_LOADABLES}")
        return fallback

    def _inspect(self, logger: Any, plan: bytes, asked: Mapping[str, str]) -> Mapping[str, int]:
        """Return the number of convolutions by precision.

        Raises:
            ExportError: TensorRT cannot open the engine, or a convolution is computed in another
                precision than the graph's.
        """
        trt, tell = self._trt, self._request.progress
        reader = trt.Runtime(logger)
        if self._settings.dla is not None:
            reader.DLA_core = self._settings.dla
        if self._settings.version_compatible:  # the plan contains a runtime, which is code
            reader.engine_host_code_allowed = True
        engine = reader.deserialize_cuda_engine(plan)
        if engine is None:
            problem = logger.errors[-1] if logger.errors else "no message"
            raise ExportError(f"TensorRT cannot open the engine that it built: {problem}")
        inspector = engine.create_engine_inspector()
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        found = inspect(str(text), asked)
        if found.wrong:
            raise ExportError(
                f"TensorRT computes {len(found.wrong)} of {len(asked)} convolutions in another "
                f"precision than the graph: {found.wrong[0]}"
            )
        if found.unknown:
            tell(
                f"the engine inspector does not give the precision of {found.unknown} of "
                f"{len(asked)} convolutions"
            )
        return found.counts


@cache
def logger_of(trt: Any) -> Any:
    """Return the logger of all builds, which keeps the errors and prints nothing.

    TensorRT uses the first logger of a process for some messages, whatever it is given later.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            severities = trt.ILogger.Severity
            if severity in (severities.ERROR, severities.INTERNAL_ERROR):
                self.errors.append(" ".join(text.split())[:300])

    return Logger()


@contextmanager
def _watched(trt: Any, config: Any, version: str) -> Iterator[list[BaseException]]:
    """Show the progress of a build on a terminal; yield the errors that ended it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    stopped: list[BaseException] = []
    console = Console(stderr=True)
    if not sys.stderr.isatty() or _trt_versions.value("progress monitor", version) == "no":
        yield stopped
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        monitor = _monitor(trt, bars, stopped)  # must exist as long as the build
        config.progress_monitor = monitor
        yield stopped


def _monitor(trt: Any, bars: Any, stopped: list[BaseException]) -> Any:
    """Return a monitor that shows the phases of a build as bars.

    An exception must not reach the C++ code that calls the monitor. It is added to ``stopped``, and
    TensorRT is asked to end the build.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._tasks: dict[str, Any] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with self._kept():
                self._tasks[name] = bars.add_task(name, total=steps)

        def step_complete(self, name: str, step: int) -> bool:
            with self._kept():
                if name in self._tasks:
                    bars.update(self._tasks[name], completed=step + 1)
            return not stopped

        def phase_finish(self, name: str) -> None:
            with self._kept():
                if name in self._tasks:
                    bars.remove_task(self._tasks.pop(name))

        @contextmanager
        def _kept(self) -> Iterator[None]:
            try:
                yield
            except BaseException as error:
                stopped.append(error)

    return Monitor()
