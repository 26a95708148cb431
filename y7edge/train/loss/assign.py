"""SimOTA: choose the cells of a head that learn targets.

    assigner = SimOTA(anchor_t=4.0)                  # a `candidates.Assigner`
    assignment = assigner(heads, targets, anchors)   # without gradients

The lead-head assignment of YOLOv7 (arXiv 2207.02696), after the simplified optimal transport of
YOLOX (arXiv 2107.08430): candidates of `candidates.propose`, a cost from the current predictions, a
number of cells per target that follows from how well the predictions fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from y7edge.train.loss.boxes import corners, decode
from y7edge.train.loss.candidates import Assignment, distinct, propose, select

# Probabilities in the class cost keep this distance from 0 and 1, where saturated logits would make
# it infinite or, in the published form, NaN. Float32 still tells 1 - 1e-7 from 1.
SATURATION = 1e-7


@dataclass(frozen=True)
class SimOTA:
    """Dynamic-k matching by classification and box cost, per picture but for all at once.

    All targets of a picture compete for all its candidates, whoever proposed them:

        cost = class cost + 3 * -ln(IoU + 1e-8)
        k    = max(1, whole part of the sum of the target's q0 largest IoUs)

    A target takes its k cheapest candidates; a candidate that several took goes to the target of
    lowest cost among all of the picture. Equal costs: the lower index, on every device.

    Targets are the rows of a matrix, the candidates of their picture its columns. The matrix is
    worked off in chunks of at most ``pairs`` elements (and at least one row), so that memory stays
    below the sum of 32 bytes x ``pairs``, 20 bytes x candidates x (5 + nc), and 48 bytes x pictures
    x the most candidates of a picture, however crowded they are. All but crowded batches are one
    chunk, hence one number of operations.
    """

    anchor_t: float = 4.0  # largest ratio of sides between a target and its anchors
    reach: float = 0.5  # how near a neighbouring cell must be, in cells
    q0: int = 10  # IoUs that are summed for k
    iou_weight: float = 3.0  # weight of the box cost against the class cost
    pairs: int = 1 << 22  # targets x candidates compared at a time

    def __call__(self, heads: Sequence[Tensor], targets: Tensor, anchors: Tensor) -> Assignment:
        """Assign by cost; see `candidates.Assigner`."""
        return self.reaching((self.reach,), heads, targets, anchors)[0]

    @torch.no_grad()
    def reaching(
        self,
        reaches: Sequence[float],
        heads: Sequence[Tensor],
        targets: Tensor,
        anchors: Tensor,
    ) -> tuple[Assignment, ...]:
        """Assign once for each of several reaches, with IoU and cost computed once for all.

        The matrix has a column for each distinct cell and anchor, and the candidates of a reach
        pick theirs. That takes 16 bytes x ``pairs`` more, and a ledger (the last term of the
        class's bound) for every reach.
        """
        offers = [
            propose(heads, targets, anchors, anchor_t=self.anchor_t, reach=reach)
            for reach in reaches
        ]
        # A target that fits an anchor is offered its own cell, whatever the reach.
        if not sum(offers[0].sizes):
            return tuple(offers)
        with torch.autocast(targets.device.type, enabled=False):
            owners = self._owners(offers, heads, targets, anchors)
        return tuple(_keep(offer, owner) for offer, owner in zip(offers, owners, strict=True))

    def _owners(
        self,
        offers: Sequence[Assignment],
        heads: Sequence[Tensor],
        targets: Tensor,
        anchors: Tensor,
    ) -> list[Tensor]:
        """For each set of candidates: the row of ``targets`` that each (K,) ends up with, or -1."""
        batch = heads[0].shape[0]
        cells, columns = (offers[0], None) if len(offers) == 1 else distinct(offers, heads)
        sheet = _Sheet(*_costs(heads, cells, anchors), cells.entries[:, 0], batch)
        views = (
            [_View(sheet.place, sheet.width, None)]
            if columns is None
            else [sheet.view(o.entries[:, 0], c) for o, c in zip(offers, columns, strict=True)]
        )
        ledgers = [_Ledger(sheet.penalty, view.width, len(targets)) for view in views]
        step = max(1, self.pairs // max(sheet.width, *(view.width for view in views)))
        for first in range(0, len(targets), step):
            chunk = targets[first : first + step]
            image = chunk[:, 0].long()
            iou = _pairwise_iou(sheet.boxes, image, corners(chunk[:, 2:6]))
            best = [view.of(iou, image).topk(min(self.q0, view.width)).values for view in views]
            cost = iou.add_(1e-8).log_().mul_(-self.iou_weight)
            cost += sheet.class_cost(image, chunk[:, 1:2].long())
            cost += sheet.penalty[image]
            for view, ledger, top in zip(views, ledgers, best, strict=True):
                k = top.sum(1, keepdim=True).long().clamp_(1, top.shape[1])
                own = view.of(cost, image)
                ledger.enter(first, image, own, _cheapest(own, k, top.shape[1]))
        return [ledger.owners()[view.place] for view, ledger in zip(views, ledgers, strict=True)]


class _Sheet:
    """What the cost needs of each candidate cell, laid out by picture as (B, W).

    W is one more than the most cells of a picture, so that the last column is padding everywhere.
    Padding has an empty box, hence no IoU, and an infinite cost. (Filled, because `zeros` is a
    different number of operations for small tensors and large, and ours is to be constant.)
    """

    def __init__(self, boxes: Tensor, class_cost: Tensor, image: Tensor, batch: int) -> None:
        """For boxes (K, 4), costs (K, nc) and pictures (K,) of the cells."""
        self.place, self.width = _places(image, batch)
        self._costs, (count, classes) = class_cost, class_cost.shape
        padded = boxes.new_full((4, batch * self.width), 0.0)
        padded[:, self.place] = boxes.T
        self.boxes = padded.view(4, batch, self.width)
        penalty = boxes.new_full((batch * self.width,), torch.inf)
        penalty[self.place] = 0
        self.penalty = penalty.view(batch, self.width)
        slot = torch.full_like(penalty, 0, dtype=torch.int64)
        slot[self.place] = torch.arange(count, device=slot.device) * classes
        self._slot = slot.view(batch, self.width)

    def class_cost(self, image: Tensor, label: Tensor) -> Tensor:
        """(R, W) for targets of pictures ``image`` (R,) and classes ``label`` (R, 1)."""
        return self._costs.take(self._slot[image].add_(label))

    def view(self, image: Tensor, cell: Tensor) -> _View:
        """The columns of candidates (K,), by their picture and their row among the cells."""
        batch = len(self.penalty)
        place, width = _places(image, batch)
        column = place.new_full((batch * width,), self.width - 1)
        column[place] = self.place[cell] % self.width
        return _View(place, width, column.view(batch, width))


@dataclass(frozen=True, slots=True)
class _View:
    """One set of candidates laid out by picture, (B, W), as columns of a sheet."""

    place: Tensor  # (K,) where each candidate is, flattened
    width: int  # W
    column: Tensor | None  # (B, W) the sheet's column of each; None: the sheet's own layout

    def of(self, values: Tensor, image: Tensor) -> Tensor:
        """This set's columns of a matrix (R, sheet's W) for targets of pictures ``image`` (R,)."""
        return values if self.column is None else values.gather(1, self.column[image])


class _Ledger:
    """Who took each candidate, and for whom it is cheapest, gathered chunk by chunk.

    Only integer sums and minima are scattered: their order doesn't matter.
    """

    def __init__(self, like: Tensor, width: int, targets: int) -> None:
        """For costs (B, ``width``) of the batch, type and device of ``like`` (B, ...)."""
        self.nobody = targets  # above every row, so that the minimum is the lowest row
        self.lowest = like.new_full((len(like), width), torch.inf)
        self.takers = torch.full_like(self.lowest, 0, dtype=torch.int32)
        self.taker = torch.full_like(self.takers, self.nobody)
        self.cheapest = torch.full_like(self.takers, self.nobody)

    def enter(self, first: int, image: Tensor, cost: Tensor, taken: Tensor) -> None:
        """Add targets ``first``, ``first`` + 1, ... of pictures ``image`` (R,); matrices (R, W)."""
        into = image[:, None].expand_as(cost)
        row = torch.arange(first, first + len(image), dtype=torch.int32, device=image.device)
        self.takers.index_add_(0, image, taken.int())
        self.taker.scatter_reduce_(0, into, torch.where(taken, row[:, None], self.nobody), "amin")
        before = self.lowest.clone()
        self.lowest.scatter_reduce_(0, into, cost, "amin")
        self.cheapest.masked_fill_(self.lowest < before, self.nobody)
        self.cheapest.scatter_reduce_(
            0, into, torch.where(cost == self.lowest[image], row[:, None], self.nobody), "amin"
        )

    def owners(self) -> Tensor:
        """(B W,) int64 row of the owner, -1 for none."""
        owner = torch.where(self.takers > 1, self.cheapest, self.taker)
        return torch.where(self.takers > 0, owner, -1).long().flatten()


def _places(picture: Tensor, batch: int) -> tuple[Tensor, int]:
    """Where each candidate goes in a (B, W) table, flattened, and W: the most of any picture + 1.

    Candidates of a picture keep their order. Waits for the device once.
    """
    count = torch.zeros(batch, dtype=torch.int64, device=picture.device)
    count.index_add_(0, picture, torch.ones_like(picture))
    width = int(count.max()) + 1
    order = picture.argsort(stable=True)
    start = (count.cumsum(0) - count)[picture[order]]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - start
    return picture * width + rank, width


def _costs(
    heads: Sequence[Tensor], candidates: Assignment, anchors: Tensor
) -> tuple[Tensor, Tensor]:
    """Predicted boxes of the candidates, and their cost for each class.

    Boxes are normalised by width and height each (the published code took the height for both).
    The cost of class c is the sum over all classes of the binary cross-entropy of
    sqrt(class probability x objectness), which differs between classes only in the term of c.

    Returns:
        boxes (K, 4) x1, y1, x2, y2 normalised to the network's input, and costs (K, nc).
    """
    cells = select(heads, candidates, anchors)
    boxes = decode(cells.logits[:, :4], cells.anchor)
    boxes[:, :2] += cells.corner
    boxes /= cells.grid.repeat(1, 2)
    scores = cells.logits[:, 4:].sigmoid()
    sure = (scores[:, 1:] * scores[:, :1]).sqrt_().clamp_(SATURATION, 1 - SATURATION)
    other = sure.neg().log1p_()
    base = other.sum(1, keepdim=True)
    return corners(boxes), other.sub_(sure.log_()).sub_(base)


def _pairwise_iou(boxes: Tensor, image: Tensor, targets: Tensor) -> Tensor:
    """Plain IoU (R, W) of targets (R, 4) with candidates ``boxes[:, image]``, as corners.

    One coordinate at a time: the selected boxes (4, R, W) are never there in full.
    """
    sides = []
    for low, high in ((0, 2), (1, 3)):
        side = torch.minimum(boxes[high][image], targets[:, high, None])
        side -= torch.maximum(boxes[low][image], targets[:, low, None])
        sides.append(side.clamp_(min=0))
    overlap = sides[0].mul_(sides[1])
    area = (boxes[2:] - boxes[:2]).prod(0)[image]
    union = area.add_((targets[:, 2:] - targets[:, :2]).prod(1)[:, None]).sub_(overlap)
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
    kept = owner >= 0
    sizes = torch.stack([part.sum() for part in kept.split_with_sizes(candidates.sizes)])
    index = kept.nonzero()[:, 0]
    entries = torch.cat((candidates.entries[index, :4], owner[index, None]), dim=1)
    return Assignment(entries, tuple(sizes.tolist()))
