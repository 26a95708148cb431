"""A model as a tuple of frozen rows: the single source of the torch module and of the ONNX graph.

A row has the rows that it reads, its block, and its numbers. Everything else (strides, weight names
and shapes, operations) follows from the rows, in :mod:`y7edge.models.shapes`.

The architectures are those of "YOLOv7: Trainable bag-of-freebies sets new state-of-the-art for
real-time object detectors" (Wang, Bochkovskiy, Liao, arXiv 2207.02696).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from y7edge.errors import ConfigError

IMAGE = -1  # the input index that means the image itself
BN_EPS = 1e-3  # not the framework's 1e-5: published weights are wrong with any other value
BN_MOMENTUM = 0.03
LEAKY_SLOPE = 0.1  # yolov7-tiny; every other variant uses SiLU

Block = Literal[
    "conv",  # k x k convolution -> BatchNorm -> activation; padding k // 2
    "repconv",  # 3x3 + 1x1 (+ identity) branches, each with BatchNorm, summed -> activation
    "downc",  # halves the map by two branches: 1x1 -> 3x3 stride 2, and max-pool -> 1x1
    "sppcspc",  # spatial pyramid pooling (5, 9, 13) inside a cross-stage partial block
    "maxpool",  # kernel 2: stride 2 without padding; 5, 9, 13: stride 1, same padding
    "upsample",  # nearest neighbour, x 2
    "concat",  # along channels, in the order of the inputs
    "sum",  # element by element, of two maps
    "reorg",  # space to depth, x 4 channels
    "head",  # a 1x1 convolution for each level
]
Activation = Literal["silu", "leaky_relu"]
Form = Literal["training", "deploy", "folded"]
Anchors = tuple[tuple[tuple[float, float], ...], ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One layer.

    ``out`` is the number of output channels (0 for the head). ``role`` is the part of the row in a
    computational block (ELAN): ``split`` (the two 1x1 in front), ``chain`` (the 3x3 in series),
    ``gather`` (the concatenation) or ``merge`` (the closing 1x1); the rows of one block have the
    same ``stage``. Rows outside of blocks (the paper's *transition* layers) have stage 0.
    ``identity``: a ``repconv`` has its identity branch.
    """

    index: int
    inputs: tuple[int, ...]
    block: Block
    out: int
    kernel: int = 1
    stride: int = 1
    role: str = ""
    stage: int = 0
    identity: bool = False


@dataclass(frozen=True, slots=True)
class Spec:
    """A whole model: rows, classes, anchors.

    ``anchors``: (width, height) in pixels of the network input by level, finest level first.
    ``strides``: of the levels, in pixels. ``imgsz``: published side of the input, pixels.
    ``form``: *training* (implicit knowledge, auxiliary rows, BatchNorm, RepConv branches), *deploy*
    (plain head, no auxiliary rows, BatchNorm and RepConv still there), *folded* (plain
    convolutions with bias).
    """

    name: str
    rows: tuple[Row, ...]
    nc: int
    anchors: Anchors
    strides: tuple[int, ...]
    activation: Activation
    form: Form = "training"
    imgsz: int = 640

    def __post_init__(self) -> None:
        """Raise ConfigError for values that contradict each other."""
        if not isinstance(self.nc, int) or self.nc < 1:
            raise ConfigError(
                f"{self.name}: nc must be a whole number of classes >= 1, not {self.nc!r}"
            )
        if len(self.anchors) != len(self.strides) or not self.anchors:
            raise ConfigError(
                f"{self.name}: anchors of {len(self.anchors)} levels, {len(self.strides)} strides; "
                "give one list of (width, height) pairs for each level"
            )
        _check_anchors(self.name, self.anchors)
        if self.form not in get_args(Form) or self.activation not in get_args(Activation):
            raise ConfigError(
                f"{self.name}: form {self.form!r} or activation {self.activation!r} is unknown; "
                f"known: {', '.join(get_args(Form))}; {', '.join(get_args(Activation))}"
            )
        _check_rows(self.name, self.rows, len(self.strides))

    @property
    def head(self) -> Row:
        """The last row."""
        return self.rows[-1]

    @property
    def levels(self) -> int:
        """Number of detection levels."""
        return len(self.strides)

    @property
    def lead_inputs(self) -> tuple[int, ...]:
        """Rows that feed the lead head, finest level first."""
        return self.head.inputs[: self.levels]

    @property
    def aux_inputs(self) -> tuple[int, ...]:
        """Rows that feed the auxiliary head, finest level first; empty where there is none."""
        return self.head.inputs[self.levels :]

    @property
    def has_aux(self) -> bool:
        """Whether the head has auxiliary convolutions."""
        return bool(self.aux_inputs)

    @property
    def implicit(self) -> bool:
        """Whether the head has implicit knowledge."""
        return self.form == "training"

    @property
    def outputs_per_anchor(self) -> int:
        """Count of x, y, w, h, objectness and classes."""
        return 5 + self.nc

    @property
    def max_stride(self) -> int:
        """Input height and width must be multiples of this many pixels."""
        return max(self.strides)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def _check_anchors(name: str, anchors: Anchors) -> None:
    counts = {len(level) for level in anchors}
    if len(counts) != 1 or 0 in counts:
        raise ConfigError(f"{name}: every level needs the same number of anchors, found {counts}")
    if not all(0 < side < float("inf") for level in anchors for pair in level for side in pair):
        raise ConfigError(f"{name}: anchors must be positive widths and heights in pixels")


def _check_rows(name: str, rows: tuple[Row, ...], levels: int) -> None:
    for position, row in enumerate(rows):
        earlier = row.inputs and all(IMAGE <= i < position for i in row.inputs)
        if row.index != position or not earlier:
            raise ConfigError(
                f"{name}: row {position} has index {row.index} and inputs {row.inputs}; rows are "
                "numbered from 0 and read earlier rows only (-1 is the image)"
            )
        if row.block not in get_args(Block):
            raise ConfigError(
                f"{name}: row {position} is of the unknown block {row.block!r}; "
                f"known are {', '.join(get_args(Block))}"
            )
    if not rows or rows[-1].block != "head" or any(row.block == "head" for row in rows[:-1]):
        raise ConfigError(f"{name}: the last row, and only the last, must be the head")
    if len(rows[-1].inputs) not in (levels, 2 * levels):
        raise ConfigError(
            f"{name}: the head reads {len(rows[-1].inputs)} rows; expected {levels} lead levels, "
            "alone or followed by as many auxiliary ones"
        )
