"""Compute the detection loss: CIoU, objectness and class terms on assigned cells.

    loss = TrainingLoss(spec, anchors, recipe, imgsz=640)
    parts = loss(heads, targets)
    parts.total.backward()

YOLOv7, arXiv 2207.02696; CIoU: arXiv 1911.08287; focal weighting: arXiv 1708.02002.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from y7edge.errors import ConfigError
from y7edge.models.spec import Spec
from y7edge.train.loss.assign import AUXILIARY, SimOTA, by_name
from y7edge.train.loss.boxes import ciou, corners, decode
from y7edge.train.loss.candidates import Assigner, Assignment, Selection, constant, select, widen
from y7edge.train.run.distributed import Ranks
from y7edge.train.settings.recipe import Recipe

# Weight of each level's objectness, finest first
_BALANCE = {3: (4.0, 1.0, 0.4), 4: (4.0, 1.0, 0.25, 0.06)}
_FOCAL_ALPHA = 0.25
AUX_WEIGHT = 0.25  # weight of the auxiliary head; the lead has 1


@dataclass(frozen=True, slots=True)
class LossParts:
    """Terms of the loss of one process, scalars on the device.

    The mean of a term over all processes is the term of the whole batch.
    """

    # Weighted by their gains, without gradient
    box: Tensor
    obj: Tensor
    cls: Tensor  # 0 for a model of one class
    total: Tensor  # sum of the three x batch size, with gradient


def scaled(recipe: Recipe, *, levels: int, nc: int, imgsz: int) -> Recipe:
    """Adapt a recipe's gains, which are for 3 levels, 80 classes and 640 pixels, to a model."""
    fraction = 3 / levels
    return replace(
        recipe,
        box=recipe.box * fraction,
        obj=recipe.obj * (imgsz / 640) ** 2 * fraction,
        cls=recipe.cls * nc / 80 * fraction,
    )


class DetectionLoss:
    """Loss of a lead head, or of a lead and an auxiliary head, in float32 even under autocast.

    With several ranks, the gradients are those of one process with all images: positives and cells
    are counted over all ranks, and the loss is multiplied by the number of ranks, because gradients
    are averaged over ranks.

    ``anchors`` is (L, A, 2) width and height in grid units of their level, finest level first.
    ``recipe`` has the gains of ``scaled``. With label smoothing e, class targets are 1 - e/2
    and e/2.

    Raises:
        ConfigError: the number of levels is not 3 or 4.
    """

    def __init__(
        self, nc: int, anchors: Tensor, recipe: Recipe, ranks: Ranks | None = None
    ) -> None:
        if len(anchors) not in _BALANCE:
            raise ConfigError(
                f"a detection loss needs anchors of 3 or 4 levels, got {len(anchors)}; "
                "train one of the published variants"
            )
        self.nc = nc
        self.anchors = anchors.detach()
        self.recipe = recipe
        self.balance = _BALANCE[len(anchors)]
        self.ranks = ranks or Ranks()

    def __call__(
        self, heads: Sequence[Tensor], targets: Tensor, assignment: Assignment
    ) -> LossParts:
        """Compute the loss of this process's images; arguments as for `candidates.Assigner`."""
        anchors = self.anchors.repeat(len(heads) // len(self.anchors), 1, 1)
        with torch.autocast(targets.device.type, enabled=False):
            cells = select(heads, assignment, anchors)
            target = assignment.entries[:, 4]
            score = self._ciou(cells, targets[target, 2:6])
            per_positive, per_cell, images = self._weights(heads, assignment, score)
            weight = per_positive[cells.level]
            box = self.recipe.box * ((1 - score) * weight).sum()
            obj = self._objectness_term(heads, assignment, score.detach(), per_cell)
            obj = self.recipe.obj * obj
            cls = self.recipe.cls * self._class_term(
                cells.logits[:, 5:], targets[target, 1], weight
            )
            total = (box + obj + cls) * images
        return LossParts(box.detach(), obj.detach(), cls.detach(), total)

    def _weights(
        self, heads: Sequence[Tensor], assignment: Assignment, like: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weights of a positive and of a cell (heads x levels,), and the batch size."""
        levels = len(heads)
        cells = [head.shape[:-1].numel() for head in heads]
        counts = constant((*assignment.sizes, *cells, len(heads[0])), assignment.entries)
        positives, cells_of_all, images = (
            self.ranks.sum(counts).to(like.dtype).split_with_sizes((levels, levels, 1))
        )
        head_weight = [self.ranks.world * weight for weight in (1.0, AUX_WEIGHT)]
        weight = constant(head_weight, like).repeat_interleave(len(self.balance))[:levels]
        balance = constant(self.balance * 2, like)[:levels]
        return (
            weight / positives.clamp(min=1),
            weight * balance / cells_of_all.clamp(min=1),
            images[0],
        )

    def _ciou(self, cells: Selection, boxes: Tensor) -> Tensor:
        """Return the CIoU (N,) of predictions with ``boxes`` (N, 4), normalized cx, cy, w, h."""
        wanted = boxes * cells.grid.repeat(1, 2)
        wanted = torch.cat((wanted[:, :2] - cells.corner, wanted[:, 2:]), dim=1)
        found = decode(cells.logits[:, :4], cells.anchor)
        return ciou(corners(found), corners(wanted))

    def _objectness_term(
        self, heads: Sequence[Tensor], assignment: Assignment, score: Tensor, per_cell: Tensor
    ) -> Tensor:
        """Return the objectness loss: sums over cells, weighted by ``per_cell``.

        ``per_cell`` (heads x levels,) is the weight of a cell. The target of a positive is its
        CIoU, ``score`` (N,); the target of other cells is 0.
        """
        scores = score.clamp(min=0).split_with_sizes(assignment.sizes)
        sums = []
        for head, entries, level_score in zip(heads, assignment.levels(), scores, strict=True):
            seen = widen(head[..., 4])
            expected = _last_written(seen.shape, entries, level_score)
            sums.append(self._cross_entropy(seen, expected, self.recipe.obj_pw).sum())
        return (torch.stack(sums) * per_cell).sum()

    def _class_term(self, logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        """Return the class loss: means over classes (N,), summed with ``weight`` (N,)."""
        if self.nc == 1:
            return logits.new_zeros(())
        absent = self.recipe.label_smoothing / 2
        expected = torch.full_like(logits, absent)
        expected.scatter_(1, labels.long()[:, None], 1 - absent)
        return (self._cross_entropy(logits, expected, self.recipe.cls_pw).mean(1) * weight).sum()

    def _cross_entropy(self, logits: Tensor, expected: Tensor, positive: float) -> Tensor:
        """Return the binary cross-entropy per element, as focal loss if ``fl_gamma`` is not 0.

        ``positive`` is the weight of positive targets.
        """
        weight = None if positive == 1 else logits.new_full((), positive)
        each = F.binary_cross_entropy_with_logits(
            logits, expected, pos_weight=weight, reduction="none"
        )
        if self.recipe.fl_gamma <= 0:
            return each
        score = logits.sigmoid()
        hit = expected * score + (1 - expected) * (1 - score)
        alpha = expected * _FOCAL_ALPHA + (1 - expected) * (1 - _FOCAL_ALPHA)
        # Clamped, because the gradient of a power below 1 is infinite at 0.
        miss = (1 - hit).clamp(min=torch.finfo(hit.dtype).tiny)
        return each * alpha * miss**self.recipe.fl_gamma


class TrainingLoss:
    """`DetectionLoss` together with a model's assigner.

    ``anchors`` is (L, A, 2) in grid units of their level, finest first. ``imgsz`` is the longer
    side of the images in pixels. ``assigner`` is a key of `assign.AUXILIARY` for a model with an
    auxiliary head, "lead" for one without, or "auto" for the published choice.

    Raises:
        ConfigError: the assigner is unknown or not for this model.
    """

    def __init__(
        self,
        spec: Spec,
        anchors: Tensor,
        recipe: Recipe,
        imgsz: int,
        assigner: str = "auto",
        ranks: Ranks | None = None,
    ) -> None:
        fitting = scaled(recipe, levels=spec.levels, nc=spec.nc, imgsz=imgsz)
        self.loss = DetectionLoss(spec.nc, anchors, fitting, ranks)
        self.assign = _assigner(spec, assigner, recipe.anchor_t)

    def __call__(self, heads: Sequence[Tensor], targets: Tensor) -> LossParts:
        """Assign targets and compute the loss; arguments as for `candidates.Assigner`."""
        return self.loss(heads, targets, self.assign(heads, targets, self.loss.anchors))


def _assigner(spec: Spec, assigner: str, anchor_t: float) -> Assigner:
    """Return the assigner of this name for a model."""
    if assigner == "auto":
        assigner = "coarse-to-fine" if spec.has_aux else "lead"
    if assigner == "lead":
        if spec.has_aux:
            raise ConfigError(
                f"{spec.name}: assigner lead is for models without an auxiliary head; use one of "
                f"{', '.join(AUXILIARY)}, or remove the auxiliary rows"
            )
        return SimOTA(anchor_t)
    guided = by_name(assigner, anchor_t=anchor_t)
    if not spec.has_aux:
        raise ConfigError(
            f"{spec.name} has no auxiliary head for assigner {assigner}; use auto or lead"
        )
    return guided


def _last_written(shape: torch.Size, entries: Tensor, score: Tensor) -> Tensor:
    """Return objectness targets of ``shape`` (B, A, H, W): ``score`` (n,) at entries, else 0.

    A cell with several entries gets the score of the last, as in the published training. Every
    entry of the cell writes this score, because a GPU does not guarantee the order of writes.
    """
    image, anchor, row, column, _ = entries.unbind(1)
    _, anchors, height, width = shape
    cell = ((image * anchors + anchor) * height + row) * width + column
    position = torch.arange(len(cell), device=cell.device)
    last = position.new_full((shape.numel(),), -1).scatter_reduce_(0, cell, position, "amax")
    expected = score.new_full((shape.numel(),), 0.0)
    return expected.scatter_(0, cell, score[last[cell]]).view(shape)
