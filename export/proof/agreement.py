"""Two measures of how well an artifact agrees with its reference: tensors, and candidates.

Tensors tell whether the same function is computed; candidates (boxes before suppression) whether a
user would notice. Both are needed: a tensor's worst value may belong to no object, and the best
candidates may hide a broken level.
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
"""How many of the reference's best candidates are compared, over all images."""


@dataclass
class TensorAgreement:
    """Agreement of one output over all images; ``add`` takes one image after another.

    The cosine is that of the values less the reference's mean of each channel: otherwise the bias
    of a channel carries it, whatever the image.
    """

    channel_axis: int
    deviation: float = 0.0
    _sums: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    _count: int = 0

    def add(self, reference: Floats, found: Floats) -> None:
        """Take in one image's output, the same shape twice."""
        r = np.moveaxis(reference, self.channel_axis, 0).reshape(
            reference.shape[self.channel_axis], -1
        )
        f = np.moveaxis(found, self.channel_axis, 0).reshape(r.shape)
        scale = float(np.abs(r).max())
        worst = float(np.abs(f - r).max())
        if worst:  # a reference of zeros has no scale, and needs none where it is met
            worst = worst / scale if scale else np.inf
        self.deviation = float(np.maximum(self.deviation, worst))  # unlike max(), keeps NaN
        wide_r, wide_f = r.astype(np.float64), f.astype(np.float64)
        parts = {
            "r": wide_r.sum(1),
            "f": wide_f.sum(1),
            "rr": np.einsum("cn,cn->c", wide_r, wide_r),
            "ff": np.einsum("cn,cn->c", wide_f, wide_f),
            "rf": np.einsum("cn,cn->c", wide_r, wide_f),
        }
        for name, part in parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + part
        self._count += r.shape[1]

    @property
    def cosine(self) -> float:
        """Cosine over all that was added; of what varies nowhere, 1 if it is the same, else NaN."""
        s, n = self._sums, self._count
        mean = s["r"] / n
        with np.errstate(invalid="ignore"):  # infinities become NaN, which fails as it should
            dot = (s["rf"] - mean * s["f"]).sum()
            rr = (s["rr"] - mean * s["r"]).sum()
            ff = (s["ff"] - 2 * mean * s["f"] + n * mean * mean).sum()
        if rr == ff == 0:
            return 1.0
        return float(dot / np.sqrt(rr * ff)) if rr > 0 and ff > 0 else float("nan")


@dataclass(frozen=True)
class Decoded:
    """All candidates of an image: ``boxes`` (N, 4) cx, cy, w, h in pixels, ``scores`` (N, nc)."""

    boxes: Floats
    scores: Floats


def decode(
    heads: Sequence[Floats], levels: Sequence[LevelInfo], nc: int, *, activated: bool = False
) -> Decoded:
    """Decode one image's heads, each (1, A x (5 + nc), H, W), without any threshold.

    N runs over levels, anchors, rows, columns. With one class the score is the objectness alone.
    ``activated`` heads are probabilities, others logits. Independent of the Detector's decoding,
    which the proof compares with this one.
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
    """Probabilities in float32."""
    probability: NDArray[Any] = 1 / (1 + np.exp(-np.clip(logits.astype(np.float32), -80, 80)))
    return probability


@dataclass(frozen=True, eq=False)
class Candidate:
    """One of the reference's best: where it stands, its class, its score and its box."""

    image: int
    index: int
    class_id: int
    score: float
    box: Floats


def candidates_of(image: int, decoded: Decoded) -> list[Candidate]:
    """What one image offers to ``choose``: its best, and one of each rung, best first."""
    top = decoded.scores.max(axis=1)
    order = np.argsort(-top, kind="stable")
    _, rungs = np.unique(_rung(top[order]), return_index=True)
    taken = order[np.union1d(np.arange(min(BEST, len(order))), rungs)]
    classes = decoded.scores[taken].argmax(axis=1)
    return [
        Candidate(image, int(i), int(c), float(top[i]), decoded.boxes[i])
        for i, c in zip(taken, classes, strict=True)
    ]


def choose(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The best of all images, and below them one candidate of each hundredth of score.

    The best alone prove little of a good model on crowded images: their scores are all the same,
    near 1, where the sigmoid is flat.
    """
    ranked = sorted(candidates, key=lambda c: (-c.score, c.image, c.index))
    ladder = {int(_rung(np.float32(c.score))): c for c in reversed(ranked)}
    chosen = ranked[:BEST]
    return chosen + [c for rung, c in sorted(ladder.items(), reverse=True) if c not in chosen]


def _rung(score: Floats | np.float32) -> NDArray[np.int64]:
    return np.minimum(np.asarray(score) * 100, 99).astype(np.int64)


@dataclass
class CandidateAgreement:
    """Smallest IoU and largest difference of score between the same candidates."""

    iou: float = 1.0
    score: float = 0.0

    def add(self, candidate: Candidate, decoded: Decoded, *, is_best: bool) -> None:
        """Compare one candidate with the artifact's answer in its place.

        Boxes count among the best only: where nothing was found they are of no use to anybody.
        """
        overlap = iou(candidate.box, decoded.boxes[candidate.index]) if is_best else 1.0
        difference = abs(
            float(decoded.scores[candidate.index, candidate.class_id]) - candidate.score
        )
        self.iou = min(self.iou, overlap)
        self.score = float(np.maximum(self.score, difference))  # unlike max(), keeps NaN


def iou(a: Floats, b: Floats) -> float:
    """IoU of two boxes cx, cy, w, h in pixels; 0 if one holds NaN.

    A side below one pixel counts as one pixel: where a logit is saturated, boxes shrink to nothing,
    and the last bit of their centres would decide.
    """
    first, second = a.astype(np.float64), b.astype(np.float64)
    first[2:], second[2:] = np.maximum(first[2:], 1), np.maximum(second[2:], 1)
    low = np.maximum(first[:2] - first[2:] / 2, second[:2] - second[2:] / 2)
    high = np.minimum(first[:2] + first[2:] / 2, second[:2] + second[2:] / 2)
    shared = float(np.prod(np.clip(high - low, 0, None)))
    union = float(np.prod(first[2:]) + np.prod(second[2:])) - shared
    return shared / union if union > 0 else 0.0
