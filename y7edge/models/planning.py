"""Planned re-parameterised convolution: which branches a RepConv may have.

RepConv sums a 3x3, a 1x1 and an identity branch. The YOLOv7 paper (section 4.1) finds that the
identity branch destroys what residual additions and concatenations give, since both already carry
an identity path: it takes away the diversity of gradients between feature maps. So where a
RepConv's output meets an addition or a concatenation it must have no identity branch (the paper's
RepConvN).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from y7edge.errors import ConfigError
from y7edge.models.shapes import input_channels
from y7edge.models.spec import Row, Spec

PASSES_THROUGH = ("maxpool", "upsample", "reorg")  # blocks that hand a map on as it is


@dataclass(frozen=True, slots=True)
class BranchPlan:
    """The verdict for one 3x3 layer: the branches it may have and why no others."""

    row: int
    branches: tuple[str, ...]
    reason: str

    @property
    def identity(self) -> bool:
        """Whether an identity branch is allowed."""
        return "identity" in self.branches


def plan(spec: Spec, *, allow_identity: bool = False) -> tuple[BranchPlan, ...]:
    """Say for every 3x3 convolution which RepConv branches are allowed.

    Args:
        spec: any model that is not folded.
        allow_identity: leave the paper's rule out (for experiments such as its ablation); the
            identity branch then only needs equal channel counts and stride 1.
    """
    return tuple(
        _plan_row(spec, row, allow_identity)
        for row in spec.rows
        if row.block in ("conv", "repconv") and row.kernel == 3
    )


def check(spec: Spec, *, allow_identity: bool = False) -> None:
    """Refuse a spec that asks for an identity branch where the plan has none.

    Raises:
        ConfigError: with the layer and the paper's reason.
    """
    for verdict in plan(spec, allow_identity=allow_identity):
        row = spec.rows[verdict.row]
        if row.block == "repconv" and row.identity and not verdict.identity:
            raise ConfigError(
                f"{spec.name}: row {row.index} asks for an identity branch, but {verdict.reason}; "
                "leave it out, or pass allow_identity=True for an experiment"
            )


def reparameterize(
    spec: Spec, rows: tuple[int, ...], *, identity: bool = False, allow_identity: bool = False
) -> Spec:
    """A spec with 3x3 convolutions turned into RepConv, as the plan allows.

    Args:
        spec: a model in training or deploy form.
        rows: indices of 3x3 ``conv`` rows with stride 1.
        identity: ask for the identity branch wherever channel counts admit one.
        allow_identity: override of the rule, as in :func:`plan`.

    Raises:
        ConfigError: a row is no such convolution, or the plan refuses its identity branch.
    """
    if spec.form == "folded":
        raise ConfigError(f"{spec.name}: a folded model has no branches to plan")
    new = list(spec.rows)
    for index in rows:
        row = spec.rows[index] if 0 <= index < len(spec.rows) else spec.head
        if row.block != "conv" or row.kernel != 3 or row.stride != 1:
            raise ConfigError(
                f"{spec.name}: row {index} is no 3x3 convolution with stride 1; RepConv can stand "
                "only in place of one"
            )
        wanted = identity and _fits(spec, row)
        new[index] = replace(row, block="repconv", identity=wanted)
    planned = replace(spec, rows=tuple(new))
    check(planned, allow_identity=allow_identity)
    return planned


def _plan_row(spec: Spec, row: Row, allow_identity: bool) -> BranchPlan:
    if row.stride != 1:
        return BranchPlan(row.index, ("dense", "pointwise"), "its stride is not 1")
    if not _fits(spec, row):
        cin = input_channels(spec, row)[0]
        return BranchPlan(
            row.index, ("dense", "pointwise"), f"it turns {cin} channels into {row.out}"
        )
    meeting = None if allow_identity else _meeting(spec, row.index)
    if meeting is not None:
        what = "a residual addition" if meeting.block == "sum" else "a concatenation"
        return BranchPlan(
            row.index,
            ("dense", "pointwise"),
            f"its output meets {what} in row {meeting.index}, which already carries an identity "
            "path: a second one takes away the diversity of gradients (YOLOv7 paper, section 4.1)",
        )
    return BranchPlan(row.index, ("dense", "pointwise", "identity"), "nothing speaks against it")


def _fits(spec: Spec, row: Row) -> bool:
    return row.stride == 1 and input_channels(spec, row)[0] == row.out


def _meeting(spec: Spec, index: int) -> Row | None:
    """The addition or concatenation that a row's output runs into, pooling and resizing passed."""
    for row in spec.rows:
        if index not in row.inputs:
            continue
        if row.block in ("sum", "concat"):
            return row
        if row.block in PASSES_THROUGH:
            found = _meeting(spec, row.index)
            if found is not None:
                return found
    return None
