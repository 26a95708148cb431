import cv2
import numpy as np
import pytest

from y7edge.data.images import read_deep, read_image, to_bytes
from y7edge.errors import DataError

BGR = np.array([[[250, 10, 20], [30, 200, 40]]], np.uint8).repeat(8, 0).repeat(8, 1)


def save(path, image, *options):
    # cv2.imwrite fails on non-ASCII names on some systems.
    path.write_bytes(cv2.imencode(path.suffix, image, options)[1].tobytes())
    return path


def test_channel_order_is_bgr(tmp_path):
    assert (read_image(save(tmp_path / "a.png", BGR)) == BGR).all()


def test_non_ascii_file_name(tmp_path):
    assert (read_image(save(tmp_path / "mère 写真.png", BGR)) == BGR).all()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.full((4, 6), 90, np.uint8), (90, 90, 90)),
        (np.full((4, 6), 0x5A00, np.uint16), (90, 90, 90)),
        (np.full((4, 6, 4), (1, 2, 3, 128), np.uint8), (1, 2, 3)),
    ],
    ids=["grey", "16-bit", "transparent"],
)
def test_result_has_three_8_bit_channels(tmp_path, image, expected):
    read = read_image(save(tmp_path / "a.png", image))
    assert read.dtype == np.uint8
    assert read.shape == (4, 6, 3)
    assert (read == expected).all()


def test_exif_rotation_is_applied(tmp_path):
    jpeg = cv2.imencode(".jpg", BGR)[1].tobytes()
    # An EXIF segment with one entry: tag 0x0112 (orientation), short, value 6 (turn clockwise).
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    segment = b"Exif\0\0" + tiff
    header = b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg[:2] + header + jpeg[2:])
    assert read_image(path).shape == (16, 8, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected an image, found an empty file"),
        (b"not an image", "found 12 bytes of something else or a damaged file"),
        (None, "cannot read the image"),
    ],
    ids=["empty", "text", "missing"],
)
def test_unreadable_file_raises(tmp_path, content, message):
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_levels_keep_low_contrast(tmp_path):
    """Compare scaling of 86 levels by the full 16-bit range and by their own range."""
    ramp = np.arange(20_000, 20_000 + 86 * 8, 8, np.uint16).reshape(1, -1).repeat(12, 0)
    path = save(tmp_path / "a.png", ramp)
    assert len(np.unique(read_image(path))) == 3
    deep = read_deep(path)
    assert deep.dtype == np.uint16
    assert deep.shape == (12, 86, 3)
    assert (deep[..., 0] == ramp).all()
    scaled = to_bytes(deep, (20_000, 20_680))
    assert scaled.dtype == np.uint8
    assert len(np.unique(scaled)) == 86
    assert (scaled.min(), scaled.max()) == (0, 255)
    assert (to_bytes(deep, (21_000, 21_000)) == 0).all()
