"""Images in the memory of a GPU, and sessions that use them without a copy.

Libraries describe their arrays on NVIDIA GPUs by the attribute ``__cuda_array_interface__``
(https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html): CuPy, PyTorch, pycuda,
jetson-utils. DLPack is not supported: convert with ``torch.from_dlpack`` or ``cupy.from_dlpack``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from y7edge.errors import DataError

_MAX_VALUES = 1 << 30  # per image, as for images in host memory
_END = 1 << 63  # of all addresses


@dataclass(frozen=True, eq=False)
class CudaFrame:
    """A uint8 image in the memory of a GPU.

    Attributes:
        shape: (H, W), or (H, W, C) with 1, 3 or 4 channels.
        address: Of the first pixel.
        stride: Bytes from row to row.
        stream: The stream that writes the image, as in the interface: None if it is complete, 1 for
            the legacy default stream, -1 if the interface does not say it.
        owner: The array that owns the memory.
    """

    shape: tuple[int, ...]
    address: int
    stride: int
    stream: int | None
    owner: Any

    def __getitem__(self, part: tuple[slice, slice]) -> CudaFrame:
        """Return a rectangle of the image, as of a numpy array; it is not copied."""
        (top, bottom, _), (left, right, _) = (
            side.indices(size) for side, size in zip(part, self.shape, strict=False)
        )
        pixel = self.shape[2] if len(self.shape) == 3 else 1
        return replace(
            self,
            shape=(bottom - top, right - left, *self.shape[2:]),
            address=self.address + top * self.stride + left * pixel,
        )

    @property
    def nbytes(self) -> int:
        """Bytes from the first to the last pixel."""
        row = math.prod(self.shape[1:])
        return (self.shape[0] - 1) * self.stride + row


def cuda_frame(frame: object) -> CudaFrame | None:
    """Return the image that an array on a GPU contains; None for all other objects.

    Raises:
        DataError: the array is not a uint8 image, or its pixels are not contiguous within a row.
    """
    interface = getattr(frame, "__cuda_array_interface__", None)
    if interface is None:
        return None
    try:
        shape = tuple(int(size) for size in interface["shape"])
        kind = str(interface["typestr"])
        address = int(interface["data"][0])
        strides = interface.get("strides")
        steps = None if strides is None else tuple(int(step) for step in strides)
        stream = interface.get("stream") if "stream" in interface else -1
        stream = None if stream is None else int(stream)
        masked = interface.get("mask") is not None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(
            f"the __cuda_array_interface__ of {type(frame).__name__} is not valid ({error!r})"
        ) from error
    if kind[1:] != "u1" or masked:
        raise DataError(
            f"an image on the GPU must be uint8 without a mask, found {kind[:8]!r}: convert it, "
            "for example by .to(torch.uint8)"
        )
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise DataError(
            f"an image on the GPU must have shape (height, width, 3), or 1 or 4 channels; got "
            f"{shape}: permute the axes, and pass one image at a time, or use batch()"
        )
    size = math.prod(shape)  # numpy's product overflows
    if min(shape) < 1 or size > _MAX_VALUES or not address:
        raise DataError(f"an image on the GPU has shape {shape}, expected 1 to {_MAX_VALUES} bytes")
    row = size // shape[0]
    if steps is None:
        steps = (row, shape[2], 1) if len(shape) == 3 else (row, 1)
    if steps[1:] != ((shape[2], 1) if len(shape) == 3 else (1,)) or steps[0] < row:
        raise DataError(
            f"an image on the GPU of shape {shape} has strides {steps}, expected contiguous rows: "
            "copy it, for example by .contiguous() after permuting its axes"
        )
    found = CudaFrame(shape, address, steps[0], stream, frame)
    if not 0 < address <= address + found.nbytes <= _END:
        raise DataError(
            f"an image on the GPU of shape {shape} has address {address:#x} and strides {steps}, "
            "expected an address of 64 bits"
        )
    return found


class Placed(NamedTuple):
    """An image, and where a session places it in the network's input."""

    pixels: NDArray[np.uint8] | CudaFrame
    format: str  # "grey", "bgr", "rgb", "bgra", "rgba", or "nv12" with 3 H / 2 rows
    image_hw: tuple[int, int]  # (H, W)
    resized_hw: tuple[int, int]
    top: int  # rows of padding above the image
    left: int  # columns of padding to the left of it


Arrays = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]
"""Candidates of an image: corners (N, 4) in pixels of the input, scores (N,), class ids (N,)."""


class OnDevice(Protocol):
    """Pre-processes images and selects candidates on the device of a session."""

    def run(
        self, images: Sequence[Placed], conf: float | None
    ) -> list[Arrays] | dict[str, NDArray[Any]]:
        """Run a batch of images through the network.

        Args:
            images: at most the artifact's batch size; any number if that is dynamic.
            conf: select the candidates with a greater score in their best class; None: do not.

        Returns:
            The candidates of each image, in the order of ``Postprocessor.candidates``. If ``conf``
            is None, or they cannot be selected on the device: the outputs, as of
            ``Session.infer``, for as many images as were given.

        Raises:
            DataError: an image is not in the memory of this device.
            DeviceError: the engine failed, or an objectness is NaN.
        """
