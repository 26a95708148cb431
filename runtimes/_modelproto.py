"""Read and write the metadata of ONNX files without the onnx package.

An ONNX file is one protocol-buffers message, ``ModelProto``. A message is a sequence of fields; a
field is a tag, an optional length, and the content
(https://protobuf.dev/programming-guides/encoding/). A field can be appended to a file, so the
manifest is stored in a ``metadata_props`` field at the end.

Tensors with external data are refused, because the digest covers this file only. To find them, the
reader enters the messages that can contain tensors, and skips all others. The file is not
memory-mapped: if another program truncated a mapped file, reading it would kill the process.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from y7edge.artifact.foreign import Interface, Tensor
from y7edge.errors import ArtifactError
from y7edge.files import open_regular, reason

MANIFEST = "y7edge"
"""Key of the metadata property with the manifest."""

_METADATA_PROPS = 14  # ModelProto.metadata_props: repeated StringStringEntryProto
_KEY, _VALUE = 1, 2  # fields of StringStringEntryProto
_GRAPH = 7  # ModelProto.graph
_ATTRIBUTES = (_GRAPH, 1, 5)  # ModelProto.graph, GraphProto.node, NodeProto.attribute
_NAME, _TEXT = 1, 4  # AttributeProto.name and s
_BLOCK = 1 << 20
_MAX_FIELDS = 500_000  # yolov7-e6e has 13,000
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_LARGEST = 1 << 29  # valid field numbers are smaller; engines truncate larger numbers

# Messages that can contain tensors: field number -> type of the nested message (onnx.proto).
_INSIDE = {
    "ModelProto": {_GRAPH: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        **{5: "TensorProto", 6: "GraphProto", 10: "TensorProto", 11: "GraphProto"},
        **{22: "SparseTensorProto", 23: "SparseTensorProto"},
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # fields of TensorProto
_DTYPES = {
    **{1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64"},
    **{9: "bool", 10: "float16", 11: "float64", 16: "bfloat16"},
}
_LONGEST_NAME = 4096

Field = tuple[int, int, int, int, int]
"""Field number, wire type, and offsets in the file: of the tag, of the content, of the end."""


class _MalformedError(ValueError):
    """The bytes are not a valid sequence of fields."""


def is_message(path: Path) -> bool:
    """Return whether a file is a whole protobuf message of any type, such as a Core ML model.

    Nested messages are not read.
    """
    try:
        with open_regular(path) as stream:
            return len(list(_fields(stream, 0, stream.seek(0, io.SEEK_END)))) > 0
    except (OSError, _MalformedError):
        return False


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, list[Field]]]:
    """Open a file; yield the stream and the top-level fields.

    Raises:
        ArtifactError: the file cannot be read, is malformed, does not have exactly one graph, or
            has external data. OSError and ValueError inside the ``with`` statement are converted
            too.
    """
    try:
        with open_regular(path) as stream:
            fields = _walk(stream, path)
            graphs = sum(field[:2] == (_GRAPH, _BYTES) for field in fields)
            if graphs != 1:  # engines would merge several graphs
                raise _MalformedError(f"it has {graphs or 'no'} graph{'s' * (graphs > 1)}")
            yield stream, fields
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {reason(error)}") from error
    except ValueError as error:
        raise ArtifactError(
            f"{path} is not a whole ONNX file ({error}): copy or export it again"
        ) from error


def _walk(stream: BinaryIO, path: Path) -> list[Field]:
    """Read all fields; return the top-level ones.

    Raises:
        ArtifactError: a tensor has external data.
        _MalformedError: the file is not a valid ``ModelProto``.
    """
    size, count = stream.seek(0, io.SEEK_END), 0
    top_level: list[Field] = []
    left = [("ModelProto", 0, size)]
    while left:
        message, begin, end = left.pop()
        inside = _INSIDE.get(message, {})
        for field in _fields(stream, begin, end):
            count += 1
            if count > _MAX_FIELDS:
                raise _MalformedError(f"it has more than {_MAX_FIELDS} fields")
            number, kind, _, content, stop = field
            if message == "ModelProto":
                top_level.append(field)
            if message == "TensorProto":
                if number == _EXTERNAL_DATA or (
                    number == _DATA_LOCATION and _read(stream, content, stop) != b"\0"
                ):
                    raise ArtifactError(
                        f"{path} keeps tensors in another file (external data), which its digest "
                        "does not cover: export it again, or save it as one file with "
                        "onnx.save(onnx.load(PATH), PATH)"
                    )
            elif kind == _BYTES and number in inside:
                left.append((inside[number], content, stop))
    return top_level


def _read(stream: BinaryIO, begin: int, end: int) -> bytes:
    """Read the bytes between two offsets."""
    stream.seek(begin)
    data = stream.read(end - begin)
    if len(data) < end - begin:
        raise _MalformedError("it became shorter while it was read")
    return data


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Decode the variable-length integer at offset ``at``; return its value and the next offset."""
    value = 0
    for count in range(10):
        if at + count >= len(data):
            raise _MalformedError("it ends inside a number")
        byte = data[at + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, at + count + 1
    raise _MalformedError("a number is longer than 10 bytes")


def _fields(stream: BinaryIO, begin: int, end: int) -> Iterator[Field]:
    """Yield the fields of a message between two offsets; raise _MalformedError if it is invalid."""
    at = begin
    while at < end:
        head = _read(stream, at, min(at + 20, end))
        tag, used = _varint(head, 0)
        number, kind = tag >> 3, tag & 7
        content = at + used
        if kind == _VARINT:
            stop = at + _varint(head, used)[1]
        elif kind == _BYTES:
            length, used = _varint(head, used)
            content = at + used
            stop = content + length
        elif kind in (_FIXED32, _FIXED64):
            stop = content + (4 if kind == _FIXED32 else 8)
        else:
            raise _MalformedError(f"no field starts at byte {at}")
        if not 0 < number < _LARGEST or stop > end:
            raise _MalformedError(f"the field at byte {at} ends at {stop}, beyond {end}")
        yield number, kind, at, content, stop
        at = stop


def read_metadata(path: Path, key: str, limit: int) -> bytes | None:
    """Return the value of one metadata property; None if the file does not have the key.

    Raises:
        ArtifactError: the file is not an ONNX file, is truncated, has external data, or the value
            has more than ``limit`` bytes.
    """
    with _opened(path) as (stream, fields):
        entries = _metadata(stream, fields, limit)
        found = [value for name, value in entries if name == key.encode()]
        if len(found) > 1:
            raise _MalformedError(f"it has {len(found)} entries {key!r} in its metadata")
    return found[0] if found else None


def _metadata(
    stream: BinaryIO, fields: list[Field], limit: int
) -> list[tuple[bytes | None, bytes]]:
    """Return keys and values of the metadata properties."""
    entries = []
    for number, _, _, content, end in fields:
        if number == _METADATA_PROPS:
            if end - content > limit + 1024:
                raise _MalformedError(f"its metadata has an entry of {end - content} bytes")
            entry = io.BytesIO(_read(stream, content, end))
            parts = {n: _read(entry, c, e) for n, _, _, c, e in _fields(entry, 0, end - content)}
            entries.append((parts.get(_KEY), parts.get(_VALUE, b"")))
    return entries


def read_interface(path: Path, limit: int) -> Interface:
    """Return the inputs, outputs and metadata of a file.

    ``limit``: largest accepted size of a metadata entry, in bytes.

    Raises:
        ArtifactError: the file is not an ONNX file, is truncated, or has external data.
    """
    operators, weights, known = set[str](), set[str](), set[str]()
    values: dict[int, list[Tensor]] = {11: [], 12: []}  # GraphProto.input, GraphProto.output
    producer = ["", ""]
    with _opened(path) as (stream, fields):
        graph = next(field for field in fields if field[0] == _GRAPH)
        for number, kind, _, content, end in _fields(stream, graph[3], graph[4]):
            if kind == _BYTES and number == 1:
                operators |= set(_texts(stream, content, end, 4))
            elif kind == _BYTES and number == 5:
                known |= set(_texts(stream, content, end, 8))
                weights |= {_DTYPES.get(code, "") for code in _numbers(stream, content, end, 2)}
            elif kind == _BYTES and number in values:
                values[number].append(_tensor(stream, content, end))
        for number, kind, _, content, end in fields:
            if kind == _BYTES and number in (2, 3):  # producer_name, producer_version
                producer[number - 2] = _text(stream, content, end)
        entries = _metadata(stream, fields, limit)
    return Interface(
        inputs=tuple(tensor for tensor in values[11] if tensor.name not in known),
        outputs=tuple(values[12]),
        metadata={
            (key or b"").decode(errors="replace"): value.decode(errors="replace")
            for key, value in entries
        },
        operators=frozenset(operators),
        weights=frozenset(weights),
        producer=" ".join(filter(None, producer)),
        digest=payload_digest(path),
    )


def _tensor(stream: BinaryIO, begin: int, end: int) -> Tensor:
    """Decode a ValueInfoProto to name, dtype and shape.

    Field numbers: name 1 and type 2 of the ValueInfoProto; tensor_type 1 of the type; elem_type 1
    and shape 2 of the tensor type.
    """
    if end - begin > 1 << 16:
        raise _MalformedError(f"the description of a tensor has {end - begin} bytes")
    name = "".join(_texts(stream, begin, end, 1))
    types = [t for outer in _parts(stream, begin, end, 2) for t in _parts(stream, *outer, 1)]
    if len(types) != 1:
        return Tensor(name, "not a tensor", None)
    codes = list(_numbers(stream, *types[0], 1))
    dtype = _DTYPES.get(codes[0], "unknown") if len(codes) == 1 else "unknown"
    shapes = list(_parts(stream, *types[0], 2))
    if len(shapes) != 1:
        return Tensor(name, dtype, None)
    sizes = [list(_numbers(stream, *dim, 1)) for dim in _parts(stream, *shapes[0], 1)]
    if any(size and not 0 < size[0] < 1 << 62 for size in sizes) or len(sizes) > 16:
        raise _MalformedError(f"the tensor {name[:64]!r} has an impossible shape")
    return Tensor(name, dtype, tuple(size[0] if size else None for size in sizes))


def _parts(stream: BinaryIO, begin: int, end: int, number: int) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each nested message in the field ``number``."""
    for found, kind, _, content, stop in _fields(stream, begin, end):
        if found == number and kind == _BYTES:
            yield content, stop


def _texts(stream: BinaryIO, begin: int, end: int, number: int) -> Iterator[str]:
    for content, stop in _parts(stream, begin, end, number):
        yield _text(stream, content, stop)


def _text(stream: BinaryIO, begin: int, end: int) -> str:
    if end - begin > _LONGEST_NAME:
        raise _MalformedError(f"a name has {end - begin} bytes")
    return _read(stream, begin, end).decode(errors="replace")


def _numbers(stream: BinaryIO, begin: int, end: int, number: int) -> Iterator[int]:
    for found, kind, _, content, stop in _fields(stream, begin, end):
        if found == number and kind == _VARINT:
            yield _varint(_read(stream, content, stop), 0)[0]


class Quantizer(NamedTuple):
    """A node that quantises or dequantises a tensor.

    Attributes:
        name: Name of the node.
        operator: "QuantizeLinear" or "DequantizeLinear".
        dtype: Type of the integers; "" if the file does not store it.
        symmetric: Whether its zero points are 0; None if the file does not store them.
    """

    name: str
    operator: str
    dtype: str
    symmetric: bool | None


def read_quantizers(path: Path) -> tuple[Quantizer, ...]:
    """Return all nodes QuantizeLinear and DequantizeLinear of the main graph, in file order.

    Raises:
        ArtifactError: the file is not an ONNX file, is truncated, or has external data.
    """
    nodes: list[tuple[str, str, list[str]]] = []
    tensors: dict[str, tuple[int, int]] = {}
    with _opened(path) as (stream, fields):
        graph = next(field for field in fields if field[0] == _GRAPH)
        for number, kind, _, content, end in _fields(stream, graph[3], graph[4]):
            if kind == _BYTES and number == 1:  # NodeProto: input 1, name 3, op_type 4
                operator = "".join(_texts(stream, content, end, 4))
                if operator in ("QuantizeLinear", "DequantizeLinear"):
                    name = "".join(_texts(stream, content, end, 3))
                    nodes.append((name, operator, list(_texts(stream, content, end, 1))))
            elif kind == _BYTES and number == 5:  # TensorProto: name 8
                tensors["".join(_texts(stream, content, end, 8))] = (content, end)
        return tuple(_quantizer(stream, *node, tensors) for node in nodes)


def _quantizer(
    stream: BinaryIO,
    name: str,
    operator: str,
    inputs: list[str],
    tensors: dict[str, tuple[int, int]],
) -> Quantizer:
    """Read type and zero point of a node with the inputs x, scale and, optionally, zero point."""
    stored = tensors.get(inputs[2]) if len(inputs) > 2 else None
    if len(inputs) > 2 and inputs[2]:
        dtype = _dtype(stream, *stored) if stored else ""
        return Quantizer(name, operator, dtype, _is_zero(stream, *stored) if stored else None)
    if operator == "QuantizeLinear":  # the ONNX default
        return Quantizer(name, operator, "uint8", True)
    weight = tensors.get(inputs[0]) if inputs else None
    return Quantizer(name, operator, _dtype(stream, *weight) if weight else "", True)


def _dtype(stream: BinaryIO, begin: int, end: int) -> str:
    """Return the type of a TensorProto (field data_type 2)."""
    return _DTYPES.get(next(_numbers(stream, begin, end, 2), 0), "")


def _is_zero(stream: BinaryIO, begin: int, end: int) -> bool | None:
    """Return whether all values of an integer TensorProto are 0; None if it stores no values.

    Field numbers: int32_data 5, raw_data 9. A number that is 0 consists of bytes that are 0, also
    in a packed field.
    """
    if end - begin > 1 << 20:
        raise _MalformedError(f"a zero point has {end - begin} bytes")
    values = [n == 0 for n in _numbers(stream, begin, end, 5)]
    for number in (5, 9):
        values += [not any(_read(stream, *part)) for part in _parts(stream, begin, end, number)]
    return all(values) if values else None


def payload_digest(path: Path) -> str:
    """Return the SHA-256 of all fields except the metadata, in file order.

    Raises:
        ArtifactError: the file is not an ONNX file, is truncated, or has external data.
    """
    digest = hashlib.sha256()
    with _opened(path) as (stream, fields):
        for number, _, start, _, end in fields:
            if number != _METADATA_PROPS:
                for at in range(start, end, _BLOCK):
                    digest.update(_read(stream, at, min(at + _BLOCK, end)))
    return digest.hexdigest()


def without_metadata(path: Path) -> bytes:
    """Return the bytes of the file without its metadata."""
    with _opened(path) as (stream, fields):
        kept = [_read(stream, s, e) for n, _, s, _, e in fields if n != _METADATA_PROPS]
    return b"".join(kept)


def without_manifest(path: Path) -> bytes:
    """Return the bytes of the file without its manifest; other metadata stays.

    Raises:
        ArtifactError: the file is not an ONNX file, is truncated, or has external data.
    """
    with _opened(path) as (stream, fields):
        kept = [
            _read(stream, start, end)
            for number, kind, start, content, end in fields
            if (number, kind) != (_METADATA_PROPS, _BYTES)
            or MANIFEST not in _texts(stream, content, end, _KEY)
        ]
    return b"".join(kept)


def with_attribute(path: Path, attribute: str, text: str, limit: int) -> bytes:
    """Return the bytes of the file with another value of a text attribute of its nodes.

    Nodes of subgraphs stay as they are, and so do nodes without this attribute.

    Args:
        path: the file.
        attribute: name of the attribute.
        text: its value.
        limit: largest accepted size of the file, in bytes.

    Raises:
        ArtifactError: the file is not an ONNX file, is truncated, has external data, or is larger.
    """
    with _opened(path) as (stream, _):
        size = stream.seek(0, io.SEEK_END)
        if size > limit:
            raise _MalformedError(f"it has {size:,} bytes, expected at most {limit:,}")
        return _replaced(_read(stream, 0, size), _ATTRIBUTES, attribute.encode(), text)


def _replaced(data: bytes, inside: tuple[int, ...], attribute: bytes, text: str) -> bytes:
    """Replace a value in the messages that are nested in the fields ``inside`` of a message."""
    stream, parts = io.BytesIO(data), []
    fields = list(_fields(stream, 0, len(data)))
    if not inside:  # an AttributeProto
        if attribute not in (data[content:end] for n, _, _, content, end in fields if n == _NAME):
            return data
        kept = (data[start:end] for number, _, start, _, end in fields if number != _TEXT)
        return b"".join((*kept, _string(_TEXT, text)))
    for number, kind, start, content, end in fields:
        part = data[start:end]
        if (number, kind) == (inside[0], _BYTES):
            nested = _replaced(data[content:end], inside[1:], attribute, text)
            part = _tag(number) + _number(len(nested)) + nested
        parts.append(part)
    return b"".join(parts)


def metadata_field(key: str, value: str) -> bytes:
    """Encode a ``metadata_props`` field, which can be appended to a payload."""
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
