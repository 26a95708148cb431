"""Assign targets to cells of the lead head and of an auxiliary head by SimOTA.

    assign = SimOTA(anchor_t=4.0)                # for a lead head alone
    assign = by_name("coarse-to-fine")           # for lead and auxiliary head
    assignment = assign(heads, targets, anchors) # see `candidates.Assigner`

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

# In the class cost, probabilities are clamped to [SATURATION, 1 - SATURATION]. At 0 and 1, the cost
# would be infinite, or NaN with the published formula. Float32 can represent 1 - 1e-7.
SATURATION = 1e-7


@dataclass(frozen=True)
class SimOTA:
    """Assigner of one head: each target takes the k candidates of lowest cost in its image.

    A target can take any candidate of its image, also one that was proposed for another target:

        cost = class cost + 3 * -ln(IoU + 1e-8)
        k    = max(1, int(sum of the target's q0 largest IoUs))

    If several targets take the same candidate, it is assigned to the target with the lowest cost
    among all targets of the image. Equal costs are resolved in favour of the lower index, on every
    device.

    The costs are a matrix with a row per target and a column per candidate of the target's image.
    The matrix is computed in chunks of rows. A chunk has at most ``pairs`` elements, or a single
    row. Only crowded batches need more than one chunk. The peak memory in bytes is the sum of

        32 * pairs
        20 * candidates * (5 + nc)
        48 * images * (largest number of candidates of an image)
    """

    anchor_t: float = 4.0  # see `candidates.propose`
    reach: float = 0.5  # see `candidates.propose`
    q0: int = 10  # number of IoUs summed for k
    iou_weight: float = 3.0  # weight of the box cost; the class cost has weight 1
    pairs: int = 1 << 22  # pairs of target and candidate that are compared at a time

    def __call__(self, heads: Sequence[Tensor], targets: Tensor, anchors: Tensor) -> Assignment:
        """Assign targets to cells of one head; arguments as for `candidates.Assigner`."""
        return self.for_reaches((self.reach,), heads, targets, anchors)[0]

    @torch.no_grad()
    def for_reaches(
        self, reaches: Sequence[float], heads: Sequence[Tensor], targets: Tensor, anchors: Tensor
    ) -> tuple[Assignment, ...]:
        """Return an assignment for each reach; IoU and cost are computed only once.

        The cost matrix has a column for each distinct pair of cell and anchor, and each reach uses
        the columns of its candidates. The peak memory is that of a single reach (see the class),
        plus 16 bytes x ``pairs``, and the last term counts once per reach.
        """
        offers = [
            propose(heads, targets, anchors, anchor_t=self.anchor_t, reach=reach)
            for reach in reaches
        ]
        # If one is empty, all are: a target's own cell is a candidate with every reach.
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
        """Return, for each set of K candidates in ``offers``, the owners (K,) of the candidates.

        An owner is a row of ``targets``, or -1 for none.
        """
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

    W is the largest number of cells of an image, plus 1. So the last column is always padding: an
    empty box, whose IoU is 0, with infinite cost. Tensors are created by `full`, because the number
    of kernels that `zeros` launches depends on the size.
    """

    def __init__(self, boxes: Tensor, class_cost: Tensor, image: Tensor, batch: int) -> None:
        """Arrange boxes (K, 4) and class costs (K, nc) of cells in images ``image`` (K,)."""
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
        """Return the class costs (R, W) of R targets for the W cells of each target's image.

        ``image`` (R,) and ``label`` (R, 1) contain the image index and the class of each target.
        """
        return self._costs.take(self._slot[image].add_(label))

    def view(self, image: Tensor, cell: Tensor) -> _View:
        """Select K candidates by image (K,) and by ``cell`` (K,), their rows in this table."""
        batch = len(self.penalty)
        place, width = _places(image, batch)
        column = place.new_full((batch * width,), self.width - 1)
        column[place] = self.place[cell] % self.width
        return _View(place, width, column.view(batch, width))


@dataclass(frozen=True, slots=True)
class _View:
    """One set of candidates, arranged by image as (B, W): a selection of a table's columns."""

    place: Tensor  # (K,) index of each candidate in the flattened (B, W)
    width: int  # W
    column: Tensor | None  # (B, W) columns of the table; None: all, in order

    def of(self, values: Tensor, image: Tensor) -> Tensor:
        """Select columns of a matrix (R, table's W) for R targets in images ``image`` (R,)."""
        return values if self.column is None else values.gather(1, self.column[image])


class _Owners:
    """For each candidate, the number of targets that took it and the target of lowest cost.

    Chunks of targets are added one by one. Only integer sums and minima are scattered, so the
    result does not depend on the order in which a GPU executes them.
    """

    def __init__(self, like: Tensor, width: int, targets: int) -> None:
        """Create tables (B, ``width``) with batch size, dtype and device of ``like``."""
        self.unclaimed = targets  # larger than every row of targets
        self.lowest = like.new_full((len(like), width), torch.inf)
        self.claims = torch.full_like(self.lowest, 0, dtype=torch.int32)
        self.claimant = torch.full_like(self.claims, self.unclaimed)
        self.cheapest = torch.full_like(self.claims, self.unclaimed)

    def add(self, first: int, image: Tensor, cost: Tensor, taken: Tensor) -> None:
        """Add the R targets from row ``first`` on, which are in images ``image`` (R,).

        ``cost`` (R, W) are the costs of the candidates for each target. ``taken`` (R, W) is True
        for the candidates that the target takes.
        """
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
        """Return the owner of each candidate, (B W,) int64: a row of the targets, -1 for none."""
        owner = torch.where(self.claims > 1, self.cheapest, self.claimant)
        return torch.where(self.claims > 0, owner, -1).long().flatten()


def _places(image: Tensor, batch: int) -> tuple[Tensor, int]:
    """Return each candidate's index in a flattened (B, W) table, and W.

    W is the largest number of candidates of an image, plus 1. Candidates of an image keep their
    order. Synchronizes with the device once.
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
    """Return normalized boxes (K, 4) x1, y1, x2, y2, and class costs (K, nc) of candidates.

    Boxes are normalized by width and height (by the height for both in the published code). The
    cost of class c is the binary cross-entropy of sqrt(class probability x objectness), summed over
    all classes, with target 1 for c and 0 for the others.
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
    """Return the IoU (R, W) of targets (R, 4) with the candidates in their images (R,).

    ``boxes`` (4, B, W) and targets are x1, y1, x2, y2. Coordinates are selected one at a time, so
    that ``boxes[:, image]`` (4, R, W) is never in memory at once.
    """
    sides = []
    for low, high in ((0, 2), (1, 3)):
        side = torch.minimum(boxes[high][image], targets[:, high, None])
        side -= torch.maximum(boxes[low][image], targets[:, low, None])
        sides.append(side.clamp_(min=0))
    overlap = sides[0].mul_(sides[1])
    area = (boxes[2:] - boxes[:2]).prod(0)[image]
    union = area.add_((targets[:, 2:] - targets[:, :2]).prod(1)[:, None]).sub_(overlap)
    # The IoU of two empty boxes is 0.
    return overlap.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def _cheapest(cost: Tensor, k: Tensor, most: int) -> Tensor:
    """Return the mask (R, W) of the ``k`` (R, 1) lowest costs per row; ties go to the left.

    No ``k`` is larger than ``most``.
    """
    limit = cost.topk(most, largest=False).values.gather(1, k - 1)
    below = cost < limit
    equal = cost == limit
    room = k - below.sum(1, keepdim=True)
    return below | (equal & (equal.cumsum(1, dtype=torch.int32) <= room))


def _keep(candidates: Assignment, owner: Tensor) -> Assignment:
    """Keep the candidates that have an owner; ``owner`` (K,) becomes their target."""
    kept = owner >= 0
    sizes = torch.stack([part.sum() for part in kept.split_with_sizes(candidates.sizes)])
    index = kept.nonzero()[:, 0]
    entries = torch.cat((candidates.entries[index, :4], owner[index, None]), dim=1)
    return Assignment(entries, tuple(sizes.tolist()))


FINE, COARSE = 0.5, 1.0  # reach of the lead and of the auxiliary head
_Q0 = 20  # for both heads of a model with an auxiliary head, as published


def coarse_to_fine(
    assign: SimOTA, heads: Sequence[Tensor], targets: Tensor, anchors: Tensor
) -> Assignment:
    """Assign cells of both heads by the lead's predictions, as published (figure 5e of the paper).

    The auxiliary head gets all four neighbours of a cell as candidates, for a higher recall.
    """
    return join(assign.for_reaches((FINE, COARSE), heads[: len(anchors)], targets, anchors))


def lead_guided(
    assign: SimOTA, heads: Sequence[Tensor], targets: Tensor, anchors: Tensor
) -> Assignment:
    """Assign the same cells of both heads, by the lead's predictions (figure 5d of the paper)."""
    return join([assign(heads[: len(anchors)], targets, anchors)] * 2)


def independent(
    assign: SimOTA, heads: Sequence[Tensor], targets: Tensor, anchors: Tensor
) -> Assignment:
    """Assign cells of each head by its own predictions (figure 5c of the paper)."""
    levels = len(anchors)
    return join([assign(part, targets, anchors) for part in (heads[:levels], heads[levels:])])


AUXILIARY = {
    "coarse-to-fine": coarse_to_fine,
    "lead-guided": lead_guided,
    "independent": independent,
}


def by_name(name: str, *, anchor_t: float = 4.0) -> Assigner:
    """Return the assigner ``name``, a key of ``AUXILIARY``, for a lead and an auxiliary head.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in AUXILIARY:
        raise ConfigError(
            f"unknown assigner {name!r} for an auxiliary head; known: {', '.join(AUXILIARY)}"
        )
    return partial(AUXILIARY[name], SimOTA(anchor_t, FINE, _Q0))
