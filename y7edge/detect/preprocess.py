"""Letterbox: a picture fitted into the network's input, and boxes brought back to the picture.

The picture is scaled by one factor until it touches the input's nearer sides, and the rest is
filled with grey 114, half on each side. Geometry, rounding (half to even) and pixels are those of
YOLOv7 as published, with two mends:

* A very elongated picture keeps a side of at least 1 pixel (1 x 640 into 320 x 320 rounds to 0).
* Boxes go back by the whole pixels of padding that were really added and by the factor that each
  side was really resized by. The published way takes half of the unrounded padding, which is half
  a pixel off wherever the padding is odd.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from y7edge.errors import ConfigError, DataError

PAD = 114
"""Grey of the padding, 0..255, in all channels."""

Color = Literal["bgr", "rgb"]
"""Order of a picture's channels; a fourth channel is alpha, and ignored."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where a picture went: resized to ``resized_hw``, then padded to ``output_hw``."""

    image_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    output_hw: tuple[int, int]
    ratio: tuple[float, float]  # (width, height) factors that the resized size was rounded from
    padding: tuple[float, float]  # (x, y) half of the padding, before rounding to whole pixels
    top: int
    bottom: int
    left: int
    right: int

    def to_source(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Corner boxes (N, 4) of the network's input as boxes of the picture, clipped to it."""
        height, width = self.image_hw
        resized_height, resized_width = self.resized_hw
        return unletterbox(
            boxes,
            ratio=(resized_width / width, resized_height / height),
            padding=(self.left, self.top),
            image_hw=self.image_hw,
        )


def letterbox_geometry(
    image_hw: tuple[int, int],
    target_hw: tuple[int, int] | int,
    *,
    auto: bool = False,
    stride: int = 32,
    scaleup: bool = True,
    stretch: bool = False,
) -> Geometry:
    """Geometry of a letterbox from a picture (height, width) to an input (height, width).

    Args:
        image_hw: size of the picture.
        target_hw: size of the input; one number means a square.
        auto: pad only to the next multiple of ``stride``, so that the output can be smaller than
            the target; wins over ``stretch``.
        stride: the largest stride of the network, for ``auto``.
        scaleup: enlarge small pictures.
        stretch: fill the target without padding, each side by its own factor.
    """
    height, width = image_hw
    target_height, target_width = (
        (target_hw, target_hw) if isinstance(target_hw, int) else target_hw
    )
    factor = min(target_height / height, target_width / width)
    factor = factor if scaleup else min(factor, 1.0)
    ratio = (factor, factor)
    if stretch and not auto:
        resized_height, resized_width = target_height, target_width
        ratio = (target_width / width, target_height / height)
    else:
        # Published code lets a side become 0 here and then fails in the resize.
        resized_height = max(1, round(height * factor))
        resized_width = max(1, round(width * factor))
    spare_width, spare_height = target_width - resized_width, target_height - resized_height
    if auto:
        spare_width, spare_height = spare_width % stride, spare_height % stride
    half_width, half_height = spare_width / 2, spare_height / 2
    top, bottom = round(half_height - 0.1), round(half_height + 0.1)
    left, right = round(half_width - 0.1), round(half_width + 0.1)
    return Geometry(
        image_hw=image_hw,
        resized_hw=(resized_height, resized_width),
        output_hw=(resized_height + top + bottom, resized_width + left + right),
        ratio=ratio,
        padding=(half_width, half_height),
        top=top,
        bottom=bottom,
        left=left,
        right=right,
    )


def unletterbox(
    boxes: NDArray[np.float32],
    ratio: tuple[float, float],
    padding: tuple[float, float],
    image_hw: tuple[int, int],
) -> NDArray[np.float32]:
    """Corner boxes (N, 4) minus ``padding`` (x, y), over ``ratio`` (x, y), clipped to the picture.

    A new float32 array.
    """
    height, width = image_hw
    moved: NDArray[np.float32] = boxes - np.array(padding * 2, np.float32)
    moved /= np.array(ratio * 2, np.float32)
    return moved.clip(0, np.array((width, height) * 2, np.float32))


class Preprocessor:
    """Pictures to network input: letterbox, RGB planes, float32 0..1; one thread at a time.

    Work buffers are reused from call to call, and so is ``tensor``, the input that pictures are
    written to unless the caller brings an own one. Its grey border is only painted when the
    geometry changes: with a camera, that is once.

    Args:
        height: of the input, in pixels.
        width: of the input, in pixels.
        pad: grey of the border, 0..255.
        order: channel order that the network wants.
        scale: factor from 0..255 to what the network wants.
    """

    def __init__(
        self,
        height: int,
        width: int,
        *,
        pad: int = PAD,
        order: Color = "rgb",
        scale: float = 1 / 255,
    ) -> None:
        self.tensor: NDArray[np.float32] = np.empty((1, 3, height, width), np.float32)
        self._order = order
        # A division by 255 and not a product with 1/255: it is the nearest float32 for every value.
        self._divisor = np.float32(1 / scale)
        self._border = np.float32(pad) / self._divisor
        self._geometry: Geometry | None = None  # of the last picture; a camera's stays the same
        self._painted: Geometry | None = None  # whose border `tensor` has at present
        self._resized: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._planes: list[NDArray[np.uint8]] = []

    def __call__(
        self,
        frame: NDArray[np.uint8],
        color: Color = "bgr",
        out: NDArray[np.float32] | None = None,
    ) -> Geometry:
        """Write ``frame`` to ``tensor``, or to ``out``, a (3, height, width) float32 array.

        Args:
            frame: (H, W, 3) uint8; also (H, W) and (H, W, 1) grey and (H, W, 4) with alpha.
            color: order of the frame's channels.
            out: one picture of a larger batch, all of which is overwritten.

        Raises:
            DataError: not such an array.
            ConfigError: another ``color``.
        """
        if color not in ("bgr", "rgb"):
            raise ConfigError(f'color is {color!r}, expected "bgr" or "rgb"')
        picture = check_frame(frame)
        height, width = self.tensor.shape[2:]
        geometry = self._geometry
        if geometry is None or geometry.image_hw != picture.shape[:2]:
            geometry = letterbox_geometry((picture.shape[0], picture.shape[1]), (height, width))
            self._geometry = geometry
        planes = self._resize(picture, geometry)
        target = self.tensor[0] if out is None else out
        if out is not None or geometry is not self._painted:
            self._paint(target, geometry)
            self._painted = geometry if out is None else self._painted
        inner = target[
            :, geometry.top : height - geometry.bottom, geometry.left : width - geometry.right
        ]
        if len(planes) == 1:
            np.divide(planes[0], self._divisor, out=inner[0])
            inner[1:] = inner[0]
        else:
            ordered = planes[:3] if color == self._order else planes[2::-1]
            for plane, row in zip(ordered, inner, strict=True):
                np.divide(plane, self._divisor, out=row)
        return geometry

    def _resize(self, picture: NDArray[np.uint8], geometry: Geometry) -> list[NDArray[Any]]:
        """The picture's channels, each resized, in buffers that the next call overwrites."""
        height, width = geometry.resized_hw
        channels = picture.shape[2] if picture.ndim == 3 else 1
        shape = (height, width, channels) if channels > 1 else (height, width)
        if self._resized.shape != shape:
            self._resized = np.empty(shape, np.uint8)
            self._planes = [np.empty((height, width), np.uint8) for _ in range(channels)]
        resized: NDArray[Any] = picture
        if picture.shape[:2] != geometry.resized_hw:
            resized = cv2.resize(
                picture, (width, height), dst=self._resized, interpolation=cv2.INTER_LINEAR
            )
        if channels == 1:
            return [resized]
        # Splitting bytes first keeps the slow part, conversion to float, on contiguous memory.
        return list(cv2.split(resized, self._planes))

    def _paint(self, target: NDArray[np.float32], geometry: Geometry) -> None:
        """Fill the border of ``target`` (3, height, width) with grey."""
        height, width = target.shape[1:]
        target[:, : geometry.top] = self._border
        target[:, height - geometry.bottom :] = self._border
        target[:, :, : geometry.left] = self._border
        target[:, :, width - geometry.right :] = self._border


def check_frame(frame: object) -> NDArray[np.uint8]:
    """``frame`` as a C-contiguous uint8 array (H, W), (H, W, 3) or (H, W, 4), copied if need be.

    Raises:
        DataError: saying what was given and what to do.
    """
    if not isinstance(frame, np.ndarray):
        raise DataError(
            f"a picture must be a numpy array, not {type(frame).__name__}: "
            "use numpy.asarray(picture), and color='rgb' if it comes from PIL"
        )
    if frame.dtype != np.uint8:
        advice = (
            "(frame * 255).astype(np.uint8) if its values are 0..1"
            if frame.dtype.kind == "f"
            else "frame.astype(np.uint8) if its values are 0..255"
        )
        raise DataError(f"a picture must be uint8, not {frame.dtype}: use {advice}")
    if frame.ndim not in (2, 3) or (frame.ndim == 3 and frame.shape[2] not in (1, 3, 4)):
        raise DataError(
            f"a picture must have shape (height, width, 3), or 1 or 4 channels; got {frame.shape}"
            + (": pass one picture at a time, or use batch()" if frame.ndim == 4 else "")
        )
    if frame.size == 0:
        raise DataError(f"a picture must not be empty; got shape {frame.shape}")
    picture = frame[:, :, 0] if frame.ndim == 3 and frame.shape[2] == 1 else frame
    return np.ascontiguousarray(picture)
