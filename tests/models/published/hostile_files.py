"""Write hostile files: pickles built from opcodes, in either container."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

MAGIC = 0x1950A86A20F9469CFC6C


def text(value: str) -> bytes:
    """BINUNICODE."""
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    """BININT, or LONG1 where that is too small."""
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    encoded = pickle.encode_long(value)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def name(module: str, member: str) -> bytes:
    """GLOBAL."""
    return b"c" + f"{module}\n{member}\n".encode()


def tuple_of(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    """REDUCE."""
    return function + tuple_of(*arguments) + b"R"


def build(value: bytes, state: bytes) -> bytes:
    """BUILD."""
    return value + state + b"b"


def mapping(**entries: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def program(value: bytes) -> bytes:
    """A whole pickle of protocol 2."""
    return b"\x80\x02" + value + b"."


def storage(key: str = "0", length: int = 4, kind: str = "FloatStorage") -> bytes:
    """BINPERSID, a storage."""
    parts = (text("storage"), name("torch", kind), text(key), text("cpu"), number(length))
    return tuple_of(*parts) + b"Q"


def tensor(
    source: bytes | None = None,
    offset: int = 0,
    shape: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
) -> bytes:
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        storage() if source is None else source,
        number(offset),
        tuple_of(*map(number, shape)),
        tuple_of(*map(number, strides)),
        b"\x89",
        call(name("collections", "OrderedDict")),
    )


def module(member: str = "Conv", *arguments: bytes) -> bytes:
    """An instance of a published class, by NEWOBJ."""
    return name("models.common", member) + tuple_of(*arguments) + b"\x81"


def write_zip(
    path: Path, data: bytes, records: dict[str, bytes] | None = None, compress: bool = False
) -> Path:
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", data)
        for record, content in ({"data/0": bytes(16)} if records is None else records).items():
            archive.writestr(f"archive/{record}", content)
        archive.writestr("archive/version", b"3\n")
    return path


def write_legacy(
    path: Path, data: bytes, keys: bytes | None = None, storages: bytes | None = None
) -> Path:
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    preamble = b"".join(pickle.dumps(value, protocol=2) for value in (MAGIC, 1001, machine))
    keys = pickle.dumps(["0"], protocol=2) if keys is None else keys
    storages = struct.pack("<q", 4) + bytes(16) if storages is None else storages
    path.write_bytes(preamble + data + keys + storages)
    return path


def write(path: Path, data: bytes, container: str) -> Path:
    return write_zip(path, data) if container == "zip" else write_legacy(path, data)
