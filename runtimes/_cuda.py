"""CUDA devices, memory and graphs through pycuda and cuda-python, for sessions on NVIDIA GPUs.

Four properties of pycuda 2026.1 (``src/cpp/cuda.hpp``) determine how this module uses it:

* pycuda frees an object only if the object's context is current in the calling thread; otherwise
  the memory is lost. Therefore everything is freed explicitly, within ``Gpu.current``. What is
  freed with its last reference is never in a local variable, which an exception would keep.
* A thread that ends with a context on pycuda's stack ends the process. Therefore every push has a
  pop, also after errors.
* Detaching a primary context releases it, but leaves it on the driver's stack. Therefore a primary
  context is retained once and never released. CUDA's own runtime, which TensorRT, PyTorch and CuPy
  use, does the same, and all of them share this context.
* pycuda has no CUDA graphs. They are captured by cuda-python, on the same stream.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.errors import DeviceError
from y7edge.runtimes.base import claim_engine, keep, one_line

_LIBRARY = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
# CU_STREAM_NON_BLOCKING, which pycuda has no name for. Other streams would wait for the legacy
# default stream, and while a graph is captured, they would break PyTorch's calls that use it.
_NON_BLOCKING = 1
_DEVICE_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
# From this compute capability on, the caches of CPU and integrated GPU are coherent. Before, the
# CPU reads pinned memory without its cache, several times slower (CUDA for Tegra, I/O coherency).
_COHERENT = (7, 2)


def load_driver() -> Any:
    """Import ``pycuda.driver``.

    Raises:
        DeviceError: NVIDIA's driver is not installed. TensorRT does not report this: it creates a
            runtime even without a driver.
    """
    _library()
    import pycuda.driver

    return pycuda.driver


def _library() -> Any:
    """Load the driver's library; raise DeviceError if it is not installed."""
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise DeviceError(
            f"NVIDIA's driver is not installed ({_LIBRARY} was not found): install the driver; on "
            "a Jetson it is part of JetPack"
        ) from error


def device_of(address: int) -> int | None:
    """Return the index of the GPU whose memory contains ``address``; None if there is none.

    pycuda has no function for it.
    """
    index = ctypes.c_int(-1)
    code = _library().cuPointerGetAttribute(
        ctypes.byref(index), _DEVICE_ORDINAL, ctypes.c_uint64(address)
    )
    return None if code else index.value


@dataclass(frozen=True, eq=False)
class Gpu:
    """One GPU with its primary context.

    Attributes:
        index: Number of the GPU, as in "cuda:1".
        name: Its name, such as "Orin".
        capability: Compute capability (major, minor).
        integrated: Whether CPU and GPU share their memory.
        driver: The module ``pycuda.driver``.
    """

    index: int
    name: str
    capability: tuple[int, int]
    integrated: bool
    driver: Any
    _context: Any

    @property
    def coherent(self) -> bool:
        """Whether the CPU reads pinned memory through its cache."""
        return not self.integrated or self.capability >= _COHERENT

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the primary context current in this thread, and restore the former one.

        Raises:
            DeviceError: the driver refuses it.
        """
        self._attempt(self._context.push)
        try:
            yield
        except BaseException:
            with suppress(DeviceError):  # the first error is the one to report
                self._attempt(self._context.pop)
            raise
        self._attempt(self._context.pop)

    def _attempt(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # pycuda's exceptions have no class in common with others
            raise DeviceError(f"cuda:{self.index} cannot be used: {one_line(error)}") from error


_GPUS: dict[int, Gpu] = {}
_LOCK = threading.Lock()


def count() -> int:
    """Return the number of GPUs.

    Raises:
        DeviceError: there is no usable driver, or CUDA was used before this process was forked.
    """
    claim_engine("CUDA")
    driver = load_driver()
    try:
        driver.init()
        return int(driver.Device.count())
    except Exception as error:  # pycuda's exceptions have no class in common with others
        raise DeviceError(
            f"NVIDIA's driver does not work ({one_line(error)}): run `nvidia-smi`; a container "
            "needs `--gpus all` or `--runtime nvidia`"
        ) from error


def open_gpu(index: int) -> Gpu:
    """Return GPU ``index``; its primary context is retained until the process ends.

    Raises:
        DeviceError: there is no such GPU, no usable driver, or CUDA was used before this process
            was forked.
    """
    found = count()
    if index >= found:
        has = ", ".join(f"cuda:{number}" for number in range(found)) or "no GPU"
        raise DeviceError(f"device 'cuda:{index}' is not available: this machine has {has}")
    with _LOCK:
        if index not in _GPUS:
            try:
                _GPUS[index] = _open(index)
            except Exception as error:  # pycuda's exceptions have no class in common with others
                raise DeviceError(f"cuda:{index} cannot be used: {one_line(error)}") from error
        return _GPUS[index]


def _open(index: int) -> Gpu:
    driver = load_driver()
    device = driver.Device(index)
    gpu = Gpu(
        index,
        device.name(),
        device.compute_capability(),
        bool(device.get_attribute(driver.device_attribute.INTEGRATED)),
        driver,
        device.retain_primary_context(),
    )
    keep(gpu)  # freeing the context when the process ends could use a driver that has ended before
    return gpu


class Memory:
    """What a session allocates on one GPU. All methods are called within ``gpu.current()``.

    Attributes:
        stream: The stream, after ``open_stream``.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._frees: list[Callable[[], object]] = []
        self.stream: Any = None

    def open_stream(self) -> None:
        """Create a stream beside the default stream."""
        self.stream = self._gpu.driver.Stream(_NON_BLOCKING)
        self.add(self._drop_stream)

    def _drop_stream(self) -> None:
        self.stream = None  # pycuda destroys the stream with its last reference

    def add(self, free: Callable[[], object]) -> None:
        """Call ``free`` before everything that was added so far is freed."""
        self._frees.append(free)

    def device(self, size: int) -> int:
        """Allocate ``size`` bytes on the GPU, and return their address."""
        allocation = self._gpu.driver.mem_alloc(size)
        self.add(allocation.free)
        return int(allocation)

    def pinned(self, shape: Sequence[int], dtype: str, *, mapped: bool) -> tuple[NDArray[Any], int]:
        """Allocate a page-locked array.

        Returns:
            The array, and its address for the GPU if it is ``mapped``, else 0.
        """
        driver = self._gpu.driver
        flags = driver.host_alloc_flags.DEVICEMAP if mapped else 0
        array = driver.pagelocked_empty(tuple(shape), np.dtype(dtype), mem_flags=flags)
        self.add(array.base.free)
        return array, int(array.base.get_device_pointer()) if mapped else 0

    def buffer(
        self, shape: Sequence[int], dtype: str, *, output: bool = False, in_place: bool = False
    ) -> Buffer:
        """Allocate a tensor that the CPU writes and the GPU reads, or reversed for an ``output``.

        ``in_place``: let an integrated GPU use the page-locked memory of the CPU, without a copy.
        This is for data that the GPU reads or writes once, because it does not cache this memory.
        If the caches are not coherent, outputs are copied to ordinary memory before the CPU reads
        them.
        """
        gpu = self._gpu
        if output and not gpu.coherent:
            host: NDArray[Any] = np.empty(tuple(shape), dtype)
            return Buffer(gpu, host, self.device(host.nbytes), shared=False)
        shared = in_place and gpu.integrated
        host, address = self.pinned(shape, dtype, mapped=shared)
        return Buffer(gpu, host, address or self.device(host.nbytes), shared=shared)

    def free(self) -> None:
        """Free everything, the newest first. Calling it again has no effect.

        Raises:
            DeviceError: the driver could not free something, usually because an earlier error has
                made the context unusable. The rest is freed nevertheless.
        """
        problems: list[Exception] = []
        if self.stream is not None:
            self._attempt(self.stream.synchronize, problems)  # nothing may still use the memory
        while self._frees:
            self._attempt(self._frees.pop(), problems)
        if problems:
            raise DeviceError(
                f"{len(problems)} calls failed while memory of cuda:{self._gpu.index} was freed, "
                f"the first with: {one_line(problems[0])}: start a new process"
            ) from problems[0]

    @staticmethod
    def _attempt(call: Callable[[], object], problems: list[Exception]) -> None:
        try:
            call()
        except Exception as error:  # reported by the caller, after everything else was freed
            problems.append(error)
        finally:
            del call  # of an object that must not be kept by the exception


@dataclass(frozen=True, eq=False)
class Buffer:
    """A tensor in host memory, and the same tensor at ``address`` on the GPU.

    ``shared``: both are the same memory.
    """

    gpu: Gpu
    host: NDArray[Any]
    address: int
    shared: bool

    def upload(self, memory: Memory, start: int = 0, stop: int | None = None) -> None:
        """Copy entries ``start`` to ``stop`` of the first axis to the GPU, on ``memory.stream``."""
        if not self.shared:
            place = self.address + start * self.host.strides[0]
            self.gpu.driver.memcpy_htod_async(place, self.host[start:stop], memory.stream)

    def download(self, memory: Memory, start: int = 0, stop: int | None = None) -> None:
        """Copy entries ``start`` to ``stop`` of the first axis back, on ``memory.stream``."""
        if not self.shared:
            place = self.address + start * self.host.strides[0]
            self.gpu.driver.memcpy_dtoh_async(self.host[start:stop], place, memory.stream)


# --- graphs --------------------------------------------------------------------------------------


def graphs() -> Any:
    """Return the module ``cuda.bindings.driver`` of cuda-python; None if it is not installed."""
    try:
        from cuda.bindings import driver
    except ImportError:
        return None
    return driver


class Graph:
    """The work that ``enqueue`` adds to a stream, as a CUDA graph.

    The addresses of all tensors are part of the graph. ``destroy`` must be called.

    Args:
        driver: the module ``cuda.bindings.driver``.
        stream: handle of a stream other than the default stream.
        enqueue: adds the work to the stream. It must have run before, because libraries allocate
            memory on first use.

    Raises:
        DeviceError: the work cannot be captured.
    """

    def __init__(self, driver: Any, stream: int, enqueue: Callable[[], None]) -> None:
        self._driver = driver
        self._stream = driver.CUstream(stream)
        # Calls of other threads that cannot be captured do not end a capture in this mode.
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._result("cuStreamBeginCapture", driver.cuStreamBeginCapture(self._stream, mode))
        try:
            enqueue()
        except BaseException:
            _, *graphs = driver.cuStreamEndCapture(self._stream)
            if graphs and graphs[0]:
                driver.cuGraphDestroy(graphs[0])
            raise
        graph = self._result("cuStreamEndCapture", driver.cuStreamEndCapture(self._stream))
        try:
            self._graph = self._result("cuGraphInstantiate", driver.cuGraphInstantiate(graph, 0))
        finally:
            driver.cuGraphDestroy(graph)

    def launch(self) -> None:
        """Run the work once, on the stream that it was captured from."""
        self._result("cuGraphLaunch", self._driver.cuGraphLaunch(self._graph, self._stream))

    def destroy(self) -> None:
        """Free the graph."""
        self._result("cuGraphExecDestroy", self._driver.cuGraphExecDestroy(self._graph))

    def _result(self, name: str, returned: Sequence[Any]) -> Any:
        """Return the result of a function of the driver, which returns an error code before it."""
        code, *results = returned
        if code != self._driver.CUresult.CUDA_SUCCESS:
            raise DeviceError(f"{name} failed with {code.name}")
        return results[0] if results else None
