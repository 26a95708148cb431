"""Describe ONNX files of other exporters, which have no manifest, by the shapes of their tensors.

YOLOv7 models are published with the following forms of outputs. (This *form* of the outputs is not
the form of the model: training, deploy or folded.)

========================  ==========================================================================
form                      outputs
========================  ==========================================================================
``heads``                 logits by level, each (B, anchors, H, W, 5 + nc)
``concatenated``          (B, N, 5 + nc): cx, cy, w, h in input pixels, objectness, class
                          probabilities
``rows``                  (K, 7): batch index, x0, y0, x1, y1 in input pixels, class id, score
``padded``                (B, 1) number of boxes, (B, K, 4) corners in input pixels, (B, K) scores,
                          (B, K) class ids: the outputs of TensorRT's EfficientNMS
========================  ==========================================================================

What a file does not state is assumed, and listed in ``Foreign.assumed``. The session converts the
outputs to those of our own artifacts, so that the manifest describes the converted outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact import bounds
from y7edge.artifact.manifest import (
    Dim,
    InputInfo,
    LevelInfo,
    Manifest,
    OutputInfo,
    Precision,
    Source,
    expected_shapes,
)
from y7edge.artifact.names_text import parse_names
from y7edge.errors import ArtifactError, ConfigError, DataError
from y7edge.models import p5, p6, tiny
from y7edge.text import printable

REASON = "made by another exporter"
"""Reason of the parity status "unverified"."""

Form = Literal["heads", "concatenated", "rows", "padded"]

_REAL, _WHOLE = ("float32", "float16"), ("int32", "int64")
_ROUNDING = 1e-2  # of a probability in float16
_UNKNOWN_NC = 80  # number of classes if neither names nor outputs state it: COCO's


@dataclass(frozen=True)
class Tensor:
    """An input or output as the file declares it; a dimension is None if it is not fixed."""

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        shape = "of unknown shape"
        if self.shape is not None:
            shape = "x".join("?" if size is None else str(size) for size in self.shape)
        return printable(f"{self.name[:64]} {self.dtype} {shape}")


@dataclass(frozen=True)
class Interface:
    """What is read from the file, without an engine.

    Attributes:
        inputs: Inputs without a default value.
        outputs: Outputs, in order.
        metadata: Texts of the metadata.
        operators: Names of the operators of the nodes.
        weights: Dtypes of the initializers.
        producer: Name and version of the exporter; may be empty.
        digest: SHA-256 of the payload.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    operators: frozenset[str] = frozenset()
    weights: frozenset[str] = frozenset()
    producer: str = ""
    digest: str = "0" * 64


@dataclass(frozen=True)
class Foreign:
    """An ONNX file of another exporter.

    Attributes:
        form: The form of the file's outputs.
        manifest: The description of the converted outputs.
        outputs: Names of the file's outputs that are used, in the order of ``convert``.
        assumed: What the file does not state, by subject.
    """

    form: Form
    manifest: Manifest
    outputs: tuple[str, ...]
    assumed: Mapping[str, str]

    def convert(self, arrays: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Convert the engine's outputs to those of the manifest.

        Raises:
            DataError: the shape of an output does not fit the form.
        """
        converted = _CONVERSIONS[self.form](arrays, self.manifest)
        for info in self.manifest.outputs:
            found = converted[info.name].shape
            fits = len(found) == len(info.shape) and all(
                wanted in ("dynamic", size) for size, wanted in zip(found, info.shape, strict=True)
            )
            if not fits:
                raise DataError(
                    f"{self.manifest.model} returned {info.name} {found}, expected {info.shape}: "
                    "its outputs do not have the assumed form"
                )
        return converted


def describe(
    interface: Interface,
    path: str,
    model: str,
    *,
    names: Sequence[str] | None = None,
    imgsz: tuple[int, int] | None = None,
) -> Foreign:
    """Recognise the form of a file's outputs, and describe the file.

    Args:
        interface: the file's inputs and outputs.
        path: the file, for messages.
        model: name of the model.
        names: class names; None: from the metadata, else numbers.
        imgsz: input size (height, width), for an input of dynamic size.

    Raises:
        ArtifactError: the inputs or outputs have no known form; the message lists them.
        ConfigError: ``names`` or ``imgsz`` is missing or does not fit the file.
    """
    assumed: dict[str, str] = {}
    form, outputs = _form(interface, path)
    image = _input(interface, path, imgsz, assumed)
    nc = _classes(form, outputs, path)
    levels = _levels(form, outputs, image, interface, path, assumed)
    if form == "heads":
        outputs = _finest_first(outputs)
    chosen = _names(names, interface, nc, path, assumed)
    try:
        manifest = Manifest(
            model=printable(model)[: bounds.MAX_NAME],
            nc=len(chosen),
            names=chosen,
            input=image,
            outputs=_described(form, outputs, image, levels, len(chosen)),
            levels=levels,
            source=Source(interface.digest, "unknown", 0, 0.0),
            precision=_precision(interface),
            target="onnx",
            opset=None,
            payload_digest=interface.digest,
            tools={"exporter": printable(interface.producer)[:200] or "not stated"},
            parity={"status": "unverified", "problems": [], "reason": REASON},
        )
    except ArtifactError as error:
        raise ArtifactError(f"{path} cannot be used: {error}") from error
    if others := [o for o in interface.outputs if o not in outputs]:
        assumed["other outputs"] = f"not used: {_listed(others)}"
    assumed["colour"] = "RGB, values from 0 to 1"
    assumed["letterbox"] = f"centred, padded with grey {image.letterbox.pad}"
    return Foreign(form, manifest, tuple(output.name for output in outputs), assumed)


def _form(interface: Interface, path: str) -> tuple[Form, tuple[Tensor, ...]]:
    """Return the form of the outputs, and the outputs that belong to it.

    If no form fits, raise ArtifactError; the message lists the outputs.
    """
    outputs = interface.outputs
    ranks = [None if o.shape is None else len(o.shape) for o in outputs]
    real = [o.dtype in _REAL for o in outputs]
    if len(outputs) == 1 and real[0]:
        (shape,) = (o.shape or () for o in outputs)
        if len(shape) == 3 and (shape[2] or 0) >= 6:
            return "concatenated", outputs
        if len(shape) == 2 and shape[1] == 7:
            return "rows", outputs
    heads = tuple(o for o, rank in zip(outputs, ranks, strict=True) if rank == 5)
    if heads and all(o.dtype in _REAL for o in heads):
        # Training form of P6 models: feature maps of the auxiliary heads follow.
        others = [rank for rank in ranks if rank != 5]
        fields = {(o.shape[1], o.shape[4]) for o in heads if o.shape}
        (anchors, last) = next(iter(fields))
        same = len(fields) == 1 and anchors == 3 and (last or 0) >= 6
        if same and len(heads) in (3, 4) and all(rank == 4 for rank in others):
            return "heads", heads
    if ranks == [2, 3, 2, 2] and real[1] and real[2]:
        whole = outputs[0].dtype in _WHOLE and outputs[3].dtype in _WHOLE
        shapes = [o.shape or () for o in outputs]
        if whole and shapes[0][1] in (1, None) and shapes[1][2] in (4, None):
            return "padded", outputs
    raise ArtifactError(
        f"{path} was not made by y7edge, and its outputs have no known form: found "
        f"{_listed(outputs)}; expected 3 or 4 heads Bx3xHxWx(5+nc), BxNx(5+nc), Kx7, or the four "
        "outputs of EfficientNMS; export the checkpoint with `y7edge export`"
    )


def _listed(tensors: Sequence[Tensor]) -> str:
    return ", ".join(map(str, tensors[:6])) + (" ..." if len(tensors) > 6 else "") or "none"


def _input(
    interface: Interface, path: str, imgsz: tuple[int, int] | None, assumed: dict[str, str]
) -> InputInfo:
    """Describe the input; if its height and width are dynamic, they become ``imgsz``."""
    inputs = interface.inputs
    shape = inputs[0].shape if len(inputs) == 1 else None
    if shape is None or len(shape) != 4 or shape[1] != 3 or inputs[0].dtype not in _REAL:
        raise ArtifactError(
            f"{path} was not made by y7edge, and its inputs have no known form: found "
            f"{_listed(inputs)}; expected one of float32 or float16, Bx3xHxW"
        )
    fixed = tuple(shape[2:])
    if imgsz is None and None in fixed:
        raise ConfigError(
            f"{path} has an input of dynamic size ({inputs[0]}): choose its height and width with "
            "imgsz (--imgsz)"
        )
    if imgsz is not None:
        if any(side not in (None, asked) for side, asked in zip(fixed, imgsz, strict=True)):
            raise ConfigError(
                f"imgsz is {imgsz[0]}x{imgsz[1]}, but {path} has the fixed input {inputs[0]}: omit "
                "imgsz"
            )
        fixed = imgsz
    height, width = (int(side or 0) for side in fixed)
    if height % 32 or width % 32:
        raise ConfigError(
            f"{path}: the input of {height}x{width} pixels is not a multiple of 32, the largest "
            "stride of YOLOv7 models"
        )
    batch: Dim = "dynamic" if shape[0] is None else shape[0]
    try:
        return InputInfo(inputs[0].name, batch, height, width, dtype=inputs[0].dtype)
    except ArtifactError as error:
        raise ArtifactError(f"{path} cannot be used: {error}") from error


def _classes(form: Form, outputs: Sequence[Tensor], path: str) -> int | None:
    """Return the number of classes, if the outputs state it."""
    shape = outputs[0].shape
    if not shape or form not in ("heads", "concatenated"):
        return None
    nc = int(shape[-1] or 0) - 5
    if nc > bounds.MAX_CLASSES:
        raise ArtifactError(
            f"{path} cannot be used: its output {outputs[0]} has {nc} classes, expected at most "
            f"{bounds.MAX_CLASSES}"
        )
    return nc


def _levels(
    form: Form,
    outputs: Sequence[Tensor],
    image: InputInfo,
    interface: Interface,
    path: str,
    assumed: dict[str, str],
) -> tuple[LevelInfo, ...]:
    """Return the levels, with the published strides and anchors for this number of levels."""
    leaky = "LeakyRelu" in interface.operators
    small, small_name = (tiny.ANCHORS, "yolov7-tiny") if leaky else (p5.ANCHORS, "yolov7")
    choices = {
        3: (tuple(map(LevelInfo, p5.STRIDES, small)), small_name),
        4: (tuple(map(LevelInfo, p6.STRIDES, p6.ANCHORS)), "yolov7-w6"),
    }
    count = len(outputs) if form == "heads" else 3
    if form == "concatenated" and outputs[0].shape:
        stated = outputs[0].shape[1]
        sums = {number: _candidates(levels, image) for number, (levels, _) in choices.items()}
        fitting = [number for number, total in sums.items() if stated in (None, total)]
        if not fitting:
            raise ArtifactError(
                f"{path} was not made by y7edge, and its output {outputs[0]} has no known form: an "
                f"input of {image.height}x{image.width} gives {sums[3]} candidates on 3 levels, or "
                f"{sums[4]} on 4"
            )
        count = fitting[0]
    levels, name = choices[count]
    strides = ", ".join(str(level.stride) for level in levels)
    if form == "heads":
        _check_maps(_finest_first(outputs), levels, image, path)
        assumed["anchors"] = f"those of the published {name}, for {count} levels" + (
            " and LeakyReLU" if leaky and count == 3 else ""
        )
        assumed["activation"] = "none: logits"
    if form in ("heads", "concatenated"):
        assumed["levels"] = f"{count}, with strides {strides}"
    if form != "heads":
        assumed["coordinates"] = "pixels of the input"
    if form in ("rows", "padded"):
        assumed["suppression"] = "in the graph, with thresholds of its own"
    return levels


def _candidates(levels: Sequence[LevelInfo], image: InputInfo) -> int:
    return sum(len(level.anchors) * (image.pixels // level.stride**2) for level in levels)


def _finest_first(outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Sort heads by the size of their maps, largest first; keep the order if a size is dynamic."""
    rows = [output.shape[2] for output in outputs if output.shape]
    if None in rows:
        return tuple(outputs)
    return tuple(sorted(outputs, key=lambda o: -(o.shape or (0, 0, 0))[2]))  # type: ignore[operator]


def _check_maps(
    outputs: Sequence[Tensor], levels: Sequence[LevelInfo], image: InputInfo, path: str
) -> None:
    for output, level in zip(outputs, levels, strict=True):
        wanted = image.height // level.stride, image.width // level.stride
        maps = (output.shape or ())[2:4]
        if any(size not in (None, side) for size, side in zip(maps, wanted, strict=True)):
            raise ArtifactError(
                f"{path} was not made by y7edge, and its output {output} has no known form: "
                f"expected a map of {wanted[0]}x{wanted[1]} for stride {level.stride}"
            )


def _described(
    form: Form,
    outputs: Sequence[Tensor],
    image: InputInfo,
    levels: tuple[LevelInfo, ...],
    nc: int,
) -> tuple[OutputInfo, ...]:
    """Describe the converted outputs."""
    shapes = expected_shapes(image, levels, nc)
    if form == "heads":
        return tuple(
            OutputInfo(f"head{i}", "head", shapes[f"head{i}"], level=i, dtype=output.dtype)
            for i, output in enumerate(outputs)
        )
    if form == "concatenated":
        return (
            OutputInfo("boxes", "boxes", shapes["boxes"], layout="NWC", activation=None),
            OutputInfo("scores", "scores", shapes["scores"], layout="NWC", activation=None),
        )
    shape = shapes["detections"]
    return (OutputInfo("detections", "detections", shape, layout="NC", activation=None),)


def _precision(interface: Interface) -> Precision:
    if "float16" in interface.weights:
        return "fp16"
    return "int8" if interface.weights & {"int8", "uint8"} else "fp32"


# --- class names ---------------------------------------------------------------------------------


def _names(
    given: Sequence[str] | None,
    interface: Interface,
    nc: int | None,
    path: str,
    assumed: dict[str, str],
) -> tuple[str, ...]:
    """Return class names: those given, else the metadata's, else numbers."""
    if given is not None:
        if not 0 < len(given) <= bounds.MAX_CLASSES or nc not in (None, len(given)):
            expected = f"{nc}, the number of classes in its outputs" if nc else "at least one"
            raise ConfigError(f"names has {len(given)} class names for {path}, expected {expected}")
        assumed["names"] = "as given"
        return tuple(given)
    text = interface.metadata.get("names")
    found = None if text is None else parse_names(text)
    if found is not None:
        if nc not in (None, len(found)):
            raise ArtifactError(
                f"the metadata of {path} have {len(found)} class names, its outputs {nc} classes: "
                "give the class names with names (--names)"
            )
        assumed["names"] = "from the metadata 'names'"
        return found
    unreadable = "" if text is None else "; the metadata 'names' cannot be read"
    count = nc or _UNKNOWN_NC
    assumed["names"] = f"numbers from 0 to {count - 1}{unreadable}"
    if nc is None:
        assumed["names"] += f"; the file does not state the number of classes, {count} is COCO's"
    return tuple(str(number) for number in range(count))


# --- conversion of outputs -----------------------------------------------------------------------


def _from_heads(arrays: Sequence[NDArray[Any]], manifest: Manifest) -> dict[str, NDArray[Any]]:
    converted = {}
    for info, array in zip(manifest.outputs, arrays, strict=True):
        if array.ndim != 5:
            raise DataError(f"a head is {array.shape}, expected 5 dimensions")
        batch, anchors, rows, columns, fields = array.shape
        planes = array.transpose(0, 1, 4, 2, 3)
        converted[info.name] = planes.reshape(batch, anchors * fields, rows, columns)
    objectness = [array[..., 4] for array in arrays]
    if all(part.min() >= 0 and part.max() <= 1 for part in objectness):
        raise DataError(
            "the objectness in the heads is from 0 to 1, expected logits: the graph applies the "
            "sigmoid, so its outputs do not have the assumed form; export the checkpoint with "
            "`y7edge export`"
        )
    return converted


def _require_probabilities(values: NDArray[Any]) -> None:
    """Raise DataError for scores that are logits or percentages; NaN is checked elsewhere."""
    lowest, highest = values.min(initial=0), values.max(initial=0)
    if lowest < 0 or highest > 1 + _ROUNDING:
        raise DataError(
            f"the scores are from {lowest:.3g} to {highest:.3g}, expected probabilities from 0 to "
            "1: the outputs do not have the assumed form; export the checkpoint with `y7edge "
            "export`"
        )


def _from_concatenated(
    arrays: Sequence[NDArray[Any]], manifest: Manifest
) -> dict[str, NDArray[Any]]:
    values = arrays[0].astype(np.float32, copy=False)
    if values.ndim != 3 or values.shape[2] != 5 + manifest.nc:
        raise DataError(f"the output is {values.shape}, expected (B, N, {5 + manifest.nc})")
    objectness, classes = values[..., 4:5], values[..., 5:]
    _require_probabilities(values[..., 4:6])
    if manifest.nc <= 2 and np.isin(values[..., 5], (0, 1)).all():
        raise DataError(
            "all class probabilities are 0 or 1: they are class ids, as in files for DeepStream, "
            "so the output does not have the assumed form; export the checkpoint with `y7edge "
            "export`"
        )
    scores = objectness if manifest.nc == 1 else objectness * classes
    return {"boxes": values[..., :4], "scores": scores}


def _from_rows(arrays: Sequence[NDArray[Any]], manifest: Manifest) -> dict[str, NDArray[Any]]:
    rows = arrays[0].astype(np.float32, copy=False)
    _require_probabilities(rows[..., -1])
    return {"detections": rows}


def _from_padded(arrays: Sequence[NDArray[Any]], manifest: Manifest) -> dict[str, NDArray[Any]]:
    counts, boxes, scores, class_id = arrays
    most = boxes.shape[1] if boxes.ndim == 3 else -1
    whole = (len(counts), most)
    if scores.shape != whole or class_id.shape != whole or counts.size != len(counts):
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise DataError(f"the outputs are {shapes}, expected (B, 1), (B, K, 4), (B, K), (B, K)")
    counts = counts.reshape(-1)
    if counts.min(initial=0) < 0 or counts.max(initial=0) > most:
        raise DataError(f"the number of boxes is {counts.tolist()}, expected 0 to {most}")
    used = np.arange(most) < counts[:, None]
    _require_probabilities(scores[used])
    image = np.nonzero(used)[0]
    columns = [image, boxes[used], class_id[used], scores[used]]
    return {"detections": np.column_stack(columns).astype(np.float32)}


_CONVERSIONS = {
    "heads": _from_heads,
    "concatenated": _from_concatenated,
    "rows": _from_rows,
    "padded": _from_padded,
}
