"""Target ``coreml``: an ML program in a .mlpackage folder, for Core ML on Apple's devices.

The folded model is built as a torch module from its rows, exported with ``torch.export``, and
converted by coremltools in an interpreter of its own
(https://apple.github.io/coremltools/docs-guides/source/convert-pytorch-workflow.html). It runs on
macOS 13, iOS 16 and later. Input "uint8" is an image (``ImageType``, RGB, scaled by 1/255 in the
program), which an app passes as a pixel buffer, without a conversion of its own; its probes have
8-bit values, so that a self-test feeds exactly the pixels of the reference. Input "float32" is an
array (1, 3, H, W).

Outputs are heads in float32. Boxes are not offered: in float16, pixel coordinates above 512 are
multiples of 0.5. In fp16, all operations and weights are float16, which the Neural Engine requires.

Core ML exists on macOS only. There an export is proved like that of any other target; elsewhere the
artifact gets probes, and `y7edge selftest` on a Mac completes the proof.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from y7edge import interpreters
from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Manifest
from y7edge.errors import ExportError
from y7edge.export import converters
from y7edge.export.targets.base import BuildRequest, Unprovable
from y7edge.models.checkpoint import Checkpoint
from y7edge.runtimes import _modelproto, coreml
from y7edge.runtimes.base import one_line

NAME = "coreml"
SUFFIX = ".mlpackage"
NEEDS = {"torch": "y7edge[export]"}
PRECISIONS = {"fp16": "fp32", "fp32": "fp32"}
PROFILES: tuple[str, ...] = ()
INPUTS = ("uint8", "float32")
OUTPUTS = ("heads", "heads-sigmoid")
BATCHES = ("1",)
RUNTIME: str | Unprovable = (
    "coreml" if coreml.on_macos() else Unprovable("Core ML runs on macOS only", "coreml")
)
OPTIONS: dict[str, str] = {}
REWRITES: tuple[str, ...] = ()
INT8_HEADS = False
CALIBRATES = False
NEEDS_CHECKPOINT = True

_PACKAGES = ("coremltools>=9.0", "torch")
_RECIPE = "python -m venv ENV && ENV/bin/pip install coremltools==9.0 torch==2.13.0"
_SECONDS = 3600
_SPEC = "com.apple.CoreML/model.mlmodel"
_WEIGHTS = "com.apple.CoreML/weights/weight.bin"


def build(request: BuildRequest) -> Artifact:
    """Export the model with torch, and convert the program.

    Raises:
        ExportError: torch or coremltools cannot convert the model.
        RuntimeMissing: there is no interpreter with coremltools.
    """
    python = _interpreter()
    interpreters.require_packages(python, _PACKAGES, _RECIPE)
    manifest, checkpoint = request.manifest, cast(Checkpoint, request.checkpoint)
    with TemporaryDirectory(prefix=".y7edge-", dir=request.folder) as name:
        folder = Path(name)
        program, settings = folder / "model.pt2", folder / "settings.json"
        made = folder / "model.mlpackage"
        _export(checkpoint, manifest, program)
        settings.write_text(json.dumps(_settings(manifest)), "utf-8")
        script = Path(__file__).with_name("_coreml_convert.py")
        command = [str(python), "-I", *map(str, (script, program, made, settings))]
        converters.run(command, folder, "coremltools", made / "Manifest.json", _SECONDS)
        _require_whole(made, manifest)
        made.rename(request.path)
    return Artifact(request.path, replace(manifest, opset=None))


def versions() -> dict[str, str]:
    """Return the versions of the converter's packages.

    Raises:
        RuntimeMissing: there is no interpreter with coremltools.
    """
    return interpreters.require_packages(_interpreter(), _PACKAGES, _RECIPE)


def _interpreter() -> Path:
    return interpreters.find_interpreter(NAME, "coremltools", _RECIPE)


def _settings(manifest: Manifest) -> dict[str, Any]:
    """Return the settings of the conversion, with what an app needs to decode the heads."""
    image = manifest.input
    levels = [{"stride": level.stride, "anchors": level.anchors} for level in manifest.levels]
    thresholds = manifest.thresholds
    return {
        "precision": manifest.precision,
        "image": image.dtype == "uint8",
        "input": image.name,
        "shape": (1, 3, image.height, image.width),
        "outputs": [output.name for output in manifest.outputs],
        "description": f"{manifest.model}, {manifest.nc} classes",
        "licence": manifest.licence or "",
        "metadata": {
            "y7edge.checkpoint": manifest.source.digest,
            "y7edge.names": json.dumps(manifest.names, ensure_ascii=False),
            "y7edge.levels": json.dumps(levels),
            "y7edge.activation": str(manifest.outputs[0].activation),
            "y7edge.letterbox": str(image.letterbox.pad),
            "y7edge.thresholds": json.dumps({"conf": thresholds.conf, "iou": thresholds.iou}),
        },
    }


def _require_whole(package: Path, manifest: Manifest) -> None:
    """Raise ExportError if a part of the specification or of the weights is missing.

    Without Core ML, no engine would notice. Small tensors are in the specification.
    """
    least = manifest.source.parameters * (2 if manifest.precision == "fp16" else 4) * 9 // 10
    for path, expected in ((_SPEC, 1), (_WEIGHTS, least)):
        file = package / "Data" / path
        found = file.stat().st_size if file.is_file() else 0
        if found < expected:
            raise ExportError(
                f"coremltools wrote {found} bytes of {file.name}, expected at least {expected}: is "
                "the disk full?"
            )
    if not _modelproto.is_message(package / "Data" / _SPEC):
        raise ExportError("coremltools wrote a broken model.mlmodel: is the disk full?")


def _export(checkpoint: Checkpoint, manifest: Manifest, path: Path) -> None:
    """Write the program that the converter reads."""
    import torch
    from torch import Tensor, nn

    from y7edge.nn import from_checkpoint

    model = from_checkpoint(checkpoint).eval()
    sigmoid = manifest.outputs[0].activation == "sigmoid"

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            heads = self.model.heads(images)
            return tuple(head.sigmoid() if sigmoid else head for head in heads)

    image = manifest.input
    example = torch.zeros(1, 3, image.height, image.width)
    try:
        with torch.no_grad():
            program = torch.export.export(Heads().eval(), (example,))
        torch.export.save(program, path)
    except Exception as error:  # torch has no common exception class
        raise ExportError(f"torch cannot export the model: {one_line(error)}") from error
