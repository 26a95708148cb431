"""Write ONNX nodes that decode heads to boxes and scores.

Let s be the stride, g the index of the cell, a the anchor in pixels, and o the sigmoid of the head:

    centre = (2 o - 0.5 + g) s = o 2s + (g - 0.5) s
    size   = (2 o)^2 a         = o^2 4a
    score  = objectness * class, or objectness for a single class

The graph computes the right-hand sides, which need two operations each. They add no rounding
errors, because multiplying by powers of two is exact. Decoding is always in float32, because
float16 cannot represent odd coordinates above 2048.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from y7edge.export.graph.nodes import NodeWriter
from y7edge.models.spec import Spec


class Decoded(NamedTuple):
    """Names of two tensors: boxes (B, N, 4) and scores (B, N, nc)."""

    boxes: str
    scores: str


def decode_level(
    writer: NodeWriter, spec: Spec, level: int, head: str, map_size: tuple[int, int], path: str
) -> Decoded:
    """Decode the head of one level; boxes are in the order anchor, y, x.

    The fields (x, y, w, h, objectness, classes) are sliced before the transposition, so that unused
    planes are not transposed.

    Args:
        writer: collects the nodes.
        spec: the model.
        level: index of the level.
        head: name of the head's tensor, (B, A * (5 + nc), H, W) in the writer's dtype.
        map_size: (H, W).
        path: prefix of the new nodes' names.
    """
    height, width = map_size
    cells, anchors = height * width, len(spec.anchors[level])
    if writer.dtype != np.float32:
        head = writer.cast(f"{path}/Cast", head, np.float32)
    # In a Reshape, 0 means to keep the dimension: here the batch, which may be dynamic.
    fields = [0, anchors, spec.outputs_per_anchor, cells]
    shape = writer.constant(f"{path}/fields", fields, np.int64)
    planes = writer.node(f"{path}/Reshape", "Reshape", [head, shape])
    activated = writer.node(f"{path}/Sigmoid", "Sigmoid", [planes])
    boxes = _boxes(writer, spec, level, activated, map_size, path)
    objectness = _cut(writer, f"{path}/objectness", activated, 4, 5)
    scores = objectness
    if spec.nc > 1:
        classes = _cut(writer, f"{path}/classes", activated, 5, spec.outputs_per_anchor)
        scores = writer.node(f"{path}/scores/Mul", "Mul", [objectness, classes])
    return Decoded(
        _to_rows(writer, f"{path}/boxes", boxes, anchors * cells, 4),
        _to_rows(writer, f"{path}/scores", scores, anchors * cells, spec.nc),
    )


def _boxes(
    writer: NodeWriter, spec: Spec, level: int, planes: str, map_size: tuple[int, int], path: str
) -> str:
    """Write centres and sizes in pixels, as planes (B, A, 4, H * W)."""
    stride = spec.strides[level]
    rows, columns = np.indices(map_size).reshape(2, 1, 1, -1)
    corner = (np.stack([columns, rows], axis=2) - 0.5) * stride
    anchors = np.asarray(spec.anchors[level], np.float64)[None, :, :, None]

    xy = _cut(writer, f"{path}/xy", planes, 0, 2)
    step = writer.constant(f"{path}/xy/step", 2.0 * stride, np.float32)
    offset = writer.constant(f"{path}/xy/offset", corner, np.float32)
    scaled = writer.node(f"{path}/xy/Mul", "Mul", [xy, step])
    centre = writer.node(f"{path}/xy/Add", "Add", [scaled, offset])

    wh = _cut(writer, f"{path}/wh", planes, 2, 4)
    squared = writer.node(f"{path}/wh/Square", "Mul", [wh, wh])
    largest = writer.constant(f"{path}/wh/largest", 4.0 * anchors, np.float32)
    size = writer.node(f"{path}/wh/Mul", "Mul", [squared, largest])
    return writer.node(f"{path}/boxes/Concat", "Concat", [centre, size], axis=2)


def _cut(writer: NodeWriter, path: str, planes: str, start: int, stop: int) -> str:
    """Write a slice of the fields ``start`` to ``stop`` of ``planes`` (B, A, 5 + nc, cells)."""
    bounds = [writer.constant(f"decode/{value}", [value], np.int64) for value in (start, stop)]
    axis = writer.constant("decode/2", [2], np.int64)
    return writer.node(f"{path}/Slice", "Slice", [planes, *bounds, axis])


def _to_rows(writer: NodeWriter, path: str, planes: str, count: int, width: int) -> str:
    """Write the conversion of (B, A, width, cells) to (B, A * cells, width)."""
    last = writer.node(f"{path}/Transpose", "Transpose", [planes], perm=[0, 1, 3, 2])
    shape = writer.constant(f"{path}/shape", [0, count, width], np.int64)
    return writer.node(f"{path}/Reshape", "Reshape", [last, shape])


def join_levels(
    writer: NodeWriter, levels: list[Decoded], path: str, boxes: str, scores: str
) -> Decoded:
    """Concatenate the levels, finest first.

    ``boxes`` and ``scores`` are the names of the results; "": the names of their nodes.
    """
    every_boxes, every_scores = zip(*levels, strict=True)
    return Decoded(
        writer.node(f"{path}/boxes/Concat", "Concat", every_boxes, boxes, axis=1),
        writer.node(f"{path}/scores/Concat", "Concat", every_scores, scores, axis=1),
    )
