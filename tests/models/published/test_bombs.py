"""Small files that would take excessive time or memory are refused, or read in linear time."""

from __future__ import annotations

import os
import pickle
import struct
import time
import zipfile

import pytest

from tests.models.published import hostile_files as hostile
from tests.models.published import published_files as published
from y7edge.errors import CheckpointError
from y7edge.models import weights
from y7edge.models.published import container

PRIME = 2**61 - 1  # Python's hash of integers is modulo this
EMPTY = hostile.name("collections", "OrderedDict")
SET = hostile.name("builtins", "set")


def refused(path, match=None):
    started = time.process_time()
    with pytest.raises(CheckpointError, match=match) as caught:
        weights.load(path)
    assert time.process_time() - started < 9
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def items(keys):
    """A dictionary of these keys."""
    return b"}(" + b"".join(key + b"N" for key in keys) + b"u"


def listed(values):
    return b"](" + b"".join(values) + b"e"


LONG_TEXT = hostile.text("a" * 5000)
BOMBS = {
    "colliding integers": items(hostile.number(k * PRIME) for k in range(50_000)),
    "colliding integers, item by item": b"}"
    + b"".join(hostile.number(k * PRIME) + b"Ns" for k in range(50_000)),
    "colliding integers in a set": hostile.call(
        SET, listed(hostile.number(k * PRIME) for k in range(50_000))
    ),
    "tuples as keys": items(hostile.tuple_of(hostile.number(k)) for k in range(1000)),
    "a tuple as a key": b"}" + hostile.tuple_of(b"K\x01") + b"Ns",
    "tuples in a set": hostile.call(SET, listed([hostile.tuple_of(b"K\x01")])),
    "tuples in an OrderedDict": hostile.call(
        EMPTY, listed([hostile.tuple_of(hostile.tuple_of(b"K\x01"), b"N")])
    ),
    "tuples in a new set": b"\x8f(" + hostile.tuple_of(b"K\x01") + b"\x90",
    "a frozen set": b"(K\x01\x91",
    "a long text as a key": items([LONG_TEXT]),
    "a long text from the memo as a key": LONG_TEXT + b"q\x000" + items([b"h\x00"]),
    "bytes as a key": items([hostile.call(hostile.name("_codecs", "encode"), hostile.text("a"))]),
    "an OrderedDict of a number": hostile.call(EMPTY, b"K\x01"),
    "a long integer": b"\x8b" + struct.pack("<i", 1_000_000) + b"\x01" * 1_000_000,
    "a long decimal integer": b"L" + b"9" * 4000 + b"L\n",
    "a very long decimal integer": b"L" + b"9" * 1_000_000 + b"L\n",
    "nested tuples": b")" + b"\x85" * 50_000,
    "tuples that double": b")" + b"q\x00h\x00\x86" * 60,
    "a length that is not there": b"\x8e" + struct.pack("<Q", 2**60) + b"a",
    "another length that is not there": b"B" + struct.pack("<I", 2**32 - 1) + b"a",
    "a memo slot far away": b"Nr" + struct.pack("<I", 2**31),
    "too many opcodes": b"(" + b"N" * 1_000_001 + b"l",
}


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("value", BOMBS.values(), ids=list(BOMBS))
def test_expensive_pickle_is_refused_or_fast(tmp_path, value, container):
    path = hostile.write(tmp_path / "m.pt", hostile.program(value), container)
    refused(path, "unlike any YOLOv7 checkpoint|has a damaged pickle")


@pytest.mark.parametrize(
    "value",
    [b"]" + b"q\x00h\x00a" * 100_000, b"]" * 200_000 + b"a" * 199_999, items(
        hostile.number(k) for k in range(200_000)
    )],
    ids=["a list in itself", "nested lists", "integers as keys"],
)  # fmt: skip
def test_large_harmless_pickle_is_read(tmp_path, value):
    refused(hostile.write(tmp_path / "m.pt", hostile.program(value), "zip"), "no model")


def test_optimizer_state_of_torch_is_read(tmp_path):
    state = {0: {"step": 3}, 140_203_123_456_789: {"step": 4}, "names": {"a", "b"}}
    data = pickle.dumps(state, protocol=2)
    path = hostile.write_zip(tmp_path / "m.pt", data)
    with container.opened(path) as file:
        assert file.value == state


def test_long_preamble_is_refused(tmp_path):
    path = tmp_path / "m.pt"
    path.write_bytes(hostile.program(b"(" + b"N" * 5000 + b"l"))
    refused(path, "longer than 1000 opcodes")


def test_long_legacy_stream_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "_MAX_STREAM", 1000)
    path = hostile.write_legacy(tmp_path / "m.pt", hostile.program(items([b"K\x01"] * 2000)))
    refused(path, "stream of more than 1000 bytes")


# --- the directory of a zip -----------------------------------------------------------------------


def directory(count, size=None):
    """A zip that has nothing but a directory of ``count`` entries."""
    start = b"PK\x03\x04" + bytes(26)
    names = [b"a/%d" % index for index in range(count)]
    whole = b"".join(
        b"PK\x01\x02" + struct.pack("<6H3I5H2I", *[20, 20, 0, 0, 0, 0], *[0, 0, 0],
                                    *[len(name), 0, 0, 0, 0], *[0, 0]) + name
        for name in names
    )  # fmt: skip
    size = len(whole) if size is None else size
    shown = min(count, 0xFFFF)
    return start + whole + b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, shown, shown, size, 30, 0)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (directory(1_000_000), "directory of 5[0-9]{7} bytes, expected at most"),
        (directory(60_000), "60000 records, expected at most"),
        (directory(3, size=2**32 - 2), "damaged zip"),
        (directory(0), "without data.pkl"),
        (b"PK\x03\x04", "damaged zip"),
        (b"PK\x03\x04" + bytes(100_000), "damaged zip"),
    ],
    ids=["million", "many", "lying", "empty", "short", "zeros"],
)
def test_invalid_zip_directories_are_refused(tmp_path, content, match):
    (tmp_path / "m.pt").write_bytes(content)
    refused(tmp_path / "m.pt", match)


@pytest.mark.parametrize("offset", [6, 8])
def test_encrypted_record_is_refused(tmp_path, offset):
    path = hostile.write_zip(tmp_path / "m.pt", hostile.program(b"}"))
    data = bytearray(path.read_bytes())
    data[data.find(b"PK\x03\x04" if offset == 6 else b"PK\x01\x02") + offset] |= 1
    path.write_bytes(data)
    refused(path)


def test_overlapping_records_are_refused(tmp_path):
    path = hostile.write_zip(tmp_path / "m.pt", hostile.program(b"}"), {"data/0": bytes(100_000)})
    with zipfile.ZipFile(path) as archive:
        at = next(i for i in archive.infolist() if i.filename.endswith("data/0")).header_offset
    data = bytearray(path.read_bytes())
    end = data.rfind(b"PK\x05\x06")
    entry = data[data.find(b"PK\x01\x02") : end]
    copies = b"".join(
        bytes(entry[:42] + struct.pack("<I", at) + entry[46:]).replace(b"data/0", b"data/%d" % i)
        for i in range(10)
    )
    size, start = len(copies), struct.unpack("<I", data[end + 16 : end + 20])[0]
    tail = b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 40, 40, size, start, 0)
    path.write_bytes(bytes(data[:start]) + copies + tail)
    refused(path, "duplicate|damaged|record")


# --- the file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_non_regular_files_are_refused(tmp_path, suffix):
    pipe, folder, device = (tmp_path / f"{name}{suffix}" for name in ("pipe", "folder", "device"))
    os.mkfifo(pipe)
    folder.mkdir()
    device.symlink_to("/dev/zero")
    for path in (pipe, folder, device):
        refused(path, f"expected a regular file, found a {path.stem}")
    refused(tmp_path / f"absent{suffix}", "no such file")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_file_truncated_while_open(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    state = {f"w{index}": torch.full((50_000,), float(index)) for index in range(10)}
    path = published.write(tmp_path / "m.pt", state, legacy=legacy)
    with container.opened(path) as file:
        os.truncate(path, 100)
        if legacy:  # read as a whole
            arrays = [file.array(file.value[f"w{index}"]) for index in range(10)]
            assert all((array == index).all() for index, array in enumerate(arrays))
        else:
            with pytest.raises(CheckpointError, match="again"):
                file.array(file.value["w5"])
