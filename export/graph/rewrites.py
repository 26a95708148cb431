"""Write parts of the graph with other operators, if a converter does not support the usual ones.

A rewritten part computes the same function. The proof of each export covers it, like the rest of
the graph. Its nodes are named after the rows that they compute, as usual.

* ``pool3x3``: max-pooling with a 5x5 window is written as two poolings with a 3x3 window.
* ``reorg-conv6``, ``reorg-conv7``: space-to-depth and the following 3x3 convolution are merged into
  one convolution of stride 2. Its kernel is 6x6 with padding 2, or 7x7 with padding 3, where one
  row and one column of the kernel are zeros.
* ``leaky-max``: LeakyReLU is written as max(x, 0.1 x).
* ``silu-tanh``: SiLU is written with (tanh(x / 2) + 1) / 2 instead of the sigmoid, for fp16 on NPUs
  that compute tanh more accurately; docs/qnn.md has numbers.
* ``resize-per-axis``: nearest-neighbour resizing is written as one resizing for each axis.

The results are bitwise equal, except those of ``silu-tanh``, which are rounded differently, and
those of the merged convolution, which adds the same products in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from y7edge.errors import ConfigError
from y7edge.models.spec import LEAKY_SLOPE, Spec

if TYPE_CHECKING:
    from y7edge.export.graph.nodes import NodeWriter

REORG_PARTS = ((0, 0), (1, 0), (0, 1), (1, 1))
"""Offsets (y, x) of the slices of space-to-depth, in the order of its channels."""


class Rewrite(NamedTuple):
    """The part of a graph that a rewrite changes, and a test whether a model has such a part."""

    subject: str
    applies: Callable[[Spec], bool]


def mergeable_reorgs(spec: Spec) -> frozenset[int]:
    """Return the indices of space-to-depth rows that only 3x3 convolutions of stride 1 read."""
    reorgs = {row.index for row in spec.rows if row.block == "reorg"}
    others = {
        source
        for row in spec.rows
        for source in row.inputs
        if row.block != "conv" or (row.kernel, row.stride) != (3, 1)
    }
    return frozenset(reorgs - others)


def _has_block(*blocks: str) -> Callable[[Spec], bool]:
    return lambda spec: any(row.block in blocks and row.stride == 1 for row in spec.rows)


def _has_mergeable_reorg(spec: Spec) -> bool:
    return bool(mergeable_reorgs(spec))


_REORG = "space-to-depth before a 3x3 convolution"

REWRITES = {
    "pool3x3": Rewrite("max-pooling of stride 1", _has_block("sppcspc", "maxpool")),
    "reorg-conv6": Rewrite(_REORG, _has_mergeable_reorg),
    "reorg-conv7": Rewrite(_REORG, _has_mergeable_reorg),
    "silu-tanh": Rewrite("SiLU", lambda spec: spec.activation == "silu"),
    "leaky-max": Rewrite("LeakyReLU", lambda spec: spec.activation == "leaky_relu"),
    "resize-per-axis": Rewrite("upsampling", _has_block("upsample")),
}
"""All rewrites, by name."""

FLOAT_ONLY = frozenset({"silu-tanh"})
"""Rewrites that int8 graphs cannot have, because ranges are placed around the sigmoid of a SiLU."""

_WINDOWS = {"reorg-conv6": 6, "reorg-conv7": 7}
_RECORD = "rewrites"


def choose(spec: Spec, asked: Collection[str], defaults: Sequence[str]) -> tuple[str, ...]:
    """Return the rewrites for a model: all in ``asked``, and those in ``defaults`` that fit.

    A default is left out if it does not apply to the model, or if a chosen rewrite changes the same
    part already.

    Raises:
        ConfigError: a rewrite in ``asked`` does not exist or does not apply to the model, or two of
            them change the same part.
    """
    for name in asked:
        if name not in REWRITES:
            raise ConfigError(f"no rewrite {name!r}; choose from {', '.join(REWRITES)}")
        if not REWRITES[name].applies(spec):
            raise ConfigError(
                f"rewrite {name} does not apply: {spec.name} has no {REWRITES[name].subject}; omit "
                "it"
            )
    if _WINDOWS.keys() <= set(asked):
        raise ConfigError(f"rewrites {' and '.join(_WINDOWS)} change the same part: give one")
    chosen = dict.fromkeys(asked)
    for name in defaults:
        rewrite = REWRITES[name]
        taken = name in _WINDOWS and reorg_window(chosen)
        if rewrite.applies(spec) and not taken:
            chosen[name] = None
    return tuple(name for name in REWRITES if name in chosen)


def recorded(rewrites: Collection[str]) -> dict[str, str]:
    """Return the entry of a manifest's ``tools`` for a graph with these rewrites."""
    return {_RECORD: ", ".join(rewrites)} if rewrites else {}


def lacking(tools: Mapping[str, str], wanted: Collection[str]) -> list[str]:
    """Return the rewrites in ``wanted`` that an artifact does not have.

    ``tools``: the field of the artifact's manifest, which names the rewrites of the graph.
    """
    found = tools.get(_RECORD, "").split(", ")
    return [name for name in wanted if name not in found]


def reorg_window(rewrites: Collection[str]) -> int:
    """Return the kernel size of the convolution that replaces space-to-depth; 0 if none does."""
    return max((size for name, size in _WINDOWS.items() if name in rewrites), default=0)


def merged_reorg(weight: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """Merge space-to-depth into the weight of the 3x3 convolution that reads it.

    Args:
        weight: (out, 4 x channels, 3, 3); the four slices are in the order of ``REORG_PARTS``.
        size: 6, or 7 with a row and a column of zeros at the top and at the left.

    Returns:
        The weight (out, channels, size, size) of a convolution of stride 2 with padding
        (size - 1) // 2. Its element at 2 y + a, 2 x + b is element y, x of slice (a, b).
    """
    out, channels = weight.shape[0], weight.shape[1] // len(REORG_PARTS)
    merged = np.zeros((out, channels, size, size), weight.dtype)
    for index, (y, x) in enumerate(REORG_PARTS):
        part = weight[:, index * channels : (index + 1) * channels]
        merged[:, :, size - 6 + y :: 2, size - 6 + x :: 2] = part
    return merged


def pool3x3(writer: NodeWriter, path: str, source: str, window: int, output: str) -> str:
    """Write a max-pooling of stride 1 and an odd window as 3x3 poolings in series."""
    shape: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1] * 4}
    for step in range(1, window // 2):
        source = writer.node(f"{path}/{step}/MaxPool", "MaxPool", [source], **shape)
    return writer.node(f"{path}/MaxPool", "MaxPool", [source], output, **shape)


def leaky_max(writer: NodeWriter, path: str, source: str, output: str) -> str:
    """Write a LeakyReLU as the maximum of the input and a multiple of it."""
    slope = writer.constant("leaky/slope", LEAKY_SLOPE, writer.dtype)
    scaled = writer.node(f"{path}/Mul", "Mul", [source, slope])
    return writer.node(f"{path}/Max", "Max", [source, scaled], output)


def sigmoid_by_tanh(writer: NodeWriter, path: str, source: str) -> str:
    """Write the sigmoid of ``source`` as (tanh(x / 2) + 1) / 2; return the name of the output."""
    half = writer.constant("sigmoid/half", 0.5, writer.dtype)
    one = writer.constant("sigmoid/one", 1, writer.dtype)
    halved = writer.node(f"{path}/half/Mul", "Mul", [source, half])
    raised = writer.node(f"{path}/Add", "Add", [writer.node(f"{path}/Tanh", "Tanh", [halved]), one])
    return writer.node(f"{path}/gate/Mul", "Mul", [raised, half])
