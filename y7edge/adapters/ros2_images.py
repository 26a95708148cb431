"""Image messages of ROS as frames for a Detector, without ROS.

Messages are recognised by their fields, so those of every distribution fit: of rclpy, of rospy, and
of readers of recordings such as rosbags.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from y7edge.data.headers import too_large
from y7edge.data.images import decode_message
from y7edge.errors import ConfigError, DataError
from y7edge.frames import Format, Frame


class _Encoding(NamedTuple):
    """How the pixels of an image message lie in its data."""

    channels: int = 3  # values per pixel; of planar formats, of the first plane
    color: Format = "bgr"  # of the converted image
    convert: int | None = None  # code of cv2.cvtColor; None: the data is used as it is
    bytes: int = 1  # per value
    rows: float = 1.0  # rows of data per row of the image
    even: tuple[int, int] = (1, 1)  # divisors of width and height


_YUY2 = _Encoding(2, convert=cv2.COLOR_YUV2BGR_YUY2, even=(2, 1))
_UYVY = _Encoding(2, convert=cv2.COLOR_YUV2BGR_UYVY, even=(2, 1))
# OpenCV names a Bayer pattern by the second and third pixel of the second row.
_BAYER = {
    "rggb": cv2.COLOR_BayerBG2BGR,
    "bggr": cv2.COLOR_BayerRG2BGR,
    "gbrg": cv2.COLOR_BayerGR2BGR,
    "grbg": cv2.COLOR_BayerGB2BGR,
}
_ENCODINGS = {
    "bgr8": _Encoding(),
    "rgb8": _Encoding(color="rgb"),
    "bgra8": _Encoding(4),
    "rgba8": _Encoding(4, "rgb"),
    "mono8": _Encoding(1),
    "8UC1": _Encoding(1),
    "bgr16": _Encoding(bytes=2),
    "rgb16": _Encoding(color="rgb", bytes=2),
    "mono16": _Encoding(1, bytes=2),
    "yuyv": _YUY2,
    "yuv422_yuy2": _YUY2,  # the name until Iron
    "uyvy": _UYVY,
    "yuv422": _UYVY,  # the name until Iron
    "nv12": _Encoding(1, "nv12", rows=1.5, even=(2, 2)),  # not of sensor_msgs, but of Isaac ROS
    "nv21": _Encoding(1, convert=cv2.COLOR_YUV2BGR_NV21, rows=1.5, even=(2, 2)),
    "nv24": _Encoding(1, rows=3),
    **{f"bayer_{name}8": _Encoding(1, convert=code) for name, code in _BAYER.items()},
    **{f"bayer_{name}16": _Encoding(1, convert=code, bytes=2) for name, code in _BAYER.items()},
}
ENCODINGS = tuple(_ENCODINGS)
"""The encodings of ``sensor_msgs/Image`` that :func:`to_frame` reads."""

_REASONS = {
    "16UC1": "it is that of depth images; give encoding='mono16' if it is a grey image",
    "32FC1": "it is that of depth images",
    "8UC3": "it does not say the order of the channels: give encoding='bgr8' or 'rgb8'",
    "8UC4": "it does not say the order of the channels: give encoding='bgra8' or 'rgba8'",
}
# ITU-R BT.601 with limited range, as nv12_to_bgr: rows are B, G, R of Y, Cb, Cr and 1.
_BGR_OF_YUV = np.array([[1.164, 2.018, 0.0], [1.164, -0.391, -0.813], [1.164, 0.0, 1.596]])
_BGR_OF_YUV = np.hstack([_BGR_OF_YUV, -(_BGR_OF_YUV @ [[16.0], [128.0], [128.0]])])


def to_frame(
    message: Any, topic: str = "image", *, encoding: str | None = None, sequence: int = 0
) -> Frame:
    """Return the image of a ``sensor_msgs/Image`` or ``sensor_msgs/CompressedImage``.

    The pixels of 8-bit images in RGB, BGR (also with alpha), grey and NV12 are not copied: do not
    change the message while the frame is used. Other encodings are converted to BGR: YUV as ITU-R
    BT.601 with limited range, Bayer patterns by OpenCV's bilinear method. 16-bit images become
    uint16 arrays, which a Detector takes if its model was trained with ``levels``. A compressed
    image is decoded by the format of its bytes; its field ``format`` is not used, and neither is
    an EXIF orientation.

    Args:
        message: the message.
        topic: its topic, for errors, and as the source of the frame.
        encoding: used instead of that of the message; None: that of the message. Of a compressed
            image, "rgb8" if its publisher has confused red and blue.
        sequence: number of the frame.

    Returns:
        A frame whose ``timestamp_ns`` is the stamp of the header, with the clock "recorded", which
        means any clock. It is None if the stamp is 0, which publishers without a clock send.

    Raises:
        DataError: the encoding is not supported, the data does not have the size that the message
            states, a compressed image is damaged, or an image is too large.
        ConfigError: ``encoding`` is unknown.
    """
    if encoding is not None and encoding not in _ENCODINGS:
        raise ConfigError(f"encoding is {encoding!r}, expected one of {', '.join(ENCODINGS)}")
    if hasattr(message, "encoding"):
        image, color = _raw(message, topic, encoding)
    elif hasattr(message, "format") and hasattr(message, "data"):
        image, color = _compressed(message, topic, encoding)
    else:
        raise DataError(
            f"{topic}: expected a sensor_msgs/Image or CompressedImage, found a "
            f"{type(message).__name__}"
        )
    stamp = stamp_ns(message.header)
    return Frame(
        image,
        color,
        timestamp_ns=stamp or None,
        clock="recorded",
        sequence=sequence,
        source=topic,
    )


def stamp_ns(header: Any) -> int:
    """Return the stamp of a ``std_msgs/Header`` in nanoseconds; that of ROS 1 has other fields."""
    stamp = header.stamp
    if hasattr(stamp, "nanosec"):
        return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)
    return int(stamp.secs) * 1_000_000_000 + int(stamp.nsecs)


def _raw(message: Any, topic: str, encoding: str | None) -> tuple[NDArray[Any], Format]:
    name = str(message.encoding) if encoding is None else encoding
    kind = _ENCODINGS.get(name)
    if kind is None:
        reason = _REASONS.get(name, f"expected one of {', '.join(ENCODINGS)}")
        raise DataError(f"{topic}: the encoding {name[:40]!r} is not supported: {reason}")
    width, height, step = int(message.width), int(message.height), int(message.step)
    if width < 1 or height < 1:
        raise DataError(f"{topic}: expected an image, found {width}x{height} pixels")
    if words := too_large(width, height):
        raise DataError(f"{topic}: the image {words}")
    if width % kind.even[0] or height % kind.even[1]:
        raise DataError(
            f"{topic}: the image has {width}x{height} pixels, which {name} cannot have: expected "
            f"multiples of {kind.even[0]}x{kind.even[1]}"
        )
    row = width * kind.channels * kind.bytes
    if step < row:
        raise DataError(
            f"{topic}: step is {step}, expected at least {row} bytes for a row of {width} pixels "
            f"in {name}"
        )
    data = _bytes(message.data, topic)
    rows = round(height * kind.rows)
    if data.size != rows * step:
        raise DataError(
            f"{topic}: the image has {data.size} bytes of data, expected {rows * step} for "
            f"{width}x{height} pixels in {name} with a step of {step} bytes"
        )
    if name == "nv24":
        return _from_nv24(data, width, height, step), "bgr"
    big = kind.bytes > 1 and bool(message.is_bigendian)
    dtype = np.dtype(f"{'>' if big else '<'}u{kind.bytes}")
    shape: tuple[int, ...] = (rows, width)
    strides: tuple[int, ...] = (step, kind.channels * kind.bytes)
    if kind.channels > 1:
        shape, strides = (*shape, kind.channels), (*strides, kind.bytes)
    image: NDArray[Any] = np.ndarray(shape, dtype, data, strides=strides)
    if kind.bytes > 1:
        image = image.astype(np.uint16)
    if kind.convert is not None:
        image = np.asarray(cv2.cvtColor(image, kind.convert))
    return image, kind.color


def _bytes(data: Any, topic: str) -> NDArray[np.uint8]:
    """Return the data of a message without a copy; (N,) uint8."""
    try:
        return np.frombuffer(data, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        if hasattr(data, "__len__") and not len(data):
            return np.empty(0, np.uint8)
        raise DataError(
            f"{topic}: expected the data of an image as bytes, found a {type(data).__name__}"
        ) from error


def _from_nv24(data: NDArray[np.uint8], width: int, height: int, step: int) -> NDArray[np.uint8]:
    """Convert NV24 to BGR: rows of luma, then rows of interleaved Cb and Cr of all pixels."""
    luma = data[: height * step].reshape(height, step)[:, :width]
    chroma = data[height * step :].reshape(height, 2 * step)[:, : 2 * width]
    yuv = np.dstack([luma, chroma.reshape(height, width, 2)])
    return np.asarray(cv2.transform(yuv, _BGR_OF_YUV), np.uint8)


def _compressed(message: Any, topic: str, encoding: str | None) -> tuple[NDArray[Any], Format]:
    described = str(message.format)[:80]
    if "compressedDepth" in described:
        raise DataError(f"{topic}: expected a colour image, found depth: {described!r}")
    if encoding not in (None, "rgb8", "bgr8"):
        raise ConfigError(f"encoding is {encoding!r}, expected rgb8 or bgr8 for compressed images")
    content = _bytes(message.data, topic).tobytes()
    if not content:
        raise DataError(f"{topic}: expected an image, found no data; its format is {described!r}")
    image = decode_message(content, topic)
    return image, "rgb" if encoding == "rgb8" else "bgr"
