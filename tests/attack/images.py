"""Inputs: lists of images, damaged images, and decompression bombs."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from tests.attack import mutate
from tests.attack.base import Attack, Make, Place
from tests.attack.sets import COMMANDS, READS, write


def _list(text: str) -> Make:
    def make(place: Place) -> Path:
        root = place.copy("yolo")
        write(root / "train.txt", text.replace("ROOT", str(root)))
        write(root / "data.yaml", "train: train.txt\nval: images/val\nnames: [a, b, c]\n")
        return root

    return make


def _list_mutated(place: Place) -> Path:
    root = _list(
        "".join(f"./images/train/train{i}.jpg\nROOT/images/train/train{i}.jpg\n" for i in range(4))
    )(place)
    mutate.file(place.rng, root / "train.txt", mutate.text, mutate.raw)
    return root


LISTS: dict[str, Make] = {
    "escapes": _list("../../../../../../../../etc/passwd\n/etc/passwd\n~/x.jpg\n"),
    "devices": _list("/dev/zero\n/dev/stdin\n/proc/self/mem\n/dev/tty\n"),
    "itself": _list("train.txt\nROOT/train.txt\n"),
    "folders": _list("images/train\n.\n..\n/\n"),
    "controls": _list("\x1b[2J.jpg\n\x07\n\u202egpj.exe\n"),
    "not utf-8": _list("\udcff\udcfe.jpg\nimages/train/train0.jpg\n"),
    "zeros": _list("images/train/train0.jpg\0\n\0\n"),
    "long": _list("a" * 1_000_000 + ".jpg\n" + "b/" * 3000 + ".jpg"),
    "a million": _list("images/train/train0.jpg\n" * 1_000_000),
    "300,000 that are missing": _list("".join(f"images/train/no{i}.jpg\n" for i in range(300_000))),
    "addresses": _list("http://127.0.0.1:1/a.jpg\nrtsp://127.0.0.1:1/\nfile:///etc/passwd\n"),
    "patterns": _list("images/train/*.jpg\n~root/a.jpg\n$HOME/a.jpg\n"),
    "empty": _list(""),
    "utf-16": _list("\udcff\udcfei\0m\0a\0g\0e\0s\0/\0"),
}


def _png(
    width: int,
    height: int,
    depth: int = 8,
    kind: int = 2,
    *,
    rows: int | None = None,
    extra: bytes = b"",
) -> bytes:
    """Return a PNG of zeros, which is small even for large sizes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(kind, 3)
    line = b"\0" * (0 if rows == 0 else 1 + (width * channels * depth + 7) // 8)
    pack = zlib.compressobj(1)
    data = b"".join(pack.compress(line) for _ in range(height if rows is None else rows))
    head = struct.pack(">IIBBBBB", width & 0xFFFFFFFF, height & 0xFFFFFFFF, depth, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + extra
        + chunk(b"IDAT", data + pack.flush())
        + chunk(b"IEND", b"")
    )


def _jpeg_size(width: int, height: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        at = data.index(b"\xff\xc0")
        return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]

    return change


def _bmp(width: int, height: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    )


def _tiff(width: int, height: int, *, strip: int = 8, count: int = 10) -> bytes:
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, strip),
        (277, 3, 1, 1),
        (278, 4, 1, height),
        (279, 4, 1, count),
    ]
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8) + body + struct.pack("<I", 8)  # the next folder: itself


CONTENTS: dict[str, Callable[[], bytes]] = {
    "png of 16384 x 16384": lambda: _png(16384, 16384, rows=2),
    "png of 30,000 x 30,000": lambda: _png(30_000, 30_000, 1, 0),
    "png of 12,000 x 12,000, whole": lambda: _png(12_000, 12_000),
    "png of 2**31": lambda: _png(2**31 - 1, 2**31 - 1, rows=0),
    "png of 0 x 0": lambda: _png(0, 0, rows=1),
    "png of 1 x 1,000,000": lambda: _png(1, 1_000_000),
    "png of 1,000,000 x 1": lambda: _png(1_000_000, 1),
    "png of 16 bits, large": lambda: _png(9000, 9000, 16, 6, rows=1),
    "png with a text bomb": lambda: _png(4, 4, extra=_ztxt(100_000_000)),
    "png of odd depth": lambda: _png(4, 4, 7, 5),
    "bmp of 2**31": lambda: _bmp(2**31 - 1, 2**31 - 1),
    "bmp of -2**31": lambda: _bmp(-(2**31), -(2**31)),
    "bmp of 20,000 x 20,000": lambda: _bmp(20_000, 20_000),
    "tiff that is its own next": lambda: _tiff(8, 8),
    "tiff of 2**32": lambda: _tiff(2**32 - 1, 2**32 - 1, count=2**32 - 1),
    "tiff of 40,000 x 40,000": lambda: _tiff(40_000, 40_000, count=1_600_000_000),
    "ppm of 10**9": lambda: b"P6 1000000000 1000000000 255\n",
    "ppm of 5000 digits": lambda: b"P6 " + b"9" * 5000 + b" 1 255\n\0",
    "gif of 65535": lambda: (
        b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\2\2L\1\0;"
    ),
    "webp of 16383": lambda: b"RIFF\x1e\0\0\0WEBPVP8L\x11\0\0\0/\xff\xff\xff\x0f" + bytes(12),
    "hdr": lambda: b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 100000 +X 100000\n",
    "exr": lambda: b"v/1\x01" + bytes(2000),
    "svg": lambda: (
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    ),
    "postscript": lambda: b"%!PS\n(y7edge_canary) run\n",
    "zeros": lambda: bytes(100_000),
    "nothing": lambda: b"",
    "python": lambda: b"import y7edge_canary\n",
}


def _ztxt(size: int) -> bytes:
    data = b"x\0\0" + zlib.compress(bytes(size), 1)
    return (
        struct.pack(">I", len(data))
        + b"zTXt"
        + data
        + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    )


def _content(content: Callable[[], bytes], copies: int = 1) -> Make:
    def make(place: Place) -> Path:
        root = place.copy("yolo")
        data = content()
        for index in range(copies):
            (root / f"images/train/train{index}.jpg").write_bytes(data)
        return root

    return make


def _jpeg(change: Callable[[bytes], bytes]) -> Make:
    def make(place: Place) -> Path:
        root = place.copy("yolo")
        path = root / "images/train/train0.jpg"
        path.write_bytes(change((place.material / "images/a.jpg").read_bytes()))
        return root

    return make


def _image(place: Place) -> Path:
    root = place.copy("yolo")
    source = place.rng.choice(sorted((place.material / "images").iterdir()))
    data = mutate.raw(place.rng, source.read_bytes())
    suffix = source.suffix if place.rng.random() < 0.7 else ".jpg"
    (root / "images/train/train0.jpg").unlink()
    (root / f"images/train/train0{suffix}").write_bytes(data)
    return root


IMAGES: dict[str, Make] = {
    **{name: _content(content) for name, content in CONTENTS.items()},
    "three png of 16384 x 16384": _content(CONTENTS["png of 16384 x 16384"], 3),
    "four png of 12,000 x 12,000": _content(CONTENTS["png of 12,000 x 12,000, whole"], 4),
    "jpeg of 65500 x 65500": _jpeg(_jpeg_size(65_500, 65_500)),
    "jpeg of 0 x 0": _jpeg(_jpeg_size(0, 0)),
    "jpeg with a thousand segments": _jpeg(
        lambda d: d[:2] + b"\xff\xe1\0\x08Exif\0\0" * 1000 + d[2:]
    ),
    "jpeg with a loop in EXIF": _jpeg(
        lambda d: (
            d[:2]
            + b"\xff\xe1\0\x20Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\x08\0"
            + d[2:]
        )
    ),
}


def decode(path: Path) -> None:
    """Decode every image."""
    from y7edge.data.images import read_deep, read_image
    from y7edge.errors import DataError

    for file in sorted((path / "images").rglob("*")):
        for read in (read_image, read_deep):
            try:
                if not file.is_dir():
                    read(file)
            except DataError as error:
                assert os.fsencode(file.name) in os.fsencode(str(error)), "unnamed"


ATTACKS = (
    Attack("list", 160, LISTS, _list_mutated, READS, COMMANDS[:3]),
    Attack(
        "image",
        420,
        IMAGES,
        _image,
        {**READS, "decode": decode},
        (*COMMANDS, "predict {material}/model.onnx {}/images/train --json --save {out}"),
    ),
)
