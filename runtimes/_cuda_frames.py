"""Pre-process images and select candidates on the GPU of a session, with ``_cuda_kernels``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from y7edge.artifact.manifest import Manifest
from y7edge.errors import ConfigError, DataError
from y7edge.frames import Arrays, CudaFrame, Placed
from y7edge.runtimes import _cuda_kernels as kernels
from y7edge.runtimes._cuda import Buffer, Gpu, Memory, device_of
from y7edge.runtimes.base import one_line

_ALIGNED = 256  # bytes; each image in the staging memory begins at a multiple of it
_FIRST = 256  # candidates that are copied with the header; more are copied afterwards
_LEGACY = 1  # the legacy default stream, in the CUDA array interface


class FrameKernels:
    """The work before and after the network of one session.

    All addresses belong to ``memory``, which frees everything; use within ``gpu.current()``.

    Args:
        gpu: the GPU.
        memory: of the session, with its stream.
        manifest: description of the model.
        tensors: the network's input, and its outputs in the order of the manifest.

    Raises:
        ConfigError: the kernels do not support the input, or the driver cannot compile them.
    """

    def __init__(
        self, gpu: Gpu, memory: Memory, manifest: Manifest, tensors: Sequence[Buffer]
    ) -> None:
        kernels.require_input(manifest.input)
        self._gpu, self._memory, self._image = gpu, memory, manifest.input
        self._target, self._heads = tensors[0], tensors[1:]
        self._functions: dict[str, Any] = {}
        self._module: Any = None
        self._ready: Any = None
        memory.add(self._drop)
        try:
            self._module = gpu.driver.module_from_buffer(kernels.ptx())
        except Exception as error:  # pycuda's exceptions have no class in common with others
            raise ConfigError(f"the driver refuses the kernels: {one_line(error)}") from error
        self._ready = gpu.driver.Event(gpu.driver.event_flags.DISABLE_TIMING)
        most, sides = len(self._target.host), self._image.height + self._image.width
        self._taps = memory.buffer((most, sides, 4), "int32")
        self._placements: list[kernels.Placement | None] = [None] * most
        self._staging = Memory(gpu)
        self._frames: Buffer | None = None
        memory.add(self._free_staging)
        self._selection = _selection(manifest)
        if self._selection is not None:
            anchors = memory.buffer(self._selection.anchors.shape, "float32")
            anchors.host[:] = self._selection.anchors
            anchors.upload(memory)
            self._anchors = anchors.address
            size = (self._selection.nbytes,)
            self._found = memory.buffer(size, "uint8", output=True, in_place=True)

    def _drop(self) -> None:
        """Free what pycuda frees with its last reference."""
        self._functions.clear()
        self._module = None
        self._ready = None

    def _free_staging(self) -> None:
        self._frames = None
        self._staging.free()

    def letterbox(self, images: Sequence[Placed]) -> None:
        """Write images to the network's input, on the stream.

        Raises:
            DataError: an image is not in the memory of this GPU.
        """
        addresses = self._addresses(images)
        step = self._target.host.nbytes // len(self._target.host)
        for index, (image, address) in enumerate(zip(images, addresses, strict=True)):
            frame = _frame(image, address)
            placement = kernels.Placement(*image[2:])
            taps = self._upload_taps(index, placement)
            target = self._target.address + index * step
            self._launch(kernels.letterbox(frame, placement, taps, self._image, target))

    def select(self, conf: float, count: int) -> list[Arrays] | None:
        """Return the candidates of the first ``count`` images; None if there was no room for all.

        Waits for the stream.

        Raises:
            DeviceError: an objectness is NaN.
        """
        selection, found, memory = self._selection, self._found, self._memory
        assert selection is not None
        heads = [head.address for head in self._heads]
        for launch in selection.launches(heads, self._anchors, found.address, count, conf):
            self._launch(launch)
        size = kernels.CANDIDATE.itemsize
        found.download(memory, 0, min(size * (1 + _FIRST), selection.nbytes))
        memory.stream.synchronize()
        number = selection.count(found.host)
        if number is not None and number > _FIRST:
            found.download(memory, size * (1 + _FIRST), size * (1 + number))
            memory.stream.synchronize()
        if number is None:
            return None
        candidates = selection.read(found.host[: size * (1 + number)].copy(), count)
        assert candidates is not None
        return [*candidates]

    @property
    def selects(self) -> bool:
        """Whether candidates can be selected from the outputs."""
        return self._selection is not None

    def _addresses(self, images: Sequence[Placed]) -> list[int]:
        """Return the address of each image on the GPU; images in host memory are copied there."""
        sizes = [
            0 if isinstance(image.pixels, CudaFrame) else _rounded(image.pixels.nbytes)
            for image in images
        ]
        if total := sum(sizes):
            self._reserve(total)
        found, place = [], 0
        for image, size in zip(images, sizes, strict=True):
            pixels = image.pixels
            if isinstance(pixels, CudaFrame):
                self._wait_for(pixels)
                found.append(pixels.address)
                continue
            assert self._frames is not None
            part = self._frames.host[place : place + pixels.nbytes].reshape(pixels.shape)
            np.copyto(part, pixels)
            found.append(self._frames.address + place)
            place += size
        if total:
            assert self._frames is not None
            self._frames.upload(self._memory, 0, total)
        return found

    def _reserve(self, size: int) -> None:
        """Allocate memory for images of ``size`` bytes in all, if there is less."""
        if self._frames is None or len(self._frames.host) < size:
            self._memory.stream.synchronize()  # a call that failed may have left work that reads it
            self._free_staging()
            self._frames = self._staging.buffer((size,), "uint8", in_place=True)

    def _wait_for(self, frame: CudaFrame) -> None:
        """Let the stream wait until an image on the GPU is complete."""
        index = self._gpu.index
        for address in (frame.address, frame.address + frame.nbytes - 1):
            if (place := device_of(address)) != index:
                where = "not in the memory of a GPU" if place is None else f"on cuda:{place}"
                raise DataError(
                    f"the image is {where}, expected cuda:{index}: copy it there, or open the "
                    "model on its device"
                )
        if frame.stream == _LEGACY:
            self._ready.record()
            self._memory.stream.wait_for_event(self._ready)
        elif frame.stream is not None:  # unknown, or one that pycuda cannot refer to
            self._gpu.driver.Context.synchronize()

    def _upload_taps(self, index: int, placement: kernels.Placement) -> int:
        """Return the address of the table for a placement; image ``index`` has its own memory."""
        step = int(self._taps.host[0].nbytes)
        if self._placements[index] != placement:
            self._placements[index] = None
            taps = placement.taps()
            self._taps.host[index, : len(taps)] = taps
            self._taps.upload(self._memory, index, index + 1)
            self._placements[index] = placement
        return self._taps.address + index * step

    def _launch(self, launch: kernels.Launch) -> None:
        name, functions = launch.kernel, self._functions
        if name not in functions:
            functions[name] = self._module.get_function(name).prepare(kernels.PARAMETERS[name])
        functions[name].prepared_async_call(
            launch.grid, launch.block, self._memory.stream, *launch.arguments
        )


def _selection(manifest: Manifest) -> kernels.Selection | None:
    """Return the selection of candidates; None if the outputs are not heads of a known dtype."""
    try:
        return kernels.Selection(manifest)
    except ConfigError:
        return None


def _frame(image: Placed, address: int) -> kernels.Frame:
    """Return the description of an image at ``address``."""
    pixels, (height, width) = image.pixels, image.image_hw
    stride = pixels.stride if isinstance(pixels, CudaFrame) else pixels.nbytes // len(pixels)
    if image.format != "nv12":
        return kernels.Frame(image.format, height, width, address, stride)
    chroma = address + height * stride
    return kernels.Frame("nv12", height, width, address, stride, chroma, stride)


def _rounded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
