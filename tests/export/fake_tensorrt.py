"""A TensorRT and a pycuda that build nothing, with the members of one version.

Members that a version lacks raise AttributeError, as recorded from NVIDIA's bindings 8.6.1, 10.3.0,
10.16.1 and 11.4.0. The graph is parsed for real, with the onnx package. A "plan" is the graph.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx

PLAN = b"plan:"


@dataclass
class World:
    """The machine, and what happens on it."""

    version: str
    calls: list = field(default_factory=list)
    memory: int = 1 << 20  # MiB; a larger workspace fails
    gpus: int = 1
    dla_cores: int = 0
    integrated: bool = False
    free: int = 4 << 30
    total: int = 16 << 30
    name: str = "Orin"
    capability: tuple = (8, 7)
    parser_errors: tuple = ()
    builder_error: str = ""
    runs_on_dla: Callable[[Any], bool] = lambda layer: True
    inspector: Callable[[Any], str] | None = None
    contexts: int = 0  # pushed and not popped
    interrupt: bool = False

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    def did(self, name: str) -> list:
        return [call[1:] for call in self.calls if call[0] == name]


class Severity(Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class LayerType(Enum):
    CONVOLUTION, QUANTIZE, DEQUANTIZE, CONSTANT, CAST, OTHER = range(6)


class DataType(Enum):
    FLOAT, HALF, INT8 = "Float", "Half", "Int8"


KINDS = {
    "Conv": LayerType.CONVOLUTION,
    "QuantizeLinear": LayerType.QUANTIZE,
    "DequantizeLinear": LayerType.DEQUANTIZE,
    "Constant": LayerType.CONSTANT,
    "Cast": LayerType.CAST,
}


class Tensor:
    __slots__ = ("dtype", "name", "shape")

    def __init__(self, name, dtype=DataType.FLOAT, shape=()):
        self.name, self.dtype, self.shape = name, dtype, shape


class RangedTensor(Tensor):
    __slots__ = ("range",)

    def set_dynamic_range(self, min, max):
        self.range = (min, max)


class Layer:
    __slots__ = ("inputs", "name", "outputs", "type")

    def __init__(self, node, tensor):
        self.name, self.type = node.name, KINDS.get(node.op_type, LayerType.OTHER)
        self.inputs = [tensor(name) for name in node.input if name]
        self.outputs = [tensor(name) for name in node.output]

    num_outputs = property(lambda self: len(self.outputs))

    def get_input(self, index):
        return self.inputs[index]

    def get_output(self, index):
        return self.outputs[index]


class PreciseLayer(Layer):
    __slots__ = ("precision",)


class Network:
    def __init__(self, world, flags):
        self.world, self.flags, self.layers, self.model = world, flags, [], b""
        self.typed = world.major >= 11 or bool(flags & 2)

    num_layers = property(lambda self: len(self.layers))

    def get_layer(self, index):
        return self.layers[index]

    def get_input(self, index):
        return self.image


class Parser:
    def __init__(self, world, network, logger):
        self.world, self.network = world, network

    num_errors = property(lambda self: len(self.world.parser_errors))

    def get_error(self, index):
        return SimpleNamespace(desc=lambda: self.world.parser_errors[index])

    def parse(self, data):
        if self.world.parser_errors:
            return False
        network = self.network
        model = onnx.shape_inference.infer_shapes(onnx.load_from_string(data))
        types = {i.name: i.type.tensor_type.elem_type for i in model.graph.value_info}
        half, kind = onnx.TensorProto.FLOAT16, RangedTensor if self.world.major < 11 else Tensor
        made: dict[str, Tensor] = {}

        def tensor(name):
            typed = network.typed and types.get(name) == half
            return made.setdefault(name, kind(name, DataType.HALF if typed else DataType.FLOAT))

        layer = PreciseLayer if self.world.major < 11 else Layer
        network.layers = [layer(node, tensor) for node in model.graph.node]
        (image,) = model.graph.input
        network.image, network.model = tensor(image.name), data
        dims = image.type.tensor_type.shape.dim
        network.image.shape = tuple(-1 if d.dim_param else d.dim_value for d in dims)
        return True


class Config:
    """Only the attributes below can be set."""

    __slots__ = (
        "DLA_core",
        "cache",
        "default_device_type",
        "flags",
        "pools",
        "profiles",
        "profiling_verbosity",
        "world",
    )

    def __init__(self, world):
        self.world, self.flags, self.pools, self.profiles = world, {"TF32"}, {}, []
        self.cache = None

    def set_flag(self, flag):
        self.flags.add(flag.name)

    def clear_flag(self, flag):
        self.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool, size):
        self.pools[pool] = size

    def create_timing_cache(self, data):
        assert isinstance(data, bytes)
        return None if data == b"damaged" else SimpleNamespace(data=data)

    def set_timing_cache(self, timings, ignore_mismatch):
        assert timings is not None
        self.world.calls.append(("set_timing_cache", timings.data, ignore_mismatch))
        if timings.data == b"of another driver" and not ignore_mismatch:
            return False
        self.cache = timings
        return True

    def get_timing_cache(self):
        return SimpleNamespace(serialize=lambda: memoryview(b"timings+" + self.cache.data))

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)

    def can_run_on_DLA(self, layer):
        assert self.default_device_type == "DLA" and "GPU_FALLBACK" in self.flags
        return self.world.runs_on_dla(layer)


class WatchedConfig(Config):
    __slots__ = ("progress_monitor",)


class Profile:
    def set_shape(self, name, least, usual, most):
        self.shapes = (name, tuple(least), tuple(usual), tuple(most))


class Builder:
    def __init__(self, world, logger):
        self.world, self.logger = world, logger

    num_DLA_cores = property(lambda self: self.world.dla_cores)

    def create_network(self, flags):
        self.world.calls.append(("create_network", flags))
        return Network(self.world, flags)

    def create_builder_config(self):
        return (WatchedConfig if self.world.major >= 10 else Config)(self.world)

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        world, workspace = self.world, config.pools["WORKSPACE"] >> 20
        assert world.contexts == 1
        world.calls.append(("build", workspace, config, network))
        monitor = getattr(config, "progress_monitor", None)
        if monitor is not None:
            monitor.phase_start("Building", None, 2)
            going = monitor.step_complete("Building", 0)
            monitor.phase_finish("Building")
            if not going:
                return None
        if workspace > world.memory:
            self.logger.log(Severity.ERROR, "Requested amount of GPU memory: out of memory")
            return None
        if world.builder_error:
            self.logger.log(Severity.ERROR, world.builder_error)
            return None
        return memoryview(PLAN + network.model)


class Runtime:
    __slots__ = ("DLA_core", "engine_host_code_allowed", "logger", "world")

    def __init__(self, world, logger):
        self.world, self.logger = world, logger
        self.DLA_core, self.engine_host_code_allowed = 0, False

    def deserialize_cuda_engine(self, plan):
        config, network = self.world.did("build")[-1][1:]
        self.world.calls.append(
            ("deserialize", self.DLA_core, self.engine_host_code_allowed, len(plan))
        )
        text = (self.world.inspector or computed)((config, network))
        inspector = SimpleNamespace(get_engine_information=lambda form: text)
        return SimpleNamespace(create_engine_inspector=lambda: inspector)


def computed(built) -> str:
    """The inspector's JSON of an engine that computes what was asked."""
    _, network = built
    dequantised = {
        t.name
        for layer in network.layers
        for t in layer.outputs
        if layer.type is LayerType.DEQUANTIZE
    }
    layers = []
    for layer in network.layers:
        if layer.type is not LayerType.CONVOLUTION:
            continue
        source = layer.inputs[0]
        kind = getattr(layer, "precision", source.dtype).value
        if source.name in dequantised:
            kind = "Int8"
        layers.append(
            {
                "Name": f"{layer.name} + PWN(Sigmoid)",
                "LayerType": "CaskConvolution",
                "ParameterType": "Convolution",
                "Weights": {"Type": kind, "Count": 1},
            }
        )
    return json.dumps({"Layers": layers, "Bindings": ["images"]})


def tensorrt(world: World) -> ModuleType:
    """Return the module ``tensorrt`` of a version."""
    flags = ["TF32", "GPU_FALLBACK", "VERSION_COMPATIBLE"]
    kinds = {"STRONGLY_TYPED": 1} if world.major >= 10 else {}
    if world.major < 11:
        flags += ["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"]
        kinds["EXPLICIT_BATCH"] = 0

    class Logger:
        pass

    Logger.Severity = Severity
    module = ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None)
    module.__version__ = world.version
    module.ILogger = Logger
    module.LayerType, module.DataType = LayerType, DataType
    module.NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", kinds)
    module.BuilderFlag = Enum("BuilderFlag", flags)
    pools = ("WORKSPACE", "DLA_LOCAL_DRAM", "DLA_GLOBAL_DRAM")
    module.MemoryPoolType = SimpleNamespace(**{name: name for name in pools})
    module.ProfilingVerbosity = SimpleNamespace(DETAILED="DETAILED")
    module.DeviceType = SimpleNamespace(DLA="DLA", GPU="GPU")
    module.LayerInformationFormat = SimpleNamespace(JSON="JSON")
    module.Builder = lambda logger: Builder(world, logger)
    module.OnnxParser = lambda network, logger: Parser(world, network, logger)
    module.Runtime = lambda logger: Runtime(world, logger)
    if world.major >= 10:
        module.IProgressMonitor = type("IProgressMonitor", (), {})
    return module


def pycuda_driver(world: World) -> ModuleType:
    """Return the module ``pycuda.driver``."""

    class Context:
        def push(self):
            world.contexts += 1

        @staticmethod
        def pop():
            world.contexts -= 1

    class Device:
        def __init__(self, index):
            world.calls.append(("Device", index))

        count = staticmethod(lambda: world.gpus)
        name = staticmethod(lambda: world.name)
        compute_capability = staticmethod(lambda: world.capability)
        retain_primary_context = staticmethod(Context)

        def get_attribute(self, name):
            assert name == "integrated"
            return int(world.integrated)

    def init():
        if world.gpus == 0:
            raise RuntimeError("cuInit failed: no CUDA-capable device is detected")

    module = ModuleType("pycuda.driver")
    module.init, module.Device, module.Context = init, Device, Context
    module.mem_get_info = lambda: (world.free, world.total)
    module.device_attribute = SimpleNamespace(INTEGRATED="integrated")
    return module
