"""Target ``openvino``: OpenVINO IR, a graph (.xml) and its weights (.bin)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Manifest
from y7edge.errors import ExportError
from y7edge.export.targets.base import BuildRequest
from y7edge.runtimes import ov
from y7edge.runtimes.base import one_line

NAME = "openvino"
SUFFIX = ".xml"
NEEDS = ov.NEEDS
PRECISIONS = {"fp32": "fp32", "fp16": "fp16", "bf16": "fp32", "int8": "int8"}
# OpenVINO 2026.4 computes convolutions wrongly that read a concatenation of signed tensors.
PROFILES: tuple[str, ...] = ("u8s8-fused", "u8s8")
INPUTS = ("float32", "uint8")
OUTPUTS = ("heads", "heads-sigmoid", "decoded")
BATCHES = ("1", "N", "dynamic")
RUNTIME = "ov"
OPTIONS: Mapping[str, str] = {}
REWRITES: tuple[str, ...] = ()
INT8_HEADS = False
CALIBRATES = False
NEEDS_CHECKPOINT = False


def build(request: BuildRequest) -> Artifact:
    """Convert the ONNX graph to OpenVINO IR, in the precision of the graph's tensors.

    Raises:
        ExportError: OpenVINO cannot read the graph or write the files.
    """
    weights = convert(request, request.path)
    return Artifact(request.path, described(request), (weights,))


def described(request: BuildRequest) -> Manifest:
    """Return the manifest of the IR, which has no opset of ONNX."""
    return replace(request.manifest, opset=None)


def convert(request: BuildRequest, path: Path) -> Path:
    """Write the graph as IR to ``path`` (.xml), and its weights beside it; return their path.

    Raises:
        ExportError: OpenVINO cannot read the graph or write the files.
    """
    engine = ov.load_engine()
    main, weights = ov.files(path)
    try:
        model = ov.open_core().read_model(str(request.model))
        for key in list(model.rt_info):  # metadata of the ONNX file, such as its manifest
            del model.rt_info[key]
        model.set_friendly_name(request.manifest.model)
        # OpenVINO numbers unnamed nodes differently in each process: name them reproducibly.
        for index, node in enumerate(model.get_ordered_ops()):
            if node.get_friendly_name() == node.get_name():
                node.set_friendly_name(f"{node.get_type_name()}_{index}")
        # By default, weights would be converted to float16.
        engine.save_model(model, str(main), compress_to_fp16=False)
    except Exception as error:  # OpenVINO has no common exception class
        raise ExportError(f"OpenVINO cannot convert the graph: {one_line(error)}") from error
    return weights


def versions() -> dict[str, str]:
    """Return the version of the converter."""
    return ov.versions()
