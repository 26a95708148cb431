"""Target ``intelnpu``: OpenVINO IR with static shapes for Intel's NPUs (Core Ultra).

The NPU computes in float16, and integers where a graph is quantised
(``_DOCUMENT``).
Its compiler is part of the driver; OpenVINO's package on PyPI has none, so compiling needs the
device. If OpenVINO finds an NPU, the model is compiled on it, otherwise only converted. Numbers are
proved with OpenVINO's CPU plugin. Compiled blobs are not handed over: OpenVINO does not guarantee
that another version reads them.

NNCF's table for the NPU demands one scale for the inputs of Add, Multiply and Maximum
(https://github.com/openvinotoolkit/nncf, ``hardware/setups/npu.py``). The profile ``u8s8-fused``
does not quantise the inputs of activations; graphs with a quantised Add are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from y7edge.artifact.artifact import Artifact
from y7edge.errors import ExportError
from y7edge.export import handover_folder
from y7edge.export.handover_folder import Guide, Step
from y7edge.export.targets import openvino_ir
from y7edge.export.targets.base import BuildRequest
from y7edge.runtimes import ov
from y7edge.runtimes.base import one_line

NAME = "intelnpu"
SUFFIX = ".intelnpu.handover"
NEEDS = ov.NEEDS
PRECISIONS = {"fp16": "fp16", "int8": "int8"}
PROFILES: tuple[str, ...] = ("u8s8-fused",)
INPUTS = ("float32", "uint8")
# Pixels in float16 have a step of 0.5 above 512, so boxes are not computed on the NPU.
OUTPUTS = ("heads", "heads-sigmoid")
BATCHES = ("1", "N")
RUNTIME = "handover"
OPTIONS: Mapping[str, str] = {}
REWRITES: tuple[str, ...] = ()
INT8_HEADS = False
CALIBRATES = False
NEEDS_CHECKPOINT = False

MODEL = "model.xml"

_DOCUMENT = (
    "https://docs.openvino.ai/2026/openvino-workflow/running-inference/"
    "inference-devices-and-modes/npu-device.html"
)

_JOINING = ("Add", "Mul", "Max")


def build(request: BuildRequest) -> Artifact:
    """Convert the graph, and compile it if OpenVINO finds an NPU.

    Raises:
        ExportError: OpenVINO cannot convert the graph, the NPU's compiler refuses it, or operators
            would need inputs of one scale.
    """
    if request.manifest.precision == "int8":
        _require_unified(request.model)
    folder = request.path
    folder.mkdir()
    openvino_ir.convert(request, folder / MODEL)
    compiled = _compiled(folder / MODEL)
    request.progress(compiled)
    described = replace(request, manifest=openvino_ir.described(request))
    return handover_folder.finish(described, _guide(compiled), MODEL)


def versions() -> dict[str, str]:
    """Return the version of the converter."""
    return ov.versions()


def _require_unified(path: Path) -> None:
    """Raise ExportError if an Add, Mul or Max reads quantised tensors of different scales."""
    import onnx

    from y7edge.export.graph.quantize_check import parse

    graph = parse(onnx.load(path))
    for node in graph.model.graph.node:
        found = {
            (float(numbers.scale), int(numbers.zero))
            for name in node.input
            if (numbers := graph.tensors.get(name)) is not None
        }
        if node.op_type in _JOINING and len(found) > 1:
            raise ExportError(
                f"{node.op_type} {node.name} reads tensors with {len(found)} scales, and the NPU "
                "needs one scale for all inputs: use precision fp16"
            )


def _compiled(model: Path) -> str:
    """Compile the model on an NPU, if there is one; return a sentence about the result."""
    core = ov.open_core()
    devices = list(core.available_devices)
    if not any(device.split(".")[0] == "NPU" for device in devices):
        return (
            f"not compiled: OpenVINO finds no NPU here, only {', '.join(devices) or 'no device'}, "
            "and the NPU's compiler is in the driver, which needs the device"
        )
    try:
        core.compile_model(str(model), "NPU")
    except Exception as error:  # OpenVINO has no common exception class
        raise ExportError(f"the NPU's compiler refuses the model: {one_line(error)}") from error
    name = core.get_property("NPU", "FULL_DEVICE_NAME")
    return f"compiled on {name} without an error; numbers of the NPU were not compared"


def _guide(compiled: str) -> Guide:
    """Return the README's sections."""
    measure = Step(
        "Compile and measure",
        "On a Core Ultra machine with the NPU's driver. The first run compiles; later runs read "
        "the compiled model from the cache.",
        ("pip install openvino", "benchmark_app -m model.xml -d NPU -hint latency -cdir cache"),
    )
    program = (
        "```python\n"
        "import openvino as ov\n\n"
        "core = ov.Core()\n"
        'core.set_property({"CACHE_DIR": "cache"})\n'
        'model = core.compile_model("model.xml", "NPU")\n'
        "```"
    )
    return Guide(
        title="Intel's NPU",
        steps=(measure,),
        files={"model.bin": "its weights"},
        not_run="the NPU.",
        sources=(_DOCUMENT, "https://github.com/intel/linux-npu-driver"),
        sections={
            "In Python": f"{program}\n\nDo not copy the cache to machines with another version of "
            "OpenVINO or of the driver. `y7edge export --target openvino` makes an artifact for "
            "the `Detector`, which `y7edge selftest --device npu` checks on the NPU.",
            "On the machine of the export": f"{compiled}.",
            "Limits": "The NPU computes in float16. Compare boxes with those of the CPU on your "
            "images: small values can be rounded to 0.",
        },
    )
