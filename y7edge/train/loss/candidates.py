"""Propose candidates: the cells and anchors that can be trained on a target.

The candidates of a target are all anchors of similar shape, in the cell of the target's centre and
in adjacent cells close to the centre. In the paper of YOLOv7 (arXiv 2207.02696, section 4.2),
``reach`` 0.5 gives "fine" labels and 1.0 gives "coarse" ones.

    candidates = propose(heads, targets, anchors, anchor_t=4.0, reach=0.5)   # an Assignment
    selection = select(heads, candidates, anchors)          # predictions at those cells
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Own cell, left, upper, right, lower. The order matters if costs are equal, and if several targets
# set the objectness of one cell.
_STEPS = ((0, 0), (-1, 0), (0, -1), (1, 0), (0, 1))


@dataclass(frozen=True, slots=True)
class Assignment:
    """Cells and anchors of the heads, each with the target that it is trained on.

    Entries are ordered by level, then step (own cell, left, upper, right, lower), anchor and
    target. The same cell and anchor may occur several times, with the same or with other targets.
    """

    entries: Tensor  # (N, 5) int64: image, anchor, grid row, grid column, row of `targets`
    sizes: tuple[int, ...]  # entries per level, finest level first

    def levels(self) -> tuple[Tensor, ...]:
        """Return the entries of each level, (n, 5), finest level first."""
        return self.entries.split_with_sizes(self.sizes)

    @property
    def level(self) -> Tensor:
        """The level of each entry, (N,) int64."""
        ids = constant(range(len(self.sizes)), self.entries)
        sizes = constant(self.sizes, self.entries)
        return ids.repeat_interleave(sizes, output_size=len(self.entries))


Assigner = Callable[[Sequence[Tensor], Tensor, Tensor], Assignment]
"""Function that assigns targets to cells: ``(heads, targets, anchors) -> Assignment``.

``heads`` are raw logits per level (B, A, H, W, 5 + nc), finest level first. The logits of an
auxiliary head follow those of the lead head. ``targets`` (n, 6) are image, class, cx, cy, w, h,
normalized to the network's input. ``anchors`` (L, A, 2) are width and height in grid units of their
level.
"""


@dataclass(frozen=True, slots=True)
class Selection:
    """Predictions at the cells of an assignment; one row per entry."""

    level: Tensor  # (N,) int64
    logits: Tensor  # (N, 5 + nc), float32 or float64
    anchor: Tensor  # (N, 2) width and height in grid units
    corner: Tensor  # (N, 2) column and row of the cell
    grid: Tensor  # (N, 2) columns and rows of the level


def select(heads: Sequence[Tensor], assignment: Assignment, anchors: Tensor) -> Selection:
    """Read the predictions of the heads at the cells of an assignment, with gradient.

    ``heads`` and ``anchors`` as for `Assigner`. Half-precision logits become float32.
    """
    rows = []
    for head, entries in zip(heads, assignment.levels(), strict=True):
        image, anchor, row, column, _ = entries.unbind(1)
        rows.append(head[image, anchor, row, column])
    logits = widen(torch.cat(rows))
    _, anchor, row, column, _ = assignment.entries.unbind(1)
    level = assignment.level
    return Selection(
        level=level,
        logits=logits,
        anchor=anchors.to(logits)[level, anchor],
        corner=torch.stack((column, row), dim=1),
        grid=constant(grid_sizes(heads), row)[level],
    )


def join(assignments: Sequence[Assignment]) -> Assignment:
    """Concatenate assignments of several heads."""
    entries = torch.cat([assignment.entries for assignment in assignments])
    return Assignment(entries, sum((assignment.sizes for assignment in assignments), ()))


def distinct(
    offers: Sequence[Assignment], heads: Sequence[Tensor]
) -> tuple[Assignment, tuple[Tensor, ...]]:
    """Find the distinct pairs of cell and anchor in several sets of candidates.

    Synchronizes with the device twice.

    Returns:
        The distinct pairs, with target -1. And for each set of K candidates, the rows (K,) of the
        candidates among the distinct pairs.
    """
    height, width = (max(head.shape[axis] for head in heads) for axis in (2, 3))
    shape = (len(heads), heads[0].shape[0], heads[0].shape[1], height, width)
    whole = torch.cat([torch.cat((o.level[:, None], o.entries[:, :4]), dim=1) for o in offers])
    key = whole[:, 0]
    for axis in range(1, len(shape)):
        key = key * shape[axis] + whole[:, axis]
    cells, row = torch.unique(key, return_inverse=True)
    level, *place = torch.unravel_index(cells, shape)
    entries = torch.stack((*place, torch.full_like(cells, -1)), dim=1)
    sizes = tuple(level.bincount(minlength=len(heads)).tolist())
    return Assignment(entries, sizes), row.split_with_sizes(
        [len(offer.entries) for offer in offers]
    )


def widen(logits: Tensor) -> Tensor:
    """Convert half precision to float32; keep wider types."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def grid_sizes(heads: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Return columns and rows of each level."""
    return [(head.shape[3], head.shape[2]) for head in heads]


def constant(values: Sequence[object], like: Tensor) -> Tensor:
    """Create a small tensor like ``like`` without synchronizing with the device.

    ``torch.tensor(values, device=...)`` would synchronize.
    """
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


def propose(
    heads: Sequence[Tensor], targets: Tensor, anchors: Tensor, *, anchor_t: float, reach: float
) -> Assignment:
    """Return the candidates of all targets.

    Arguments are as for `Assigner`; only the shapes of ``heads`` are read.
    A target and an anchor are of similar shape if the ratios of their widths and of their heights
    are below ``anchor_t``. ``reach`` is the largest distance from the target's centre to an
    adjacent cell, in cells: 0.5 proposes up to three cells, 1.0 up to five.

    If a target's centre is exactly on a grid line, its own cell is proposed twice (on a grid corner
    three times). The published training includes these repeats in its sums and in SimOTA's k.

    Synchronizes with the device twice.
    """
    grid = constant(grid_sizes(heads), targets)[:, None]  # (L, 1, 2)
    centre = targets[:, 2:4] * grid  # (L, n, 2)
    ratio = (targets[:, 4:6] * grid)[:, None] / anchors.to(targets)[:, :, None]  # (L, A, n, 2)
    fits = torch.maximum(ratio, 1 / ratio).amax(-1) < anchor_t  # (L, A, n)

    rest = grid - centre
    before = ((centre % 1 < reach) & (centre > 1)).unbind(-1)
    after = ((rest % 1 < reach) & (rest > 1)).unbind(-1)
    near = torch.stack((torch.ones_like(before[0]), *before, *after), dim=1)  # (L, 5, n)

    offered = near[:, :, None] & fits[:, None]  # (L, 5, A, n)
    level, step, anchor, target = offered.nonzero().unbind(1)
    cell = (centre[level, target] + reach * constant(_STEPS, targets)[step]).floor()
    cell = torch.minimum(cell.clamp(min=0), grid[level, 0] - 1).long()
    image = targets[target, 0].long()
    entries = torch.stack((image, anchor, cell[:, 1], cell[:, 0], target), dim=1)
    return Assignment(entries, tuple(offered.flatten(1).sum(1).tolist()))
