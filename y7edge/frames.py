"""Frames of cameras and videos; images in the memory of a GPU, used without a copy.

Libraries describe their arrays on NVIDIA GPUs by the attribute ``__cuda_array_interface__``
(https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html): CuPy, PyTorch, pycuda,
jetson-utils. DLPack is not supported: convert with ``torch.from_dlpack`` or ``cupy.from_dlpack``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from y7edge.errors import DataError

_MAX_VALUES = 1 << 30  # per image, as for images in host memory
_END = 1 << 63  # of all addresses

Format = Literal["bgr", "rgb", "nv12"]
"""Layout of an image's pixels; grey images and images with alpha are "bgr" or "rgb" too."""

Clock = Literal["sensor", "driver", "arrival", "media", "recorded"]
"""What the timestamp of a frame is.

"sensor", "driver" and "arrival" are times of CLOCK_MONOTONIC, as of ``time.monotonic_ns()``: the
start of the exposure according to the sensor, the time that the driver or the source element wrote
into the buffer, and the time at which the buffer arrived. "media" is the position in a video file.
"recorded" is the time that a recording, or a message of ROS, contains.
"""


@dataclass(frozen=True, eq=False)
class Frame:
    """An image of a source, and when it was captured.

    Attributes:
        image: uint8 (H, W, 3), or (H, W) grey, or (H, W, 4) with alpha; NV12: (3 H / 2, W), H rows
            of luma, then H / 2 rows of interleaved Cb and Cr. Rows may be padded: see ``stride``.
        format: layout of the pixels.
        stride: bytes from row to row; None: taken from ``image``. Often more than W, because
            drivers align rows.
        timestamp_ns: capture time in nanoseconds of ``clock``, or None.
        clock: what ``timestamp_ns`` is: "sensor", "driver", "arrival", "media" or "recorded"; see
            ``Clock``.
        sequence: number of the frame in its source, from 0; dropped frames are counted.
        dropped: frames of the source that were dropped until now, because a newer one was there.
        source: name of the source, without user name and password; or None.
        rate: frames per second that the source states; None if unknown.

    Raises:
        DataError: ``stride`` is not that of ``image``.
    """

    image: NDArray[np.uint8]
    format: Format = "bgr"
    stride: int | None = None
    timestamp_ns: int | None = None
    clock: Clock = "arrival"
    sequence: int = 0
    dropped: int = 0
    source: str | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.image, np.ndarray) and self.image.ndim:
            rows = self.image.strides[0]
            if self.stride not in (None, rows):
                raise DataError(
                    f"the stride of a frame is {self.stride}, but the rows of its image "
                    f"{self.image.shape} are {rows} bytes apart: cut padded rows, image[:, :width]"
                )
            object.__setattr__(self, "stride", rows)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        rows, width = self.image.shape[:2]
        return width, rows * 2 // 3 if self.format == "nv12" else rows

    def age_ns(self, now_ns: int | None = None) -> int | None:
        """Return how many nanoseconds ago the frame was captured.

        Args:
            now_ns: a time of ``time.monotonic_ns()``; None: now.

        Returns:
            The age; None if it is unknown, because the timestamp is of another clock.
        """
        if self.timestamp_ns is None or self.clock in ("media", "recorded"):
            return None
        return (time.monotonic_ns() if now_ns is None else now_ns) - self.timestamp_ns


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
