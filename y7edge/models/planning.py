"""Plan re-parameterised convolutions: decide which branches a RepConv may have.

RepConv sums a 3x3, a 1x1 and an identity branch. Residual additions and concatenations already have
an identity path; a second one reduces the diversity of gradients (YOLOv7 paper, section 4.1). So a
RepConv whose output meets an addition or a concatenation must have no identity branch (the paper's
RepConvN).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from y7edge.errors import ConfigError
from y7edge.models.shapes import input_channels
from y7edge.models.spec import Row, Spec

PASSES_THROUGH = ("maxpool", "upsample", "reorg")  # blocks that only resample a map


@dataclass(frozen=True, slots=True)
class BranchPlan:
    """Whether the RepConv of a 3x3 layer may have an identity branch, and the reason."""

    row: int
    identity: bool
    reason: str


def plan(spec: Spec, *, allow_identity: bool = False) -> tuple[BranchPlan, ...]:
    """Plan the identity branch of every 3x3 convolution; the 3x3 and 1x1 branches always fit.

    ``allow_identity`` overrides the paper's rule, for experiments: then equal channel counts and
    stride 1 are enough.
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
    """Replace the 3x3 ``conv`` rows with these indices by RepConv.

    ``identity`` adds the identity branch wherever channel counts are equal.

    Raises:
        ConfigError: a row is not such a convolution, or the plan refuses its identity branch.
    """
    if spec.form == "folded":
        raise ConfigError(f"{spec.name}: a folded model has no branches to plan")
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
    meeting = None if allow_identity else _meeting(spec, row.index)
    if meeting is None:
        return BranchPlan(row.index, True, "no addition or concatenation reads its output")
    what = "a residual addition" if meeting.block == "sum" else "a concatenation"
    return BranchPlan(
        row.index,
        False,
        f"its output meets {what} in row {meeting.index}, which already has an identity path: a "
        "second one reduces the diversity of gradients (YOLOv7 paper, section 4.1)",
    )


def _fits(spec: Spec, row: Row) -> bool:
    return row.stride == 1 and input_channels(spec, row)[0] == row.out


def _meeting(spec: Spec, index: int) -> Row | None:
    """Return the addition or concatenation that reads a row, directly or through pooling."""
    for row in spec.rows:
        if index not in row.inputs:
            continue
        if row.block in ("sum", "concat"):
            return row
        if row.block in PASSES_THROUGH and (found := _meeting(spec, row.index)):
            return found
    return None
