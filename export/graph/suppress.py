"""Write the selection of final boxes into the graph: threshold, NMS per class, best boxes.

The result equals that of ``y7edge.detect.postprocess`` and ``y7edge.boxes``, also for equal
scores. The class of a box is the one with the highest score (the first if scores are equal). A
score or an IoU that equals its threshold does not exceed it. Boxes with equal scores keep the order
of the candidates: level, anchor, row, column. Boxes of different classes are never compared. Their
coordinates are not shifted by class, because that fails for large inputs.

The candidates above ``conf`` are sorted once, with ``TopK``, which puts the lower index first if
scores are equal. From then on, the index of a box is its rank. ``NonMaxSuppression`` returns the
kept boxes ordered by class. Therefore the kept boxes are marked in a table (image, rank), and the
table is read row by row, which gives them in the order of their scores.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from y7edge.artifact.manifest import THRESHOLD_INPUTS, Thresholds
from y7edge.boxes import MAX_CANDIDATES
from y7edge.export.graph.decode import Decoded
from y7edge.export.graph.nodes import NodeWriter

DETECTIONS = "detections"
"""Name of the output."""


def write_thresholds(writer: NodeWriter, defaults: Thresholds) -> list[ValueInfoProto]:
    """Write the scalar inputs ``conf``, ``iou`` and ``max_det``.

    Each input also has an initializer, which is its default: the value if the caller does not feed
    it.
    """
    inputs = []
    for name, dtype in THRESHOLD_INPUTS.items():
        writer.scalar(name, getattr(defaults, name), dtype)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        inputs.append(helper.make_tensor_value_info(name, kind, []))
    return inputs


def write_detections(
    writer: NodeWriter, decoded: Decoded, count: int, nc: int, path: str
) -> ValueInfoProto:
    """Write NMS of decoded candidates; return the output ``detections`` (K, 7) float32.

    Each row has batch index, x0, y0, x1, y1, class id, score, with corners in pixels of the input.
    The rows are ordered by image, and within an image by descending score.

    Args:
        writer: the graph, with the inputs of ``write_thresholds``.
        decoded: boxes (B, N, 4) centre x, centre y, width, height, and scores (B, N, nc).
        count: N.
        nc: number of classes.
        path: prefix of node names.
    """
    node, constant = writer.node, writer.constant
    corners, class_id, score = _ranked(writer, decoded, count, path)
    zero, first = writer.scalar("nms/zero", 0.0, np.float32), constant("nms/1", [1], np.int64)
    every = constant("nms/classes", np.arange(nc)[None, :, None], np.int64)
    own = node(
        f"{path}/own/Equal", "Equal", [node(f"{path}/own", "Unsqueeze", [class_id, first]), every]
    )
    spread = node(f"{path}/spread", "Unsqueeze", [score, first])
    by_class = node(f"{path}/by_class", "Where", [own, spread, _none(writer)])
    inputs = [corners, by_class, "max_det", "iou", zero]
    selected = node(f"{path}/NonMaxSuppression", "NonMaxSuppression", inputs)

    # Mark the kept boxes in a table (image, rank), and keep the first max_det of each image.
    columns = constant("nms/image_and_box", [0, 2], np.int64)
    places = node(f"{path}/places", "Gather", [selected, columns], axis=1)
    images = writer.scalar("nms/image", 0, np.int64)
    ones = _filled(
        writer, f"{path}/ones", node(f"{path}/images", "Gather", [selected, images], axis=1), 1
    )
    table = _filled(writer, f"{path}/table", score, 0)
    marked = node(f"{path}/ScatterND", "ScatterND", [table, places, ones])
    number = node(f"{path}/CumSum", "CumSum", [marked, first])
    within = node(f"{path}/LessOrEqual", "LessOrEqual", [number, "max_det"])
    marked = writer.cast(f"{path}/marked", marked, np.bool_)
    final = node(f"{path}/final", "And", [marked, within])
    rows = node(
        f"{path}/rows", "Transpose", [node(f"{path}/NonZero", "NonZero", [final])], perm=[1, 0]
    )

    start, stop = constant("nms/0", [0], np.int64), first
    image = node(f"{path}/rows/image", "Slice", [rows, start, stop, first])
    fields = [
        writer.cast(f"{path}/rows/images", image, np.float32),
        node(f"{path}/rows/corners", "GatherND", [corners, rows]),
        writer.cast(f"{path}/rows/classes", _column(writer, class_id, rows, path), np.float32),
        _column(writer, score, rows, path),
    ]
    node(f"{path}/Concat", "Concat", fields, DETECTIONS, axis=1)
    return helper.make_tensor_value_info(DETECTIONS, TensorProto.FLOAT, ["rows", 7])


def _ranked(writer: NodeWriter, decoded: Decoded, count: int, path: str) -> tuple[str, str, str]:
    """Write the candidates above ``conf``, best first within each image.

    Returns corners (B, R, 4), class ids (B, R) int64 and scores (B, R); R is the largest number of
    candidates of an image, at most ``MAX_CANDIDATES``. If an image has fewer candidates, the unused
    places have score -1. A candidate whose score or box is NaN gets score -1 too.
    """
    node, constant, none = writer.node, writer.constant, _none(writer)
    best = node(f"{path}/best", "ReduceMax", [decoded.scores], axes=[2], keepdims=0)
    above = node(f"{path}/above", "Greater", [best, "conf"])
    best = node(f"{path}/best/above", "Where", [above, best, none])
    one = constant("nms/1", [1], np.int64)
    counts = node(
        f"{path}/counts", "ReduceSum", [writer.cast(f"{path}/above/Cast", above, np.int64), one]
    )
    most = node(f"{path}/most", "ReduceMax", [counts], axes=[0, 1], keepdims=0)
    most = node(f"{path}/most/Unsqueeze", "Unsqueeze", [most, constant("nms/0", [0], np.int64)])
    limit = constant("nms/limit", [min(count, MAX_CANDIDATES)], np.int64)
    limited = node(f"{path}/limited", "Min", [most, limit])
    places = node(f"{path}/count", "Max", [limited, one])  # TopK requires one place

    score, index = f"{path}/score", f"{path}/index"
    writer.nodes.append(
        helper.make_node(
            "TopK", [best, places], [score, index], name=f"{path}/TopK", axis=1, largest=1, sorted=1
        )
    )
    last = constant("nms/2", [2], np.int64)
    index = node(f"{path}/index/Unsqueeze", "Unsqueeze", [index, last])
    scores = node(f"{path}/scores", "GatherND", [decoded.scores, index], batch_dims=1)
    class_id = node(f"{path}/class_id", "ArgMax", [scores], axis=2, keepdims=0)
    boxes = node(f"{path}/boxes", "GatherND", [decoded.boxes, index], batch_dims=1)

    ends = [constant(f"nms/{value}", [value], np.int64) for value in (0, 2, 4)]
    centre = node(f"{path}/centre", "Slice", [boxes, ends[0], ends[1], last])
    size = node(f"{path}/size", "Slice", [boxes, ends[1], ends[2], last])
    half = node(f"{path}/half", "Mul", [size, constant("nms/half", 0.5, np.float32)])
    low = node(f"{path}/low", "Sub", [centre, half])
    high = node(f"{path}/high", "Add", [centre, half])
    corners = node(f"{path}/corners", "Concat", [low, high], axis=2)
    total = node(f"{path}/corners/Sum", "ReduceSum", [corners, last], keepdims=0)
    nan = node(f"{path}/IsNaN", "IsNaN", [total])
    return corners, class_id, node(f"{path}/score/finite", "Where", [nan, none, score])


def _none(writer: NodeWriter) -> str:
    """Write the score -1, which marks a place without a candidate."""
    return writer.constant("nms/none", -1.0, np.float32)


def _filled(writer: NodeWriter, name: str, like: str, value: int) -> str:
    """Write an int64 tensor of one value, with the shape of ``like``."""
    shape = writer.node(f"{name}/Shape", "Shape", [like])
    tensor = helper.make_tensor("value", TensorProto.INT64, [1], [value])
    return writer.node(name, "ConstantOfShape", [shape], value=tensor)


def _column(writer: NodeWriter, table: str, rows: str, path: str) -> str:
    """Write the values of ``table`` (B, R) at ``rows`` (K, 2) as a column (K, 1)."""
    name = f"{path}/rows/{table.removeprefix(path + '/')}"
    values = writer.node(f"{name}/GatherND", "GatherND", [table, rows])
    axis = writer.constant("nms/1", [1], np.int64)
    return writer.node(name, "Unsqueeze", [values, axis])
