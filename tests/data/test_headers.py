import struct
import zlib

import cv2
import numpy as np
import pytest

from y7edge.data.headers import picture_size
from y7edge.data.images import read_image
from y7edge.errors import DataError

WIDE = np.zeros((10, 24, 3), np.uint8)


def exif(orientation, order=">"):
    """A TIFF header and a directory of one entry: tag 0x0112, one short."""
    head = b"MM\0*" if order == ">" else b"II*\0"
    entry = struct.pack(f"{order}HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
    return head + struct.pack(f"{order}I", 8) + entry


def jpeg(note=b""):
    content = cv2.imencode(".jpg", WIDE)[1].tobytes()
    if not note:
        return content
    segment = b"Exif\0\0" + note
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + content[2:]


def png(note=b"", late=False):
    content = cv2.imencode(".png", WIDE)[1].tobytes()
    if not note:
        return content
    body = b"eXIf" + note
    chunk = struct.pack(">I", len(note)) + body + struct.pack(">I", zlib.crc32(body))
    at = content.index(b"IEND" if late else b"IDAT") - 4
    return content[:at] + chunk + content[at:]


def webp(note):
    content = cv2.imencode(".webp", WIDE, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()
    size = (WIDE.shape[1] - 1).to_bytes(3, "little") + (WIDE.shape[0] - 1).to_bytes(3, "little")
    chunks = b"VP8X" + struct.pack("<I", 10) + b"\x08\0\0\0" + size + content[12:]
    chunks += b"EXIF" + struct.pack("<I", len(note)) + note + b"\0" * (len(note) % 2)
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def tiff(orientation):
    tags = {256: 24, 257: 10, 258: 8, 259: 1, 262: 1, 274: orientation, 277: 1, 278: 10}
    tags |= {273: 200, 279: 240}
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + rows + b"\0\0\0\0"
    return head.ljust(200, b"\0") + bytes(240)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "jpeg-intel", "png", "png-late", "webp", "tiff"])
def test_size_is_of_upright_image(tmp_path, kind, orientation):
    note = exif(orientation, "<" if kind == "jpeg-intel" else ">")
    content = {
        "jpeg": lambda: jpeg(note),
        "jpeg-intel": lambda: jpeg(note),
        "png": lambda: png(note),
        "png-late": lambda: png(note, late=True),
        "webp": lambda: webp(note),
        "tiff": lambda: tiff(orientation),
    }[kind]()
    path = tmp_path / f"a.{kind.split('-')[0]}"
    path.write_bytes(content)
    # The published reader swaps the sides for 6 and 8 only.
    assert picture_size(path) == ((10, 24) if orientation >= 5 else (24, 10))
    assert read_image(path).shape[1::-1] == picture_size(path)


@pytest.mark.parametrize("suffix", ["bmp", "jpg", "pgm", "png", "ppm", "tif", "webp"])
def test_image_formats(tmp_path, suffix):
    path = tmp_path / f"ä.{suffix}"
    path.write_bytes(
        cv2.imencode(f".{suffix}", WIDE[..., 0] if suffix == "pgm" else WIDE)[1].tobytes()
    )
    assert picture_size(path) == (24, 10)


@pytest.mark.parametrize(
    "note",
    [
        b"MM\0*\0\0\0\x08\0\x05",
        exif(6)[:14],
        exif(6)[:4] + b"\xff\xff\xff\xff" + exif(6)[8:],
        exif(9),
        exif(0),
        b"nonsense",
    ],
    ids=["no-entries", "cut", "far-away", "nine", "zero", "nonsense"],
)
def test_damaged_exif_is_ignored(tmp_path, note):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(note))
    assert picture_size(path) == (24, 10) == read_image(path).shape[1::-1]


def test_truncated_image_has_size(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(exif(6))[:-4])
    assert picture_size(path) == (10, 24)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the image: No such file"),
        (b"", "its header is not that of an image"),
        (b"not an image", "its header is not that of an image"),
        (jpeg()[:20], "cannot read the image"),
        (png()[:20], "cannot read the image"),
        (png()[:16] + bytes(8) + png()[24:], "cannot read the image|0 x 0"),
        (tiff(1)[:60], "cannot read the image"),
        (b"BM" + b"\xff" * 60, "cannot read the image"),
        (b"P6 999999999999 999999999999 255\n", "cannot read the image"),
    ],
    ids=["missing", "empty", "text", "jpeg", "png", "png-size", "tiff", "bmp", "bomb"],
)
def test_unreadable_file_raises(tmp_path, content, message):
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        picture_size(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
