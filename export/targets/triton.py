"""Target ``triton``: a model repository for the Triton Inference Server.

The repository has one model, ``model.onnx`` in version folder 1, and its configuration
``config.pbtxt`` in the text format of protocol buffers
(https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html).
The server runs it with its ONNX Runtime backend. Clients pre-process images and decode the outputs
as the manifest says.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Dim, Manifest
from y7edge.export.targets.base import BuildRequest
from y7edge.runtimes import handover

NAME = "triton"
SUFFIX = ".triton.handover"
NEEDS: Mapping[str, str] = {}
PRECISIONS = {"fp32": "fp32", "fp16": "fp16", "int8": "int8"}
PROFILES: tuple[str, ...] = ("u8s8",)
INPUTS = ("float32", "uint8")
OUTPUTS = ("heads", "heads-sigmoid", "decoded")
BATCHES = ("1", "N", "dynamic")
RUNTIME = "handover"
OPTIONS = {
    "name": "Name of the model on the server; default: yolov7.",
    "max-batch": "Largest batch size, if the batch size is dynamic; default: 8.",
}
REWRITES: tuple[str, ...] = ()
INT8_HEADS = False
CALIBRATES = False
NEEDS_CHECKPOINT = False

_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8"}


def build(request: BuildRequest) -> Artifact:
    """Write the repository."""
    name = request.options.get("name", "yolov7")
    model = f"{name}/1/model.onnx"
    (request.path / name / "1").mkdir(parents=True)
    shutil.copyfile(request.model, request.path / model)
    config = _config(name, request.manifest, int(request.options.get("max-batch", "8")))
    (request.path / name / "config.pbtxt").write_text(config, "utf-8")
    handover.write_listing(request.path, model)
    return Artifact(request.path, request.manifest)


def versions() -> dict[str, str]:
    """Return an empty dict: the pipeline records the packages that write the graph."""
    return {}


def _config(name: str, manifest: Manifest, max_batch: int) -> str:
    image, dynamic = manifest.input, manifest.input.batch == "dynamic"
    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {max_batch if dynamic else 0}",
        *_tensor("input", image.name, image.dtype, image.shape, batched=dynamic),
    ]
    for output in manifest.outputs:
        lines += _tensor("output", output.name, output.dtype, output.shape, batched=dynamic)
    return "\n".join(lines) + "\n"


def _tensor(
    field: str, name: str, dtype: str, shape: tuple[Dim, ...], *, batched: bool
) -> list[str]:
    """Return a field of the configuration; the shape leaves out the batch size if ``batched``."""
    dims = ", ".join(str(size) for size in (shape[1:] if batched else shape))
    values = f'name: "{name}" data_type: {_TYPES[dtype]} dims: [ {dims} ]'
    return [f"{field} [", f"  {{ {values} }}", "]"]
