"""Image messages: every encoding, padding, byte order, compressed images, and refusals."""

from __future__ import annotations

import array
import struct
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from y7edge.adapters.ros2_images import ENCODINGS, stamp_ns, to_frame
from y7edge.detect.preprocess import nv12_to_bgr
from y7edge.errors import ConfigError, DataError

HEADER = SimpleNamespace(stamp=SimpleNamespace(sec=12, nanosec=345), frame_id="left")
# Smooth, because chroma subsampling and Bayer patterns lose detail; colours of all parts differ.
ROW, COLUMN = np.mgrid[0:12, 0:16]
BGR = np.stack([40 + 10 * ROW, 30 + 9 * COLUMN, 200 - 6 * ROW - 4 * COLUMN], axis=2).astype("u1")


def image(pixels, encoding, *, pad=0, width=16, height=12, big=0, data=None, step=None):
    """A message of rows of bytes, with ``pad`` bytes after each row."""
    if data is None:
        rows = pixels.reshape(-1, pixels.shape[1] * int(np.prod(pixels.shape[2:])))
        rows = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
        step = rows.shape[1] + pad if step is None else step
        padded = np.pad(rows, ((0, 0), (0, pad)), constant_values=77)
        if encoding == "nv24":  # rows of chroma, and their padding, are twice as long
            chroma = np.pad(rows[height:].reshape(height, -1), ((0, 0), (0, 2 * pad)))
            padded = np.concatenate([padded[:height].ravel(), chroma.ravel()])
        data = array.array("B", padded.tobytes())
    return SimpleNamespace(
        header=HEADER,
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=big,
        step=step,
        data=data,
    )


def shown(frame):
    """The image of a frame as BGR, (H, W, 3)."""
    if frame.format == "nv12":
        return nv12_to_bgr(frame.image)
    pixels = frame.image
    if pixels.ndim == 2:
        return np.repeat(pixels[:, :, None], 3, axis=2)
    return pixels[:, :, :3] if frame.format == "bgr" else pixels[:, :, 2::-1]


def yuv():
    """Y, Cb and Cr of the image, (H, W) each, with limited range."""
    luma_chroma = cv2.cvtColor(BGR, cv2.COLOR_BGR2YUV_I420)
    luma, chroma = luma_chroma[:12], luma_chroma[12:].reshape(2, 6, 8)
    return luma, *(plane.repeat(2, axis=0).repeat(2, axis=1) for plane in chroma)


def packed(*planes):
    """Four bytes for two pixels, such as Y0 Cb Y1 Cr."""
    return np.stack([plane[:, offset::2] for plane, offset in planes], axis=2).reshape(12, 16, 2)


def pixels_of(encoding):
    """The data of the image in an encoding."""
    luma, blue, red = yuv()
    alpha = np.full((12, 16, 1), 9, np.uint8)
    pairs = {"nv12": (blue, red), "nv21": (red, blue)}
    if encoding in pairs:
        chroma = np.stack([plane[::2, ::2] for plane in pairs[encoding]], axis=2)
        return np.vstack([luma, chroma.reshape(6, 16)])
    if encoding == "nv24":
        return np.vstack([luma, np.stack([blue, red], axis=2).reshape(24, 16)])
    if encoding.startswith("bayer"):
        plane = np.empty((12, 16), np.uint8)
        for place, color in enumerate(encoding[6:10]):
            row, column = divmod(place, 2)
            plane[row::2, column::2] = BGR[row::2, column::2, "bgr".index(color)]
        return plane
    grey = cv2.cvtColor(BGR, cv2.COLOR_BGR2GRAY)
    found = {
        "bgr": BGR,
        "rgb": BGR[:, :, ::-1],
        "bgra": np.dstack([BGR, alpha]),
        "rgba": np.dstack([BGR[:, :, ::-1], alpha]),
        "mono": grey,
        "8UC1": grey,
        "yuyv": packed((luma, 0), (blue, 0), (luma, 1), (red, 0)),
        "uyvy": packed((blue, 0), (luma, 0), (red, 0), (luma, 1)),
    }
    old = {"yuv422_yuy2": "yuyv", "yuv422": "uyvy"}
    return found[old.get(encoding, encoding.removesuffix("16").removesuffix("8"))]


# Largest error per value: of chroma and Bayer patterns, the gradient of one or two pixels.
WITHIN = {"yuv": 16, "uyv": 16, "yuy": 16, "nv1": 16, "nv2": 16, "bay": 20}


@pytest.mark.parametrize("pad", [0, 5, 16])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_all_encodings_show_the_same_colours(encoding, pad):
    pixels = pixels_of(encoding)
    deep = encoding.endswith("16")
    if deep:
        pixels = pixels.astype("<u2") * 257
    frame = to_frame(image(pixels, encoding, pad=pad), "/camera/image_raw", sequence=4)
    result = shown(frame)
    if deep:
        assert result.dtype == np.uint16
        result = (result // 257).astype(np.uint8)
    grey = frame.image.ndim == 2 and frame.format != "nv12"
    expected = cv2.cvtColor(BGR, cv2.COLOR_BGR2GRAY)[:, :, None] if grey else BGR
    error = np.abs(result.astype(int) - expected)[2:-2, 2:-2].max()  # without Bayer's borders
    assert error <= WITHIN.get(encoding[:3], 0), error
    assert frame.timestamp_ns == 12_000_000_345
    assert (frame.source, frame.sequence, frame.clock) == ("/camera/image_raw", 4, "recorded")
    assert frame.size == (16, 12)
    assert frame.age_ns() is None  # a stamp of another clock


@pytest.mark.parametrize("encoding", ["mono16", "bgr16", "rgb16", "bayer_rggb16"])
def test_byte_order(encoding):
    values = pixels_of(encoding).astype(np.uint16) * 257 + 3
    little = to_frame(image(values.astype("<u2"), encoding))
    big = to_frame(image(values.astype(">u2"), encoding, big=1, pad=3))
    np.testing.assert_array_equal(big.image, little.image)
    assert big.image.dtype == little.image.dtype == np.dtype(np.uint16)  # native


def test_bytes_have_no_order():
    # Some drivers of cameras set the flag for images of 8 bits.
    frame = to_frame(image(BGR, "bgr8", big=1))
    np.testing.assert_array_equal(frame.image, BGR)


@pytest.mark.parametrize("encoding", ["bgr8", "rgb8", "bgra8", "rgba8", "mono8", "nv12"])
@pytest.mark.parametrize("pad", [0, 7])
def test_no_copy(encoding, pad):
    message = image(pixels_of(encoding), encoding, pad=pad)
    frame = to_frame(message)
    assert np.shares_memory(frame.image, np.frombuffer(message.data, np.uint8))


def test_nv24_has_colours_of_its_own_pixels():
    # Without subsampling, colours that change from pixel to pixel are exact.
    luma, blue, red = (np.random.default_rng(i).integers(60, 190, (12, 16)) for i in range(3))
    data = np.vstack([luma, np.stack([blue, red], 2).reshape(24, 16)]).astype(np.uint8)
    found = to_frame(image(data, "nv24")).image
    y, b, r = 1.164 * (luma - 16.0), blue - 128.0, red - 128.0
    exact = np.stack([y + 2.018 * b, y - 0.391 * b - 0.813 * r, y + 1.596 * r], axis=2)
    assert np.abs(found - np.clip(exact, 0, 255)).max() < 0.6


@pytest.mark.parametrize("data", [bytes, lambda b: np.frombuffer(b, np.uint8), bytearray])
def test_types_of_data(data):
    # array.array of rclpy, bytes of rospy, arrays of rosbags.
    frame = to_frame(image(None, "bgr8", data=data(BGR.tobytes()), step=48))
    np.testing.assert_array_equal(frame.image, BGR)


def test_encoding_of_the_caller():
    unnamed = image(BGR, "8UC3")
    assert to_frame(unnamed, encoding="rgb8").format == "rgb"
    with pytest.raises(DataError, match="'8UC3' is not supported: it does not say the order"):
        to_frame(unnamed)
    with pytest.raises(ConfigError, match="encoding is 'rgb', expected one of bgr8, rgb8"):
        to_frame(unnamed, encoding="rgb")


def test_a_stamp_of_zero_is_unknown():
    message = image(BGR, "bgr8")
    message.header = SimpleNamespace(stamp=SimpleNamespace(sec=0, nanosec=0), frame_id="")
    assert to_frame(message).timestamp_ns is None
    noetic = SimpleNamespace(stamp=SimpleNamespace(secs=3, nsecs=5))
    assert stamp_ns(noetic) == 3_000_000_005


REFUSED = {
    "unknown": (
        {"encoding": "jpeg2000"},
        r"/cam: the encoding 'jpeg2000' is not supported: .*bgr8",
    ),
    "depth": ({"encoding": "32FC1"}, "'32FC1' is not supported: it is that of depth images"),
    "no encoding": ({"encoding": ""}, "the encoding '' is not supported"),
    "empty": ({"data": b""}, "0 bytes of data, expected 576 for 16x12 pixels in bgr8"),
    "short": ({"data": BGR.tobytes()[:-1]}, "575 bytes of data, expected 576"),
    "long": ({"data": BGR.tobytes() + b"1"}, "577 bytes of data, expected 576"),
    "step": ({"step": 47}, "step is 47, expected at least 48 bytes for a row of 16 pixels in bgr8"),
    "no step": ({"step": 0}, "step is 0, expected at least 48"),
    "no width": ({"width": 0}, "expected an image, found 0x12 pixels"),
    "no height": ({"height": 0}, "expected an image, found 16x0 pixels"),
    "huge": ({"width": 1 << 31, "height": 1 << 31, "step": 1 << 40}, "at most .* are decoded"),
    "odd": ({"encoding": "nv12", "width": 15}, "15x12 pixels, which nv12 cannot have"),
    "odd rows": ({"encoding": "nv21", "height": 11}, "16x11 pixels, which nv21 cannot have"),
    "odd pairs": ({"encoding": "yuyv", "width": 15}, "15x12 pixels, which yuyv cannot have"),
    "text": ({"data": "abc"}, "expected the data of an image as bytes, found a str"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_images(case):
    changes, text = REFUSED[case]
    message = image(BGR, "bgr8")
    vars(message).update(changes)
    with pytest.raises(DataError, match=text) as caught:
        to_frame(message, "/cam")
    assert "\n" not in str(caught.value)


def test_a_hostile_encoding_is_printable():
    with pytest.raises(DataError) as caught:
        to_frame(image(BGR, "\x1b[31m\n" * 400))
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_the_limit_of_pixels(monkeypatch):
    monkeypatch.setenv("Y7EDGE_MAX_PIXELS", "100")
    with pytest.raises(DataError, match="16x12 pixels; at most 100 are decoded"):
        to_frame(image(BGR, "bgr8"))
    _, content = cv2.imencode(".png", BGR)
    with pytest.raises(DataError, match="16x12 pixels"):
        to_frame(compressed(content.tobytes()))


def test_other_messages():
    with pytest.raises(DataError, match="expected a sensor_msgs/Image or CompressedImage, found a"):
        to_frame(SimpleNamespace(header=HEADER, ranges=[1.0]))


def compressed(content, described="bgr8; jpeg compressed bgr8"):
    data = array.array("B", content)
    return SimpleNamespace(header=HEADER, format=described, data=data)


@pytest.mark.parametrize(
    "described", ["jpeg", "", "rgb8; png compressed bgr8", "bgr8; jpeg compressed bgr8", "h264"]
)
def test_compressed_images_are_read_by_their_bytes(described):
    _, content = cv2.imencode(".png", BGR)
    frame = to_frame(compressed(content.tobytes(), described), "/cam/compressed")
    assert frame.format == "bgr"
    np.testing.assert_array_equal(frame.image, BGR)
    assert frame.timestamp_ns == 12_000_000_345


def test_compressed_jpeg_and_grey_and_16_bits():
    _, jpeg = cv2.imencode(".jpg", BGR, [cv2.IMWRITE_JPEG_QUALITY, 100])
    assert np.abs(to_frame(compressed(jpeg.tobytes())).image.astype(int) - BGR).max() < 12
    _, grey = cv2.imencode(".png", BGR[:, :, 0])
    assert to_frame(compressed(grey.tobytes(), "mono8; png compressed")).image.shape == (12, 16, 3)
    _, deep = cv2.imencode(".png", BGR.astype(np.uint16) * 257)
    assert to_frame(compressed(deep.tobytes())).image.dtype == np.uint16


def test_confused_channels():
    _, content = cv2.imencode(".png", BGR[:, :, ::-1])
    frame = to_frame(compressed(content.tobytes()), encoding="rgb8")
    np.testing.assert_array_equal(shown(frame), BGR)
    with pytest.raises(ConfigError, match="expected rgb8 or bgr8 for compressed images"):
        to_frame(compressed(content.tobytes()), encoding="nv12")


def test_an_exif_orientation_is_ignored():
    # Other receivers and the camera's calibration use the pixels as they are stored.
    _, content = cv2.imencode(".jpg", BGR)
    tiff = struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + tiff
    content = content.tobytes()
    content = content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:]
    assert cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR).shape == (16, 12, 3)
    assert to_frame(compressed(content)).image.shape == (12, 16, 3)


@pytest.mark.parametrize(
    ("content", "described", "text"),
    [
        (b"", "jpeg", "found no data; its format is 'jpeg'"),
        (b"\0" * 12 + b"\x89PNG", "16UC1; compressedDepth png", "found depth: '16UC1; compressedD"),
        (b"\0\0\0\1\x67" * 9, "h264", "expected an image that OpenCV decodes .*, found 45 bytes"),
        (cv2.imencode(".png", BGR)[1].tobytes()[:60], "png", "/cam: "),
    ],
)
def test_refused_compressed_images(content, described, text):
    with pytest.raises(DataError, match=text) as caught:
        to_frame(compressed(content, described), "/cam")
    assert str(caught.value).startswith("/cam: ")
    assert "\n" not in str(caught.value)
