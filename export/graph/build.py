"""Write a folded checkpoint as an ONNX graph, node by node, without tracing.

Node ``/row51/cv1/Conv`` is the convolution of member ``cv1`` of row 51. Its weights are the
initializers ``rows.51.cv1.conv.weight`` and ``.bias``. The output of row 51 is the tensor
``/row51``. The same checkpoint and the same package versions give the same bytes.

* SiLU is written as ``Mul(x, Sigmoid(x))``, which every engine fuses.
* Space-to-depth is written as four strided ``Slice`` nodes and a ``Concat``. The ONNX operator
  ``SpaceToDepth`` has another channel order, would need a ``Gather``, and is not faster.
* Max-pooling with windows of 9 and 13 is written as repeated pooling with a window of 5. The
  results are bitwise equal, and the repeated pooling is 2.8 times as fast.

``y7edge.export.graph.rewrites`` writes some blocks with other operators.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, get_args

import numpy as np
import onnx
from onnx import TensorProto, helper

from y7edge import __version__
from y7edge.artifact.description import INPUT, Input, Outputs
from y7edge.artifact.manifest import Thresholds
from y7edge.errors import ExportError
from y7edge.export.graph import rewrites as exact
from y7edge.export.graph.decode import Decoded, decode_level, join_levels
from y7edge.export.graph.nodes import NodeWriter, StructureWriter
from y7edge.export.graph.suppress import write_detections, write_thresholds
from y7edge.models.shapes import POOLS, weight_shapes
from y7edge.models.spec import IMAGE, LEAKY_SLOPE, Row, Spec
from y7edge.models.weights import Checkpoint, default_names

OPSET = 17
IR_VERSION = 8  # supported since 2022; newer onnx packages default to a newer version
DTYPES: dict[str, np.dtype[Any]] = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16)}


def build_graph(
    checkpoint: Checkpoint,
    *,
    outputs: str = "heads",
    input: str = "float32",
    precision: str = "fp32",
    height: int,
    width: int,
    batch: int | None = 1,
    rewrites: Collection[str] = (),
) -> onnx.ModelProto:
    """Write a folded checkpoint as an ONNX model.

    The tensor ``images`` is the input. By default it is float32 (B, 3, height, width), RGB, 0 to 1,
    even in an fp16 graph. With ``input="uint8"``, it is uint8 (B, height, width, 3), RGB, 0 to 255.

    The outputs "heads" are ``head0``, ``head1``..., finest level first: logits (B, A * (5 + nc), H,
    W) in the graph's precision, for A anchors. The outputs "heads-sigmoid" are their sigmoids.

    The outputs "decoded" are always float32. ``boxes`` (B, N, 4) has centre x, centre y, width and
    height in pixels. ``scores`` (B, N, nc) has objectness times class probability, or only the
    objectness for a single class. The N boxes are ordered by level, anchor, y and x.

    The output "nms" is ``detections`` (K, 7) float32: batch index, x0, y0, x1, y1 in pixels, class
    id, score. The rows are ordered by image, and within an image by descending score. The
    thresholds are scalar inputs of the graph, ``conf``, ``iou`` and ``max_det``; they have
    defaults, so feeding them is optional.

    Args:
        checkpoint: a checkpoint of form "folded".
        outputs: "heads", "heads-sigmoid", "decoded" or "nms".
        input: "float32" or "uint8".
        precision: precision of weights and activations, "fp32" or "fp16".
        height: height of the input in pixels, a multiple of the largest stride.
        width: width of the input in pixels, a multiple of the largest stride.
        batch: batch size; None: dynamic.
        rewrites: names of rewrites that apply to the model (``rewrites.choose``).

    Raises:
        ExportError: the checkpoint is not folded, an option is unknown, or a weight is not finite
            in this precision.
    """
    spec = checkpoint.spec
    if spec.form != "folded":
        raise ExportError(
            f"{spec.name} has form {spec.form!r}, expected 'folded': call fold_checkpoint first"
        )
    for value, known in (
        (outputs, get_args(Outputs)),
        (input, get_args(Input)),
        (precision, tuple(DTYPES)),
        *((name, tuple(exact.REWRITES)) for name in rewrites),
    ):
        if value not in known:
            raise ExportError(f"unknown option {value!r}, expected {' or '.join(known)}")
    graph = _GraphWriter(checkpoint, NodeWriter(DTYPES[precision]), rewrites)
    model = _write(graph, outputs, input, height, width, batch)
    _check_model(model, spec)
    return model


def build_structure(
    spec: Spec,
    *,
    outputs: str = "heads",
    height: int,
    width: int,
    rewrites: Collection[str] = (),
) -> onnx.ModelProto:
    """Write the graph of a folded model without the values of its weights.

    Nodes, shapes and constants are those of ``build_graph``; the weights are declared as
    external data that does not exist. It takes little time and memory, even for large models.

    Args:
        spec: a spec of form "folded".
        outputs: "heads", "heads-sigmoid", "decoded" or "nms".
        height: height of the input in pixels, a multiple of the largest stride.
        width: width of the input in pixels, a multiple of the largest stride.
        rewrites: names of rewrites that apply to the model (``rewrites.choose``).
    """
    zero = np.float32(0)  # arrays of one value with all strides zero
    arrays = {key: np.broadcast_to(zero, shape) for key, shape in weight_shapes(spec).items()}
    checkpoint = Checkpoint(spec, arrays, default_names(spec.nc))
    graph = _GraphWriter(checkpoint, StructureWriter(np.float32), rewrites)
    return _write(graph, outputs, "float32", height, width, 1)


def _write(
    graph: _GraphWriter, outputs: str, input: str, height: int, width: int, batch: int | None
) -> onnx.ModelProto:
    """Write input, rows and outputs of a graph; see ``build_graph``."""
    spec = graph.spec
    symbol = "batch" if batch is None else batch
    images = graph.write_image(input, symbol, (height, width))
    graph.write_body()
    sizes = [(height // stride, width // stride) for stride in spec.strides]
    thresholds: list[onnx.ValueInfoProto] = []
    if outputs == "decoded":
        results = graph.write_decoded(symbol, sizes)
    elif outputs == "nms":
        thresholds = write_thresholds(graph.writer, Thresholds.of_checkpoint(graph.meta))
        results = graph.write_nms(sizes)
    else:
        results = graph.write_heads(symbol, sizes, activated=outputs == "heads-sigmoid")
    writer = graph.writer
    return helper.make_model(
        helper.make_graph(
            writer.nodes, spec.name, [images, *thresholds], results, writer.initializers
        ),
        producer_name="y7edge",
        producer_version=__version__,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )


def row_tensor(index: int) -> str:
    """Return the name of a row's output tensor. The head, the last row, has other names."""
    return f"/row{index}"


class _GraphWriter:
    """Write the rows of a checkpoint as ONNX nodes. Methods return names of output tensors."""

    def __init__(
        self, checkpoint: Checkpoint, writer: NodeWriter, rewrites: Collection[str] = ()
    ) -> None:
        self.spec = checkpoint.spec
        self.arrays = checkpoint.arrays
        self.meta = checkpoint.meta
        self.writer = writer
        self._rewrites = frozenset(rewrites)
        self._reorg_window = exact.reorg_window(rewrites)
        self._merged = exact.mergeable_reorgs(self.spec) if self._reorg_window else frozenset()
        self._names = {IMAGE: INPUT}  # index of a row -> its output, if not /rowN
        self._windows: dict[tuple[str, int], str] = {}  # (input, window) -> pooled tensor
        self._blocks: dict[str, Callable[[Row, str, list[str]], object]] = {
            "conv": self._conv_row,
            "repconv": self._conv_row,
            "downc": self._downc,
            "sppcspc": self._sppcspc,
            "maxpool": self._maxpool,
            "upsample": self._upsample,
            "concat": self._concat,
            "sum": self._sum,
            "reorg": self._reorg,
        }

    def write_image(
        self, input: str, batch: int | str, size: tuple[int, int]
    ) -> onnx.ValueInfoProto:
        """Write the input, and its conversion to planes of 0 to 1 in the graph's precision."""
        writer, image = self.writer, INPUT
        shape, kind = [batch, 3, *size], TensorProto.FLOAT
        if input == "uint8":
            shape, kind = [batch, *size, 3], TensorProto.UINT8
            # Bytes are transposed faster than floats. Division rounds as in the Detector.
            image = writer.node("/images/Transpose", "Transpose", [image], perm=[0, 3, 1, 2])
            image = writer.cast("/images/pixels/Cast", image, np.float32)
            white = writer.constant("images/white", 255, np.float32)
            image = writer.node("/images/Div", "Div", [image, white])
        if writer.dtype != np.float32:
            image = writer.cast("/images/Cast", image, writer.dtype)
        self._names[IMAGE] = image
        return helper.make_tensor_value_info(INPUT, kind, shape)

    def write_body(self) -> None:
        """Write all rows except the head."""
        for row in self.spec.rows[:-1]:
            self._blocks[row.block](
                row, row_tensor(row.index), [self._tensor(i) for i in row.inputs]
            )

    def write_heads(
        self, batch: int | str, sizes: Sequence[tuple[int, int]], *, activated: bool = False
    ) -> list[onnx.ValueInfoProto]:
        """Write the head's convolutions, or their sigmoids, as outputs.

        ``sizes``: (H, W) by level.
        """
        kind = helper.np_dtype_to_tensor_dtype(self.writer.dtype)
        channels = len(self.spec.anchors[0]) * self.spec.outputs_per_anchor
        for level in range(len(sizes)):
            if activated:
                path = f"{row_tensor(self.spec.head.index)}/lead/{level}"
                logits = self._head(level)
                self.writer.node(f"{path}/Sigmoid", "Sigmoid", [logits], f"head{level}")
            else:
                self._head(level, f"head{level}")
        return [
            helper.make_tensor_value_info(f"head{level}", kind, [batch, channels, *size])
            for level, size in enumerate(sizes)
        ]

    def write_decoded(
        self, batch: int | str, sizes: Sequence[tuple[int, int]]
    ) -> list[onnx.ValueInfoProto]:
        """Write the head's convolutions and the decoding; ``sizes`` are (H, W) by level."""
        joined, count = self._decode(sizes, ("boxes", "scores"))
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, count, last])
            for name, last in ((joined.boxes, 4), (joined.scores, self.spec.nc))
        ]

    def write_nms(self, sizes: Sequence[tuple[int, int]]) -> list[onnx.ValueInfoProto]:
        """Write the head's convolutions, the decoding, and the selection of the final boxes."""
        joined, count = self._decode(sizes, ("", ""))
        path = f"{row_tensor(self.spec.head.index)}/nms"
        return [write_detections(self.writer, joined, count, self.spec.nc, path)]

    def _decode(
        self, sizes: Sequence[tuple[int, int]], names: tuple[str, str]
    ) -> tuple[Decoded, int]:
        """Write the decoded candidates of all levels; also return their number."""
        path = row_tensor(self.spec.head.index)
        levels = [
            decode_level(
                self.writer, self.spec, level, self._head(level), size, f"{path}/decode/{level}"
            )
            for level, size in enumerate(sizes)
        ]
        count = sum(h * w for h, w in sizes) * len(self.spec.anchors[0])
        return join_levels(self.writer, levels, f"{path}/decode", *names), count

    def _tensor(self, index: int) -> str:
        return self._names.get(index, row_tensor(index))

    def _conv(
        self, path: str, key: str, source: str, kernel: int, stride: int = 1, output: str = ""
    ) -> str:
        """Write a convolution with the arrays ``key.weight`` and ``key.bias`` of the checkpoint."""
        keys = [f"{key}.weight", f"{key}.bias"]
        inputs = [source, *(self.writer.weight(key, self.arrays[key]) for key in keys)]
        pads = [(kernel - 1) // 2] * 4
        shape = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pads}
        return self.writer.node(f"{path}/Conv", "Conv", inputs, output, **shape)

    def _conv_act(
        self, path: str, key: str, source: str, kernel: int, stride: int = 1, output: str = ""
    ) -> str:
        """Write a convolution and its activation; the result is named ``output`` or ``path``."""
        output = output or path
        x = self._conv(path, key, source, kernel, stride)
        match self.spec.activation:
            case "silu":
                if "silu-tanh" in self._rewrites:
                    gate = exact.sigmoid_by_tanh(self.writer, path, x)
                else:
                    gate = self.writer.node(f"{path}/Sigmoid", "Sigmoid", [x])
                return self.writer.node(f"{path}/Mul", "Mul", [x, gate], output)
            case "relu":
                return self.writer.node(f"{path}/Relu", "Relu", [x], output)
            case "hardswish":
                return self.writer.node(f"{path}/HardSwish", "HardSwish", [x], output)
        if "leaky-max" in self._rewrites:
            return exact.leaky_max(self.writer, path, x, output)
        name = f"{path}/LeakyRelu"
        return self.writer.node(name, "LeakyRelu", [x], output, alpha=LEAKY_SLOPE)

    def _member(self, row: Row, member: str, source: str, kernel: int = 1, stride: int = 1) -> str:
        """Write convolution ``member`` of a block."""
        key = f"rows.{row.index}.{member}.conv"
        return self._conv_act(f"{row_tensor(row.index)}/{member}", key, source, kernel, stride)

    def _pool(self, path: str, source: str, window: int, stride: int, output: str = "") -> str:
        """Write a max-pooling, with padding if the stride is 1."""
        if stride == 1 and "pool3x3" in self._rewrites:
            return exact.pool3x3(self.writer, path, source, window, output)
        pads = [window // 2 if stride == 1 else 0] * 4
        shape = {"kernel_shape": [window] * 2, "strides": [stride] * 2, "pads": pads}
        return self.writer.node(f"{path}/MaxPool", "MaxPool", [source], output, **shape)

    def _window(self, path: str, source: str, window: int, output: str = "") -> str:
        """Write a max-pooling of stride 1.

        If the next smaller window over the same tensor has been written, its output is pooled again
        instead of ``source``.
        """
        step = POOLS[0]
        smaller = self._windows.get((source, window - step + 1))
        pooled = self._pool(path, smaller or source, step if smaller else window, 1, output)
        self._windows[source, window] = pooled
        return pooled

    def _head(self, level: int, output: str = "") -> str:
        """Write the 1x1 convolution of one level, without activation."""
        index = self.spec.head.index
        source = self._tensor(self.spec.lead_inputs[level])
        path, key = f"{row_tensor(index)}/lead/{level}", f"rows.{index}.lead.{level}"
        return self._conv(path, key, source, 1, output=output)

    def _conv_row(self, row: Row, path: str, sources: list[str]) -> None:
        key = f"rows.{row.index}.conv"
        if row.inputs[0] in self._merged:
            weight = exact.merged_reorg(self.arrays[f"{key}.weight"], self._reorg_window)
            self.arrays = {**self.arrays, f"{key}.weight": weight}
            self._conv_act(path, key, sources[0], self._reorg_window, 2)
        else:
            self._conv_act(path, key, sources[0], row.kernel, row.stride)

    def _downc(self, row: Row, path: str, sources: list[str]) -> None:
        strided = self._member(row, "cv2", self._member(row, "cv1", sources[0]), 3, 2)
        halved = self._pool(f"{path}/pool", sources[0], 2, 2)
        self._concat(row, path, [strided, self._member(row, "cv3", halved)])

    def _sppcspc(self, row: Row, path: str, sources: list[str]) -> None:
        spread = self._member(row, "cv1", sources[0])
        spread = self._member(row, "cv4", self._member(row, "cv3", spread, 3))
        windows = [self._window(f"{path}/pool{size}", spread, size) for size in POOLS]
        pyramid = self.writer.node(f"{path}/pools/Concat", "Concat", [spread, *windows], axis=1)
        merged = self._member(row, "cv6", self._member(row, "cv5", pyramid), 3)
        bypass = self._member(row, "cv2", sources[0])
        joined = self.writer.node(f"{path}/Concat", "Concat", [merged, bypass], axis=1)
        self._conv_act(f"{path}/cv7", f"rows.{row.index}.cv7.conv", joined, 1, output=path)

    def _maxpool(self, row: Row, path: str, sources: list[str]) -> None:
        if row.stride == 1:
            self._window(path, sources[0], row.kernel, path)
        else:
            self._pool(path, sources[0], row.kernel, row.stride, path)

    def _upsample(self, row: Row, path: str, sources: list[str]) -> None:
        if "resize-per-axis" in self._rewrites:
            tall = self._resize(f"{path}/rows", sources[0], 2, 1)
            self._resize(f"{path}/columns", tall, 1, 2, path)
        else:
            self._resize(path, sources[0], 2, 2, path)

    def _resize(self, path: str, source: str, rows: int, columns: int, output: str = "") -> str:
        """Write a nearest-neighbour resize by these factors."""
        name = "upsample/scales" if rows == columns else f"upsample/scales{rows}{columns}"
        factors = self.writer.constant(name, [1, 1, rows, columns], np.float32)
        mode = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        inputs = [source, "", factors]
        return self.writer.node(f"{path}/Resize", "Resize", inputs, output, mode="nearest", **mode)

    def _concat(self, row: Row, path: str, sources: list[str]) -> None:
        self.writer.node(f"{path}/Concat", "Concat", sources, path, axis=1)

    def _sum(self, row: Row, path: str, sources: list[str]) -> None:
        self.writer.node(f"{path}/Add", "Add", sources, path)

    def _reorg(self, row: Row, path: str, sources: list[str]) -> None:
        if row.index in self._merged:  # the next convolution reads the input of this row
            self._names[row.index] = sources[0]
            return
        constant = self.writer.constant
        end = constant("reorg/end", [np.iinfo(np.int64).max] * 2, np.int64)
        axes = constant("reorg/axes", [2, 3], np.int64)
        steps = constant("reorg/steps", [2, 2], np.int64)
        parts = []
        for y, x in exact.REORG_PARTS:
            start = constant(f"reorg/start{y}{x}", [y, x], np.int64)
            inputs = [sources[0], start, end, axes, steps]
            parts.append(self.writer.node(f"{path}/Slice{y}{x}", "Slice", inputs))
        self.writer.node(f"{path}/Concat", "Concat", parts, path, axis=1)


def _check_model(model: onnx.ModelProto, spec: Spec) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).splitlines()[0]
        raise ExportError(f"{spec.name}: the written graph is not valid ONNX: {reason}") from error
