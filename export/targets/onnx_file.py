"""Target ``onnx``: the graph as one .onnx file."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from y7edge.artifact.artifact import Artifact
from y7edge.export.targets.base import BuildRequest

NAME = "onnx"
SUFFIX = ".onnx"
NEEDS: Mapping[str, str] = {}
PRECISIONS = {"fp32": "fp32", "fp16": "fp16", "int8": "int8"}
PROFILES: tuple[str, ...] = ("u8s8", "u8s8-fused", "s8s8", "u16s8")
INPUTS = ("float32", "uint8")
OUTPUTS = ("heads", "heads-sigmoid", "decoded", "nms")
BATCHES = ("1", "N", "dynamic")
RUNTIME = "onnxrt"
OPTIONS: Mapping[str, str] = {}
REWRITES: tuple[str, ...] = ()
INT8_HEADS = False
CALIBRATES = False
NEEDS_CHECKPOINT = False


def build(request: BuildRequest) -> Artifact:
    """Copy the ONNX file."""
    shutil.copyfile(request.model, request.path)
    return Artifact(request.path, request.manifest)


def versions() -> dict[str, str]:
    """Return an empty dict: the pipeline records the packages that write the graph."""
    return {}
