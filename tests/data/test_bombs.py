"""Images that declare a huge size are refused, in every format and by every reader."""

from __future__ import annotations

import io
import os
import struct
import threading
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from y7edge.data import images
from y7edge.data.check.decoding import inspect
from y7edge.data.check.examine import examine
from y7edge.data.check.fix import write_copy
from y7edge.data.dataset import load
from y7edge.data.headers import most_pixels, read_frame, too_large
from y7edge.data.images import read_deep, read_image
from y7edge.data.sample import IMAGE_SUFFIXES, Sample
from y7edge.errors import ConfigError, DataError
from y7edge.train.loading.image_cache import open_cache

SMALL = np.full((20, 30, 3), 90, np.uint8)


def encoded(suffix: str) -> bytes:
    return cv2.imencode(suffix, SMALL)[1].tobytes()


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(width: int, height: int, *before: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(before) + pixels + chunk(b"IEND", b"")


def tiff(order: str = "<", big: bool = False, **tags: int) -> bytes:
    wanted = {"256": 30, "257": 20, "258": 8, "259": 1, "262": 1, "277": 1, "278": 20}
    wanted |= {"273": 200, "279": 600} | tags
    form = f"{order}HHQQ" if big else f"{order}HHII"
    rows = b"".join(struct.pack(form, int(t), 16 if big else 4, 1, wanted[t])
                    for t in sorted(wanted, key=int))  # fmt: skip
    mark = b"II" if order == "<" else b"MM"
    if big:
        head = mark + struct.pack(f"{order}HHHQQ", 43, 8, 0, 16, len(wanted))
        return head + rows + bytes(8 + 1000)
    head = mark + struct.pack(f"{order}HIH", 42, 8, len(wanted))
    return head + rows + bytes(4 + 1000)


def at(content: bytes, place: int, value: bytes) -> bytes:
    return content[:place] + value + content[place + len(value) :]


def jpeg(*before: bytes, garbage: bytes = b"") -> bytes:
    content = encoded(".jpg")
    place = content.index(b"\xff\xc0")
    content = at(content, place + 5, struct.pack(">HH", 60000, 60000))
    return content[:place] + b"".join(before) + garbage + content[place:]


SEGMENT = b"\xff\xe2" + struct.pack(">H", 60002) + bytes(60000)
BOMBS: dict[str, bytes] = {
    "png": png(60000, 60000),
    "png, one row": png(2**31 - 1, 1),
    "png behind text": png(40000, 40000, chunk(b"tEXt", b"a\0b")),
    "jpeg": jpeg(),
    "jpeg behind segments": jpeg(*[SEGMENT] * 50),
    "jpeg behind fill": jpeg(garbage=b"\xff" * 900),
    "jpeg behind garbage": jpeg(garbage=b"\x00\x12" * 900),
    "jpeg with a small one before": jpeg(
        b"\xff\xe1" + struct.pack(">H", 2 + len(encoded(".jpg"))) + encoded(".jpg")),
    "bmp": at(encoded(".bmp"), 18, struct.pack("<ii", 60000, 60000)),
    "bmp, upside down": at(encoded(".bmp"), 18, struct.pack("<ii", 60000, -60000)),
    "bmp, old": b"BM" + bytes(12) + struct.pack("<IHHHH", 12, 60000, 60000, 1, 24) + bytes(50),
    "gif": at(encoded(".gif"), 6, struct.pack("<HH", 60000, 60000)),
    "tiff": tiff(**{"256": 60000, "257": 60000}),
    "tiff, other order": tiff(">", **{"256": 60000, "257": 60000}),
    "tiff, big": tiff(big=True, **{"256": 60000, "257": 60000}),
    "tiff, big, other order": tiff(">", big=True, **{"256": 60000, "257": 60000}),
    "tiff, small but of a large tile": tiff(**{"322": 30000, "323": 30000}),
    "webp": b"RIFF\x64\0\0\0WEBPVP8 " + bytes(10) + b"\xff\x3f\xff\x3f" + bytes(70),
    "webp, lossless": b"RIFF\x64\0\0\0WEBPVP8L\x0e\0\0\0/" + b"\xff" * 4 + bytes(79),
    "webp, extended": b"RIFF\x64\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff" * 6 + bytes(70),
    "ppm": b"P6\n60000 60000\n255\n" + bytes(900),
    "pgm in letters": b"P2 # 5 5\n 60000 #\n60000 255 0",
    "pbm": b"P4\n60000 60000\n" + bytes(900),
    "ppm behind a comment": b"P6 #a\r60000 60000\n5 5\n255\n" + bytes(900),
    "pam": encoded(".pam").replace(b" 30\n", b" 60000\n").replace(b" 20\n", b" 60000\n"),
    "pfm": b"PF\n60000 60000\n-1\n" + bytes(900),
    "hdr": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 60000 +X 60000\n" + bytes(900),
    "sun": at(encoded(".sr"), 4, struct.pack(">II", 60000, 60000)),
    "jpeg 2000": b"\xff\x4f\xff\x51\x00\x2f\0\0" + struct.pack(">II", 60000, 60000) + bytes(99),
    "avif": b"\0\0\0\x20ftypavif" + bytes(30) + b"ispe\0\0\0\0" + struct.pack(">II", 60000, 60000),
}  # fmt: skip
# Valid or nearly valid images with hostile metadata.
STUFFED: dict[str, bytes] = {
    "text": png(30, 20, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26)))] * 4),
    "profile": png(30, 20, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 28)))),
    "international text": png(
        30, 20, *[chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(1 << 26)))] * 4),
    "tags that share their content": b"II*\0\x08\0\0\0" + struct.pack("<H", 60000) + b"".join(
        struct.pack("<HHII", 1000 + n, 1, 700_000, 8) for n in range(60000)) + bytes(8),
    "many chunks": png(30, 20, *[chunk(b"aaAa", b"")] * 300_000),
    "many segments": jpeg(*[b"\xff\xe5\0\2"] * 300_000),
    "garbage": jpeg(garbage=bytes(5_000_000)),
}  # fmt: skip


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", fail)
    monkeypatch.setattr(Image, "open", fail)


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.usefixtures("no_decoding")
def test_every_reader_refuses(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(BOMBS[name])
    readers = (read_image, read_deep, lambda p: open_cache("none", [sample(p)], 64)[0],
               lambda p: open_cache("ram", [sample(p)], 64))  # fmt: skip
    for read in readers:
        with pytest.raises(DataError, match=r"a\.png: has \d+x\d+ pixels.*Y7EDGE_MAX_PIXELS"):
            read(path)
    assert inspect(path).kind == "corrupt"
    frame = read_frame(path)
    assert too_large(*frame.stored, frame.pixels)


def sample(path: Path) -> Sample:
    return Sample(path, np.zeros((0, 4), np.float32), np.zeros(0, np.int32))


@pytest.mark.parametrize("name", STUFFED)
def test_metadata_is_bounded(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(STUFFED[name])
    start = time.process_time()
    facts = inspect(path)
    for read in (read_frame, read_image):
        try:
            read(path)
        except DataError:
            assert facts.fault
    assert time.process_time() - start < 8


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_image_suffix_is_read(suffix: str, yolo: Path) -> None:
    path = yolo / f"images/train/x{suffix}"
    kind = {".ras": "SUN", ".sr": "SUN", ".jp2": "JPEG2000", ".dib": "BMP"}.get(suffix)
    if kind == "SUN":
        path.write_bytes(encoded(".ras"))
    elif suffix in (".pbm", ".pnm", ".mpo", ".jpe", ".jfif"):
        Image.fromarray(SMALL).save(path, "PPM" if suffix[1] == "p" else "JPEG")
    else:
        noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3)).astype(np.uint8)
        Image.fromarray(noise).save(path, kind)
    (yolo / "labels/train/x.txt").write_text("0 .5 .5 .2 .2\n")
    report = examine(yolo)
    assert {f.check for f in report.findings if f.file == path} <= {"plain_image"}
    found = next(s for s in load(yolo).split("train") if s.path == path)
    assert found.size == read_image(path).shape[1::-1]


def test_check_training_and_copy_refuse(
    yolo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("Y7EDGE_MAX_PIXELS", "30000")
    path = yolo / "images/train/00003.jpg"
    Image.new("RGB", (200, 200)).save(path)
    report = examine(yolo)
    checks = {f.check for f in report.findings if f.file == path}
    assert checks == {"pixel_count", "corrupt_image"}
    with pytest.raises(DataError, match=r"00003\.jpg: has 200x200 pixels; at most 30,000"):
        load(yolo)
    write_copy(report, tmp_path / "out")
    assert not (tmp_path / "out/images/train/00003.jpg").exists()


@pytest.mark.parametrize("text", ["0", "-1", "1e6", "many", "9" * 50, " "])
def test_limit_must_be_positive(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("Y7EDGE_MAX_PIXELS", text)
    with pytest.raises(ConfigError, match="Y7EDGE_MAX_PIXELS: expected a positive"):
        most_pixels()


def test_threads_share_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("Y7EDGE_MAX_PIXELS", "1500")
    path = tmp_path / "a.png"
    path.write_bytes(encoded(".png"))  # 600 pixels: two at a time
    real, lock, together, most = cv2.imdecode, threading.Lock(), 0, 0

    def slow(*arguments: object) -> object:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        time.sleep(0.02)
        with lock:
            together -= 1
        return real(*arguments)

    monkeypatch.setattr(images.cv2, "imdecode", slow)
    threads = [threading.Thread(target=read_image, args=(path,)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most == 2


def test_forked_child_can_decode(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(".png"))
    with images._BUDGET.reserved(most_pixels(), most_pixels()):
        child = os.fork()
        if not child:
            os._exit(0 if read_image(path).shape == (20, 30, 3) else 1)
    deadline = time.monotonic() + 10
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert ended == (child, 0)


def test_hundred_megapixels_are_read(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("L", (11648, 8736), 7).save(stream, "PNG")
    (tmp_path / "a.png").write_bytes(stream.getvalue())
    assert read_image(tmp_path / "a.png").shape == (8736, 11648, 3)


def test_sparse_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(DataError, match=r"a\.png: "):
        read_image(tmp_path / "a.png")
    assert inspect(tmp_path / "a.png").fault
