"""Boxes in training: decoding at grid cells, and CIoU.

CIoU: Zheng et al., arXiv 1911.08287; the aspect term has its own gradient, with its weight alpha
held constant, as the paper says.

    decode(logits, anchors)   -> centre and size in grid units
    corners(boxes)            -> x1, y1, x2, y2
    ciou(first, second)       -> one number per pair
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPS = 1e-7


def decode(logits: Tensor, anchors: Tensor) -> Tensor:
    """Boxes of the head's logits, in grid units.

    Args:
        logits: (..., 4) x, y, w, h before the sigmoid.
        anchors: (..., 2) width and height in grid units, one per row of ``logits``.

    Returns:
        (..., 4): centre relative to the cell's upper left corner, in (-0.5, 1.5), then width and
        height, between 0 and 4 times the anchor's.
    """
    unit = logits.sigmoid()
    return torch.cat((unit[..., :2] * 2 - 0.5, (unit[..., 2:] * 2) ** 2 * anchors), -1)


def corners(boxes: Tensor) -> Tensor:
    """(..., 4) centre x, centre y, width, height -> (..., 4) x1, y1, x2, y2, in the same unit."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), -1)


def ciou(first: Tensor, second: Tensor) -> Tensor:
    """Complete IoU of paired boxes: IoU less a distance term and an aspect term; 1 means equal.

    The small constant is where the published implementation has it, because at the scale of grid
    units it is visible in the loss: on both heights, on the union, on the enclosing box, and on
    the heights once more inside the aspect term. Two empty boxes give 0, never NaN.

    Args:
        first: (..., 4) x1, y1, x2, y2; the predictions, in any one unit.
        second: (..., 4) the targets; shapes broadcast.

    Returns:
        (...): at most 1.
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
    """Widths, and heights with the constant already on them."""
    return boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1] + EPS
