"""Target ``triton``: a model repository for the Triton Inference Server.

The repository has one model, ``model.onnx`` in version folder 1, and its configuration
``config.pbtxt`` in the text format of protocol buffers
(https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html,
message ``ModelConfig`` of https://github.com/triton-inference-server/common). The server runs it
with its ONNX Runtime backend. Clients pre-process images and decode the outputs as the manifest
says. TensorRT engines are not packed, because they run only on the GPU that built them: build the
engine there with target ``tensorrt``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from y7edge.artifact import bounds
from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Dim, Manifest
from y7edge.errors import ConfigError
from y7edge.export import handover_folder
from y7edge.export.handover_folder import Guide, Step
from y7edge.export.targets.base import BuildRequest

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
    "device": "Where the server runs it: auto, cpu or gpu; default: auto.",
    "instances": "Number of instances on each device; default: 1.",
    "max-batch": "Largest batch size, if the batch size is dynamic; default: 8.",
    "queue-delay": "Longest wait for a batch in microseconds, if the batch size is dynamic; "
    "without it, the server does not join requests.",
}
REWRITES: tuple[str, ...] = ()
INT8_HEADS = False
CALIBRATES = False
NEEDS_CHECKPOINT = False

REPOSITORY = "models"

_DEFAULT = "yolov7"
_SCRIPT = Path(__file__).with_name("_triton_client.py")
_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}
_DYNAMIC = ("max-batch", "queue-delay")


def require_fit(manifest: Manifest, options: Mapping[str, str]) -> None:
    """Raise ConfigError if an option has an invalid value, or needs a dynamic batch size."""
    name = options.get("name", _DEFAULT)
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"option name is {name[:64]!r}, expected at most 64 letters, digits and ._- that begin "
            "with a letter or digit"
        )
    if manifest.input.batch != "dynamic":
        for option in _DYNAMIC:
            if option in options:
                raise ConfigError(f"option {option} needs a dynamic batch size: pass --dynamic")
    _config(name, manifest, options)


def build(request: BuildRequest) -> Artifact:
    """Write the repository.

    Raises:
        ConfigError: an option has an invalid value, or needs a dynamic batch size.
    """
    require_fit(request.manifest, request.options)
    name = request.options.get("name", _DEFAULT)
    config = "\n".join(_config(name, request.manifest, request.options)) + "\n"
    model = f"{REPOSITORY}/{name}/1/{handover_folder.MODEL}"
    handover_folder.start(request, model)
    handover_folder.write(request.path / REPOSITORY / name / "config.pbtxt", config)
    handover_folder.copy_script(_SCRIPT, request.path / "client.py")
    return handover_folder.finish(request, _guide(name), model)


def versions() -> dict[str, str]:
    """Return an empty dict: the pipeline records the packages that write the graph."""
    return {}


def _config(name: str, manifest: Manifest, options: Mapping[str, str]) -> list[str]:
    """Return the lines of ``config.pbtxt``."""
    image, dynamic = manifest.input, manifest.input.batch == "dynamic"
    largest = handover_folder.whole(options, "max-batch", 8, bounds.MAX_BATCH)
    kind = _KINDS[handover_folder.choice(options, "device", _KINDS, "auto")]
    count = handover_folder.whole(options, "instances", 1, 64)
    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        # 0: the dimensions below contain the batch size.
        f"max_batch_size: {largest if dynamic else 0}",
        *_tensor("input", image.name, image.dtype, image.shape, batched=dynamic),
    ]
    for output in manifest.outputs:
        lines += _tensor("output", output.name, output.dtype, output.shape, batched=dynamic)
    lines += ["instance_group [", f"  {{ kind: {kind} count: {count} }}", "]"]
    if "queue-delay" in options:
        delay = handover_folder.whole(options, "queue-delay", 1, 10_000_000)
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {delay} }}")
    return lines


def _tensor(
    field: str, name: str, dtype: str, shape: tuple[Dim, ...], *, batched: bool
) -> list[str]:
    """Return a field of the configuration; the shape leaves out the batch size if ``batched``."""
    dims = ", ".join(str(size) for size in (shape[1:] if batched else shape))
    name = handover_folder.word(name)
    values = f'name: "{name}" data_type: {_TYPES[dtype]} dims: [ {dims} ]'
    return [f"{field} [", f"  {{ {values} }}", "]"]


def _guide(name: str) -> Guide:
    return Guide(
        title="the Triton Inference Server",
        heading="Serve",
        files={
            f"{REPOSITORY}/{name}/config.pbtxt": "the model's configuration on the server",
            "client.py": "sends an image, and prints the detections",
        },
        steps=[
            Step(
                "Start the server",
                f"`{REPOSITORY}/` is the model repository. Choose a release of the image (with a "
                "GPU, add `--gpus all`):",
                (
                    f'docker run --rm -p 8000:8000 -v "$PWD/{REPOSITORY}":/models:ro \\',
                    "    nvcr.io/nvidia/tritonserver:25.08-py3 \\",
                    "    tritonserver --model-repository=/models",
                ),
            ),
            Step(
                "Check that the model is ready",
                "",
                (f"curl --fail http://localhost:8000/v2/models/{name}/ready",),
            ),
            Step(
                "Send an image",
                "",
                ("pip install 'tritonclient[http]'", "python client.py IMAGE"),
            ),
        ],
        not_run="The server.",
        sources=(
            "https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/"
            "user_guide/model_configuration.html",
            "https://github.com/triton-inference-server/common: `protobuf/model_config.proto`",
            "https://github.com/triton-inference-server/onnxruntime_backend",
        ),
    )
