"""Compound scaling of concatenation-based models (YOLOv7 paper, section 3.2).

A deeper computational block (ELAN) concatenates more maps. So the paper scales the depth of the
blocks, and widens the transition layers (all layers outside of blocks) by the same factor as the
concatenations become wider. Example: with depth 1.5, the blocks of yolov7 concatenate 5 maps
instead of 4, so the transition layers become 1.25 times as wide. This is YOLOv7-X.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from y7edge.errors import ConfigError
from y7edge.models.spec import DERIVED, IMAGE, Row, Spec, derived_channels

MULTIPLE = 8  # channel counts are rounded to multiples of this, for vector units and NPUs


def scale(spec: Spec, depth: float = 1.0, width: float = 1.0) -> Spec:
    """Scale the depth and width of a model; the factors are appended to its name.

    For example, ``scale(get("yolov7-tiny"), width=0.25)`` is ``yolov7-tiny-w0.25``.

    Args:
        spec: the model, not folded.
        depth: factor on the number of 3x3 convolutions in each block. Transition layers are widened
            accordingly. In blocks that concatenate every second convolution, the number stays even.
        width: factor on every channel count, which is rounded to a multiple of 8.

    Raises:
        ConfigError: a factor is not between 0 and 100, or the rows cannot be scaled.
    """
    for name, value in (("depth", depth), ("width", width)):
        if not 0 < value < 100:
            raise ConfigError(f"scale: {name} must be a factor between 0 and 100, not {value}")
    if spec.form == "folded":
        raise ConfigError(f"{spec.name}: a folded model cannot be scaled; scale it before training")
    if depth == 1 and width == 1:
        return spec
    factor = Fraction(width).limit_denominator(1 << 16)
    try:
        rows = _rewritten(spec, _chain_lengths(spec, depth), transition_ratio(spec, depth), factor)
    except KeyError as error:
        raise ConfigError(
            f"{spec.name}: a row outside of a block reads one of the block's 3x3 convolutions; "
            "only blocks as in the published models can be scaled"
        ) from error
    factors = (("d", depth), ("w", width))
    suffix = "".join(f"-{letter}{value:g}" for letter, value in factors if value != 1)
    return replace(spec, name=spec.name + suffix, rows=rows)


def transition_ratio(spec: Spec, depth: float) -> Fraction:
    """Return the factor by which ``depth`` changes the concatenated channels of all blocks."""
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
    tap: int  # every tap-th convolution of the chain is concatenated


def _stages(spec: Spec) -> dict[int, _Stage]:
    stages = {}
    for stage in sorted({row.stage for row in spec.rows} - {0}):
        rows = [row for row in spec.rows if row.stage == stage]
        chain = tuple(row for row in rows if row.role == "chain")
        gather = next((row for row in rows if row.role == "gather"), None)
        taken = sum(1 for i in gather.inputs if spec.rows[i] in chain) if gather else 0
        if gather is None or not taken:
            raise ConfigError(
                f"{spec.name}: the block of stage {stage} concatenates none of its 3x3 "
                "convolutions; it cannot be scaled"
            )
        stages[stage] = _Stage(chain, gather, len(chain) // taken)
    return stages


def _chain_lengths(spec: Spec, depth: float) -> dict[int, int]:
    """Return the scaled number of 3x3 convolutions of each stage."""
    return {
        number: stage.tap * max(1, round(len(stage.chain) * depth / stage.tap))
        for number, stage in _stages(spec).items()
    }


def _rewritten(
    spec: Spec, lengths: dict[int, int], ratio: Fraction, width: Fraction
) -> tuple[Row, ...]:
    """Return the rows with new chain lengths (by stage) and channel counts."""
    stages = _stages(spec)
    new: list[Row] = []
    position = {IMAGE: IMAGE}  # old index -> new index, without chains
    links: dict[int, list[int]] = {}  # stage -> new indices of its chain

    def append(row: Row, inputs: tuple[int, ...]) -> int:
        if row.block in DERIVED:
            channels = [3 if i == IMAGE else new[i].out for i in inputs]
            out = derived_channels(row.block, channels)
        else:
            out = 0 if row.block == "head" else _scaled(row, ratio, width)
        new.append(replace(row, index=len(new), inputs=inputs, out=out))
        return len(new) - 1

    for row in spec.rows:
        if row.role == "chain":  # append the whole chain at its first link
            if row is stages[row.stage].chain[0]:
                chain = links[row.stage] = [append(row, (position[row.inputs[0]],))]
                while len(chain) < lengths[row.stage]:
                    chain.append(append(row, (chain[-1],)))
        elif row.role == "gather":
            taps = links[row.stage][::-1][:: stages[row.stage].tap]
            rest = [position[i] for i in row.inputs if spec.rows[i].role != "chain"]
            position[row.index] = append(row, (*taps, *rest))
        else:
            position[row.index] = append(row, tuple(position[i] for i in row.inputs))
    return tuple(new)


def _scaled(row: Row, ratio: Fraction, width: Fraction) -> int:
    inner = row.role in ("split", "chain")  # compound scaling keeps the width of these
    exact = row.out * width * (1 if inner else ratio)
    return max(MULTIPLE, MULTIPLE * round(exact / MULTIPLE))
