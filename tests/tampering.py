"""Copies of artifacts with one thing changed."""

from __future__ import annotations

from dataclasses import replace

import onnx
from onnx import numpy_helper

from y7edge.artifact.artifact import Artifact
from y7edge.runtimes import onnxrt


def convolutions_of(path):
    """Names of the weight tensors of all convolutions."""
    return [n.input[1] for n in onnx.load(path).graph.node if n.op_type == "Conv"]


def scale_weight(source, destination, name, factor=1.1, *, seal=False):
    """One tensor scaled; ``seal`` makes the payload digest fit again."""
    model = onnx.load(source)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((values * factor).astype(values.dtype), name))
    destination.write_bytes(model.SerializeToString())
    if seal:
        manifest = onnxrt.read_manifest(destination)
        digest = onnxrt.payload_digest((destination,))
        onnxrt.write_manifest(Artifact(destination, replace(manifest, payload_digest=digest)))
    return destination


def flip(source, destination, position, mask=0x10):
    """One byte changed."""
    raw = bytearray(source.read_bytes())
    raw[position] ^= mask
    destination.write_bytes(raw)
    return destination


def rewrite(source, destination, **changes):
    """Another manifest, its own digest fitting: as only who made the file should do."""
    destination.write_bytes(source.read_bytes())
    manifest = replace(onnxrt.read_manifest(source), **changes)
    onnxrt.write_manifest(Artifact(destination, manifest))
    return destination
