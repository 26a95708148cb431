"""The few bytes of an ONNX file that the running side reads itself, so that it needs no onnx.

An ONNX file is one protocol-buffers message, ``ModelProto``: a row of fields, each a tag, for most
a length, and content (https://protobuf.dev/programming-guides/encoding/). Only this outermost row
is walked; the graph, one field of it, is skipped or hashed as a whole. Fields may be repeated and
appended, so a manifest is embedded by writing one ``metadata_props`` field after the payload.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from y7edge.errors import ArtifactError

_METADATA_PROPS = 14  # ModelProto.metadata_props: repeated StringStringEntryProto
_KEY, _VALUE = 1, 2  # its two strings
_GRAPH = 7
_BLOCK = 1 << 20
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Field = tuple[int, int, int, int]
"""Number, start of the tag, start of the content, end."""


class _MalformedError(ValueError):
    """Not a row of fields."""


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """The file's bytes; whatever breaks while they are walked becomes an ArtifactError."""
    try:
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            yield data
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:  # also an empty file, which cannot be mapped
        raise ArtifactError(
            f"{path} is not a whole ONNX file ({error}): copy or export it again"
        ) from error


def _varint(data: bytes | mmap.mmap, at: int) -> tuple[int, int]:
    """(value, position after it)."""
    value = 0
    for count in range(10):
        if at + count >= len(data):
            raise _MalformedError("it ends within a number")
        byte = data[at + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, at + count + 1
    raise _MalformedError(f"a number at byte {at} has no end")


def _fields(data: bytes | mmap.mmap) -> Iterator[Field]:
    """The outermost fields, in order, covering every byte."""
    at = 0
    while at < len(data):
        start = at
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            content, (_, end) = at, _varint(data, at)
        elif kind == _BYTES:
            length, content = _varint(data, at)
            end = content + length
        elif kind in (_FIXED32, _FIXED64):
            content, end = at, at + (4 if kind == _FIXED32 else 8)
        else:
            raise _MalformedError(f"byte {start} starts no field")
        if number == 0 or end > len(data):
            raise _MalformedError(f"it has {len(data)} bytes, a field ends at {end}")
        yield number, start, content, end
        at = end


def read_metadata(path: Path, key: str, limit: int) -> bytes | None:
    """The value of one metadata property, None if the file has none of this key.

    Raises:
        ArtifactError: not an ONNX file, truncated, or with a value of more than ``limit`` bytes.
    """
    found: list[bytes] = []
    with _mapped(path) as data:
        numbers = set()
        for number, _, content, end in _fields(data):
            numbers.add(number)
            if number == _METADATA_PROPS:
                if end - content > limit + 1024:
                    raise _MalformedError(f"its metadata has an entry of {end - content} bytes")
                entry = data[content:end]
                parts = {n: entry[c:e] for n, _, c, e in _fields(entry)}
                if parts.get(_KEY) == key.encode():
                    found.append(parts.get(_VALUE, b""))
        if _GRAPH not in numbers:
            raise _MalformedError("it has no graph")
        if len(found) > 1:
            raise _MalformedError(f"it has {len(found)} entries {key!r} in its metadata")
    return found[0] if found else None


def payload_digest(path: Path) -> str:
    """SHA-256 of every field but the metadata, in file order.

    Raises:
        ArtifactError: not an ONNX file, or truncated.
    """
    digest = hashlib.sha256()
    with _mapped(path) as data:
        for number, start, _, end in _fields(data):
            if number != _METADATA_PROPS:
                for at in range(start, end, _BLOCK):
                    digest.update(data[at : min(at + _BLOCK, end)])
    return digest.hexdigest()


def without_metadata(path: Path) -> bytes:
    """The payload: the file's bytes, its metadata taken out."""
    with _mapped(path) as data:
        kept = [data[s:e] for n, s, _, e in _fields(data) if n != _METADATA_PROPS]
    return b"".join(kept)


def metadata_field(key: str, value: str) -> bytes:
    """One ``metadata_props`` field, to be appended to a payload."""
    entry = _string(_KEY, key) + _string(_VALUE, value)
    return _tag(_METADATA_PROPS) + _number(len(entry)) + entry


def _string(number: int, text: str) -> bytes:
    raw = text.encode()
    return _tag(number) + _number(len(raw)) + raw


def _tag(number: int) -> bytes:
    return _number(number << 3 | _BYTES)


def _number(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
