"""Write the decoding of heads to boxes and scores into the graph.

With stride s, cell g, anchor a in pixels and o = sigmoid of the head:

    centre = (2 o - 0.5 + g) s = o 2s + (g - 0.5) s
    size   = (2 o)^2 a         = o^2 4a
    score  = objectness * class, or objectness for a single class

The right-hand forms need two operations each, and do not add rounding, because the factors are
powers of two. Decoding is always float32: float16 has no odd integers above 2048.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from y7edge.export.graph.nodes import NodeWriter
from y7edge.models.spec import Spec


class Decoded(NamedTuple):
    """Tensor names of one level, or of all levels: boxes (B, N, 4) and scores (B, N, nc)."""

    boxes: str
    scores: str


def decode_level(
    writer: NodeWriter, spec: Spec, level: int, head: str, map_size: tuple[int, int], path: str
) -> Decoded:
    """Decode one level's head (B, A * (5 + nc), H, W); boxes are in the order anchor, y, x.

    ``head`` has the writer's dtype; ``map_size`` is (H, W); ``path`` is the prefix of node names.
    Fields are sliced before the transposition, so that unused planes are not transposed.
    """
    height, width = map_size
    cells, anchors = height * width, len(spec.anchors[level])
    if writer.dtype != np.float32:
        head = writer.cast(f"{path}/Cast", head, np.float32)
    # 0 in a Reshape keeps the batch, static or dynamic.
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
    """Write a slice of fields ``start`` to ``stop`` of (B, A, 5 + nc, cells)."""
    bounds = [writer.constant(f"decode/{value}", [value], np.int64) for value in (start, stop)]
    axis = writer.constant("decode/2", [2], np.int64)
    return writer.node(f"{path}/Slice", "Slice", [planes, *bounds, axis])


def _to_rows(writer: NodeWriter, path: str, planes: str, count: int, width: int) -> str:
    """Write (B, A, width, cells) as (B, A * cells, width)."""
    last = writer.node(f"{path}/Transpose", "Transpose", [planes], perm=[0, 1, 3, 2])
    shape = writer.constant(f"{path}/shape", [0, count, width], np.int64)
    return writer.node(f"{path}/Reshape", "Reshape", [last, shape])


def join_levels(
    writer: NodeWriter, levels: list[Decoded], path: str, boxes: str, scores: str
) -> Decoded:
    """Concatenate the levels, finest first; name the results, "" as their nodes."""
    every_boxes, every_scores = zip(*levels, strict=True)
    return Decoded(
        writer.node(f"{path}/boxes/Concat", "Concat", every_boxes, boxes, axis=1),
        writer.node(f"{path}/scores/Concat", "Concat", every_scores, scores, axis=1),
    )
