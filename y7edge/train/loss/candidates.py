"""Candidates: the cells and anchors that may learn a target.

A target is offered to every anchor of similar shape, in the cell of its centre and in the
neighbours that the centre is close to: decoded centres reach half a cell beyond the own cell
(YOLOv7, arXiv 2207.02696, section 4.2: "fine" labels with ``reach`` 0.5, "coarse" ones with 1.0).

    candidates = propose(heads, targets, anchors, anchor_t=4.0, reach=0.5)   # an Assignment
    selection = select(heads, candidates, anchors)          # what the heads say at those cells
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Own cell, left, upper, right, lower; in this order, because the order of the candidates decides
# ties of cost and which of two targets writes a cell's objectness last.
_STEPS = ((0, 0), (-1, 0), (0, -1), (1, 0), (0, 1))


@dataclass(frozen=True, slots=True)
class Assignment:
    """Cells of the heads, each with the target that it learns.

    Entries are ordered by level, then step (own cell, left, upper, right, lower), anchor and
    target. The same cell and anchor may occur several times, for one target or for several.
    """

    entries: Tensor  # (N, 5) int64: image, anchor, grid row, grid column, row of `targets`
    sizes: tuple[int, ...]  # entries per level, finest level first

    def levels(self) -> tuple[Tensor, ...]:
        """The entries of each level, (n, 5), finest level first."""
        return self.entries.split_with_sizes(self.sizes)

    @property
    def level(self) -> Tensor:
        """(N,) int64: the level of each entry."""
        ids = constant(range(len(self.sizes)), self.entries)
        sizes = constant(self.sizes, self.entries)
        return ids.repeat_interleave(sizes, output_size=len(self.entries))


Assigner = Callable[[Sequence[Tensor], Tensor, Tensor], Assignment]
"""Chooses the cells that learn targets: ``(heads, targets, anchors) -> Assignment``.

``heads`` are raw logits per level (B, A, H, W, 5 + nc), finest level first, those of an auxiliary
head after the lead's; ``targets`` (n, 6) image, class, cx, cy, w, h, normalised to the network's
input; ``anchors`` (L, A, 2) width and height in grid units of their level.
"""


@dataclass(frozen=True, slots=True)
class Selection:
    """The heads at the cells of an assignment; one row per entry, all levels in one."""

    level: Tensor  # (N,) int64
    logits: Tensor  # (N, 5 + nc), float32 at least
    anchor: Tensor  # (N, 2) width and height in grid units
    corner: Tensor  # (N, 2) column and row of the cell: its upper left corner in grid units
    grid: Tensor  # (N, 2) columns and rows of the level


def select(heads: Sequence[Tensor], assignment: Assignment, anchors: Tensor) -> Selection:
    """Read the heads, per level (B, A, H, W, 5 + nc), at the cells of an assignment.

    Gradients flow to the heads. Half-precision logits are widened here, so that nothing after
    computes in less than float32. ``anchors`` is (L, A, 2) in grid units.
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
    """Assignments of several heads as one of all their levels, one head's after the other's."""
    entries = torch.cat([assignment.entries for assignment in assignments])
    return Assignment(entries, sum((assignment.sizes for assignment in assignments), ()))


def distinct(
    offers: Sequence[Assignment], heads: Sequence[Tensor]
) -> tuple[Assignment, tuple[Tensor, ...]]:
    """The cells and anchors of several sets of candidates, each once.

    Costs two waits for the device.

    Returns:
        The cells by level, with -1 for a target; and for each set the row (K,) among them of each
        of its entries.
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
    """Half-precision values as float32; wider ones as they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def grid_sizes(heads: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Columns and rows of each level."""
    return [(head.shape[3], head.shape[2]) for head in heads]


def constant(values: Sequence[object], like: Tensor) -> Tensor:
    """A small tensor of the type and device of ``like``, sent without waiting for the device.

    ``torch.tensor(values, device=...)`` would wait until all queued work is done.
    """
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


def propose(
    heads: Sequence[Tensor], targets: Tensor, anchors: Tensor, *, anchor_t: float, reach: float
) -> Assignment:
    """Every cell and anchor that may learn a target, with that target.

    A target whose centre is exactly on a grid line gets its own cell once more (three times on a
    grid corner). The published training has these repeats in its sums and in its dynamic k.

    Costs two waits for the device, whatever the batch.

    Args:
        heads: per level (B, A, H, W, 5 + nc); only the shapes are read.
        targets: (n, 6) image, class, cx, cy, w, h; boxes normalised to the network's input.
        anchors: (L, A, 2) width and height in grid units of their level.
        anchor_t: a target fits an anchor if neither side differs by this factor or more.
        reach: a neighbour is offered if the centre is closer to it than this, in cells: 0.5 gives
            up to three cells, 1.0 up to five.
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
