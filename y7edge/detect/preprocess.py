"""Letterbox images into the network's input, and map boxes back to the image.

The image is resized with one factor for both sides and centred on grey 114. Geometry, rounding
(half to even) and pixels equal those of the published YOLOv7, with two fixes:

* Each side of the resized image has at least 1 pixel. The published code fails if a side rounds to
  0, as for an image of 1 x 640 in an input of 320 x 320.
* Boxes are mapped back with the padding and the factors that were actually applied. The published
  code uses the padding before rounding, which is wrong by half a pixel if the padding is odd.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.manifest import InputInfo
from y7edge.data.images import to_bytes
from y7edge.errors import ConfigError, DataError
from y7edge.frames import CudaFrame, Frame, Placed, cuda_frame

PAD = 114  # grey of the padding, 0..255, in all channels
MAX_VALUES = 1 << 30  # per image; a broadcast numpy view can have any size
Color = Literal["bgr", "rgb", "nv12"]
"""Order of an image's channels; a fourth channel (alpha) is ignored. NV12: see ``nv12_to_bgr``."""

DTYPES = ("float32", "float16", "uint8", "int8")
"""Supported dtypes of the network's input: uint8 has pixel values 0..255, int8 these minus 128."""

_INTEGERS = {"uint8": (1.0, 0), "int8": (1.0, -128)}  # scale and zero point


@dataclass(frozen=True, slots=True)
class Geometry:
    """A letterbox: resize to ``resized_hw``, then pad to ``output_hw``, both (height, width)."""

    image_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    output_hw: tuple[int, int]
    top: int
    bottom: int
    left: int
    right: int

    def to_source(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map corner boxes (N, 4) from the network's input to the image, and clip them to it."""
        height, width = self.image_hw
        resized_height, resized_width = self.resized_hw
        return unletterbox(
            boxes,
            ratio=(resized_width / width, resized_height / height),
            padding=(self.left, self.top),
            image_hw=self.image_hw,
        )


def letterbox_geometry(image_hw: tuple[int, int], target_hw: tuple[int, int] | int) -> Geometry:
    """Compute the letterbox of an image; ``target_hw``: (height, width), or side of a square."""
    height, width = image_hw
    output_hw = (target_hw, target_hw) if isinstance(target_hw, int) else target_hw
    factor = min(output_hw[0] / height, output_hw[1] / width)
    resized_hw = max(1, round(height * factor)), max(1, round(width * factor))
    half_height, half_width = ((o - r) / 2 for o, r in zip(output_hw, resized_hw, strict=True))
    return Geometry(
        image_hw=image_hw,
        resized_hw=resized_hw,
        output_hw=output_hw,
        top=round(half_height - 0.1),
        bottom=round(half_height + 0.1),
        left=round(half_width - 0.1),
        right=round(half_width + 0.1),
    )


def unletterbox(
    boxes: NDArray[np.float32],
    ratio: tuple[float, float],
    padding: tuple[float, float],
    image_hw: tuple[int, int],
) -> NDArray[np.float32]:
    """Subtract ``padding`` (x, y) from corner boxes (N, 4), divide by ``ratio`` (x, y), clip."""
    height, width = image_hw
    moved: NDArray[np.float32] = boxes - np.array(padding * 2, np.float32)
    moved /= np.array(ratio * 2, np.float32)
    np.maximum(moved, 0, out=moved)  # np.clip takes twice as long for a few boxes
    return np.minimum(moved, np.array((width, height) * 2, np.float32), out=moved)


class Preprocessor:
    """Write images to the network's input: letterbox, channel order, layout, scale.

    By default, an image is written to ``tensor``, the input (1, 3, H, W) or (1, H, W, 3). Its grey
    border is painted again only when the geometry changes. Not thread-safe: buffers are reused.

    Raises:
        ConfigError: the input's layout, dtype or scale is not supported.
    """

    def __init__(self, network: InputInfo) -> None:
        layout, dtype, scale = network.layout, network.dtype, network.scale
        if layout not in ("NCHW", "NHWC") or dtype not in DTYPES:
            raise ConfigError(
                f"the network's input is {dtype} {layout}, expected {', '.join(DTYPES)} and NCHW "
                "or NHWC: export it again with such an input"
            )
        found, expected = (scale, network.zero_point), _INTEGERS.get(dtype, (scale, 0))
        if found != expected:
            raise ConfigError(
                f"the network's input is {dtype} with scale and zero point {found}, expected "
                f"{expected}: export it again with such an input"
            )
        self._hw = height, width = network.height, network.width
        self._channels_last = layout == "NHWC"
        shape = (height, width, 3) if self._channels_last else (3, height, width)
        self.tensor: NDArray[Any] = np.empty((1, *shape), dtype)
        self._order, self._levels = network.color, network.levels
        # Division by 255 rounds every value correctly; multiplication by 1/255 does not.
        self._divisor = np.float32(1 / scale)
        self._border = np.float32(network.letterbox.pad) / self._divisor + network.zero_point
        levels = np.arange(256, dtype=np.float32)
        self._halves = (levels / self._divisor).astype(np.float16).view(np.uint16)
        self._geometry: Geometry | None = None  # of the last image
        self._painted: Geometry | None = None  # of the border in `tensor`
        self._resized: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._planes: list[NDArray[np.uint8]] = []

    def __call__(
        self,
        frame: NDArray[np.uint8] | CudaFrame,
        color: Color = "bgr",
        out: NDArray[Any] | None = None,
    ) -> Geometry:
        """Write one image to the network's input.

        Args:
            frame: (H, W, 3) uint8, or (H, W) or (H, W, 1) grey, or (H, W, 4) with alpha; also
                uint16 if the input has ``levels``.
            color: order of the frame's channels.
            out: destination, with shape and dtype of ``tensor[0]``; None: ``tensor[0]``.

        Returns:
            The letterbox, which maps boxes back to the image.

        Raises:
            DataError: the frame is not an image in host memory.
            ConfigError: ``color`` is not "bgr" or "rgb".
        """
        check_color(color)
        image = check_frame(frame, self._levels)
        height, width = self._hw
        geometry = self._geometry
        if geometry is None or geometry.image_hw != image.shape[:2]:
            geometry = letterbox_geometry((image.shape[0], image.shape[1]), self._hw)
            self._geometry = geometry
        target = self.tensor[0] if out is None else out
        if out is not None or geometry is not self._painted:
            self._paint(target.transpose(2, 0, 1) if self._channels_last else target, geometry)
            self._painted = geometry if out is None else self._painted
        rows = slice(geometry.top, height - geometry.bottom)
        columns = slice(geometry.left, width - geometry.right)
        resized = self._resize(image, geometry)
        if self._channels_last:
            self._write(self._interleaved(resized, color), target[rows, columns])
        else:
            for plane, part in zip(self._split(resized, color), target, strict=True):
                self._write(plane, part[rows, columns])
        return geometry

    def _write(self, pixels: NDArray[Any], part: NDArray[Any]) -> None:
        if part.dtype == np.uint8:
            part[...] = pixels
        elif part.dtype == np.int8:  # flipping the highest bit subtracts 128
            np.bitwise_xor(pixels, np.uint8(128), out=part.view(np.uint8))
        elif part.dtype == np.float16:  # numpy converts to float16 one value at a time
            cv2.LUT(np.ascontiguousarray(pixels), self._halves, dst=part.view(np.uint16))
        else:
            np.divide(pixels, self._divisor, out=part)

    def _resize(self, image: NDArray[np.uint8], geometry: Geometry) -> NDArray[Any]:
        """Return the resized image, in a buffer that the next call overwrites."""
        height, width = geometry.resized_hw
        if image.shape[:2] == geometry.resized_hw:
            return image
        shape = (height, width, *image.shape[2:])
        if self._resized.shape != shape:
            self._resized = np.empty(shape, np.uint8)
        return cv2.resize(image, (width, height), dst=self._resized, interpolation=cv2.INTER_LINEAR)

    def _split(self, image: NDArray[Any], color: Color) -> Sequence[NDArray[Any]]:
        """Return three planes in the input's order, in buffers that the next call overwrites."""
        if image.ndim == 2:
            return [image] * 3
        if len(self._planes) != image.shape[2] or self._planes[0].shape != image.shape[:2]:
            self._planes = [np.empty(image.shape[:2], np.uint8) for _ in range(image.shape[2])]
        # Split first, because the conversion to float is faster on contiguous memory.
        planes = cv2.split(image, self._planes)
        return planes[:3] if color == self._order else planes[2::-1]

    def _interleaved(self, image: NDArray[Any], color: Color) -> NDArray[Any]:
        """Return the image with three channels in the input's order."""
        channels = image.shape[2] if image.ndim == 3 else 1
        codes = {1: cv2.COLOR_GRAY2RGB, 3: None, 4: cv2.COLOR_BGRA2BGR}
        if color != self._order:
            codes |= {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}
        code = codes[channels]
        return image if code is None else cv2.cvtColor(image, code)

    def _paint(self, target: NDArray[Any], geometry: Geometry) -> None:
        """Fill the border of ``target`` (3, height, width) with grey."""
        height, width = target.shape[1:]
        target[:, : geometry.top] = self._border
        target[:, height - geometry.bottom :] = self._border
        target[:, :, : geometry.left] = self._border
        target[:, :, width - geometry.right :] = self._border


def nv12_to_bgr(frame: NDArray[np.uint8], width: int | None = None) -> NDArray[np.uint8]:
    """Convert an NV12 image of a camera or video decoder to BGR, (H, W, 3) uint8.

    The conversion is ITU-R BT.601 with limited range (luma 16 to 235), and each chroma value is
    used for two by two pixels. This is what ``cv2.cvtColor`` does, so it gives the pixels that a
    user of OpenCV sees. Sources of another matrix, as most HD video (BT.709), get slightly other
    colours.

    Args:
        frame: (3 H / 2, stride) uint8: H rows of luma, then H / 2 rows of interleaved Cb and Cr.
        width: W, if rows are padded: a frame of 1278 pixels often has rows of 1280 bytes.

    Raises:
        DataError: the frame is not an NV12 image of even sides.
    """
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 2:
        found = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame)
        raise DataError(f"an NV12 image must be uint8 (3 height / 2, stride), found {found}")
    rows, stride = frame.shape
    width = stride if width is None else width
    if not 0 < frame.size <= MAX_VALUES or rows % 3 or width % 2 or not 0 < width <= stride:
        raise DataError(
            f"an NV12 image of width {width} has shape {frame.shape}, expected a multiple of 3 "
            "rows, and an even width of at most a row"
        )
    height = rows // 3 * 2
    frame = np.ascontiguousarray(frame)
    luma, chroma = frame[:height, :width], frame[height:, :width]
    pairs = np.ascontiguousarray(chroma).reshape(height // 2, width // 2, 2)
    return np.asarray(cv2.cvtColorTwoPlane(luma, pairs, cv2.COLOR_YUV2BGR_NV12), np.uint8)


def check_color(color: str) -> None:
    """Raise ConfigError unless ``color`` is "bgr" or "rgb"; the Detector converts "nv12"."""
    if not isinstance(color, str) or color not in ("bgr", "rgb"):
        raise ConfigError(f'color is {color!r}, expected "bgr", "rgb" or, in a Detector, "nv12"')


def to_bgr(frame: Frame) -> NDArray[np.uint8]:
    """Return the image of a frame as BGR, (H, W, 3) uint8; a BGR image itself is not copied.

    Raises:
        DataError: it is not an image in host memory.
        ConfigError: the format of the frame is unknown.
    """
    if frame.format == "nv12":
        return nv12_to_bgr(frame.image)
    check_color(frame.format)
    image = check_frame(frame.image)
    if image.ndim == 2:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), np.uint8)
    if frame.format == "bgr" and image.shape[2] == 3:
        return image
    codes = {
        ("bgr", 4): cv2.COLOR_BGRA2BGR,
        ("rgb", 3): cv2.COLOR_RGB2BGR,
        ("rgb", 4): cv2.COLOR_RGBA2BGR,
    }
    return np.asarray(cv2.cvtColor(image, codes[frame.format, image.shape[2]]), np.uint8)


def as_image(
    frame: Any, color: Color, network: InputInfo, *, host: bool, cut: bool
) -> tuple[NDArray[np.uint8] | CudaFrame, Color]:
    """Return an image, and the order of its channels.

    An array on a GPU becomes a ``CudaFrame``. Other objects are returned as they are: ``place`` and
    ``Preprocessor`` check them.

    Args:
        frame: an array in host memory or on a GPU.
        color: order of its channels.
        network: the network's input.
        host: convert NV12 to BGR, because only sessions with ``on_device`` read it.
        cut: check the image now, because it will be cut into regions.

    Raises:
        ConfigError: ``color`` is unknown.
        DataError: an array on a GPU, or an NV12 image, is not an image.
    """
    nv12 = isinstance(color, str) and color == "nv12"
    if not nv12:
        check_color(color)
    if not isinstance(frame, np.ndarray):
        frame = cuda_frame(frame) or frame
    if not nv12:
        return (as_checked(frame, network.levels) if cut else frame), color
    if not host:
        return frame, color
    if isinstance(frame, CudaFrame):
        raise DataError(
            "an NV12 image in the memory of a GPU is run whole, and needs a session that "
            "pre-processes there: omit roi and tile, or convert the image to RGB"
        )
    return nv12_to_bgr(frame), "bgr"


def as_checked(
    image: NDArray[np.uint8] | CudaFrame, levels: tuple[int, int] | None
) -> NDArray[np.uint8] | CudaFrame:
    """Return an image of a GPU, or what ``check_frame`` returns."""
    return image if isinstance(image, CudaFrame) else check_frame(image, levels)


def size_of(image: NDArray[np.uint8] | CudaFrame, color: Color) -> tuple[int, int]:
    """Return (width, height) of an image in pixels."""
    height, width = nv12_size(image.shape) if color == "nv12" else image.shape[:2]
    return width, height


def place(
    image: NDArray[np.uint8] | CudaFrame, color: Color, network: InputInfo
) -> tuple[Placed, Geometry]:
    """Return how a session's device places an image in the network's input.

    ``color``: "bgr" or "rgb", or "nv12" for an image (3 H / 2, W) of even sides, whose rows may be
    padded.

    Raises:
        DataError: it is not an image.
    """
    if color == "nv12":
        if not isinstance(image, CudaFrame):
            if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
                found = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
                raise DataError(f"an NV12 image must be a uint8 array, not {found}")
            if image.size > MAX_VALUES:
                raise DataError(
                    f"an NV12 image must not have more than {MAX_VALUES} values; got shape "
                    f"{image.shape}"
                )
        kind: str = color
    else:
        image = as_checked(image, network.levels)
        channels = image.shape[2] if len(image.shape) == 3 else 1
        kind = {1: "grey", 3: color, 4: f"{color}a"}[channels]
    width, height = size_of(image, color)
    geometry = letterbox_geometry((height, width), (network.height, network.width))
    return Placed(
        image, kind, geometry.image_hw, geometry.resized_hw, geometry.top, geometry.left
    ), geometry


def nv12_size(shape: Sequence[int]) -> tuple[int, int]:
    """Return (height, width) of an NV12 image; ``shape``: (3 height / 2, width).

    Raises:
        DataError: it is not the shape of an NV12 image of even sides.
    """
    if len(shape) != 2 or shape[0] % 3 or shape[1] % 2 or not shape[0] * shape[1]:
        raise DataError(
            f"an NV12 image has shape {tuple(shape)}, expected (3 height / 2, width) with even "
            "height and width"
        )
    return shape[0] // 3 * 2, shape[1]


def check_frame(frame: object, levels: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Return a C-contiguous uint8 image (H, W), (H, W, 3) or (H, W, 4); else raise DataError.

    ``levels``: the values of a uint16 image that map to 0 and 255; None: uint16 is refused.
    """
    if isinstance(frame, CudaFrame):
        raise DataError(
            "an image in the memory of a GPU needs a session that pre-processes there, such as a "
            "TensorRT engine on 'cuda': copy it to the host, for example by .cpu().numpy()"
        )
    if not isinstance(frame, np.ndarray):
        raise DataError(
            f"an image must be a numpy array, not {type(frame).__name__}: {_advice(frame)}"
        )
    if frame.dtype == np.uint16 and levels is not None:
        frame = to_bytes(frame, levels)
    if frame.dtype != np.uint8:
        advice = (
            "(frame * 255).astype(np.uint8) if its values are 0..1"
            if frame.dtype.kind == "f"
            else "frame.astype(np.uint8) if its values are 0..255"
        )
        if frame.dtype == np.uint16:
            advice += ", else y7edge.data.images.to_bytes(frame, (lowest, highest))"
        raise DataError(f"an image must be uint8, not {frame.dtype}: use {advice}")
    if frame.ndim not in (2, 3) or (frame.ndim == 3 and frame.shape[2] not in (1, 3, 4)):
        advice = ": pass one image at a time, or use batch()" if frame.ndim == 4 else ""
        if frame.ndim == 3 and frame.shape[0] in (1, 3, 4):
            advice = ": move the channels to the end, frame.transpose(1, 2, 0)"
        raise DataError(
            "an image must have shape (height, width, 3), or 1 or 4 channels; got "
            f"{frame.shape}{advice}"
        )
    if not 0 < frame.size <= MAX_VALUES:
        what = f"have more than {MAX_VALUES} values" if frame.size else "be empty"
        raise DataError(f"an image must not {what}; got shape {frame.shape}")
    image = frame[:, :, 0] if frame.ndim == 3 and frame.shape[2] == 1 else frame
    return np.ascontiguousarray(image)


def _advice(frame: object) -> str:
    """Return what to do about an object that is not an array."""
    if frame is None:
        return "cv2.imread returns None for a file that it cannot read"
    if isinstance(frame, str | os.PathLike):
        return "use cv2.imread(path), or detector.stream(path) for all kinds of sources"
    if isinstance(frame, list | tuple):
        return "use batch() for several images, or numpy.asarray(image, numpy.uint8)"
    return "use numpy.asarray(image), and color='rgb' for an image from PIL"
