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
from y7edge.train.candidates import Assignment

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
        anchors = self.anchors.to(targets.device)
        with torch.autocast(targets.device.type, enabled=False):
            levels = [
                self._level(head, targets, entries, sizes)
                for head, entries, sizes in zip(heads, assignment.levels(), anchors, strict=True)
            ]
            box, obj, cls = torch.stack(levels).unbind(1)
            box = self.gains.box * box.sum()
            obj = self.gains.obj * (obj * obj.new_tensor(self.balance)).sum()
            cls = self.gains.cls * cls.sum()
            total = (box + obj + cls) * heads[0].shape[0]
        return LossParts(box.detach(), obj.detach(), cls.detach(), total)

    def _level(self, head: Tensor, targets: Tensor, entries: Tensor, anchors: Tensor) -> Tensor:
        """Box, objectness and class terms of one level, (3,), before gains and balance."""
        seen = _wide(head[..., 4])
        expected = torch.zeros_like(seen)
        box = cls = seen.new_zeros(())
        if len(entries):
            image, anchor, row, column, target = entries.unbind(1)
            logits = _wide(head[image, anchor, row, column])
            wanted = _relative(targets[target, 2:6], row, column, head)
            found = decode(logits[:, :4], anchors.to(logits)[anchor])
            score = similarity(corners(found), corners(wanted), "ciou")
            box = (1 - score).mean()
            expected = _objectness(expected, entries, score.detach().clamp(min=0))
            if self.nc > 1:
                cls = self._class_term(logits[:, 5:], targets[target, 1].long())
        obj = self._cross_entropy(seen, expected, self.obj_pw)
        return torch.stack((box, obj, cls))

    def _class_term(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over positives (n) and classes (nc)."""
        expected = torch.full_like(logits, self.absent)
        expected.scatter_(1, labels[:, None], self.present)
        return self._cross_entropy(logits, expected, self.cls_pw)

    def _cross_entropy(self, logits: Tensor, expected: Tensor, positive: float) -> Tensor:
        """Mean binary cross-entropy, focal if asked for; ``positive`` weights the positive part."""
        weight = None if positive == 1 else logits.new_full((), positive)
        if self.focal_gamma <= 0:
            return F.binary_cross_entropy_with_logits(logits, expected, pos_weight=weight)
        each = F.binary_cross_entropy_with_logits(
            logits, expected, pos_weight=weight, reduction="none"
        )
        chance = logits.sigmoid()
        hit = expected * chance + (1 - expected) * (1 - chance)
        alpha = expected * _FOCAL_ALPHA + (1 - expected) * (1 - _FOCAL_ALPHA)
        return (each * alpha * (1 - hit) ** self.focal_gamma).mean()


def _wide(logits: Tensor) -> Tensor:
    """Half-precision logits as float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _relative(boxes: Tensor, row: Tensor, column: Tensor, head: Tensor) -> Tensor:
    """Normalised target boxes (n, 4) in grid units, the centre relative to the cell."""
    boxes = boxes * boxes.new_tensor((head.shape[3], head.shape[2]) * 2)
    return torch.cat((boxes[:, :2] - torch.stack((column, row), dim=1), boxes[:, 2:]), dim=1)


def _objectness(blank: Tensor, entries: Tensor, score: Tensor) -> Tensor:
    """Objectness targets: the score (n,) at the cells of ``entries``, 0 in the rest of ``blank``.

    A cell entered several times gets the score of its last entry, as in the published training.
    There the outcome of such double writes is left to the device; here every entry of a cell
    writes the last one's score, so that the order of the writes doesn't matter.
    """
    image, anchor, row, column, _ = entries.unbind(1)
    _, anchors, height, width = blank.shape
    cell = ((image * anchors + anchor) * height + row) * width + column
    position = torch.arange(len(cell), device=cell.device)
    last = position.new_zeros(blank.numel()).scatter_reduce_(0, cell, position, "amax")
    return blank.flatten().scatter(0, cell, score[last[cell]]).view_as(blank)
