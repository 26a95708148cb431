"""Assigners: which cells of the heads learn which targets.

    assigner = SimOTA(anchor_t=4.0)
    assignment = assigner(heads, targets, anchors)        # nothing here is differentiated

An assigner is any callable of this signature; the loss takes what it returns. `SimOTA` is the
lead-head assignment of YOLOv7 (arXiv 2207.02696), after the simplified optimal transport of YOLOX
(arXiv 2107.08430): candidates of `candidates.propose`, a cost from the current predictions, a
number of cells per target that follows from how well the predictions fit. `PlainAssigner` keeps
every candidate.

For coarse labels of an auxiliary head, call a `SimOTA` of ``reach`` 1.0 on the *lead* head's
predictions and use its assignment on the auxiliary maps (section 4.2 of the paper).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from y7edge.train.boxes import corners, decode
from y7edge.train.candidates import Assignment, propose

# Probabilities in the class cost keep this distance from 0 and 1: beyond, saturated logits would
# make the cost infinite or NaN. It is the smallest that float32 can still tell from 1.
SATURATION = 1e-7


class Assigner(Protocol):
    """Decides which cells answer for which targets."""

    def __call__(self, heads: Sequence[Tensor], targets: Tensor, anchors: Tensor) -> Assignment:
        """Assign targets to cells.

        Args:
            heads: per level raw logits (B, A, H, W, 5 + nc), finest level first.
            targets: (n, 6) image, class, cx, cy, w, h; boxes normalised to the network's input.
            anchors: (L, A, 2) width and height in grid units of their level.
        """
        ...


@dataclass(frozen=True)
class PlainAssigner:
    """Every candidate is a positive: the assignment without optimal transport."""

    anchor_t: float = 4.0  # largest ratio of sides between a target and its anchors
    reach: float = 0.5  # how near a neighbouring cell must be, in cells

    @torch.no_grad()
    def __call__(self, heads: Sequence[Tensor], targets: Tensor, anchors: Tensor) -> Assignment:
        """Assign every candidate to the target that proposed it; see `Assigner`."""
        return propose(heads, targets, anchors, anchor_t=self.anchor_t, reach=self.reach)


@dataclass(frozen=True)
class SimOTA:
    """Dynamic-k matching by classification and box cost, per picture but for all at once.

    All targets of a picture compete for all its candidates, whoever proposed them:

        cost = class cost + 3 * -ln(IoU + 1e-8)
        k    = max(1, whole part of the sum of the target's q0 largest IoUs)

    A target takes its k cheapest candidates; a candidate that several took goes to the target of
    lowest cost among all of the picture. Equal costs: the lower index, on every device.

    Targets are the rows of a matrix, the candidates of their picture its columns; rows are worked
    off in chunks of at most ``pairs`` elements. Besides (candidates x classes) predictions and
    costs, memory stays under about 50 bytes x ``pairs`` however crowded the pictures are, and
    there is one chunk, hence a constant number of operations, for all but crowded batches.
    """

    anchor_t: float = 4.0  # largest ratio of sides between a target and its anchors
    reach: float = 0.5  # how near a neighbouring cell must be, in cells
    q0: int = 10  # IoUs that are summed for k
    iou_weight: float = 3.0  # weight of the box cost against the class cost
    pairs: int = 1 << 22  # targets x candidates compared at a time

    @torch.no_grad()
    def __call__(self, heads: Sequence[Tensor], targets: Tensor, anchors: Tensor) -> Assignment:
        """Assign by cost; see `Assigner`."""
        candidates = propose(heads, targets, anchors, anchor_t=self.anchor_t, reach=self.reach)
        if not sum(candidates.sizes):
            return candidates
        with torch.autocast(targets.device.type, enabled=False):
            boxes, class_cost = _judge(heads, candidates, anchors)
            owner = self._owners(candidates, boxes, class_cost, targets, heads[0].shape[0])
        return _keep(candidates, owner)

    def _owners(
        self, candidates: Assignment, boxes: Tensor, class_cost: Tensor, targets: Tensor, batch: int
    ) -> Tensor:
        """The row of ``targets`` that each candidate (K,) ends up with, or -1."""
        picture = candidates.entries[:, 0]
        count = torch.zeros(batch, dtype=torch.int64, device=picture.device)
        count.index_add_(0, picture, torch.ones_like(picture))
        start = count.cumsum(0) - count
        order = picture.argsort(stable=True)
        width = int(count.max())  # the one wait for the device
        place = torch.arange(width, device=picture.device)

        ledger = _Ledger(len(picture), len(targets), boxes)
        step = max(1, self.pairs // width)
        for first in range(0, len(targets), step):
            chunk = targets[first : first + step]
            image = chunk[:, 0].long()
            inside = place < count[image, None]
            column = order[(start[image, None] + place).clamp_(max=len(picture) - 1)]
            iou = _pairwise_iou(boxes, column, corners(chunk[:, 2:6])).masked_fill_(~inside, 0)
            best = iou.topk(min(self.q0, width)).values
            k = best.sum(1, keepdim=True).long().clamp_(1, best.shape[1])
            cost = iou.add_(1e-8).log_().mul_(-self.iou_weight)
            cost += class_cost.take(column * class_cost.shape[1] + chunk[:, 1:2].long())
            cost.masked_fill_(~inside, torch.inf)
            taken = _cheapest(cost, k, best.shape[1]) & inside
            ledger.enter(first, column, cost, taken)
        return ledger.owners()


class _Ledger:
    """Who took each candidate, and for whom it is cheapest, gathered chunk by chunk.

    Only integer sums and minima are scattered, whose results don't depend on the order in which a
    device does them.
    """

    def __init__(self, candidates: int, targets: int, like: Tensor) -> None:
        self.nobody = targets  # above every row, so that the minimum is the lowest row
        self.takers = torch.zeros(candidates, dtype=torch.int32, device=like.device)
        self.taker = torch.full_like(self.takers, self.nobody)
        self.cheapest = torch.full_like(self.takers, self.nobody)
        self.lowest = like.new_full((candidates,), torch.inf)

    def enter(self, first: int, column: Tensor, cost: Tensor, taken: Tensor) -> None:
        """Add the rows ``first``, ``first`` + 1, ... of the matrix; all tensors (rows, width)."""
        place = column.flatten()
        row = torch.arange(first, first + len(column), dtype=torch.int32, device=column.device)
        self.takers.scatter_add_(0, place, taken.flatten().int())
        claims = torch.where(taken, row[:, None], self.nobody).flatten()
        self.taker.scatter_reduce_(0, place, claims, "amin")
        before = self.lowest.clone()
        self.lowest.scatter_reduce_(0, place, cost.flatten(), "amin")
        self.cheapest.masked_fill_(self.lowest < before, self.nobody)
        claims = torch.where(cost == self.lowest[column], row[:, None], self.nobody).flatten()
        self.cheapest.scatter_reduce_(0, place, claims, "amin")

    def owners(self) -> Tensor:
        """(candidates,) int64 row of the owner, -1 for none."""
        owner = torch.where(self.takers > 1, self.cheapest, self.taker)
        return torch.where(self.takers > 0, owner, -1).long()


def _judge(
    heads: Sequence[Tensor], candidates: Assignment, anchors: Tensor
) -> tuple[Tensor, Tensor]:
    """Predicted boxes of the candidates, and what calling them one class or another would cost.

    Boxes are normalised by width and height each, so that pictures need not be square: the
    published code took the height for both. The cost of class c is the sum over all classes of
    the binary cross-entropy of sqrt(class probability x objectness); it differs between classes
    only in the term of c itself, so K x nc numbers say it all.

    Returns:
        boxes (K, 4) x1, y1, x2, y2 normalised to the network's input, and costs (K, nc).
    """
    boxes, rows = [], []
    for head, entries, sizes in zip(heads, candidates.levels(), anchors, strict=True):
        image, anchor, row, column, _ = entries.unbind(1)
        logits = head[image, anchor, row, column]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        box = decode(logits[:, :4], sizes.to(logits)[anchor])
        box[:, :2] += torch.stack((column, row), dim=1)
        box[:, 0::2] /= head.shape[3]
        box[:, 1::2] /= head.shape[2]
        boxes.append(corners(box))
        rows.append(logits[:, 4:])
    chance = torch.cat(rows).sigmoid_()
    sure = (chance[:, 1:] * chance[:, :1]).sqrt_().clamp_(SATURATION, 1 - SATURATION)
    other = torch.log1p(-sure)
    base = other.sum(1, keepdim=True)
    return torch.cat(boxes), other.sub_(sure.log_()).sub_(base)


def _pairwise_iou(boxes: Tensor, column: Tensor, targets: Tensor) -> Tensor:
    """Plain IoU of targets (R, 4) with their candidates ``boxes[column]``, (R, W); corners.

    One coordinate at a time: the gathered boxes are never there in full.
    """
    sides = []
    for axis in (0, 1):
        low, high = boxes[:, axis], boxes[:, axis + 2]
        side = torch.minimum(high[column], targets[:, axis + 2, None])
        sides.append(side.sub_(torch.maximum(low[column], targets[:, axis, None])).clamp_(min=0))
    overlap = sides[0].mul_(sides[1])
    own = (boxes[:, 2:] - boxes[:, :2]).prod(1)[column]
    union = own.add_((targets[:, 2:] - targets[:, :2]).prod(1)[:, None]).sub_(overlap)
    # Two empty boxes have no union; they count as apart.
    return overlap.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def _cheapest(cost: Tensor, k: Tensor, most: int) -> Tensor:
    """The ``k`` (R, 1) lowest costs of each row of (R, W), as a mask; among equals the leftmost."""
    limit = cost.topk(most, largest=False).values.gather(1, k - 1)
    below = cost < limit
    equal = cost == limit
    room = k - below.sum(1, keepdim=True)
    return below | (equal & (equal.cumsum(1, dtype=torch.int32) <= room))


def _keep(candidates: Assignment, owner: Tensor) -> Assignment:
    """The candidates that have an owner (K,), with that owner as their target."""
    kept = (owner >= 0).nonzero()[:, 0]
    ends = torch.tensor(candidates.sizes).cumsum(0).to(kept)
    upto = torch.searchsorted(kept, ends)
    sizes = upto.diff(prepend=upto.new_zeros(1)).tolist()
    entries = torch.cat((candidates.entries[kept, :4], owner[kept, None]), dim=1)
    return Assignment(entries, tuple(sizes))
