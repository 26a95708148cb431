"""Prove a graph with NMS, whose output is the final boxes, in rows of 7 values.

Its candidates before NMS are not an output, but its thresholds are inputs: with an IoU threshold of
1 nothing is suppressed, and the rows are the candidates. Rows have no index, so that a candidate of
the reference is compared with the nearest row. The suppression itself is proved by
:mod:`y7edge.export.proof.detections`, through the Detector.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from y7edge.artifact.manifest import Manifest, Thresholds
from y7edge.artifact.reports import CandidateDifference, TensorDifference, Tolerance
from y7edge.boxes import MAX_CANDIDATES, centred
from y7edge.detect.postprocess import threshold_feeds
from y7edge.detect.selftest import as_input
from y7edge.export.proof.agreement import BEST, Candidate, Floats, TensorAgreement, iou
from y7edge.export.proof.images import ProofImages
from y7edge.export.proof.probes import proved_batches
from y7edge.runtimes.base import Session

DEPTH = 0.4
"""Candidates are compared down to this much below the best score, twice the required spread."""


def compare_final_boxes(
    session: Session,
    manifest: Manifest,
    images: ProofImages,
    chosen: Sequence[Candidate],
    limits: Tolerance,
) -> tuple[dict[str, TensorDifference], CandidateDifference]:
    """Compare the reference's candidates with the rows of a graph that suppresses nothing.

    ``chosen``: the reference's candidates, the best first. Reports the worst values of all batch
    sizes, and a candidate without a row as an IoU of 0.
    """
    least = max(0.0, min(chosen[:BEST][-1].score, chosen[0].score - DEPTH))
    compared = [candidate for candidate in chosen if candidate.score >= least]
    opened = Thresholds(max(0.0, least - 2 * limits.score), 1.0, MAX_CANDIDATES)
    smallest, largest, deviation, cosine = 1.0, 0.0, 0.0, 1.0
    for batch in proved_batches(manifest):
        agreement = TensorAgreement(channel_axis=-1)
        for image, rows in enumerate(_rows(session, manifest, images, batch, opened)):
            own = [(rank, c) for rank, c in enumerate(compared) if c.image == image]
            pairs = [(c, _nearest(c, rows, limits)) for _, c in own]
            for (rank, candidate), (_, found) in zip(own, pairs, strict=True):
                if rank < BEST:
                    smallest = min(smallest, iou(candidate.box, found[:4]))
                largest = float(np.maximum(largest, abs(found[4] - candidate.score)))
            if pairs:
                expected = np.array([[*c.box, c.score] for c, _ in pairs], np.float32)
                agreement.add(expected, np.array([found for _, found in pairs]))
        deviation = float(np.maximum(deviation, agreement.deviation))  # unlike max(), keeps NaN
        cosine = float(np.minimum(cosine, agreement.cosine))
    spread = compared[0].score - compared[-1].score
    difference = CandidateDifference(len(compared), smallest, largest, spread)
    return {manifest.outputs[0].name: TensorDifference(deviation, cosine)}, difference


def _rows(
    session: Session, manifest: Manifest, images: ProofImages, batch: int, thresholds: Thresholds
) -> list[Floats]:
    """Return each image's rows (K, 5) cx, cy, w, h, score; the last batch repeats an image."""
    inputs, results = images.inputs, []
    for start in range(0, len(inputs), batch):
        taken = [inputs[min(i, len(inputs) - 1)] for i in range(start, start + batch)]
        feeds = {manifest.input.name: as_input(np.concatenate(taken), manifest.input)}
        found = session.infer(feeds | threshold_feeds(manifest, thresholds))
        rows = found[manifest.outputs[0].name].astype(np.float32)
        for i in range(min(batch, len(inputs) - start)):
            own = rows[rows[:, 0] == i]
            results.append(np.column_stack([centred(own[:, 1:5]), own[:, 6]]))
    return results


def _nearest(candidate: Candidate, rows: Floats, limits: Tolerance) -> Floats:
    """Return the row (5,) that equals a candidate best, in units of the limits; zeros if none."""
    if not len(rows):
        return np.zeros(5, np.float32)
    side = np.maximum(candidate.box[2:], 1)[[0, 1, 0, 1]]
    edge = (np.abs(rows[:, :4] - candidate.box) / side).max(axis=1) / (1 - limits.iou)
    score = np.abs(rows[:, 4] - candidate.score) / limits.score
    nearest: Floats = rows[np.nan_to_num(edge + score, nan=np.inf).argmin()]
    return nearest
