"""Target ``litert``: one .tflite file for LiteRT, with channels last.

The folded model is built as a torch module from its rows, exported with ``torch.export``, and
converted by litert-torch (https://github.com/google-ai-edge/litert-torch) in an interpreter of its
own. In fp16 artifacts, ai-edge-quantizer stores the weights in float16; inputs and outputs stay
float32.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Manifest, in_layout
from y7edge.errors import ExportError
from y7edge.export import converters
from y7edge.export.targets.base import BuildRequest
from y7edge.models.checkpoint import Checkpoint
from y7edge.runtimes import tflite
from y7edge.runtimes.base import one_line

NAME = "litert"
SUFFIX = ".tflite"
NEEDS = {"torch": "y7edge[export]", **tflite.NEEDS}
PRECISIONS = {"fp32": "fp32", "fp16": "fp32"}
PROFILES: tuple[str, ...] = ()
INPUTS = ("float32",)
OUTPUTS = ("heads", "decoded")
BATCHES = ("1", "N")
RUNTIME = "tflite"
OPTIONS: dict[str, str] = {}
REWRITES: tuple[str, ...] = ()
NEEDS_CHECKPOINT = True

_PACKAGES = ("litert-torch", "litert-converter", "ai-edge-quantizer", "torch")
_RECIPE = "python -m venv ENV && ENV/bin/pip install litert-torch==0.10.0 torch==2.13.0"
_SECONDS = 3600


def build(request: BuildRequest) -> Artifact:
    """Export the model with torch, and convert the program.

    Raises:
        ExportError: torch or litert-torch cannot convert the model.
        RuntimeMissing: there is no interpreter with litert-torch.
    """
    python = _interpreter()
    converters.require_packages(python, _PACKAGES, _RECIPE)
    manifest = request.manifest
    with TemporaryDirectory(prefix=".y7edge-", dir=request.folder) as name:
        program, made = Path(name) / "model.pt2", Path(name) / "model.tflite"
        _export(cast(Checkpoint, request.checkpoint), manifest, program)
        script = Path(__file__).with_name("_litert_convert.py")
        command = [str(python), "-I", str(script), str(program), str(made), manifest.precision]
        converters.run(command, Path(name), "litert-torch", made, _SECONDS)
        made.rename(request.path)
    outputs = tuple(
        replace(output, layout="NHWC", shape=in_layout(output.shape, "NHWC"), dtype="float32")
        if output.role == "head"
        else output
        for output in manifest.outputs
    )
    described = replace(
        manifest, input=replace(manifest.input, layout="NHWC"), outputs=outputs, opset=None
    )
    return Artifact(request.path, described)


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
