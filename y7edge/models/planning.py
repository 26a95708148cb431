"""Plan re-parameterised convolutions: decide which RepConv may have an identity branch.

A RepConv sums the outputs of a 3x3, a 1x1 and an identity branch. Residual additions and
concatenations already have an identity path; a second one reduces the diversity of gradients
(YOLOv7 paper, section 4.1). So a RepConv whose output is added or concatenated must not have an
identity branch (the paper's RepConvN).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from y7edge.errors import ConfigError
from y7edge.models.shapes import input_channels
from y7edge.models.spec import Row, Spec

PASSES_THROUGH = ("maxpool", "upsample", "reorg")  # blocks that only resample a map


@dataclass(frozen=True, slots=True)
class BranchPlan:
    """Whether a RepConv in place of a row may have an identity branch, and the reason."""

    row: int
    identity: bool
    reason: str


def plan(spec: Spec, *, allow_identity: bool = False) -> tuple[BranchPlan, ...]:
    """Return a plan for every 3x3 convolution.

    ``allow_identity`` ignores the paper's rule, for experiments: an identity branch then requires
    only stride 1 and as many output as input channels.
    """
    return tuple(
        _plan_row(spec, row, allow_identity)
        for row in spec.rows
        if row.block in ("conv", "repconv") and row.kernel == 3
    )


def check(spec: Spec, *, allow_identity: bool = False) -> None:
    """Raise ConfigError for identity branches that the plan does not allow."""
    for verdict in plan(spec, allow_identity=allow_identity):
        row = spec.rows[verdict.row]
        if row.block == "repconv" and row.identity and not verdict.identity:
            raise ConfigError(
                f"{spec.name}: row {row.index} has an identity branch, but {verdict.reason}; "
                "remove it, or pass allow_identity=True for an experiment"
            )


def reparameterize(
    spec: Spec, rows: tuple[int, ...], *, identity: bool = False, allow_identity: bool = False
) -> Spec:
    """Return a spec in which the 3x3 convolutions with the indices ``rows`` are RepConv.

    ``identity``: add an identity branch to those that have as many output as input channels.

    Raises:
        ConfigError: a row is not a 3x3 convolution with stride 1, or the plan does not allow its
            identity branch.
    """
    if spec.form == "folded":
        raise ConfigError(f"{spec.name}: a folded model cannot have RepConv: use an unfolded one")
    new = list(spec.rows)
    for index in rows:
        row = spec.rows[index] if 0 <= index < len(spec.rows) else spec.head
        if row.block != "conv" or row.kernel != 3 or row.stride != 1:
            raise ConfigError(
                f"{spec.name}: row {index} is not a 3x3 convolution with stride 1; RepConv cannot "
                "replace it"
            )
        new[index] = replace(row, block="repconv", identity=identity and _fits(spec, row))
    planned = replace(spec, rows=tuple(new))
    check(planned, allow_identity=allow_identity)
    return planned


def _plan_row(spec: Spec, row: Row, allow_identity: bool) -> BranchPlan:
    if row.stride != 1:
        return BranchPlan(row.index, False, "its stride is not 1")
    if not _fits(spec, row):
        cin = input_channels(spec, row)[0]
        return BranchPlan(row.index, False, f"it has {cin} input and {row.out} output channels")
    reader = None if allow_identity else _reader(spec, row.index)
    if reader is None:
        return BranchPlan(row.index, True, "no addition or concatenation reads its output")
    what = "a residual addition" if reader.block == "sum" else "a concatenation"
    return BranchPlan(
        row.index,
        False,
        f"its output goes to {what} in row {reader.index}, which already has an identity path: a "
        "second one reduces the diversity of gradients (YOLOv7 paper, section 4.1)",
    )


def _fits(spec: Spec, row: Row) -> bool:
    return row.stride == 1 and input_channels(spec, row)[0] == row.out


def _reader(spec: Spec, index: int) -> Row | None:
    """Return the addition or concatenation that reads a row, directly or after resampling."""
    for row in spec.rows:
        if index not in row.inputs:
            continue
        if row.block in ("sum", "concat"):
            return row
        if row.block in PASSES_THROUGH and (found := _reader(spec, row.index)):
            return found
    return None
