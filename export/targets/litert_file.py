"""Target ``litert``: one .tflite file for LiteRT, with channels last.

The folded model is built as a torch module from its rows, exported with ``torch.export``, and
converted by litert-torch (https://github.com/google-ai-edge/litert-torch) in an interpreter of its
own. In fp16 artifacts, ai-edge-quantizer stores the weights in float16; inputs and outputs stay
float32.

For int8 artifacts, the target takes a QDQ graph: ai-edge-quantizer writes a file with the same
ranges, the same weights and biases, and the same layers in float
(https://ai.google.dev/edge/litert/conversion/tensorflow/quantization). Its own ranges, moving
averages of the smallest and largest values, depend on the order of the images. The input is int8.
Heads are int8 too if they are quantised; then all operators compute in integers, as
compilers for integer NPUs require.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from y7edge import interpreters
from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Manifest, in_layout
from y7edge.errors import ExportError, RuntimeMissing
from y7edge.export import converters
from y7edge.export.targets import _litert_convert
from y7edge.export.targets.base import BuildRequest
from y7edge.models.checkpoint import Checkpoint
from y7edge.runtimes import tflite
from y7edge.runtimes.base import one_line

if TYPE_CHECKING:
    import onnx

    from y7edge.export.graph.quantize_check import Numbers

NAME = "litert"
SUFFIX = ".tflite"
NEEDS = {"torch": "y7edge[export]", **tflite.NEEDS}
PRECISIONS = {"fp32": "fp32", "fp16": "fp32", "int8": "int8"}
PROFILES = ("u8s8",)
INPUTS = ("float32",)
OUTPUTS = ("heads", "decoded")
BATCHES = ("1", "N")
RUNTIME = "tflite"
OPTIONS: dict[str, str] = {}
REWRITES: tuple[str, ...] = ()
INT8_HEADS = False
CALIBRATES = False
NEEDS_CHECKPOINT = True

_PACKAGES = ("litert-torch>=0.10", "litert-converter", "ai-edge-quantizer", "torch")
_RECIPE = "python -m venv ENV && ENV/bin/pip install litert-torch==0.10.0 torch==2.13.0"
_SECONDS = 3600
_LISTED = {"Conv": "CONV_2D", "Concat": "CONCATENATION", "Add": "ADD"}  # ONNX: LiteRT
_ROW = re.compile(r"/row([0-9]+)/")


def build(request: BuildRequest) -> Artifact:
    """Export the model with torch, and convert the program.

    Raises:
        ExportError: torch or litert-torch cannot convert the model.
        RuntimeMissing: there is no interpreter with litert-torch.
    """
    return Artifact(request.path, convert(request, request.path))


def convert_for_compiler(
    request: BuildRequest, path: Path, *, half_pixels: bool = True
) -> Manifest:
    """Write the model as a .tflite file for a vendor's compiler; see ``_litert_convert.plain``.

    In int8, the file computes in integers only, as integer NPUs require. Arguments, result and
    errors are those of ``convert``.

    Raises:
        ExportError: a layer is to stay in float.
    """
    described = request.manifest.quantization
    if described is not None and described.kept:
        raise ExportError(
            f"target {request.manifest.target} needs a file that computes in integers only, but "
            f"{described.kept[0]} would stay in float: use precision int8 with all layers quantised"
        )
    manifest = convert(request, path)
    try:
        _litert_convert.plain(str(path), half_pixels=half_pixels)
    except Exception as error:  # flatbuffers has no exception class
        raise _unreadable("litert-torch", error) from error
    return manifest


def convert(request: BuildRequest, path: Path) -> Manifest:
    """Write the model to the .tflite file ``path``.

    Returns:
        The manifest with layouts, dtypes and scales of the file's tensors.

    Raises:
        ExportError: torch or litert-torch cannot convert the model.
        RuntimeMissing: there is no interpreter with litert-torch.
    """
    python = _interpreter()
    interpreters.require_packages(python, _PACKAGES, _RECIPE)
    manifest, checkpoint = request.manifest, cast(Checkpoint, request.checkpoint)
    with TemporaryDirectory(prefix=".y7edge-", dir=request.folder) as name:
        program, made = Path(name) / "model.pt2", Path(name) / "model.tflite"
        script = Path(__file__).with_name("_litert_convert.py")
        command = [str(python), "-I", str(script), str(program), str(made), manifest.precision]
        if manifest.precision == "int8":
            checkpoint, operators = _of_qdq(request.model, checkpoint)
            ranges = Path(name) / "ranges.json"
            ranges.write_text(json.dumps(operators), "utf-8")
            command.append(str(ranges))
        _export(checkpoint, manifest, program)
        converters.run(command, Path(name), "litert-torch", made, _SECONDS)
        made.rename(path)
    return _described(path, manifest)


def _of_qdq(path: Path, checkpoint: Checkpoint) -> tuple[Checkpoint, dict[str, list[Any]]]:
    """Read a QDQ graph.

    Returns:
        The checkpoint with the graph's weights and biases. By operator of LiteRT, in the order of
        rows: the range of the output of each concatenation and addition; for each convolution a
        SHA-256 of its weights (O, H, W, I), and the ranges ``written`` of its output and
        ``activated`` behind its activation. Ranges are None if the tensor is not quantised. A ReLU
        is a part of the convolution, so both are those behind it.
    """
    import onnx
    from onnx import numpy_helper

    from y7edge.export.graph.quantize_check import parse
    from y7edge.export.graph.quantize_placement import Wiring

    model = onnx.load(path)
    graph, arrays = parse(model), dict(checkpoint.arrays)
    arrays |= {
        t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name in arrays
    }
    for name, constant in graph.constants.items():
        key = name.removesuffix("/dequantized")
        if key in arrays:
            scale = constant.numbers.scale.reshape(-1, *[1] * (constant.values.ndim - 1))
            arrays[key] = np.asarray(constant.values * scale, np.float32)
    wiring = Wiring(graph.model)
    found: dict[str, list[Any]] = {kind: [] for kind in _LISTED.values()}
    for node in sorted(wiring.nodes, key=_row):  # stable
        (tensor,) = node.output
        if node.op_type == "Conv":
            weight = arrays[node.input[1].removesuffix("/dequantized")].transpose(0, 2, 3, 1)
            nodes, end = wiring.activation(node)
            clips = [n.op_type for n in nodes] == ["Relu"] and node.input[1] in graph.constants
            found[_LISTED["Conv"]].append(
                {
                    "weights": hashlib.sha256(weight.astype("<f4").tobytes()).hexdigest(),
                    "written": _range(graph.tensors.get(end if clips else tensor)),
                    "activated": _range(graph.tensors.get(end)),
                }
            )
        elif node.op_type in _LISTED:
            found[_LISTED[node.op_type]].append(_range(graph.tensors.get(tensor)))
    return replace(checkpoint, arrays=arrays), found


def _row(node: onnx.NodeProto) -> int:
    found = _ROW.match(node.name)
    return int(found[1]) if found else -1


def _range(numbers: Numbers | None) -> tuple[float, float] | None:
    """Return the smallest and largest value that a quantised tensor can have."""
    if numbers is None:
        return None
    limits, scale, zero = np.iinfo(numbers.zero.dtype), float(numbers.scale), int(numbers.zero)
    return scale * (limits.min - zero), scale * (limits.max - zero)


def _described(path: Path, manifest: Manifest) -> Manifest:
    """Return the manifest with layouts, dtypes and scales of the file's tensors."""
    image = replace(manifest.input, layout="NHWC")
    found = tflite.quantization(path)
    if found[image.name].dtype == "int8":
        image = replace(image, dtype="int8", scale=1.0, zero_point=-128)
    outputs = tuple(
        replace(
            output,
            layout="NHWC",
            shape=in_layout(output.shape, "NHWC"),
            **found[output.name]._asdict(),
        )
        if output.role == "head"
        else output
        for output in manifest.outputs
    )
    return replace(manifest, input=image, outputs=outputs, opset=None)


def kinds(path: Path, writer: str) -> Counter[str]:
    """Return the number of operators of a .tflite file by kind, such as "CONV_2D".

    Raises:
        ExportError: the file, which the program ``writer`` wrote, cannot be read.
    """
    try:
        return Counter(kind for kind, _, _ in _litert_convert.operators(str(path)))
    except Exception as error:  # flatbuffers has no exception class
        raise _unreadable(writer, error) from error


def ends(path: Path, writer: str) -> list[tuple[object, ...]]:
    """Return name, shape, dtype, scale and zero point of the inputs and outputs of a file.

    Raises:
        ExportError: the file, which the program ``writer`` wrote, cannot be read.
    """
    try:
        _, graph = _litert_convert.opened(str(path))
        return [_end(graph.tensors[index]) for index in (*graph.inputs, *graph.outputs)]
    except Exception as error:  # flatbuffers has no exception class
        raise _unreadable(writer, error) from error


def _end(tensor: Any) -> tuple[object, ...]:
    numbers = tensor.quantization
    lists = () if numbers is None else (numbers.scale, numbers.zeroPoint)
    scale, zero = (tuple(map(float, () if one is None else one)) for one in lists or (None, None))
    return tensor.name.decode(), tuple(map(int, tensor.shape)), int(tensor.type), scale, zero


def _unreadable(writer: str, error: Exception) -> ExportError:
    return ExportError(f"{writer} wrote a .tflite file that cannot be read: {one_line(error)}")


def misplaced() -> str | None:
    """Return how to make the interpreter with litert-torch; None if it is there."""
    try:
        versions()
    except RuntimeMissing as error:
        return str(error)
    return None


def versions() -> dict[str, str]:
    """Return the versions of the converter's packages.

    Raises:
        RuntimeMissing: there is no interpreter with litert-torch.
    """
    return interpreters.require_packages(_interpreter(), _PACKAGES, _RECIPE)


def _interpreter() -> Path:
    return interpreters.find_interpreter(NAME, "litert_torch", _RECIPE)


def _export(checkpoint: Checkpoint, manifest: Manifest, path: Path) -> None:
    """Write the program that the converter reads."""
    import torch

    from y7edge.nn import from_checkpoint
    from y7edge.nn.nhwc import ChannelsLast

    image = manifest.input
    outputs = "heads" if manifest.outputs[0].role == "head" else "decoded"
    module = ChannelsLast(from_checkpoint(checkpoint), outputs, (image.height, image.width)).eval()
    example = torch.zeros(image.images, image.height, image.width, 3)
    try:
        with torch.no_grad():
            program = torch.export.export(module, (), {image.name: example})
        torch.export.save(program, path)
    except Exception as error:  # torch has no common exception class
        raise ExportError(f"torch cannot export the model: {one_line(error)}") from error
