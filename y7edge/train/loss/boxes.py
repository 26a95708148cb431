"""Decode boxes at grid cells, and compute CIoU (Zheng et al., arXiv 1911.08287)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPS = 1e-7


def decode(logits: Tensor, anchors: Tensor) -> Tensor:
    """Decode logits (..., 4) x, y, w, h, with ``anchors`` (..., 2), to boxes in grid units.

    Returns (..., 4): the centre relative to the cell's upper left corner, from -0.5 to 1.5; and
    width and height, from 0 to 4 times those of the anchor.
    """
    unit = logits.sigmoid()
    return torch.cat((unit[..., :2] * 2 - 0.5, (unit[..., 2:] * 2) ** 2 * anchors), -1)


def corners(boxes: Tensor) -> Tensor:
    """Convert (..., 4) centre x, centre y, width, height to x1, y1, x2, y2."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), -1)


def ciou(first: Tensor, second: Tensor) -> Tensor:
    """Compute the complete IoU (...) of pairs of boxes (..., 4) x1, y1, x2, y2.

    ``first`` are predictions, ``second`` are targets. CIoU is at most 1, and 0 for two empty boxes.
    The weight alpha of the aspect term is a constant for the gradient, as in the paper. ``EPS``
    changes the loss of boxes in grid units, so it is added exactly where the published code adds
    it: to both heights, to the union and the squared diagonal, and again to the heights in the
    aspect term.
    """
    width1, height1 = _size(first)
    width2, height2 = _size(second)
    overlap = torch.minimum(first[..., 2:], second[..., 2:])
    overlap = (overlap - torch.maximum(first[..., :2], second[..., :2])).clamp(min=0)
    intersection = overlap.prod(-1)
    union = width1 * height1 + width2 * height2 - intersection + EPS
    iou = intersection / union
    enclosing = torch.maximum(first[..., 2:], second[..., 2:])
    enclosing = enclosing - torch.minimum(first[..., :2], second[..., :2])
    diagonal = enclosing.square().sum(-1) + EPS
    centres = second[..., :2] + second[..., 2:] - first[..., :2] - first[..., 2:]
    diou = iou - centres.square().sum(-1) / 4 / diagonal
    angle = torch.atan(width2 / (height2 + EPS)) - torch.atan(width1 / (height1 + EPS))
    aspect = 4 / math.pi**2 * angle.square()
    with torch.no_grad():
        alpha = aspect / (aspect - iou + (1 + EPS))
    return diou - alpha * aspect


def _size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return widths, and heights plus ``EPS``."""
    return boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1] + EPS
