"""Compound scaling of concatenation-based models (YOLOv7 paper, section 3.2).

The depth of a computational block changes the width of its concatenation. So the paper scales the
depth of the blocks, and the width of the transition layers by the ratio of the blocks' outputs:
yolov7 with depth 1.5 gathers 5 maps instead of 4, hence transitions x 1.25, which is YOLOv7-X.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from y7edge.errors import ConfigError
from y7edge.models.draft import derived_channels
from y7edge.models.spec import IMAGE, Row, Spec

MULTIPLE = 8  # channel counts are rounded to this, for vector units and NPUs


def scale(spec: Spec, depth: float = 1.0, width: float = 1.0) -> Spec:
    """Scale the depth and width of a model.

    Args:
        spec: a model in training or deploy form.
        depth: factor on the number of 3x3 convolutions in each computational block, in whole steps
            of its gathering pattern, at least one. The transition layers' width follows.
        width: factor on every channel count, rounded to a multiple of 8, at least 8.

    Returns:
        A spec named after the factors, such as ``yolov7-tiny-w0.25``; anchors and strides stay.

    Raises:
        ConfigError: a factor is not a positive, finite number, or the spec is folded.
    """
    for factor, value in (("depth", depth), ("width", width)):
        if not 0 < value < 100:
            raise ConfigError(f"scale: {factor} must be a factor between 0 and 100, not {value}")
    if spec.form == "folded":
        raise ConfigError(f"{spec.name}: a folded model cannot be scaled; scale it before training")
    if depth == 1 and width == 1:
        return spec
    lengths = _chain_lengths(spec, depth)
    ratio = transition_ratio(spec, depth)
    rows = _Rewriter(spec, lengths, ratio, width).rows()
    factors = (("d", depth), ("w", width))
    suffix = "".join(f"-{letter}{value:g}" for letter, value in factors if value != 1)
    return replace(spec, name=spec.name + suffix, rows=rows)


def transition_ratio(spec: Spec, depth: float) -> Fraction:
    """Return new over old gathered width for a depth factor, over all blocks together."""
    lengths = _chain_lengths(spec, depth)
    before = after = 0
    for stage, blocks in _stages(spec).items():
        gathered = [spec.rows[i] for i in blocks.gather.inputs]
        chain = [row for row in gathered if row.role == "chain"]
        rest = sum(row.out for row in gathered if row.role != "chain")
        before += rest + sum(row.out for row in chain)
        after += rest + lengths[stage] // blocks.tap * chain[0].out
    return Fraction(after, before) if before else Fraction(1)


@dataclass(frozen=True, slots=True)
class _Stage:
    """One computational block."""

    chain: tuple[Row, ...]
    gather: Row
    tap: int  # every tap-th link of the chain is gathered


def _stages(spec: Spec) -> dict[int, _Stage]:
    stages = {}
    for stage in sorted({row.stage for row in spec.rows} - {0}):
        rows = [row for row in spec.rows if row.stage == stage]
        chain = tuple(row for row in rows if row.role == "chain")
        gather = next(row for row in rows if row.role == "gather")
        taken = sum(1 for i in gather.inputs if spec.rows[i].role == "chain")
        stages[stage] = _Stage(chain, gather, len(chain) // taken)
    return stages


def _chain_lengths(spec: Spec, depth: float) -> dict[int, int]:
    return {
        number: stage.tap * max(1, round(len(stage.chain) * depth / stage.tap))
        for number, stage in _stages(spec).items()
    }


class _Rewriter:
    """Rewrite rows with other chain lengths and widths."""

    def __init__(self, spec: Spec, lengths: dict[int, int], ratio: Fraction, width: float) -> None:
        self._spec = spec
        self._lengths = lengths
        self._ratio = ratio
        self._width = Fraction(width).limit_denominator(1 << 16)
        self._stages = _stages(spec)
        self._new: list[Row] = []
        self._position: dict[int, int] = {IMAGE: IMAGE}  # old index -> new index
        self._links: dict[int, list[int]] = {}  # stage -> new indices of its chain

    def rows(self) -> tuple[Row, ...]:
        for row in self._spec.rows:
            if row.role == "chain":
                self._chain(row)
            else:
                self._append(row, self._inputs(row))
                self._position[row.index] = len(self._new) - 1
        return tuple(self._new)

    def _chain(self, row: Row) -> None:
        """Write the whole chain when its first link is met."""
        stage = self._stages[row.stage]
        if row is not stage.chain[0]:
            return
        links = self._links[row.stage] = []
        for link in range(self._lengths[row.stage]):
            source = self._position[row.inputs[0]] if link == 0 else links[-1]
            self._append(row, (source,))
            links.append(len(self._new) - 1)

    def _inputs(self, row: Row) -> tuple[int, ...]:
        if row.role != "gather":
            return tuple(self._position[i] for i in row.inputs)
        taps = self._links[row.stage][::-1][:: self._stages[row.stage].tap]
        rest = [self._position[i] for i in row.inputs if self._spec.rows[i].role != "chain"]
        return (*taps, *rest)

    def _append(self, row: Row, inputs: tuple[int, ...]) -> None:
        channels = [3 if i == IMAGE else self._new[i].out for i in inputs]
        if row.block in ("concat", "sum", "reorg", "maxpool", "upsample"):
            out = derived_channels(row.block, channels)
        elif row.block == "head":
            out = 0
        else:
            out = self._scaled(row)
        self._new.append(replace(row, index=len(self._new), inputs=inputs, out=out))

    def _scaled(self, row: Row) -> int:
        inner = row.role in ("split", "chain")  # the compound rule keeps these widths
        exact = row.out * self._width * (1 if inner else self._ratio)
        return max(MULTIPLE, MULTIPLE * round(exact / MULTIPLE))
