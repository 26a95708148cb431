"""Prove a graph with NMS, whose output is the final boxes, in rows of 7 values.

The candidates before NMS are not an output of the graph, but the thresholds are inputs. With an IoU
threshold of 1 nothing is suppressed, and the rows are the candidates. A row does not contain the
index of its candidate. Therefore a candidate of the reference is compared with the nearest row. The
suppression itself is proved by ``y7edge.export.proof.detections``, through the Detector.
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
"""A candidate is compared if its score is at most this much below the best one.

It is twice ``parity.SPREAD``.
"""


def compare_final_boxes(
    session: Session,
    manifest: Manifest,
    images: ProofImages,
    chosen: Sequence[Candidate],
    limits: Tolerance,
) -> tuple[dict[str, TensorDifference], CandidateDifference]:
    """Compare the reference's candidates with the rows of a graph that suppresses nothing.

    ``chosen``: the reference's candidates, the best first. Returns the worst values of all batch
    sizes. The IoU is 0 if an image has candidates, but no rows.
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
    """Return the rows of each image, (K, 5) cx, cy, w, h, score.

    The last batch is filled up with the last image.
    """
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
    """Return the row (5,) nearest to a candidate; zeros if there are no rows.

    The distance is the difference of the edges plus that of the scores, each divided by its limit.
    """
    if not len(rows):
        return np.zeros(5, np.float32)
    side = np.maximum(candidate.box[2:], 1)[[0, 1, 0, 1]]
    edge = (np.abs(rows[:, :4] - candidate.box) / side).max(axis=1) / (1 - limits.iou)
    score = np.abs(rows[:, 4] - candidate.score) / limits.score
    nearest: Floats = rows[np.nan_to_num(edge + score, nan=np.inf).argmin()]
    return nearest
