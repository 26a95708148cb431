"""Descriptions of models as rows, from which the torch module and the ONNX graph are built.

A row contains the indices of its inputs, the kind of block and the block's parameters. Everything
else (strides, weight names and shapes, operations) is computed by ``y7edge.models.shapes``.

The architectures are those of "YOLOv7: Trainable bag-of-freebies sets new state-of-the-art for
real-time object detectors" (Wang, Bochkovskiy, Liao, arXiv 2207.02696).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from y7edge.artifact import bounds
from y7edge.errors import ConfigError
from y7edge.text import is_printable

IMAGE = -1  # index of the image in ``Row.inputs``
BN_EPS = 1e-3  # required by the published weights; torch's default is 1e-5
BN_MOMENTUM = 0.03
LEAKY_SLOPE = 0.1  # yolov7-tiny; every other published variant uses SiLU

Block = Literal[
    "conv",  # k x k convolution, k odd -> BatchNorm -> activation; padding k // 2
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
Activation = Literal["silu", "leaky_relu", "relu", "hardswish"]
Form = Literal["training", "deploy", "folded"]
Anchors = tuple[tuple[tuple[float, float], ...], ...]

ACTS: dict[str, Activation] = {
    "relu": "relu",
    "leaky": "leaky_relu",
    "silu": "silu",
    "hardswish": "hardswish",
}
"""Activations by their name in ``--act``, and at the end of a model's name."""

DERIVED = ("concat", "sum", "reorg", "maxpool", "upsample")  # output channels follow from inputs
ROLES = ("split", "chain", "gather", "merge")  # of rows inside of a computational block


@dataclass(frozen=True, slots=True)
class Row:
    """One layer or block.

    Rows of one computational block (ELAN) have the same ``stage``, from 1. Their ``role`` is
    ``split`` (the first two 1x1 convolutions), ``chain`` (the 3x3 convolutions in series),
    ``gather`` (the concatenation) or ``merge`` (the final 1x1 convolution). Rows outside of blocks
    are the paper's *transition* layers.
    """

    index: int
    inputs: tuple[int, ...]
    block: Block
    out: int  # output channels; 0 for the head
    kernel: int = 1
    stride: int = 1
    role: str = ""  # "" and stage 0: outside of computational blocks
    stage: int = 0
    identity: bool = False  # whether a ``repconv`` has an identity branch


@dataclass(frozen=True, slots=True)
class Spec:
    """Description of a whole model.

    ``form`` is *training* (implicit knowledge, auxiliary rows, BatchNorm, RepConv branches),
    *deploy* (as *training*, without implicit knowledge and auxiliary rows) or *folded* (plain
    convolutions with bias).
    """

    name: str
    rows: tuple[Row, ...]
    nc: int  # number of classes
    anchors: Anchors  # by level, finest first: (width, height) in pixels of the input
    strides: tuple[int, ...]  # of the levels, in pixels
    activation: Activation
    form: Form = "training"
    imgsz: int = 640  # side of the published model's input, in pixels

    def __post_init__(self) -> None:
        """Raise ConfigError for values that are inconsistent or out of bounds."""
        name = self.name
        if len(name) > bounds.MAX_NAME or not is_printable(name):
            raise ConfigError(
                f"model name {name!r}: expected at most {bounds.MAX_NAME} printable characters"
            )
        if type(self.nc) is not int or not 0 < self.nc <= bounds.MAX_CLASSES:
            raise ConfigError(
                f"{name}: nc must be a whole number of classes from 1 to {bounds.MAX_CLASSES}, "
                f"not {self.nc!r}"
            )
        if not 0 < self.imgsz <= bounds.MAX_SIDE:
            raise ConfigError(f"{name}: imgsz is {self.imgsz}, expected 1 to {bounds.MAX_SIDE}")
        if self.form not in get_args(Form) or self.activation not in get_args(Activation):
            raise ConfigError(
                f"{name}: form {self.form!r} or activation {self.activation!r} is unknown; "
                f"known: {', '.join(get_args(Form))}; {', '.join(get_args(Activation))}"
            )
        _check_levels(name, self.anchors, self.strides)
        _check_rows(name, self.rows, len(self.strides))

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
        """Indices of the rows that feed the lead head, finest level first."""
        return self.head.inputs[: self.levels]

    @property
    def aux_inputs(self) -> tuple[int, ...]:
        """Indices of the rows that feed the auxiliary head, finest first; empty if it has none."""
        return self.head.inputs[self.levels :]

    @property
    def has_aux(self) -> bool:
        """Whether there is an auxiliary head."""
        return bool(self.aux_inputs)

    @property
    def implicit(self) -> bool:
        """Whether the head has implicit knowledge."""
        return self.form == "training"

    @property
    def outputs_per_anchor(self) -> int:
        """Outputs of the head per anchor: x, y, w, h, objectness and one per class."""
        return 5 + self.nc

    @property
    def max_stride(self) -> int:
        """Largest stride in pixels; height and width of the input must be multiples of it."""
        return max(self.strides)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def derived_channels(block: Block, inputs: Sequence[int]) -> int:
    """Return the output channels of a block in ``DERIVED`` from the channels of its inputs."""
    if block == "concat":
        return sum(inputs)
    return 4 * inputs[0] if block == "reorg" else inputs[0]


def _check_levels(name: str, anchors: Anchors, strides: tuple[int, ...]) -> None:
    if len(anchors) != len(strides) or not 0 < len(anchors) <= bounds.MAX_LEVELS:
        raise ConfigError(
            f"{name}: {len(anchors)} lists of anchors and {len(strides)} strides; expected one "
            f"list of (width, height) and one stride per level, for 1 to {bounds.MAX_LEVELS} levels"
        )
    if list(strides) != sorted(set(strides)) or not 0 < strides[0] <= strides[-1]:
        raise ConfigError(f"{name}: strides are {strides}, expected finest first")
    counts = {len(level) for level in anchors}
    if len(counts) != 1 or not 0 < max(counts) <= bounds.MAX_ANCHORS:
        raise ConfigError(
            f"{name}: every level needs the same number of anchors, up to {bounds.MAX_ANCHORS}, "
            f"found {counts}"
        )
    sides = [side for level in anchors for pair in level for side in pair]
    if not all(0 < side <= bounds.MAX_ANCHOR for side in sides):
        raise ConfigError(f"{name}: anchors must be positive widths and heights in pixels")


def _check_rows(name: str, rows: tuple[Row, ...], levels: int) -> None:
    if len(rows) > bounds.MAX_ROWS:
        raise ConfigError(f"{name}: {len(rows)} rows, expected at most {bounds.MAX_ROWS}")
    for position, row in enumerate(rows):
        earlier = row.inputs and all(IMAGE <= i < position for i in row.inputs)
        if row.index != position or not earlier:
            raise ConfigError(
                f"{name}: row {position} has index {row.index} and inputs {row.inputs}; rows are "
                "numbered from 0 and read earlier rows only (-1 is the image)"
            )
        if row.block not in get_args(Block):
            raise ConfigError(
                f"{name}: row {position} has the unknown block {row.block!r}; "
                f"known are {', '.join(get_args(Block))}"
            )
        problem = _misfit(row, [3 if i == IMAGE else rows[i].out for i in row.inputs])
        if problem:
            raise ConfigError(f"{name}: row {position} ({row.block}) {problem}")
    if not rows or rows[-1].block != "head" or any(row.block == "head" for row in rows[:-1]):
        raise ConfigError(f"{name}: the last row, and only the last, must be the head")
    if len(rows[-1].inputs) not in (levels, 2 * levels) or IMAGE in rows[-1].inputs:
        raise ConfigError(
            f"{name}: the head reads {len(rows[-1].inputs)} rows; expected {levels}, or "
            f"{2 * levels} with an auxiliary head"
        )


_WINDOWS = {  # allowed (kernel, stride); other blocks have (1, 1)
    "conv": [(k, s) for k in range(1, bounds.MAX_KERNEL + 1, 2) for s in (1, 2)],
    "repconv": [(3, 1), (3, 2)],
    "maxpool": [(2, 2), (5, 1), (9, 1), (13, 1)],
}


def _misfit(row: Row, channels: list[int]) -> str:
    """Return why a row is invalid, or "". ``channels``: number of channels of each input."""
    several = {"sum": 2, "concat": bounds.MAX_INPUTS, "head": bounds.MAX_INPUTS}
    if len(channels) > several.get(row.block, 1) or (row.block == "sum" and len(channels) < 2):
        return f"reads {len(channels)} maps"
    if (row.kernel, row.stride) not in _WINDOWS.get(row.block, [(1, 1)]):
        return f"has kernel {row.kernel} and stride {row.stride}"
    if row.identity and (row.block != "repconv" or row.stride != 1 or row.out != channels[0]):
        return "cannot have an identity branch"
    staged = row.role in ROLES and 0 < row.stage <= bounds.MAX_ROWS
    if not staged and (row.role, row.stage) != ("", 0):
        return f"has role {row.role!r} in stage {row.stage}"
    if row.block == "head":
        return f"has {row.out} channels, expected 0" if row.out else ""
    if not 0 < row.out <= bounds.MAX_CHANNELS or (row.block == "downc" and row.out % 2):
        return f"has {row.out} channels"
    if row.block in DERIVED and row.out != derived_channels(row.block, channels):
        return f"has {row.out} channels, and reads maps of {channels}"
    if row.block == "sum" and channels[0] != channels[1]:
        return f"adds maps of {channels} channels"
    return ""
