"""Launch the CUDA kernels around a network: letterbox of a frame, selection of candidates.

The kernels are in ``_cuda_kernels.cu`` and are shipped as PTX, which every driver of CUDA 12.1 or
newer compiles for its GPU (compute capability 7.5 or newer). This module knows their names,
parameters, launch sizes and buffers. It imports no CUDA package: addresses are integers, and the
caller copies and launches, for example with pycuda::

    module = pycuda.driver.module_from_buffer(ptx())
    launch = letterbox(frame, placement, taps_address, manifest.input, input_address)
    function = module.get_function(launch.kernel).prepare(PARAMETERS[launch.kernel])
    function.prepared_async_call(launch.grid, launch.block, stream, *launch.arguments)

The letterbox writes the same values as ``y7edge.detect.preprocess``. The selection finds the
candidates that ``y7edge.detect.postprocess`` finds; scores and boxes differ from numpy's by the
rounding error of ``exp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.bounds import MAX_BATCH
from y7edge.artifact.manifest import InputInfo, Manifest, OutputInfo
from y7edge.boxes import MAX_CANDIDATES
from y7edge.errors import ConfigError, DataError, DeviceError, RuntimeMissing

_LETTERBOX_END = "PPiiiiifPiiii"
_SELECT = "PqqqqiiiiffPiffiP"
PARAMETERS = {
    **{f"letterbox_{name}": f"Pqiii{_LETTERBOX_END}" for name in ("float32", "float16", "uint8")},
    **{f"letterbox_nv12_{n}": f"PPqqi{_LETTERBOX_END}" for n in ("float32", "float16", "uint8")},
    "clear_candidates": "P",
    **{f"select_{name}": _SELECT for name in ("float32", "float16", "int8", "uint8")},
}
"""Parameters of each kernel, as format characters of ``struct`` in native alignment."""

_BLOCK = (32, 8, 1)  # threads of the letterbox: consecutive columns are in one warp
_THREADS = 256  # of the selection
_WEIGHTS = np.float32(2048)  # sum of two weights of a resize

# Bytes per pixel, and the order of the channels, of the frames that the letterbox reads.
_FORMATS = {
    **{"grey": (1, ""), "bgr": (3, "bgr"), "rgb": (3, "rgb"), "bgra": (4, "bgr")},
    **{"rgba": (4, "rgb"), "nv12": (1, "bgr")},
}
FORMATS = tuple(_FORMATS)
"""Formats of a ``Frame``; a fourth channel is ignored."""

CANDIDATE = np.dtype(
    {
        "names": ["xyxy", "score", "class_id", "image", "order"],
        "formats": [("f4", 4), "f4", "i4", "i4", "i4"],
        "offsets": [0, 16, 20, 24, 28],
        "itemsize": 32,
    }
)
"""A candidate in the result buffer; the header before the candidates has the same size."""


class Launch(NamedTuple):
    """A kernel with its launch sizes and arguments; formats are in ``PARAMETERS``."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[int | float, ...]


def ptx() -> bytes:
    """Return the compiled kernels, with the zero byte at the end that the driver expects.

    Raises:
        RuntimeMissing: the file is not installed.
    """
    path = Path(__file__).with_suffix(".ptx")
    try:
        return path.read_bytes() + b"\0"
    except OSError as error:
        raise RuntimeMissing(
            f"{path} cannot be read ({error.strerror}): install y7edge again, or run the model "
            "without kernels on the GPU"
        ) from error


# --- Letterbox -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Frame:
    """A uint8 image in memory that the GPU can read.

    ``address`` and ``stride`` (bytes from row to row) are those of the first plane. NV12 has a
    second plane ``chroma``, with Cb and Cr of two by two pixels.

    Raises:
        ConfigError: the format is unknown.
        DataError: a size, stride or address is invalid.
    """

    format: str  # one of FORMATS
    height: int
    width: int
    address: int
    stride: int
    chroma: int = 0
    chroma_stride: int = 0

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigError(
                f"the frame's format is {self.format!r}, expected one of {', '.join(FORMATS)}"
            )
        if not (self.height > 0 < self.width and self.height * self.width <= 1 << 30):
            raise DataError(f"the frame has {self.height}x{self.width} pixels, expected 1 to 2^30")
        row = self.width * _FORMATS[self.format][0]
        if self.stride < row or not self.address:
            raise DataError(
                f"the frame has address {self.address} and stride {self.stride}, expected an "
                f"address, and at least {row} bytes per row"
            )
        if self.format != "nv12":
            return
        if self.height % 2 or self.width % 2:
            raise DataError(
                f"the NV12 frame has {self.height}x{self.width} pixels, expected even sides"
            )
        if self.chroma_stride < row or not self.chroma:
            raise DataError(
                f"the chroma of the NV12 frame has address {self.chroma} and stride "
                f"{self.chroma_stride}, expected an address, and at least {row} bytes per row"
            )


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an image lies in the network's input, as in ``y7edge.detect.preprocess.Geometry``."""

    image_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    top: int  # rows of padding above the image
    left: int  # columns of padding to the left of it

    def taps(self) -> NDArray[np.int32]:
        """Return the table that ``letterbox`` reads, for all columns, then for all rows.

        It is (resized width + resized height, 4) int32: the indices of two source pixels, and their
        weights, which are fractions of 2048. It depends on the sizes of the image only, so it is
        copied to the GPU when they change.
        """
        (height, width), (rows, columns) = self.image_hw, self.resized_hw
        tables = _taps(width, columns, clamp=True), _taps(height, rows, clamp=False)
        return np.ascontiguousarray(np.concatenate(tables))


def _taps(source: int, target: int, *, clamp: bool) -> NDArray[np.int32]:
    """Return source pixels and weights of one axis, (target, 4), as OpenCV computes them.

    ``clamp``: whether a pixel beyond the border has weight 0 (columns), or equals the pixel at the
    border (rows).
    """
    scale = 1.0 / (target / source)
    place = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.int32)
    fraction = place - first.astype(np.float32)
    if clamp:
        fraction[(first < 0) | (first >= source - 1)] = 0
        first = first.clip(0, source - 1)
    pixels = np.stack([first, first + 1]).clip(0, source - 1)
    weights = np.rint(np.stack([np.float32(1) - fraction, fraction]) * _WEIGHTS)
    return np.concatenate([pixels, weights.astype(np.int32)]).T


def letterbox(
    frame: Frame, placement: Placement, taps: int, network: InputInfo, target: int
) -> Launch:
    """Return the launch that writes ``frame`` into one image of the network's input.

    Args:
        frame: the image, of the size ``placement.image_hw``.
        placement: its place in the input.
        taps: address of ``placement.taps()``.
        network: the input.
        target: address of the image in the input: (3, H, W), or in layout NHWC (H, W, 3).

    Raises:
        ConfigError: the input's layout, dtype or scale is not supported.
        DataError: the frame does not have the size of the placement, or does not fit into the
            input.
    """
    require_input(network)
    rows, columns = placement.resized_hw
    top, left = placement.top, placement.left
    if (frame.height, frame.width) != placement.image_hw or not (
        0 <= top <= network.height - rows and 0 <= left <= network.width - columns
    ):
        raise DataError(
            f"a frame of {frame.height}x{frame.width} cannot be placed by {placement} in an input "
            f"of {network.height}x{network.width}"
        )
    size, order = _FORMATS[frame.format]
    # Byte of the network's first channel, and the step to its next one; grey has one for all three.
    first, step = (0, 0) if not order else (0, 1) if order == network.color else (2, -1)
    source: tuple[int, ...] = (frame.address, frame.stride, size, first, step)
    nv12 = frame.format == "nv12"
    if nv12:
        source = (frame.address, frame.chroma, frame.stride, frame.chroma_stride, first // 2)
    last = network.layout == "NHWC"
    pixel, channel = (3, 1) if last else (1, network.pixels)
    arguments = (
        *source,
        *(taps, taps + 16 * columns, left, top, columns, rows),
        *(network.letterbox.pad, float(np.float32(1 / network.scale)), target),
        *(network.width, network.height, pixel, channel),
    )
    across, down = (
        -(-n // b) for n, b in zip((network.width, network.height), _BLOCK, strict=False)
    )
    name = f"letterbox_{'nv12_' if nv12 else ''}{network.dtype}"
    return Launch(name, (across, down, 1), _BLOCK, arguments)


def require_input(network: InputInfo) -> None:
    """Raise ConfigError if the letterbox cannot write an input of this layout, dtype or scale."""
    if network.layout not in ("NCHW", "NHWC") or f"letterbox_{network.dtype}" not in PARAMETERS:
        raise ConfigError(
            f"the network's input is {network.dtype} {network.layout}, expected float32, float16 "
            "or uint8, and NCHW or NHWC: export it again with such an input"
        )
    if network.dtype == "uint8" and network.scale != 1:
        raise ConfigError(f"the network's input is uint8 with scale {network.scale}, expected 1")


# --- Candidates ----------------------------------------------------------------------------------


class Found(NamedTuple):
    """The candidates of one image, in the order of ``Postprocessor.candidates``."""

    xyxy: NDArray[np.float32]  # (N, 4) corners in pixels of the network's input
    score: NDArray[np.float32]  # (N,)
    class_id: NDArray[np.int32]  # (N,)


class Selection:
    """Select candidates from the raw heads of one model on the GPU.

    A candidate has a score above ``conf`` in its best class; classes with thresholds of their own
    are filtered afterwards, by ``y7edge.detect.postprocess.detected``. One buffer holds the
    candidates of a batch. If there are more than ``capacity``, ``read`` returns None, and the
    caller copies the heads instead, as for several classes per box (``Criteria.multi_label``).

    Args:
        manifest: the description of the model.
        capacity: number of candidates in the buffer.

    Raises:
        ConfigError: the outputs are not heads of a supported dtype, or the capacity is out of
            range.
    """

    def __init__(self, manifest: Manifest, capacity: int = 4096) -> None:
        if not 1 <= capacity <= MAX_CANDIDATES:
            raise ConfigError(f"capacity is {capacity}, expected 1 to {MAX_CANDIDATES}")
        for output in manifest.outputs:
            real = output.dtype in ("float32", "float16")
            supported = output.role == "head" and f"select_{output.dtype}" in PARAMETERS
            if not supported or real != (output.scale is None):
                raise ConfigError(
                    f"output {output.name} ({output.role}) is {output.dtype} with scale "
                    f"{output.scale}, expected heads of float32 or float16 without a scale, or of "
                    "int8 or uint8 with a scale: copy the outputs, or export heads"
                )
        self.capacity = capacity
        self.nbytes = CANDIDATE.itemsize * (1 + capacity)
        self._nc = manifest.nc
        self._heads = manifest.outputs
        self._counts = [len(level.anchors) for level in manifest.levels]
        self.anchors: NDArray[np.float32] = np.array(
            [(level.stride, *one) for level in manifest.levels for one in level.anchors], np.float32
        ).reshape(-1, 3)
        """(anchors of all levels, 3) stride, width, height; to be copied to the GPU once."""

    def launches(
        self, heads: Sequence[int], anchors: int, buffer: int, images: int, conf: float
    ) -> list[Launch]:
        """Return the launches that fill the buffer, to be run in this order.

        Args:
            heads: addresses of the outputs, in the order of the manifest.
            anchors: address of a copy of ``anchors``.
            buffer: address of ``nbytes`` bytes, aligned to 16.
            images: number of images to examine, from the first of the batch.
            conf: keep candidates with a greater score.

        Raises:
            ConfigError: an argument is out of range.
        """
        if len(heads) != len(self._heads) or not 1 <= images <= MAX_BATCH or not 0 <= conf <= 1:
            raise ConfigError(
                f"there are {len(heads)} heads, {images} images and conf {conf}, expected "
                f"{len(self._heads)} heads, 1 to {MAX_BATCH} images and conf from 0 to 1"
            )
        found = [Launch("clear_candidates", (1, 1, 1), (1, 1, 1), (buffer,))]
        order = first = 0
        for address, output, count in zip(heads, self._heads, self._counts, strict=True):
            place = anchors + 4 * 3 * first
            found.append(self._launch(address, output, count, place, order, conf, buffer, images))
            rows, columns = _grid(output)
            order += count * rows * columns
            first += count
        return found

    def _launch(
        self,
        address: int,
        output: OutputInfo,
        count: int,
        anchors: int,
        order: int,
        conf: float,
        buffer: int,
        images: int,
    ) -> Launch:
        rows, columns = _grid(output)
        cells, fields = rows * columns, 5 + self._nc
        cell, field = (count * fields, 1) if output.layout == "NHWC" else (1, cells)
        arguments = (
            *(address, count * fields * cells, fields * field, field, cell),
            *(columns, cells, self._nc, int(output.activation == "logit")),
            1.0 if output.scale is None else output.scale,
            float(output.zero_point or 0),  # not used for floats
            *(anchors, order, conf, conf * (1 - 2**-20), self.capacity, buffer),
        )
        grid = (-(-cells // _THREADS), count, images)
        return Launch(f"select_{output.dtype}", grid, (_THREADS, 1, 1), arguments)

    def count(self, header: NDArray[np.uint8]) -> int | None:
        """Return the number of candidates in the buffer; None if there was not room for all.

        ``header``: at least the first 32 bytes of the buffer. To copy few bytes, read the header
        together with the first candidates, and the rest only if there are more.

        Raises:
            DeviceError: an objectness is NaN, or the buffer was not filled.
        """
        count, not_a_number = (int(value) for value in header[:8].view(np.int32))
        if not_a_number:
            raise DeviceError(
                f"the engine returned NaN in {not_a_number} values of objectness: use an artifact "
                "of another precision or target, or another device; `y7edge selftest` repeats the "
                "artifact's proof"
            )
        if count < 0:
            raise DeviceError(f"the GPU counted {count} candidates, expected 0 or more")
        return count if count <= self.capacity else None

    def read(self, buffer: NDArray[np.uint8], images: int) -> list[Found] | None:
        """Return the candidates of each image; None if there was not room for all.

        ``buffer``: the bytes of the buffer, at least up to the last candidate.

        Raises:
            DeviceError: an objectness is NaN, or the buffer has wrong content.
        """
        count = self.count(buffer)
        if count is None:
            return None
        size = CANDIDATE.itemsize
        records = buffer[size : size * (1 + count)].view(CANDIDATE)
        # The order of the records is that in which threads finished.
        records = records[np.lexsort((records["order"], records["image"]))]
        ends = np.searchsorted(records["image"], np.arange(images + 1))
        if len(records) != count or ends[0] or ends[-1] != count:
            raise DeviceError(
                f"the GPU returned {len(records)} candidates of {images} images, expected {count}"
            )
        return [
            Found(
                np.ascontiguousarray(one["xyxy"]),
                np.ascontiguousarray(one["score"]),
                np.ascontiguousarray(one["class_id"]),
            )
            for one in np.split(records, ends[1:-1])
        ]


def _grid(head: OutputInfo) -> tuple[int, int]:
    """Return the rows and columns of a head; its shape is in the order of its layout."""
    sides = head.shape[1:3] if head.layout == "NHWC" else head.shape[2:]
    rows, columns = (int(side) for side in sides)
    return rows, columns
