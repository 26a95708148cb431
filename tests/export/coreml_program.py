"""Read an ML program without coremltools, and compute it with torch.

Field numbers are those of Apple's Model.proto, FeatureTypes.proto and MIL.proto; operations are
those of https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html.
After each operation whose result is float16, values are rounded to float16.
"""

from __future__ import annotations

import json
import struct
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

FLOAT16, FLOAT32, INT32, STRING, BOOL = 10, 11, 23, 2, 1  # DataType of MIL.proto
_ARRAYS = {FLOAT16: np.float16, FLOAT32: np.float32, INT32: np.int32}


def fields(message: bytes) -> dict[int, list[Any]]:
    """Return the fields of a message by number; nested messages are bytes."""
    found: dict[int, list[Any]] = defaultdict(list)
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            found[number].append(varint())
            continue
        length = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        found[number].append(message[at : at + length])
        at += length
    return found


def mapped(entries: list[bytes]) -> dict[str, bytes]:
    """Return a map field."""
    pairs = [fields(entry) for entry in entries]
    return {pair[1][0].decode(): pair.get(2, [b""])[0] for pair in pairs}


@dataclass(frozen=True)
class Feature:
    """An input or output: an image (height, width, color space), or an array (shape, dtype)."""

    name: str
    kind: str
    shape: tuple[int, ...]
    code: int


def feature(message: bytes) -> Feature:
    """Read a FeatureDescription."""
    found = fields(message)
    kinds = fields(found[3][0])
    if 4 in kinds:
        image = fields(kinds[4][0])
        return Feature(found[1][0].decode(), "image", (image[2][0], image[1][0]), image[3][0])
    array = fields(kinds[5][0])
    return Feature(found[1][0].decode(), "array", _packed(array[1]), array[2][0])


@dataclass(frozen=True)
class Operation:
    """An operation: names of its arguments and result, dtype of the result, value of a constant."""

    kind: str
    arguments: dict[str, list[str]]
    result: str
    dtype: int
    value: bytes


def _operation(message: bytes) -> Operation:
    found = fields(message)
    output = fields(found[3][0])
    return Operation(
        found[1][0].decode(),
        {
            key: [fields(bound)[1][0].decode() for bound in fields(argument)[1]]
            for key, argument in mapped(found[2]).items()
        },
        output[1][0].decode(),
        fields(fields(output[2][0]).get(1, [b""])[0])[1][0],
        mapped(found[5]).get("val", b""),
    )


class Program:
    """The program of a package, and what its specification says of it."""

    def __init__(self, package: Path) -> None:
        manifest = json.loads((package / "Manifest.json").read_text())
        items = manifest["itemInfoEntries"]
        root = items[manifest["rootModelIdentifier"]]
        assert root["path"].endswith("model.mlmodel") and len(items) == 2
        spec = fields((package / "Data" / root["path"]).read_bytes())
        (weights,) = (item["path"] for item in items.values() if item is not root)
        self._blobs = (package / "Data" / weights / "weight.bin").read_bytes()
        self.version = spec[1][0]
        description = fields(spec[2][0])
        self.inputs = [feature(message) for message in description[1]]
        self.outputs = [feature(message) for message in description[10]]
        metadata = fields(description[100][0])
        self.description = metadata[1][0].decode()
        self.licence = metadata.get(4, [b""])[0].decode()
        self.metadata = {key: text.decode() for key, text in mapped(metadata[100]).items()}
        function = fields(mapped(fields(spec[502][0])[2])["main"])
        block = fields(mapped(function[3])[function[2][0].decode()])
        self.results = [name.decode() for name in block[2]]
        self.operations = [_operation(message) for message in block[3]]
        self.counts = Counter(operation.kind for operation in self.operations)

    def run(self, images: torch.Tensor) -> dict[str, np.ndarray]:
        """Compute the outputs for the program's input (1, 3, H, W)."""
        values: dict[str, Any] = {self.inputs[0].name: images}
        for operation in self.operations:
            if operation.kind == "const":
                values[operation.result] = self._constant(operation.value)
                continue
            arguments = {}
            for key, names in operation.arguments.items():
                given = [values[name] for name in names]
                arguments[key] = given if key == "values" else given[0]
            result = COMPUTE[operation.kind](**arguments)
            half = operation.dtype == FLOAT16
            values[operation.result] = result.half().float() if half else result
        return {name: values[name].numpy() for name in self.results}

    def _constant(self, message: bytes) -> Any:
        value = fields(message)
        described = fields(fields(value[2][0])[1][0])
        dtype, shape = described[1][0], []
        for dimension in described.get(3, []):
            shape.append(fields(fields(dimension)[1][0])[1][0])
        if 5 in value:  # blobFileValue: a header of 64 bytes, then the values
            offset = fields(value[5][0])[2][0]
            sentinel, _, size, start = struct.unpack_from("<IIQQ", self._blobs, offset)
            assert sentinel == 0xDEADBEEF
            raw = self._blobs[start : start + size]
        else:
            ((number, content),) = fields(fields(value[3][0])[1][0]).items()
            found = fields(content[0]).get(1, [])
            if number in (3, 4):  # bools and strings
                flags = [bool(flag) for flag in _packed(found)]
                return found[0].decode() if number == 4 else flags if shape else flags[0]
            raw = found[0] if number in (1, 7) else np.array(_packed(found), np.int32).tobytes()
        array = np.frombuffer(raw, _ARRAYS[dtype]).reshape(shape)
        return array.tolist() if dtype == INT32 else torch.from_numpy(array.astype(np.float32))


def _packed(values: list[Any]) -> tuple[int, ...]:
    """Return the integers of a repeated field, packed or not."""
    found: list[int] = []
    for value in values:
        if isinstance(value, int):
            found.append(value)
            continue
        number = shift = 0
        for byte in value:
            number, shift = number | (byte & 127) << shift, shift + 7
            if byte < 128:
                found.append(number)
                number = shift = 0
    return tuple(n - (1 << 64) if n >> 63 else n for n in found)


def _padded(x: torch.Tensor, pad: list[int], value: float) -> torch.Tensor:
    top, bottom, left, right = pad
    return functional.pad(x, (left, right, top, bottom), value=value)


def _conv(x, weight, bias, strides, pad_type, pad, dilations, groups):  # type: ignore[no-untyped-def]
    assert pad_type in ("custom", "valid")
    x = _padded(x, pad if pad_type == "custom" else [0] * 4, 0)
    return functional.conv2d(x, weight, bias, strides, 0, dilations, groups)


def _max_pool(x, kernel_sizes, strides, pad_type, pad, ceil_mode):  # type: ignore[no-untyped-def]
    assert pad_type == "custom" and not ceil_mode
    return functional.max_pool2d(_padded(x, pad, -np.inf), kernel_sizes, strides)


def _upsample(x, scale_factor_height, scale_factor_width):  # type: ignore[no-untyped-def]
    factors = (float(scale_factor_height), float(scale_factor_width))
    return functional.interpolate(x, scale_factor=factors, mode="nearest")


def _concat(values, axis, interleave):  # type: ignore[no-untyped-def]
    assert not interleave
    return torch.cat(values, axis)


def _slice(x, begin, end, stride=None, begin_mask=None, end_mask=None):  # type: ignore[no-untyped-def]
    cuts = []
    for axis in range(x.ndim):
        first = None if begin_mask and begin_mask[axis] else begin[axis]
        last = None if end_mask and end_mask[axis] else end[axis]
        cuts.append(slice(first, last, stride[axis] if stride else 1))
    return x[tuple(cuts)]


COMPUTE = {
    "slice_by_index": _slice,
    "mul": lambda x, y: x * y,
    "add": lambda x, y: x + y,
    "cast": lambda x, dtype: x,  # rounded by the caller
    "conv": _conv,
    "leaky_relu": lambda x, alpha: torch.where(x < 0, x * alpha, x),
    "sigmoid": lambda x: torch.sigmoid(x),
    "silu": lambda x: functional.silu(x),
    "max_pool": _max_pool,
    "upsample_nearest_neighbor": _upsample,
    "concat": _concat,
}
