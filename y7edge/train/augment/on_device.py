"""Colour jitter and mirroring of training batches, in torch on the training device.

On a GPU, the loader leaves both to this module (`pipeline.augmented_in_part`). All roundings are
those of `colour.Jitter`, whose steps OpenCV computes in 8 bits, so that a batch has the pixels that
the loader would have written. A few of a million values differ by one grey level, at the end of
blocks of rows, where OpenCV computes in floats. Operations are separate, because a fused
multiply-add would round differently.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from y7edge.train.augment.colour import ROWS

_LARGEST = 255
_ONE = 1024  # OpenCV's matrix of a linear map of 8-bit channels has 10 fractional bits
_PIXELS = 1 << 22  # processed at a time, to limit the memory of intermediate results


class _Factors(NamedTuple):
    """Constants of each image, (B, 1, 1, 1), computed in double precision."""

    turn: Tensor  # of the hue, in units of 1 / 1024
    simple: Tensor  # 1 if colours are scaled linearly unless they are overexposed
    always: Tensor  # 1 if they are scaled linearly anyway
    grey: Tensor  # weight of the largest channel in the linear case
    fraction: Tensor  # saturation x brightness: the weight of a channel
    brightness: Tensor
    saturated: Tensor  # 1 if the saturation grows
    by_fraction: Tensor  # 255 / fraction
    by_brightness: Tensor  # 255 / brightness
    per_level: Tensor  # fraction / 255
    overexposed: Tensor  # least grey level that the brightness moves above 255


def apply_appearance(images: Tensor, appearance: Tensor) -> Tensor:
    """Change the colours of a batch and mirror it, on the device of ``images``.

    Args:
        images: uint8 (B, 3, H, W) RGB; not changed.
        appearance: float64 (B, 5) in the memory of the CPU: `pipeline.Appearance.numbers` of each
            image.

    Returns:
        A new batch of the same shape and dtype.
    """
    height, width = images.shape[-2:]
    count = max(1, _PIXELS // (height * width))
    rows = appearance.tolist()
    parts = [
        _mirrored(_jittered(images[i : i + count], rows[i : i + count]), rows[i : i + count])
        for i in range(0, len(rows), count)
    ]
    return torch.cat(parts)


def _factors(hue: float, saturation: float, brightness: float) -> tuple[float, ...]:
    """Return the values of `_Factors` for one image."""
    turn = (hue - 1) * math.pi / math.sqrt(3)
    saturation, brightness = max(saturation, 0.0), max(brightness, 0.0)
    fraction = brightness * saturation
    least = _LARGEST + 1
    if brightness > 1:
        least = int(_LARGEST / brightness)
        while brightness * least <= _LARGEST:
            least += 1
    return (
        round(turn * _ONE),
        saturation <= 1,
        not fraction,
        brightness - fraction,
        fraction,
        brightness,
        saturation > 1,
        _LARGEST / fraction if fraction else 0.0,
        _LARGEST / brightness if brightness else 0.0,
        fraction / _LARGEST,
        least,
    )


def _jittered(images: Tensor, rows: list[list[float]]) -> Tensor:
    """Return the batch with other colours."""
    if all(row[:3] == [1.0, 1.0, 1.0] for row in rows):
        return images
    table = torch.tensor([_factors(*row[:3]) for row in rows], dtype=torch.float32)
    f = _Factors(*table.to(images.device, non_blocking=True).T[..., None, None, None])
    planes = _turned(images.float(), f.turn)
    largest = planes.amax(1, keepdim=True)
    over = _block_largest(largest) >= f.overexposed
    linear = (f.always > 0) | ((f.simple > 0) & ~over)
    scaled = _levels(largest * f.grey + planes * f.fraction)
    # As in `colour`: V' is `new`; `factor` is k as a fraction of its largest value, in 8 bits.
    new = _levels(largest * f.brightness)
    chroma = largest - planes.amin(1, keepdim=True)
    factor = torch.where(f.saturated > 0, _quotient(new * f.by_fraction, chroma), _LARGEST)
    bound = torch.where(over, _quotient(new * f.by_brightness, largest), _LARGEST)
    factor = torch.minimum(factor, bound)
    limited = (new - _levels(f.per_level * (largest - planes) * factor)).clamp_(0, _LARGEST)
    return torch.where(linear, scaled, limited).to(torch.uint8)


def _turned(planes: Tensor, turn: Tensor) -> Tensor:
    """Shift the hue of RGB planes; all values are integers, which float32 represents exactly."""
    following, previous = planes[:, [2, 0, 1]], planes[:, [1, 2, 0]]
    sums = planes * _ONE + (following - previous) * turn + _ONE // 2
    return sums.div_(_ONE).floor_().clamp_(0, _LARGEST)


def _block_largest(largest: Tensor) -> Tensor:
    """Return for each row (B, 1, H, 1) the largest value of the block of rows that it is in."""
    height, width = largest.shape[-2:]
    filled = functional.pad(largest, (0, 0, 0, -height % ROWS))
    blocks = filled.reshape(len(largest), 1, -1, ROWS * width).amax(-1, keepdim=True)
    return blocks.repeat_interleave(ROWS, dim=2)[:, :, :height]


def _quotient(dividend: Tensor, divisor: Tensor) -> Tensor:
    """Divide and round to 0..255; a division by 0 gives 0."""
    return torch.where(divisor > 0, _levels(dividend / divisor), 0)


def _levels(values: Tensor) -> Tensor:
    return values.round().clamp_(0, _LARGEST)


def _mirrored(images: Tensor, rows: list[list[float]]) -> Tensor:
    """Return the batch with some images mirrored."""
    for axis, column in ((2, 3), (3, 4)):
        which = [row[column] > 0 for row in rows]
        if any(which):
            mask = torch.tensor(which).to(images.device, non_blocking=True)[:, None, None, None]
            images = torch.where(mask, images.flip(axis), images)
    return images
