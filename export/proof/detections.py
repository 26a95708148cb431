"""Check the boxes that the Detector returns against the outputs of the unfolded model.

A proof must not share code with what it checks. Therefore the proof has its own implementations of
letterboxing (module ``images``) and decoding (module ``agreement``). NMS is not implemented again:
a rounding difference at a threshold can add or remove boxes, which changes other boxes. Instead,
three properties of the result are checked:

* Each box of the Detector matches a different candidate of the reference.
* No two boxes of the same class overlap by more than the threshold.
* Every other candidate overlaps a better box of its class by more than the threshold.

Only the result of greedy NMS has all three properties. If a score or an overlap differs from a
threshold, or from another score, by less than the tolerance, both outcomes are accepted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.manifest import Manifest
from y7edge.artifact.reports import DetectionDifference, Tolerance
from y7edge.detect.detections import Detections
from y7edge.detect.detector import Detector
from y7edge.export.proof.agreement import Decoded
from y7edge.export.proof.images import ProofImages, placement
from y7edge.export.proof.probes import proved_batches
from y7edge.runtimes.base import Session

Wide = NDArray[np.float64]
Kept = list[tuple[int, NDArray[np.intp], Wide]]
"""For each matched box: its class, the candidates that it matches (indices, nearest first), and the
IoU of these with all candidates."""


def compare_detections(
    session: Session,
    manifest: Manifest,
    images: ProofImages,
    expected: Sequence[Decoded],
    conf: float,
    limits: Tolerance,
) -> DetectionDifference:
    """Run the Detector on every frame, and compare its boxes with the reference's candidates.

    If the batch size is dynamic, each proved batch size is run.

    Args:
        session: the artifact's open session.
        manifest: the artifact's manifest.
        images: the images of the proof.
        expected: the reference's candidates for each image.
        conf: confidence threshold.
        limits: tolerances of the proof.
    """
    max_det = manifest.thresholds.max_det
    # The detector is not closed, because the caller owns the session.
    detector = Detector.from_session(session, manifest, conf=conf, max_det=max_det)
    boxes = unmatched = 0
    edge = score = 0.0
    for batch in proved_batches(manifest):
        groups = (images.frames[i : i + batch] for i in range(0, len(images.frames), batch))
        results = [found for group in groups for found in detector.batch(group)]
        for frame, decoded, found in zip(images.frames, expected, results, strict=True):
            candidates = _Candidates(decoded, frame, manifest, conf, limits)
            boxes += len(found)
            unmatched += candidates.unmatched(found)
            edge, score = max(edge, candidates.edge), max(score, candidates.score)
    return DetectionDifference(len(expected), boxes, unmatched, edge, score)


class _Candidates:
    """The reference's candidates of one image, which the Detector's boxes are compared with.

    Attributes:
        edge: Largest difference of an edge of a matched box, as a fraction of the box's side.
        score: Largest difference of a score of a matched box.
    """

    def __init__(
        self,
        decoded: Decoded,
        frame: NDArray[np.uint8],
        manifest: Manifest,
        conf: float,
        limits: Tolerance,
    ) -> None:
        self.edge = self.score = 0.0
        self._conf, self._thresholds, self._limits = conf, manifest.thresholds, limits
        self._near_score = limits.deviation or limits.score
        self._near_iou = limits.deviation or 1 - limits.iou
        near = decoded.scores.max(axis=1) > conf - limits.score - self._near_score
        self._scores = decoded.scores[near].astype(np.float64)
        self._best = self._scores.max(axis=1, initial=0)
        centre, size = np.split(decoded.boxes[near].astype(np.float64), 2, axis=1)
        self._corners = np.hstack([centre - size / 2, centre + size / 2])
        height, width = frame.shape[:2]
        top, left, rows, columns = placement((height, width), manifest.input)
        scale = np.array([width / columns, height / rows] * 2)
        moved = (self._corners - [left, top, left, top]) * scale
        self._placed = moved.clip(0, [width, height, width, height])
        self._side = np.maximum((moved[:, 2:] - moved[:, :2])[:, [0, 1, 0, 1]], 1)
        seen = (self._placed[:, 2:] - self._placed[:, :2]) > (1 - limits.iou) * self._side[:, :2]
        self._visible = seen.all(axis=1)

    def unmatched(self, found: Detections) -> int:
        """Count the boxes that violate one of the three properties; update ``edge`` and ``score``.

        These are boxes of the Detector, and candidates that the Detector should have returned.
        """
        taken: list[int] = []
        kept: Kept = []
        rows = zip(found.xyxy, found.confidence, found.class_id, strict=True)
        for box, confidence, class_id in rows:
            fits = self._fitting(box, float(confidence), int(class_id), taken)
            if len(fits):
                taken.append(int(fits[0]))
                kept.append((int(class_id), fits, self._iou(fits)))
        return len(found) - len(kept) + self._overlapping(kept) + self._missing(kept, found)

    def _fitting(
        self, box: Wide, confidence: float, class_id: int, taken: list[int]
    ) -> NDArray[np.intp]:
        """Return indices of the candidates that match a box within the tolerance, nearest first.

        Candidates in ``taken`` already match another box.
        """
        edge = (np.abs(self._placed - box) / self._side).max(axis=1, initial=0)
        score = np.abs(self._scores[:, class_id] - confidence)
        fits = self._may_be(class_id) & (score <= self._limits.score)
        fits &= edge <= 1 - self._limits.iou
        fits[taken] = False
        indices = np.flatnonzero(fits)
        # Large boxes of several cells can become equal when they are clipped to the image.
        distance = edge / (1 - self._limits.iou) + score / self._limits.score
        indices = indices[np.argsort(distance[indices], kind="stable")]
        if len(indices):
            self.edge = max(self.edge, float(edge[indices[0]]))
            self.score = max(self.score, float(score[indices[0]]))
        return indices

    def _overlapping(self, kept: Kept) -> int:
        """Count the boxes that NMS should have removed, because they overlap a better box."""
        limit = self._thresholds.iou + self._near_iou
        return sum(
            any(
                better == class_id and (overlap[:, fits] > limit).all()
                for better, _, overlap in kept[:place]
            )
            for place, (class_id, fits, _) in enumerate(kept)
        )

    def _missing(self, kept: Kept, found: Detections) -> int:
        """Count the visible candidates above the threshold that NMS should have kept."""
        # Boxes in the letterbox's border count for max_det, but are not returned.
        hidden = np.flatnonzero(~self._visible & (self._best > self._conf - self._near_score))
        least = self._conf
        if len(found) and len(found) + len(hidden) >= self._thresholds.max_det:
            least = float(found.confidence.min()) + self._near_score
        lacking = self._visible & (self._best > least + self._near_score)
        classes = [int(self._scores[i].argmax()) for i in hidden]
        dropped = [(c, hidden[[n]], self._iou(hidden[[n]])) for n, c in enumerate(classes)]
        for class_id, fits, overlap in kept + dropped:
            lacking[fits] = False
            not_better = self._best <= self._scores[fits, class_id, None] + 2 * self._near_score
            near = overlap > self._thresholds.iou - self._near_iou
            lacking &= ~((not_better & near).any(axis=0) & self._may_be(class_id))
        return int(lacking.sum())

    def _may_be(self, class_id: int) -> NDArray[np.bool_]:
        """Return a mask of the candidates whose best class is ``class_id`` within the tolerance."""
        tied: NDArray[np.bool_] = self._scores[:, class_id] >= self._best - 2 * self._near_score
        return tied

    def _iou(self, indices: NDArray[np.intp]) -> Wide:
        """Return the IoU (len(indices), N) of some candidates with all; boxes are not clipped."""
        some, every = self._corners[indices, None], self._corners
        sides = np.minimum(some[..., 2:], every[:, 2:]) - np.maximum(some[..., :2], every[:, :2])
        shared = sides.clip(0).prod(axis=2)
        areas = (every[:, 2:] - every[:, :2]).prod(axis=1)
        overlap: Wide = shared / np.maximum(areas[indices, None] + areas - shared, 1e-9)
        return overlap
