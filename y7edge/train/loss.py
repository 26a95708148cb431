"""The detection loss: CIoU, objectness and class terms on cells that an assigner chose.

    gains = scale_gains(LossGains(box=0.05, obj=0.7, cls=0.3), levels=3, nc=20, imgsz=640)
    loss = DetectionLoss(nc, anchors, gains)              # anchors (L, A, 2) in grid units
    parts = loss(heads, targets, assigner(heads, targets, anchors))
    parts.total.backward()

YOLOv7, arXiv 2207.02696; CIoU: arXiv 1911.08287; focal weighting: arXiv 1708.02002.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from y7edge.errors import ConfigError
from y7edge.train.boxes import corners, decode, similarity
from y7edge.train.candidates import Assignment, Selection, constant, select, widen

# Weight of each level's objectness, finest first: small objects are many and hard.
_BALANCE = {3: (4.0, 1.0, 0.4), 4: (4.0, 1.0, 0.25, 0.06)}

_FOCAL_ALPHA = 0.25


@dataclass(frozen=True, slots=True)
class LossGains:
    """Weights of the three terms."""

    box: float
    obj: float
    cls: float


@dataclass(frozen=True, slots=True)
class LossParts:
    """What a step cost: scalars on the device of the heads, no wait needed to make them."""

    box: Tensor  # weighted by its gain, without gradient
    obj: Tensor  # the same
    cls: Tensor  # the same; 0 for one class
    total: Tensor  # sum of the three x batch size, with gradient


def scale_gains(gains: LossGains, *, levels: int, nc: int, imgsz: int) -> LossGains:
    """Gains for other levels, classes and sizes than the 3, 80 and 640 of the published recipes.

    Args:
        gains: those of the recipe.
        levels: detection levels of the model.
        nc: classes.
        imgsz: training size in pixels, the longer side if not square.
    """
    share = 3 / levels
    return LossGains(
        box=gains.box * share,
        obj=gains.obj * (imgsz / 640) ** 2 * share,
        cls=gains.cls * nc / 80 * share,
    )


class DetectionLoss:
    """Lead-head loss, in float32 also under autocast.

    Args:
        nc: classes; with one class there is no class term.
        anchors: (L, A, 2) width and height in grid units of their level, finest level first.
        gains: weights of the terms, already scaled.
        label_smoothing: e gives class targets 1 - e/2 and e/2.
        cls_pw: weight of positive class targets.
        obj_pw: weight of positive objectness targets.
        focal_gamma: exponent of focal weighting of objectness and class; 0 is off.

    Raises:
        ConfigError: for a number of levels that has no published balance.
    """

    def __init__(
        self,
        nc: int,
        anchors: Tensor,
        gains: LossGains,
        *,
        label_smoothing: float = 0.0,
        cls_pw: float = 1.0,
        obj_pw: float = 1.0,
        focal_gamma: float = 0.0,
    ) -> None:
        if len(anchors) not in _BALANCE:
            raise ConfigError(
                f"a detection loss needs anchors of 3 or 4 levels, got {len(anchors)}; "
                "train one of the published variants"
            )
        self.nc = nc
        self.anchors = anchors.detach()
        self.gains = gains
        self.balance = _BALANCE[len(anchors)]
        self.present, self.absent = 1 - label_smoothing / 2, label_smoothing / 2
        self.cls_pw, self.obj_pw = cls_pw, obj_pw
        self.focal_gamma = focal_gamma

    def __call__(
        self, heads: Sequence[Tensor], targets: Tensor, assignment: Assignment
    ) -> LossParts:
        """Loss of one batch.

        Args:
            heads: per level raw logits (B, A, H, W, 5 + nc), finest level first.
            targets: (n, 6) image, class, cx, cy, w, h; boxes normalised to the network's input.
            assignment: which cells learn which rows of ``targets``.
        """
        with torch.autocast(targets.device.type, enabled=False):
            cells = select(heads, assignment, self.anchors)
            target = assignment.entries[:, 4]
            score = self._ciou(cells, targets[target, 2:6])
            # Means over the positives of each level, summed over the levels.
            share = (1 / constant(assignment.sizes, score).clamp(min=1))[cells.level]
            box = self.gains.box * ((1 - score) * share).sum()
            obj = self.gains.obj * self._objectness_term(heads, assignment, score.detach())
            cls = self.gains.cls * self._class_term(cells.logits[:, 5:], targets[target, 1], share)
            total = (box + obj + cls) * heads[0].shape[0]
        return LossParts(box.detach(), obj.detach(), cls.detach(), total)

    def _ciou(self, cells: Selection, boxes: Tensor) -> Tensor:
        """CIoU (N,) of the predictions with normalised target boxes (N, 4), in grid units."""
        wanted = boxes * cells.grid.repeat(1, 2)
        wanted = torch.cat((wanted[:, :2] - cells.corner, wanted[:, 2:]), dim=1)
        found = decode(cells.logits[:, :4], cells.anchor)
        return similarity(corners(found), corners(wanted), "ciou")

    def _objectness_term(
        self, heads: Sequence[Tensor], assignment: Assignment, score: Tensor
    ) -> Tensor:
        """Mean over all cells of a level, weighted by level; positives are to show their CIoU."""
        total = score.new_zeros(())
        scores = score.clamp(min=0).split_with_sizes(assignment.sizes)
        for weight, head, entries, level_score in zip(
            self.balance, heads, assignment.levels(), scores, strict=True
        ):
            seen = widen(head[..., 4])
            expected = _last_written(seen.shape, entries, level_score)
            total = total + weight * self._cross_entropy(seen, expected, self.obj_pw).mean()
        return total

    def _class_term(self, logits: Tensor, labels: Tensor, share: Tensor) -> Tensor:
        """Mean over the classes, weighted by ``share`` (N,); logits (N, nc)."""
        if self.nc == 1:
            return logits.new_zeros(())
        expected = torch.full_like(logits, self.absent)
        expected.scatter_(1, labels.long()[:, None], self.present)
        return (self._cross_entropy(logits, expected, self.cls_pw).mean(1) * share).sum()

    def _cross_entropy(self, logits: Tensor, expected: Tensor, positive: float) -> Tensor:
        """Binary cross-entropy of each element, focal if asked for.

        ``positive`` weights the part that pulls up.
        """
        weight = None if positive == 1 else logits.new_full((), positive)
        each = F.binary_cross_entropy_with_logits(
            logits, expected, pos_weight=weight, reduction="none"
        )
        if self.focal_gamma <= 0:
            return each
        chance = logits.sigmoid()
        hit = expected * chance + (1 - expected) * (1 - chance)
        alpha = expected * _FOCAL_ALPHA + (1 - expected) * (1 - _FOCAL_ALPHA)
        return each * alpha * (1 - hit) ** self.focal_gamma


def _last_written(shape: torch.Size, entries: Tensor, score: Tensor) -> Tensor:
    """Objectness targets (B, A, H, W): the score (n,) at the cells of ``entries``, 0 elsewhere.

    A cell entered several times gets the score of its last entry, as in the published training.
    There the outcome of such double writes is left to the device; here every entry of a cell
    writes the last one's score, so that the order of the writes doesn't matter.
    """
    image, anchor, row, column, _ = entries.unbind(1)
    _, anchors, height, width = shape
    cell = ((image * anchors + anchor) * height + row) * width + column
    position = torch.arange(len(cell), device=cell.device)
    last = position.new_full((shape.numel(),), -1).scatter_reduce_(0, cell, position, "amax")
    expected = score.new_full((shape.numel(),), 0.0)
    return expected.scatter_(0, cell, score[last[cell]]).view(shape)
