"""A GPU without a GPU: fakes of the members of pycuda, tensorrt and cuda-python that y7edge uses.

GPU memory is host memory of which only the fakes know that the CPU can read it. A stream runs its
work when it is waited for, so that a missing wait gives old values. Every call is counted, and one
of them can fail. Members that the fakes do not have raise AttributeError.

Rules of the real libraries that are checked, see ``Machine.problems``:

* Memory, streams, modules and events are used and freed while their context is current in the
  calling thread, once, and not while work that uses them waits.
* TensorRT's objects are freed while the context is current.
* Every push of a context has a pop; in the end nothing is left.
"""

from __future__ import annotations

import ctypes
import enum
import inspect
import json
import sys
import threading
from collections.abc import Callable
from functools import wraps
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from tests.fake_model import FakeSession
from y7edge.artifact.manifest import Manifest

NO_BLOCKING = 1


class CudaError(Exception):
    """What pycuda raises; its classes have no base class in common with Python's."""


class Machine:
    """The state of the fake driver, and how the machine is equipped.

    Attributes:
        calls: names of all calls, in order.
        fail_at: number of the call that fails, counted from 1; None: none fails.
        fail: names of calls that fail always.
        problems: broken rules.
    """

    def __init__(self, **equipment: Any) -> None:
        self.gpus = 1
        self.capability = (8, 6)
        self.integrated = False
        self.cores = 0
        self.core = -1  # of the last engine
        self.version = "10.3.0"
        self.name = "Fake GPU"
        self.launch: Callable[[str, tuple, tuple, tuple], None] | None = None
        self.network: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None
        # On a real GPU: adds the network to a stream; (address, shape, dtype) of each tensor.
        self.enqueue: Callable[[int, dict[str, tuple]], None] | None = None
        for name, value in equipment.items():
            assert hasattr(self, name), name
            setattr(self, name, value)
        self.calls: list[str] = []
        self.fail_at: int | None = None
        self.fail: set[str] = set()
        self.problems: list[str] = []
        self.stacks: dict[int, list[Any]] = {}
        self.alive: dict[int, str] = {}  # address or id -> what
        self.memory: dict[int, Any] = {}
        self.streams: Any = WeakValueDictionary()  # by handle
        self.logger: Any = None
        self.lock = threading.RLock()

    # --- the state of the driver

    @property
    def stack(self) -> list[Any]:
        return self.stacks.setdefault(threading.get_ident(), [])

    def call(self, name: str, *, context: bool = True) -> None:
        """Count a call, and let it fail if that is asked for."""
        with self.lock:
            self.calls.append(name)
            if context and not self.stack:
                self.problems.append(f"{name} without a current context")
            if self.fails(name):
                raise CudaError(f"{name} failed: injected\nsecond line")

    def fails(self, name: str) -> bool:
        return name in self.fail or self.fail_at == len(self.calls)

    def asked(self, name: str) -> bool:
        """Count a call of TensorRT, which returns False or None if it fails."""
        with self.lock:
            self.calls.append(name)
            if not self.stack:
                self.problems.append(f"{name} without a current context")
            failed = self.fails(name)
        if failed and self.logger is not None:
            self.logger.log(Severity.WARNING, "a warning")
            self.logger.log(Severity.ERROR, f"{name}: injected\nsecond line")
        return not failed

    def allocate(self, size: int, what: str) -> int:
        block = (ctypes.c_ubyte * (size + 256))()
        address = -(-ctypes.addressof(block) // 256) * 256
        self.memory[address] = (block, size)
        self.alive[address] = what
        return address

    def release(self, key: int, what: str) -> None:
        """Note that something was freed, if that is allowed."""
        if not self.stack:
            self.problems.append(f"{what} freed without a current context")
        if self.alive.pop(key, None) is None:
            self.problems.append(f"{what} freed twice")
        if len(self.streams) == 1 and any(stream._work for stream in self.streams.values()):
            self.problems.append(f"{what} freed while work was waiting")
        self.memory.pop(key, None)

    def inside(self, address: int, size: int) -> bool:
        return any(
            start <= address and address + size <= start + length
            for start, (_, length) in self.memory.items()
        )

    def left(self) -> list[str]:
        """What is not freed, and what else is wrong."""
        stacks = [f"a context is still current: {len(s)}" for s in self.stacks.values() if s]
        return [*self.problems, *self.alive.values(), *stacks]

    # --- installation

    def install(self, monkeypatch: Any, *, graphs: bool = True) -> None:
        """Let Python import the fakes, and forget what was cached of other machines."""
        from y7edge.runtimes import _cuda, _trt_engine, base

        pycuda, tensorrt = ModuleType("pycuda"), _tensorrt(self)
        pycuda.driver = _driver(self)  # type: ignore[attr-defined]
        modules = {"pycuda": pycuda, "pycuda.driver": pycuda.driver, "tensorrt": tensorrt}
        if graphs:
            cuda, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
            bindings.driver = _bindings(self)  # type: ignore[attr-defined]
            cuda.bindings = bindings  # type: ignore[attr-defined]
            modules |= {"cuda": cuda, "cuda.bindings": bindings}
            modules["cuda.bindings.driver"] = bindings.driver
        else:
            monkeypatch.setitem(sys.modules, "cuda.bindings", None)
        for name, module in modules.items():
            module.__spec__ = ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(_cuda, "_GPUS", {})
        monkeypatch.setattr(_cuda, "keep", lambda thing: None)
        monkeypatch.setattr(base, "_OWNERS", {})
        library = SimpleNamespace(cuPointerGetAttribute=self._pointer_attribute)
        monkeypatch.setattr(_cuda.ctypes, "CDLL", lambda name: library)
        _trt_engine.logger.cache_clear()

    def _pointer_attribute(self, result: Any, attribute: int, address: Any) -> int:
        assert attribute == 9
        if not self.inside(address.value, 1):
            return 1
        ctypes.cast(result, ctypes.POINTER(ctypes.c_int))[0] = 0
        return 0


def in_c(kind: Any) -> Any:
    """Decorate a function or class: errors do not keep the arguments, as if written in C."""

    def wrapped(function: Any) -> Any:
        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return function(*arguments, **named)
            except CudaError as error:
                message = str(error)
            del arguments, named
            raise CudaError(message)

        return call

    if inspect.isfunction(kind):
        return wrapped(kind)
    for name, member in list(vars(kind).items()):
        if inspect.isfunction(member) and name != "__del__":
            setattr(kind, name, wrapped(member))
    return kind


# --- pycuda --------------------------------------------------------------------------------------


def _driver(machine: Machine) -> ModuleType:
    module = ModuleType("pycuda.driver")

    class Context:
        def __init__(self, index: int) -> None:
            self.index = index

        def push(self) -> None:
            machine.call("push", context=False)
            machine.stack.append(self)

        @staticmethod
        def pop() -> None:
            machine.stack.pop()
            machine.call("pop", context=False)

        @staticmethod
        def synchronize() -> None:
            machine.call("Context.synchronize")

    class Device:
        def __init__(self, index: int) -> None:
            assert 0 <= index < machine.gpus
            machine.call("Device", context=False)
            self.index = index

        @staticmethod
        def count() -> int:
            machine.call("count", context=False)
            return machine.gpus

        def name(self) -> str:
            return machine.name

        def compute_capability(self) -> tuple[int, int]:
            return machine.capability

        def get_attribute(self, attribute: str) -> int:
            assert attribute == "integrated"
            return int(machine.integrated)

        def retain_primary_context(self) -> Context:
            machine.call("retain_primary_context", context=False)
            return Context(self.index)

    @in_c
    class Allocation:
        def __init__(self, size: int, what: str) -> None:
            self._address, self._what = machine.allocate(size, what), what

        def free(self) -> None:
            machine.release(self._address, self._what)
            machine.call(f"free {self._what}")

    @in_c
    class DeviceAllocation(Allocation):
        def __int__(self) -> int:
            return self._address

    @in_c
    class HostAllocation(Allocation):
        def get_device_pointer(self) -> int:
            machine.call("get_device_pointer")
            return self._address

    @in_c
    def pagelocked_empty(shape, dtype, order="C", mem_flags=0) -> np.ndarray:
        machine.call("pagelocked_empty")
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        allocation = HostAllocation(size, "mapped memory" if mem_flags else "pinned memory")
        block, _ = machine.memory[allocation._address]
        offset = allocation._address - ctypes.addressof(block)
        raw = np.frombuffer(block, np.uint8)[offset : offset + size]
        array = _Pinned(raw.view(dtype).reshape(shape), allocation)
        array.fill(0x5A if dtype.kind in "iu" else np.nan)  # nobody may rely on its content
        return array

    @in_c
    def mem_alloc(size: int) -> DeviceAllocation:
        machine.call("mem_alloc")
        assert type(size) is int
        assert size > 0
        return DeviceAllocation(size, "device memory")

    def _copy(to: int, source: int, size: int) -> None:
        if not (machine.inside(to, size) or machine.inside(source, size)):
            machine.problems.append("a copy to or from freed memory")
            return
        ctypes.memmove(to, source, size)

    @in_c
    def memcpy_htod_async(dest, src, stream=None) -> None:
        machine.call("memcpy_htod_async")
        assert src.flags.c_contiguous
        assert machine.inside(dest, src.nbytes), "a copy beyond the allocation"
        stream.add(lambda: _copy(dest, src.ctypes.data, src.nbytes))

    @in_c
    def memcpy_dtoh_async(dest, src, stream=None) -> None:
        machine.call("memcpy_dtoh_async")
        assert dest.flags.c_contiguous
        assert machine.inside(src, dest.nbytes), "a copy beyond the allocation"
        stream.add(lambda: _copy(dest.ctypes.data, src, dest.nbytes))

    @in_c
    class Function:
        def __init__(self, name: str, owner: object) -> None:
            self._name, self._owner, self._format = name, owner, None

        def prepare(self, arg_types: str) -> Function:
            machine.call("prepare")
            self._format = arg_types
            return self

        def prepared_async_call(self, grid, block, stream, *args) -> None:
            machine.call(f"launch {self._name.partition('_')[0]}")
            assert len(args) == len(self._format)
            if machine.launch is not None:
                stream.add(lambda: machine.launch(self._name, grid, block, args))

    @in_c
    class Object:
        """Something that pycuda frees with its last reference."""

        def __init__(self, what: str) -> None:
            machine.call(what)
            machine.alive[id(self)] = what
            self._what = what

        def __del__(self) -> None:
            if hasattr(self, "_what"):
                machine.release(id(self), self._what)

    @in_c
    class Stream(Object):
        def __init__(self, flags: int = 0) -> None:
            super().__init__("Stream")
            assert flags == NO_BLOCKING
            self.handle = id(self)
            self._work: list[Callable[[], None]] = []
            self.captured: list[Callable[[], None]] | None = None
            machine.streams[self.handle] = self

        def add(self, work: Callable[[], None]) -> None:
            (self._work if self.captured is None else self.captured).append(work)

        def synchronize(self) -> None:
            work, self._work = self._work, []
            machine.call("synchronize")
            if self.captured is not None:
                machine.problems.append("a wait while a graph is captured")
            for one in work:
                one()

        def wait_for_event(self, event: Event) -> None:
            machine.call("wait_for_event")
            assert event.recorded

        def __del__(self) -> None:
            if getattr(self, "_work", None):
                machine.problems.append("a stream was destroyed while work was waiting")
            super().__del__()

    @in_c
    class Event(Object):
        def __init__(self, flags: int = 0) -> None:
            super().__init__("Event")
            self.recorded = False

        def record(self, stream: Stream | None = None) -> Event:
            machine.call("record")
            assert stream is None
            self.recorded = True
            return self

    @in_c
    class Module(Object):
        def get_function(self, name: str) -> Function:
            machine.call("get_function")
            return Function(name, self)

    def module_from_buffer(buffer: bytes) -> Module:
        assert buffer.endswith(b"\0")
        return Module("module_from_buffer")

    def init(flags: int = 0) -> None:
        machine.call("cuInit", context=False)

    module.device_attribute = SimpleNamespace(INTEGRATED="integrated")
    module.host_alloc_flags = SimpleNamespace(DEVICEMAP=2)
    module.event_flags = SimpleNamespace(DISABLE_TIMING=2)
    for member in (
        *(Context, Device, Stream, Event, init, mem_alloc, pagelocked_empty),
        *(memcpy_htod_async, memcpy_dtoh_async, module_from_buffer),
    ):
        setattr(module, member.__name__, member)
    return module


class _Pinned(np.ndarray):
    """An array whose ``base`` is its allocation, as of pycuda's arrays."""

    def __new__(cls, array: np.ndarray, allocation: Any) -> _Pinned:
        made = array.view(cls)
        made._allocation = allocation
        return made

    def __array_finalize__(self, source: Any) -> None:
        self._allocation = None

    @property
    def base(self) -> Any:
        return self._allocation


# --- cuda-python ---------------------------------------------------------------------------------


class CUresult(enum.Enum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900


def _bindings(machine: Machine) -> ModuleType:
    module = ModuleType("cuda.bindings.driver")
    failed = CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED

    def counted(name: str) -> bool:
        try:
            machine.call(name)
        except CudaError:
            return False
        return True

    class CUstream:
        def __init__(self, handle: int) -> None:
            assert type(handle) is int
            self.handle = handle

        @property
        def stream(self) -> Any:
            return machine.streams[self.handle]

    class Graph:
        def __init__(self, work: list, what: str) -> None:
            self.work = work
            machine.alive[id(self)] = what

    def cuStreamBeginCapture(hStream, mode) -> tuple:
        if not counted("cuStreamBeginCapture"):
            return (failed,)
        assert mode == "thread local"
        if hStream.stream._work:
            machine.problems.append("a capture while work is waiting")
        hStream.stream.captured = []
        return (CUresult.CUDA_SUCCESS,)

    def cuStreamEndCapture(hStream) -> tuple:
        work, hStream.stream.captured = hStream.stream.captured, None
        if not counted("cuStreamEndCapture"):
            return (failed, None)
        return CUresult.CUDA_SUCCESS, Graph(work, "graph")

    def cuGraphInstantiate(hGraph, flags) -> tuple:
        assert flags == 0
        if not counted("cuGraphInstantiate"):
            return (failed, None)
        return CUresult.CUDA_SUCCESS, Graph([*hGraph.work], "executable graph")

    def cuGraphLaunch(hGraphExec, hStream) -> tuple:
        if not counted("cuGraphLaunch"):
            return (failed,)
        for work in hGraphExec.work:
            hStream.stream.add(work)
        return (CUresult.CUDA_SUCCESS,)

    def cuGraphDestroy(hGraph) -> tuple:
        machine.release(id(hGraph), "graph")
        hGraph.work = []
        return (CUresult.CUDA_SUCCESS if counted("cuGraphDestroy") else failed,)

    def cuGraphExecDestroy(hGraphExec) -> tuple:
        machine.release(id(hGraphExec), "executable graph")
        hGraphExec.work = []
        return (CUresult.CUDA_SUCCESS if counted("cuGraphExecDestroy") else failed,)

    module.CUresult = CUresult
    module.CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread local")
    for member in (
        *(CUstream, cuStreamBeginCapture, cuStreamEndCapture, cuGraphInstantiate),
        *(cuGraphLaunch, cuGraphDestroy, cuGraphExecDestroy),
    ):
        setattr(module, member.__name__, member)
    return module


# --- tensorrt ------------------------------------------------------------------------------------


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
TensorFormat = enum.Enum("TensorFormat", "LINEAR CHW32")
TensorLocation = enum.Enum("TensorLocation", "DEVICE HOST")
DataType = enum.Enum("DataType", "FLOAT HALF INT8 INT32 BOOL UINT8")
_TYPES = {"float32": DataType.FLOAT, "float16": DataType.HALF, "uint8": DataType.UINT8}


def plan(manifest: Manifest, *, most: int = 4, **changes: Any) -> bytes:
    """Return the bytes of a fake engine file for a manifest; ``most``: of a dynamic batch."""
    content = {"tensors": tensors(manifest), "profile": [1, 1, most], "least": 1, **changes}
    return b"fake plan" + json.dumps(content).encode()


def tensors(manifest: Manifest) -> list[dict[str, Any]]:
    """Return the tensors of a manifest as the engine file describes them."""
    ports = (manifest.input, "INPUT"), *((output, "OUTPUT") for output in manifest.outputs)
    return [
        {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "mode": mode}
        for t, mode in ports
    ]


def _tensorrt(machine: Machine) -> ModuleType:
    module = ModuleType("tensorrt")
    module.__version__ = machine.version

    class ILogger:
        def __init__(self) -> None:
            self.ready = True

    ILogger.Severity = Severity

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            machine.call("Runtime")
            assert logger.ready, "the constructor of ILogger was not called"
            machine.logger = logger
            self.engine_host_code_allowed = False
            self._core = -1

        @property
        def num_DLA_cores(self) -> int:
            return machine.cores

        @property
        def DLA_core(self) -> int:
            return self._core

        @DLA_core.setter
        def DLA_core(self, core: int) -> None:
            assert core < machine.cores
            self._core = core

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
            if not machine.asked("deserialize_cuda_engine"):
                return None
            assert serialized_engine.startswith(b"fake plan")
            content = json.loads(serialized_engine[9:])
            machine.core = self._core
            assert self.engine_host_code_allowed == content.get("host_code", False)
            return Engine(self, content)

    class Freed:
        def __del__(self) -> None:
            if not machine.stack:
                machine.problems.append(f"{type(self).__name__} freed without a current context")
            machine.alive.pop(id(self), None)

    class Engine(Freed):
        def __init__(self, runtime: Runtime, content: dict) -> None:
            machine.alive[id(self)] = "engine"
            self.runtime, self.content = runtime, content
            self.tensors = {tensor["name"]: tensor for tensor in content["tensors"]}

        @property
        def num_io_tensors(self) -> int:
            return len(self.tensors)

        def get_tensor_name(self, index: int) -> str:
            return list(self.tensors)[index]

        def get_tensor_mode(self, name: str) -> Any:
            return TensorIOMode[self.tensors[name]["mode"]]

        def get_tensor_format(self, name: str) -> Any:
            return TensorFormat[self.tensors[name].get("format", "LINEAR")]

        def get_tensor_location(self, name: str) -> Any:
            return TensorLocation[self.tensors[name].get("location", "DEVICE")]

        def get_tensor_dtype(self, name: str) -> Any:
            return _TYPES[self.tensors[name]["dtype"]]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(-1 if s == "dynamic" else s for s in self.tensors[name]["shape"])

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple]:
            assert profile_index == 0
            shape = self.get_tensor_shape(name)[1:]
            return [(size, *shape) for size in self.content["profile"]]

        def create_execution_context(self) -> Context | None:
            return Context(self) if machine.asked("create_execution_context") else None

    class Context(Freed):
        def __init__(self, engine: Engine) -> None:
            machine.alive[id(self)] = "execution context"
            self.engine = engine
            self.addresses: dict[str, int] = {}
            (name,) = [n for n, t in engine.tensors.items() if t["mode"] == "INPUT"]
            self.input, self.shape = name, engine.get_tensor_shape(name)

        def __del__(self) -> None:
            if not all(machine.inside(address, 1) for address in self.addresses.values()):
                machine.problems.append("memory freed before the execution context that uses it")
            super().__del__()

        def set_tensor_address(self, name: str, memory: int) -> bool:
            assert type(memory) is int
            assert memory % 256 == 0
            ok = machine.asked("set_tensor_address")
            if ok:
                self.addresses[name] = memory
            return ok

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            assert name == self.input
            assert type(shape) is tuple
            ok = machine.asked("set_input_shape")
            ok &= self.engine.content["least"] <= shape[0] <= self.engine.content["profile"][2]
            self.shape = shape if ok else self.shape
            return ok

        def execute_async_v3(self, stream_handle: int) -> bool:
            if not machine.asked("execute_async_v3") or self.shape[0] < 1:
                return False
            assert set(self.addresses) == set(self.engine.tensors)
            if machine.enqueue is not None:
                machine.enqueue(stream_handle, self._places(self.shape[0]))
                return True
            machine.streams[stream_handle].add(lambda count=self.shape[0]: self._work(count))
            return True

        def _places(self, count: int) -> dict[str, tuple]:
            """Return address, shape and dtype of each tensor."""
            return {
                name: (address, (count, *tensor["shape"][1:]), tensor["dtype"])
                for name, address in self.addresses.items()
                for tensor in (self.engine.tensors[name],)
            }

        def _work(self, count: int) -> None:
            """Compute the outputs, as FakeSession does."""
            arrays = {name: self._tensor(name, count) for name in self.addresses}
            images = arrays[self.input]
            if images.dtype == np.uint8:
                images = images.transpose(0, 3, 1, 2) / np.float32(255)
            for name, values in machine.network(images.astype(np.float32)).items():
                arrays[name][...] = values

        def _tensor(self, name: str, count: int) -> np.ndarray:
            tensor = self.engine.tensors[name]
            shape = (count, *tensor["shape"][1:])
            size = int(np.prod(shape)) * np.dtype(tensor["dtype"]).itemsize
            if not machine.inside(self.addresses[name], size):
                raise AssertionError(f"{name} is not in memory")
            block = (ctypes.c_ubyte * size).from_address(self.addresses[name])
            return np.frombuffer(block, tensor["dtype"]).reshape(shape)

    for member in (ILogger, Runtime, TensorIOMode, TensorFormat, TensorLocation):
        setattr(module, member.__name__, member)
    return module


def network(manifest: Manifest) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return what the fake engine computes."""
    session = FakeSession(manifest)

    def compute(images: np.ndarray) -> dict[str, np.ndarray]:
        images = images.clip(0, 1)
        return session._run({"images": np.where(images > 0.999, np.float32(1), images)})

    return compute
