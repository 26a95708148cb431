"""Assign targets to cells of the lead head and of an auxiliary head by SimOTA.

    assign = SimOTA(anchor_t=4.0)                # a `candidates.Assigner` of one head
    assign = by_name("coarse-to-fine")           # of lead and auxiliary head
    assignment = assign(heads, targets, anchors)

The lead-head assignment of YOLOv7 (arXiv 2207.02696, section 4.2 and figure 5) uses the simplified
optimal transport of YOLOX (arXiv 2107.08430). Candidates are those of `candidates.propose`. Their
cost, and the number of cells per target, are computed from the current predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from y7edge.errors import ConfigError
from y7edge.train.loss.boxes import corners, decode
from y7edge.train.loss.candidates import Assigner, Assignment, distinct, join, propose, select

# Probabilities in the class cost are clamped to this distance from 0 and 1, where the cost would be
# infinite or, in the published form, NaN. Float32 can represent 1 - 1e-7.
SATURATION = 1e-7


@dataclass(frozen=True)
class SimOTA:
    """Dynamic-k matching by classification and box cost, per image but for all at once.

    All targets of an image compete for all its candidates, including those of other targets:

        cost = class cost + 3 * -ln(IoU + 1e-8)
        k    = max(1, int(sum of the target's q0 largest IoUs))

    A target takes its k cheapest candidates. A candidate taken by several goes to the target of
    lowest cost among all of the image. Equal costs: the lower index, on every device.

    Targets are the rows of a matrix, the candidates of their image its columns. It is processed in
    chunks of at most ``pairs`` elements (and at least one row), which limits memory to the sum of
    32 bytes x ``pairs``, 20 bytes x candidates x (5 + nc), and 48 bytes x images x the most
    candidates of an image. Only crowded batches need more than one chunk.
    """

    anchor_t: float = 4.0  # limit of the ratio of sides of a target and an anchor
    reach: float = 0.5  # largest distance of a neighbouring cell, in cells
    q0: int = 10  # IoUs summed for k
    iou_weight: float = 3.0  # weight of the box cost against the class cost
    pairs: int = 1 << 22  # targets x candidates compared at a time

    def __call__(self, heads: Sequence[Tensor], targets: Tensor, anchors: Tensor) -> Assignment:
        """Assign targets; see `candidates.Assigner`."""
        return self.for_reaches((self.reach,), heads, targets, anchors)[0]

    @torch.no_grad()
    def for_reaches(
        self,
        reaches: Sequence[float],
        heads: Sequence[Tensor],
        targets: Tensor,
        anchors: Tensor,
    ) -> tuple[Assignment, ...]:
        """Assign once for each reach, with IoU and cost computed once.

        The matrix has a column for each distinct cell and anchor, from which each reach selects its
        candidates. This takes 16 bytes x ``pairs`` more, and the last term above once per reach.
        """
        offers = [
            propose(heads, targets, anchors, anchor_t=self.anchor_t, reach=reach)
            for reach in reaches
        ]
        # A target's own cell is a candidate with every reach.
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
        """For each set of candidates, return the owner (K,): a row of ``targets``, or -1."""
        batch = heads[0].shape[0]
        cells, columns = (offers[0], None) if len(offers) == 1 else distinct(offers, heads)
        table = _CellTable(*_costs(heads, cells, anchors), cells.entries[:, 0], batch)
        views = (
            [_View(table.place, table.width, None)]
            if columns is None
            else [table.view(o.entries[:, 0], c) for o, c in zip(offers, columns, strict=True)]
        )
        owners = [_Owners(table.penalty, view.width, len(targets)) for view in views]
        step = max(1, self.pairs // max(table.width, *(view.width for view in views)))
        for first in range(0, len(targets), step):
            chunk = targets[first : first + step]
            image = chunk[:, 0].long()
            iou = _pairwise_iou(table.boxes, image, corners(chunk[:, 2:6]))
            best = [view.of(iou, image).topk(min(self.q0, view.width)).values for view in views]
            cost = iou.add_(1e-8).log_().mul_(-self.iou_weight)
            cost += table.class_cost(image, chunk[:, 1:2].long())
            cost += table.penalty[image]
            for view, owner, top in zip(views, owners, best, strict=True):
                k = top.sum(1, keepdim=True).long().clamp_(1, top.shape[1])
                own = view.of(cost, image)
                owner.add(first, image, own, _cheapest(own, k, top.shape[1]))
        return [owner.owners()[view.place] for view, owner in zip(views, owners, strict=True)]


class _CellTable:
    """Boxes and costs of candidate cells, arranged by image as (B, W).

    W is one more than the most cells of an image, so that the last column is always padding, with
    an empty box (no IoU) and infinite cost. Tensors are created by filling: the number of kernels
    of `zeros` depends on the size, and here it must be constant.
    """

    def __init__(self, boxes: Tensor, class_cost: Tensor, image: Tensor, batch: int) -> None:
        """Arrange boxes (K, 4) and costs (K, nc) of cells of images (K,)."""
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
        """Return (R, W) for targets of images ``image`` (R,) and classes ``label`` (R, 1)."""
        return self._costs.take(self._slot[image].add_(label))

    def view(self, image: Tensor, cell: Tensor) -> _View:
        """Return the columns of candidates (K,), given by image and row among the cells."""
        batch = len(self.penalty)
        place, width = _places(image, batch)
        column = place.new_full((batch * width,), self.width - 1)
        column[place] = self.place[cell] % self.width
        return _View(place, width, column.view(batch, width))


@dataclass(frozen=True, slots=True)
class _View:
    """One set of candidates arranged by image, (B, W), as columns of a table."""

    place: Tensor  # (K,) flattened index of each candidate
    width: int  # W
    column: Tensor | None  # (B, W) column in the table; None: the same

    def of(self, values: Tensor, image: Tensor) -> Tensor:
        """Select columns of a matrix (R, table's W) for targets of images ``image`` (R,)."""
        return values if self.column is None else values.gather(1, self.column[image])


class _Owners:
    """For each candidate, the targets that took it and the cheapest one, over all chunks.

    Only integer sums and minima are scattered, so the result does not depend on their order.
    """

    def __init__(self, like: Tensor, width: int, targets: int) -> None:
        """Create tables (B, ``width``) with batch size, type and device of ``like``."""
        self.unclaimed = targets  # above every row, for minima
        self.lowest = like.new_full((len(like), width), torch.inf)
        self.claims = torch.full_like(self.lowest, 0, dtype=torch.int32)
        self.claimant = torch.full_like(self.claims, self.unclaimed)
        self.cheapest = torch.full_like(self.claims, self.unclaimed)

    def add(self, first: int, image: Tensor, cost: Tensor, taken: Tensor) -> None:
        """Add targets ``first``, ``first`` + 1, ... of images ``image`` (R,); matrices (R, W)."""
        into = image[:, None].expand_as(cost)
        row = torch.arange(first, first + len(image), dtype=torch.int32, device=image.device)
        self.claims.index_add_(0, image, taken.int())
        self.claimant.scatter_reduce_(
            0, into, torch.where(taken, row[:, None], self.unclaimed), "amin"
        )
        before = self.lowest.clone()
        self.lowest.scatter_reduce_(0, into, cost, "amin")
        self.cheapest.masked_fill_(self.lowest < before, self.unclaimed)
        self.cheapest.scatter_reduce_(
            0, into, torch.where(cost == self.lowest[image], row[:, None], self.unclaimed), "amin"
        )

    def owners(self) -> Tensor:
        """Return (B W,) int64 rows of the owners, -1 for none."""
        owner = torch.where(self.claims > 1, self.cheapest, self.claimant)
        return torch.where(self.claims > 0, owner, -1).long().flatten()


def _places(image: Tensor, batch: int) -> tuple[Tensor, int]:
    """Return each candidate's index in a flattened (B, W) table, and W: the most of any image + 1.

    Candidates of an image keep their order. Synchronizes with the device once.
    """
    count = torch.zeros(batch, dtype=torch.int64, device=image.device)
    count.index_add_(0, image, torch.ones_like(image))
    width = int(count.max()) + 1
    order = image.argsort(stable=True)
    start = (count.cumsum(0) - count)[image[order]]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - start
    return image * width + rank, width


def _costs(
    heads: Sequence[Tensor], candidates: Assignment, anchors: Tensor
) -> tuple[Tensor, Tensor]:
    """Return boxes (K, 4) x1, y1, x2, y2, normalized, and class costs (K, nc) of candidates.

    Boxes are normalized by width and height each (the published code used the height for both). The
    cost of class c is the sum over all classes of the binary cross-entropy of sqrt(class
    probability x objectness), which differs between classes only in the term of c.
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
    """Return IoU (R, W) of targets (R, 4) with candidates ``boxes[:, image]``, as corners.

    One coordinate at a time, so that the selected boxes (4, R, W) are never in memory at once.
    """
    sides = []
    for low, high in ((0, 2), (1, 3)):
        side = torch.minimum(boxes[high][image], targets[:, high, None])
        side -= torch.maximum(boxes[low][image], targets[:, low, None])
        sides.append(side.clamp_(min=0))
    overlap = sides[0].mul_(sides[1])
    area = (boxes[2:] - boxes[:2]).prod(0)[image]
    union = area.add_((targets[:, 2:] - targets[:, :2]).prod(1)[:, None]).sub_(overlap)
    # Two empty boxes have no union: IoU 0.
    return overlap.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def _cheapest(cost: Tensor, k: Tensor, most: int) -> Tensor:
    """Return a mask of the ``k`` (R, 1) lowest costs per row of (R, W); the leftmost if equal."""
    limit = cost.topk(most, largest=False).values.gather(1, k - 1)
    below = cost < limit
    equal = cost == limit
    room = k - below.sum(1, keepdim=True)
    return below | (equal & (equal.cumsum(1, dtype=torch.int32) <= room))


def _keep(candidates: Assignment, owner: Tensor) -> Assignment:
    """Keep the candidates that have an owner (K,), and set it as their target."""
    kept = owner >= 0
    sizes = torch.stack([part.sum() for part in kept.split_with_sizes(candidates.sizes)])
    index = kept.nonzero()[:, 0]
    entries = torch.cat((candidates.entries[index, :4], owner[index, None]), dim=1)
    return Assignment(entries, tuple(sizes.tolist()))


FINE, COARSE = 0.5, 1.0  # reach
_Q0 = 20  # with an auxiliary head, for both heads, as published


def coarse_to_fine(
    assign: SimOTA, heads: Sequence[Tensor], targets: Tensor, anchors: Tensor
) -> Assignment:
    """Assign both heads by the lead's predictions (figure 5 e), as published.

    The auxiliary head, for high recall, gets all four neighbours of a cell as candidates.
    """
    return join(assign.for_reaches((FINE, COARSE), heads[: len(anchors)], targets, anchors))


def lead_guided(
    assign: SimOTA, heads: Sequence[Tensor], targets: Tensor, anchors: Tensor
) -> Assignment:
    """Assign cells by the lead's predictions; both heads get the same cells (d in the paper)."""
    return join([assign(heads[: len(anchors)], targets, anchors)] * 2)


def independent(
    assign: SimOTA, heads: Sequence[Tensor], targets: Tensor, anchors: Tensor
) -> Assignment:
    """Assign cells to each head by its own predictions (c in the paper)."""
    levels = len(anchors)
    return join([assign(part, targets, anchors) for part in (heads[:levels], heads[levels:])])


AUXILIARY = {
    "coarse-to-fine": coarse_to_fine,
    "lead-guided": lead_guided,
    "independent": independent,
}


def by_name(name: str, *, anchor_t: float = 4.0) -> Assigner:
    """Return an assigner of lead and auxiliary head, a key of ``AUXILIARY``.

    Raises:
        ConfigError: unknown name.
    """
    if name not in AUXILIARY:
        raise ConfigError(
            f"unknown assigner {name!r} of an auxiliary head; known: {', '.join(AUXILIARY)}"
        )
    return partial(AUXILIARY[name], SimOTA(anchor_t, FINE, _Q0))
