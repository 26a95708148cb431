"""Measure how well an artifact agrees with its reference, the unfolded model.

Output tensors and candidates (boxes before NMS) are compared. Both comparisons are needed: the
largest difference of a tensor may be in the background, where it does not matter, and the best
candidates may all be on one level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.manifest import LevelInfo

Floats = NDArray[np.float32]

BEST = 100
"""How many of the reference's best candidates, over all images, are compared."""


@dataclass
class TensorAgreement:
    """Agreement of one output tensor over all images.

    Before the cosine is computed, each channel's mean in the reference is subtracted from both
    tensors. Otherwise the channels' biases would dominate the cosine.

    Attributes:
        channel_axis: Axis of the channels: 1 for NCHW, -1 for NHWC.
        deviation: Largest difference within an image, as a fraction of the reference's largest
            magnitude in that image.
    """

    channel_axis: int
    deviation: float = 0.0
    _sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros((5, 1)))
    _count: int = 0

    def add(self, reference: Floats, found: Floats) -> None:
        """Add the outputs for one image, two tensors of the same shape."""
        channels = reference.shape[self.channel_axis]
        r, f = (
            np.moveaxis(tensor, self.channel_axis, 0).reshape(channels, -1)
            for tensor in (reference, found)
        )
        scale = float(np.abs(r).max())
        worst = float(np.abs(f - r).max())
        if worst:  # if the reference is all zeros, any difference is infinite
            worst = worst / scale if scale else np.inf
        self.deviation = float(np.maximum(self.deviation, worst))  # unlike max(), keeps NaN
        wide = r.astype(np.float64), f.astype(np.float64)
        pairs = ((0, 0), (1, 1), (0, 1))
        products = [np.einsum("cn,cn->c", wide[a], wide[b]) for a, b in pairs]
        self._sums = self._sums + np.stack([wide[0].sum(1), wide[1].sum(1), *products])
        self._count += r.shape[1]

    @property
    def cosine(self) -> float:
        """Cosine over all images. If all channels are constant: 1 if they are equal, else NaN."""
        (sum_r, sum_f, sum_rr, sum_ff, sum_rf), n = self._sums, self._count
        mean = sum_r / n
        with np.errstate(invalid="ignore"):  # infinities become NaN, which fails the proof
            dot = (sum_rf - mean * sum_f).sum()
            rr = (sum_rr - mean * sum_r).sum()
            ff = (sum_ff - 2 * mean * sum_f + n * mean * mean).sum()
        if rr == ff == 0:
            return 1.0
        return float(dot / np.sqrt(rr * ff)) if rr > 0 and ff > 0 else float("nan")


@dataclass(frozen=True)
class Decoded:
    """All candidates of an image: ``boxes`` (N, 4) cx, cy, w, h in pixels; ``scores`` (N, nc)."""

    boxes: Floats
    scores: Floats


def decode(
    heads: Sequence[Floats], levels: Sequence[LevelInfo], nc: int, *, activated: bool = False
) -> Decoded:
    """Decode the heads of one image to candidates, without a threshold.

    Candidates are in the order level, anchor, row, column. With one class, the score is the
    objectness. The code does not share anything with the Detector's decoding, which the proof
    checks.

    Args:
        heads: tensors (1, A * (5 + nc), H, W), one for each level.
        levels: strides and anchors in pixels.
        nc: number of classes.
        activated: whether ``heads`` are probabilities instead of logits.
    """
    boxes, scores = [], []
    for head, level in zip(heads, levels, strict=True):
        height, width = head.shape[2:]
        values = head.reshape(len(level.anchors), 5 + nc, height, width)
        p = values if activated else sigmoid(values)
        columns, rows = np.meshgrid(np.arange(width), np.arange(height))
        sides = np.array(level.anchors, np.float32)[:, :, None, None]
        centre_x = (2 * p[:, 0] - 0.5 + columns) * level.stride
        centre_y = (2 * p[:, 1] - 0.5 + rows) * level.stride
        extent = (2 * p[:, 2:4]) ** 2 * sides
        boxes.append(np.stack((centre_x, centre_y, extent[:, 0], extent[:, 1]), -1).reshape(-1, 4))
        score = p[:, 4:5] * p[:, 5:] if nc > 1 else p[:, 4:5]
        scores.append(score.transpose(0, 2, 3, 1).reshape(-1, nc))
    return Decoded(np.concatenate(boxes), np.concatenate(scores))


def sigmoid(logits: Floats) -> Floats:
    """Convert logits to probabilities, float32."""
    probability: NDArray[Any] = 1 / (1 + np.exp(-np.clip(logits.astype(np.float32), -80, 80)))
    return probability


@dataclass(frozen=True, eq=False)
class Candidate:
    """A candidate of the reference.

    Attributes:
        image: Index of the image.
        index: Index among all candidates of the image.
        class_id: The class with the highest score.
        score: The score of that class.
        box: (4,) cx, cy, w, h in pixels.
    """

    image: int
    index: int
    class_id: int
    score: float
    box: Floats


def candidates_of(image: int, decoded: Decoded) -> list[Candidate]:
    """Return candidates of one image: the ``BEST`` best, then the best one of each score bin."""
    top = decoded.scores.max(axis=1)
    order = np.argsort(-top, kind="stable")
    _, first_of_bin = np.unique(_score_bin(top[order]), return_index=True)
    taken = order[np.union1d(np.arange(min(BEST, len(order))), first_of_bin)]
    classes = decoded.scores[taken].argmax(axis=1)
    return [
        Candidate(image, int(i), int(c), float(top[i]), decoded.boxes[i])
        for i, c in zip(taken, classes, strict=True)
    ]


def choose(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Choose the ``BEST`` best candidates of all images, and the best one of each score bin.

    The ``BEST`` best are not enough: in crowded images their scores are near 1, where the sigmoid
    is flat and hides differences.
    """
    ranked = sorted(candidates, key=lambda c: (-c.score, c.image, c.index))
    by_bin = {int(_score_bin(np.float32(c.score))): c for c in reversed(ranked)}
    chosen = ranked[:BEST]
    return chosen + [c for _, c in sorted(by_bin.items(), reverse=True) if c not in chosen]


def _score_bin(score: Floats | np.float32) -> NDArray[np.int64]:
    """Return the index of the bin of a score: 0 to 99, each 0.01 wide."""
    return np.minimum(np.asarray(score) * 100, 99).astype(np.int64)


@dataclass
class CandidateAgreement:
    """Smallest IoU and largest score difference between corresponding candidates."""

    iou: float = 1.0
    score: float = 0.0

    def add(self, candidate: Candidate, decoded: Decoded, *, is_best: bool) -> None:
        """Compare a candidate of the reference with the artifact's candidate of the same index.

        ``decoded``: all candidates of the artifact in the same image. ``is_best``: whether the
        candidate is one of the ``BEST`` best; only then the boxes are compared too.
        """
        score = float(decoded.scores[candidate.index, candidate.class_id])
        difference = abs(score - candidate.score)
        if is_best:
            self.iou = min(self.iou, iou(candidate.box, decoded.boxes[candidate.index]))
        self.score = float(np.maximum(self.score, difference))  # unlike max(), keeps NaN


def iou(a: Floats, b: Floats) -> float:
    """Return the IoU of two boxes cx, cy, w, h in pixels; 0 if a box contains NaN.

    Sides shorter than a pixel are extended to one pixel. Otherwise the IoU of very small boxes,
    which result from saturated logits, would depend on rounding.
    """
    first, second = a.astype(np.float64), b.astype(np.float64)
    first[2:], second[2:] = np.maximum(first[2:], 1), np.maximum(second[2:], 1)
    low = np.maximum(first[:2] - first[2:] / 2, second[:2] - second[2:] / 2)
    high = np.minimum(first[:2] + first[2:] / 2, second[:2] + second[2:] / 2)
    shared = float(np.prod(np.clip(high - low, 0, None)))
    union = float(np.prod(first[2:]) + np.prod(second[2:])) - shared
    return shared / union if union > 0 else 0.0
