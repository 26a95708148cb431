"""Convert an exported torch program to a .tflite file with litert-torch.

The target ``litert`` runs this file as a separate program, in the interpreter that has
litert-torch. The file does not import y7edge, because y7edge need not be installed there.

    python -I _litert_convert.py PROGRAM.pt2 OUT.tflite fp32|fp16
    python -I _litert_convert.py PROGRAM.pt2 OUT.tflite int8 RANGES.json

RANGES.json has the ranges of the outputs of convolutions, concatenations and additions, in the
order of computation; see ``litert_file``. An operator without a range computes in float.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

Range = list[float]
_LISTED = ("CONV_2D", "CONCATENATION", "ADD")  # operators whose ranges are given
_RESIZING = "RESIZE_NEAREST_NEIGHBOR"
_ACTIVATION = ("MUL", "MAXIMUM", "LOGISTIC", "RELU", "HARD_SWISH")
_NONE = object()
_FLOAT32 = 0  # TensorType of schema.fbs


def convert(program: str, out: str) -> None:
    """Convert a program (torch.export) that takes keyword arguments and returns a dictionary."""
    import litert_torch
    import torch

    exported = torch.export.load(program)
    _, named = exported.example_inputs
    litert_torch.convert(exported.module(), (), dict(named)).export(out)


def halve(path: str) -> None:
    """Store the weights of convolutions in float16; LiteRT converts them back on opening."""
    from ai_edge_quantizer import qtyping, quantizer
    from ai_edge_quantizer.recipe_manager import AlgorithmName, RecipeManager

    recipe = RecipeManager()
    recipe.add_weight_only_config(
        regex=".*",
        operation_name=qtyping.TFLOperationName.CONV_2D,
        num_bits=16,
        algorithm_key=AlgorithmName.FLOAT_CASTING,
    )
    work = quantizer.Quantizer(path)
    work.load_quantization_recipe(recipe.get_quantization_recipe())
    work.quantize().export_model(path, overwrite=True)


def quantize(path: str, ranges: dict[str, Any]) -> None:
    """Quantise a float file in place: weights to int8 by channel, activations to int8.

    Raises:
        ValueError: the operators of the file are not those of the ranges, or an operator that is
            to compute in integers stays in float.
    """
    import numpy as np
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.qtyping import TFLOperationName as Kind
    from ai_edge_quantizer.recipe_manager import AlgorithmName, RecipeManager

    limits, kept = assigned(path, ranges)
    recipe = RecipeManager()
    recipe.add_static_config(
        regex=".*", operation_name=Kind.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8
    )
    never = {"algorithm_key": AlgorithmName.NO_QUANTIZE}
    for name in kept:
        regex = f"^{re.escape(name)};$"
        recipe.add_quantization_config(regex, Kind.ALL_SUPPORTED, **never)
    if not set(kept).isdisjoint(output_names(path)):
        recipe.add_quantization_config(".*", Kind.OUTPUT, **never)
    work = quantizer.Quantizer(path)
    work.load_quantization_recipe(recipe.get_quantization_recipe())
    found = {
        name: {"min": np.full((1,) * 4, low, "f4"), "max": np.full((1,) * 4, high, "f4")}
        for name, (low, high) in limits.items()
    }
    work.quantize(found, enable_progress_report=False).export_model(path, overwrite=True)
    require_integers(path, kept)


def assigned(path: str, ranges: dict[str, Any]) -> tuple[dict[str, Range], list[str]]:
    """Return the ranges of the tensors of a float file, and the tensors that stay in float.

    MUL, MAXIMUM, LOGISTIC, RELU and HARD_SWISH compute the activation of the convolution before
    them; a RELU is usually a part of the CONV_2D. Operators that only select or pad values have the
    range of their input.
    """
    left = {kind: iter(ranges[kind]) for kind in _LISTED}
    limits: dict[str, Range | None] = {}
    layer: dict[str, Any] = {}
    kept: list[str] = []
    for kind, read, written in operators(path):
        before, name = (tensors[0].name for tensors in (read, written))
        if not limits:
            limits[before] = [0.0, 1.0]  # pixels
        value: Any = next(left[kind], _NONE) if kind in left else None
        if value is _NONE:
            raise ValueError(f"the file has more operators {kind} than the model")
        if kind == "CONV_2D":
            layer = value
            if hashlib.sha256(read[1].data).hexdigest() != layer["weights"]:
                raise ValueError(f"the convolution {name} has other weights than the model")
            limits[name] = layer["written"]
        elif kind in left:
            limits[name] = value
        elif kind in _ACTIVATION:
            limits[name] = [0.0, 1.0] if kind == "LOGISTIC" else layer["activated"]
        else:
            limits[name] = limits[before]
        inside = kind not in _ACTIVATION or (layer["written"] and layer["activated"])
        if not (inside and limits[name]):
            kept.append(name)
    if any(next(values, _NONE) is not _NONE for values in left.values()):
        raise ValueError(f"the file has fewer operators {', '.join(_LISTED)} than the model")
    return {name: limit for name, limit in limits.items() if limit}, kept


def require_integers(path: str, kept: list[str]) -> None:
    """Raise ValueError if an operator computes in float that is to compute in integers."""
    floats = Counter(
        kind
        for kind, _, written in operators(path)
        for tensor in written
        if tensor.type == _FLOAT32 and kind != "DEQUANTIZE" and tensor.name not in kept
    )
    if floats:
        found = ", ".join(f"{kind} ({count})" for kind, count in sorted(floats.items()))
        raise ValueError(f"these operators stay in float: {found}; use another ai-edge-quantizer")


class Tensor(NamedTuple):
    """A tensor of a file; ``data`` is empty unless it is a constant."""

    name: str
    type: int
    data: bytes


def operators(path: str) -> Iterator[tuple[str, list[Tensor], list[Tensor]]]:
    """Return the kind, the input tensors and the output tensors of each operator of a file."""
    kinds = kind_names()
    model, graph = opened(path)

    def tensors(indices: Iterable[int]) -> list[Tensor]:
        found = [graph.tensors[index] for index in indices if index >= 0]
        data = [model.buffers[tensor.buffer].data for tensor in found]
        return [
            Tensor(tensor.name.decode(), tensor.type, b"" if array is None else array.tobytes())
            for tensor, array in zip(found, data, strict=True)
        ]

    for operator in graph.operators:
        kind = kinds[model.operatorCodes[operator.opcodeIndex].builtinCode]
        yield kind, tensors(operator.inputs), tensors(operator.outputs)


def kind_names() -> dict[int, str]:
    """Return the name of each code of a kind of operator."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    return {code: kind for kind, code in vars(BuiltinOperator).items() if isinstance(code, int)}


def output_names(path: str) -> list[str]:
    """Return the names of the tensors that a file returns."""
    _, graph = opened(path)
    return [graph.tensors[index].name.decode() for index in graph.outputs]


def opened(path: str) -> tuple[Any, Any]:
    """Read a file; return the model and its only graph."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(Path(path).read_bytes(), 0))
    (graph,) = model.subgraphs
    return model, graph


def plain(path: str, *, half_pixels: bool = True) -> None:
    """Write a file such that old compilers read it: with all constants inside of its flatbuffer.

    The quantiser appends some constants behind the flatbuffer, where programs that are older than
    this form (``Buffer.offset`` of schema.fbs) find none.

    Args:
        path: the file.
        half_pixels: False: write enlargements by 2 in version 1 of their operator, which has no
            half-pixel centres. To the nearest pixel, the results are equal.

    Raises:
        ValueError: an operator enlarges by another factor.
    """
    from flatbuffers import Builder
    from numpy import frombuffer, uint8

    content = Path(path).read_bytes()
    model, graph = opened(path)
    for buffer in model.buffers:
        if buffer.offset > 1:  # 0: inside; 1: empty
            data = content[buffer.offset : buffer.offset + buffer.size]
            buffer.data, buffer.offset, buffer.size = frombuffer(data, uint8), 0, 0
        if buffer.data is not None:
            buffer.Pack = partial(_pack_aligned, buffer)
    if not half_pixels:
        _without_half_pixels(model, graph)
    builder = Builder(len(content))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    Path(path).write_bytes(bytes(builder.Output()))


def _pack_aligned(buffer: Any, builder: Any) -> Any:
    """Write a constant at a multiple of 16 bytes, as schema.fbs demands."""
    builder.Prep(16, len(buffer.data))
    return type(buffer).Pack(buffer, builder)


def _without_half_pixels(model: Any, graph: Any) -> None:
    kinds = [kind_names()[code.builtinCode] for code in model.operatorCodes]
    for code, kind in zip(model.operatorCodes, kinds, strict=True):
        code.version = 1 if kind == _RESIZING else code.version
    for operator in graph.operators:
        if kinds[operator.opcodeIndex] != _RESIZING:
            continue
        ends = (operator.inputs[0], operator.outputs[0])
        before, after = (tuple(map(int, graph.tensors[end].shape[1:3])) for end in ends)
        if after != (2 * before[0], 2 * before[1]):
            raise ValueError(
                f"an operator resizes from {before} to {after}, expected a factor of 2"
            )
        operator.builtinOptions.halfPixelCenters = False


def main(program: str, out: str, precision: str, ranges: str = "") -> None:
    """Convert, and report a failure as one line on standard error."""
    try:
        convert(program, out)
        if precision == "fp16":
            halve(out)
        elif precision == "int8":
            quantize(out, json.loads(Path(ranges).read_text("utf-8")))
    except Exception as error:  # the packages have no common exception class
        line = " ".join(str(error).split())[:300]
        sys.exit(f"{type(error).__name__}: {line}")


if __name__ == "__main__":
    main(*sys.argv[1:])
