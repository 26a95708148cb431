"""Convert an exported torch program to an ML program with coremltools.

The target ``coreml`` runs this file as a separate program, in the interpreter that has coremltools.
The file does not import y7edge, because y7edge need not be installed there.

    python -I _coreml_convert.py PROGRAM.pt2 OUT.mlpackage SETTINGS.json

SETTINGS.json has ``precision`` (fp16 or fp32), ``image`` (whether the input is an image), ``input``
(its name), ``shape`` (1, 3, height, width), ``outputs`` (their names), ``description``, ``licence``
and ``metadata`` (texts by key).
"""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path
from typing import Any

# Core ML's items of a package; other files are notes of the converter.
_SPEC = "com.apple.CoreML/model.mlmodel"
_WEIGHTS = "com.apple.CoreML/weights"
_SPACE = uuid.UUID("2f9f3a52-1d0c-5a4e-9c58-0f6d5f3a7b10")  # of the identifiers in manifests


def convert(program: str, out: Path, settings: dict[str, Any]) -> None:
    """Write the package. The same program and settings give the same bytes."""
    import coremltools as ct
    import numpy as np
    import torch

    exported = torch.export.load(program).run_decompositions({})
    shape = tuple(settings["shape"])
    if settings["image"]:
        rgb = ct.colorlayout.RGB
        image: Any = ct.ImageType(
            name=settings["input"], shape=shape, scale=1 / 255, color_layout=rgb
        )
    else:
        image = ct.TensorType(name=settings["input"], shape=shape, dtype=np.float32)
    half = settings["precision"] == "fp16"
    model = ct.convert(
        exported,
        inputs=[image],
        # Names of outputs; in fp16 the last operation converts them to float32.
        outputs=[ct.TensorType(name=name, dtype=np.float32) for name in settings["outputs"]],
        convert_to="mlprogram",
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        minimum_deployment_target=ct.target.iOS16,
        skip_model_load=True,
    )
    model.save(str(out))
    spec = ct.utils.load_spec(str(out))
    described = spec.description.metadata
    described.Clear()  # among others the date
    described.shortDescription = settings["description"]
    described.license = settings["licence"]
    for key, value in settings["metadata"].items():
        described.userDefined[key] = value
    rewrite(out, spec.SerializeToString(deterministic=True))


def rewrite(package: Path, spec: bytes) -> None:
    """Write the specification, identifiers that depend on names only, and nothing else."""
    (package / "Data" / _SPEC).write_bytes(spec)
    (package / "Data" / _SPEC).chmod(0o644)
    for path in package.iterdir():
        if path.name not in ("Data", "Manifest.json"):
            path.unlink()
    texts = {_SPEC: "CoreML Model Specification", _WEIGHTS: "CoreML Model Weights"}
    entries = {
        str(uuid.uuid5(_SPACE, path)): {
            "author": "com.apple.CoreML",
            "description": text,
            "name": path.rpartition("/")[2],
            "path": path,
        }
        for path, text in texts.items()
    }
    listing = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": str(uuid.uuid5(_SPACE, _SPEC)),
    }
    (package / "Manifest.json").write_text(json.dumps(listing, indent=4) + "\n", "utf-8")


def main(arguments: list[str]) -> int:
    """Convert the file that the arguments name."""
    program, out, settings = arguments
    convert(program, Path(out), json.loads(Path(settings).read_text("utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
