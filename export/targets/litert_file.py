"""Target ``litert``: one .tflite file for LiteRT, with channels last.

The folded model is built as a torch module from its rows, exported with ``torch.export``, and
converted by litert-torch (https://github.com/google-ai-edge/litert-torch) in an interpreter of its
own. In fp16 artifacts, ai-edge-quantizer stores the weights in float16; inputs and outputs stay
float32.

In int8 artifacts, ai-edge-quantizer writes a file that computes in integers only, as integer NPUs
require: input and heads are int8, activations have one scale for each tensor, and weights one for
each output channel (https://ai.google.dev/edge/litert/conversion/tensorflow/quantization).
The ranges are those of :class:`y7edge.export.quantization.Quantizer`, because ai-edge-quantizer's
own are moving averages of the smallest and largest values, which cost more accuracy
(``docs/int8-litert.md``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from numpy.typing import NDArray

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Manifest, in_layout
from y7edge.errors import ConfigError, ExportError
from y7edge.export import converters
from y7edge.export.graph.build import build_graph
from y7edge.export.graph.quantize_placement import Wiring
from y7edge.export.quantization import Quantizer
from y7edge.export.targets.base import BuildRequest
from y7edge.models.checkpoint import Checkpoint
from y7edge.runtimes import tflite
from y7edge.runtimes.base import one_line

NAME = "litert"
SUFFIX = ".tflite"
NEEDS = {"torch": "y7edge[export]", **tflite.NEEDS}
PRECISIONS = {"fp32": "fp32", "fp16": "fp32", "int8": "fp32"}
INPUTS = ("float32",)
OUTPUTS = ("heads", "decoded")
BATCHES = ("1", "N")
RUNTIME = "tflite"
OPTIONS = {
    "heads": "in int8 artifacts: int8, or float for float32 outputs of float32 convolutions "
    "(default: int8)"
}
REWRITES: tuple[str, ...] = ()
NEEDS_CHECKPOINT = True
PROFILES: tuple[str, ...] = ()

_PACKAGES = ("litert-torch", "litert-converter", "ai-edge-quantizer", "torch")
_RECIPE = "python -m venv ENV && ENV/bin/pip install litert-torch==0.10.0 torch==2.13.0"
_SECONDS = 3600
_HEADS = ("int8", "float")
_PROFILE = "u8s8"  # one scale and zero point for each tensor, as in LiteRT's int8
_METHOD = "mse"  # docs/int8-litert.md compares the methods
_JOINING = {"Concat": "CONCATENATION", "Add": "ADD"}


def build(request: BuildRequest) -> Artifact:
    """Export the model with torch, and convert the program.

    Raises:
        ExportError: torch or litert-torch cannot convert the model.
        RuntimeMissing: there is no interpreter with litert-torch.
    """
    int8 = _check(request)
    python = _interpreter()
    converters.require_packages(python, _PACKAGES, _RECIPE)
    manifest = request.manifest
    with TemporaryDirectory(prefix=".y7edge-", dir=request.folder) as name:
        program, made = Path(name) / "model.pt2", Path(name) / "model.tflite"
        _export(cast(Checkpoint, request.checkpoint), manifest, program)
        script = Path(__file__).with_name("_litert_convert.py")
        command = [str(python), "-I", str(script), str(program), str(made), manifest.precision]
        if int8:
            ranges = Path(name) / "ranges.json"
            ranges.write_text(json.dumps(_calibrated(request)), "utf-8")
            command.append(str(ranges))
        converters.run(command, Path(name), "litert-torch", made, _SECONDS)
        made.rename(request.path)
    return Artifact(request.path, _described(request.path, manifest))


def _check(request: BuildRequest) -> bool:
    """Return whether the artifact is int8; raise ConfigError if something does not suit that."""
    int8, heads = request.manifest.precision == "int8", request.options.get("heads")
    if heads not in (None, *_HEADS):
        raise ConfigError(f"option heads is {heads[:32]!r}, expected {' or '.join(_HEADS)}")
    if heads is not None and not int8:
        raise ConfigError("option heads is for --precision int8: omit it")
    if int8 and request.images is None:
        raise ConfigError("int8 needs calibration images, which were not given: see --calib")
    if int8 and request.manifest.outputs[0].role != "head":
        raise ConfigError(
            "decoded outputs cannot be int8, because one scale cannot hold pixels of a whole image "
            "and of small boxes: use --outputs heads"
        )
    return int8


def _calibrated(request: BuildRequest) -> dict[str, list[Any]]:
    """Run the float model on the calibration images, and return the ranges for the converter.

    Returns:
        By operator of LiteRT, in the order of computation: for each convolution the shape of its
        weights (O, H, W, I), the ranges ``written`` of its output and ``activated`` behind its
        activation (None for heads), and whether it stays in ``float``; the range of the output of
        each concatenation and addition.
    """
    image, checkpoint = request.manifest.input, cast(Checkpoint, request.checkpoint)
    graph = build_graph(
        checkpoint,
        outputs="heads",
        precision="fp32",
        height=image.height,
        width=image.width,
        batch=1,
    )
    images = cast(Iterable[NDArray[Any]], request.images)
    quantizer = Quantizer(graph, images, _PROFILE, method=_METHOD, progress=request.progress)
    kept = quantizer.heads if request.options.get("heads") == "float" else frozenset()
    ranges, wiring = quantizer.ranges(()), Wiring(graph)
    weights = {tensor.name: tensor.dims for tensor in graph.graph.initializer}
    found: dict[str, list[Any]] = {"CONV_2D": [], "CONCATENATION": [], "ADD": []}
    for node in wiring.nodes:
        (written,) = node.output
        if node.op_type == "Conv":
            channels, inputs, *window = weights[node.input[1]]
            activation, behind = wiring.activation(node)
            found["CONV_2D"].append(
                {
                    "shape": [channels, *window, inputs],
                    "written": ranges[written],
                    "activated": ranges[behind] if activation else None,
                    "float": node.name in kept,
                }
            )
        elif node.op_type in _JOINING:
            found[_JOINING[node.op_type]].append(ranges[written])
    return found


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


def versions() -> dict[str, str]:
    """Return the versions of the converter's packages.

    Raises:
        RuntimeMissing: there is no interpreter with litert-torch.
    """
    return converters.require_packages(_interpreter(), _PACKAGES, _RECIPE)


def _interpreter() -> Path:
    return converters.find_interpreter(NAME, "litert_torch", _RECIPE)


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
