"""Print the reports of proofs, including those of failed proofs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from y7edge.cli.console import note, show, table
from y7edge.errors import ParityError

if TYPE_CHECKING:
    from y7edge.artifact.reports import DetectionDifference, ParityReport


@contextmanager
def report_even_if_failed(as_json: bool) -> Iterator[None]:
    """Print the report of a ParityError that the ``with`` statement raises; re-raise the error."""
    try:
        yield
    except ParityError as error:
        from y7edge.artifact.reports import ParityReport

        if as_json and error.report is not None:
            show(error.report.to_dict(), (), as_json=True)
        elif isinstance(error.report, ParityReport):
            for line in parity_lines(error.report):
                note(line)
        raise


def parity_lines(report: ParityReport) -> list[str]:
    """Format a parity report as lines; empty if nothing was measured."""
    return [*_proof_lines(report), *_fallback_lines(report), *accuracy_lines(report)]


def accuracy_lines(report: ParityReport) -> list[str]:
    """Format the comparison of the mAP; empty if it was not measured."""
    found = report.accuracy
    if found is None:
        return []
    allowed = "" if found.limit is None else f" (allowed {found.limit:g})"
    earlier = f" with {found.earlier:.4f} of the model itself" if found.earlier else ""
    return [
        f"mAP@0.5:0.95 on the split {found.split} of {found.data}, {found.images} images: model "
        f"{found.reference:.4f}, artifact {found.artifact:.4f}, drop {found.drop:.4f}{earlier}"
        f"{allowed}"
    ]


def _fallback_lines(report: ParityReport) -> list[str]:
    """Format the attempts of an int8 export; empty if the first one was accepted."""
    if len(report.fallback) < 2:
        return []
    rows = [
        (len(step.kept), f"{step.share:.1%}", f"{step.artifact:.4f}", f"{step.drop:.4f}")
        for step in report.fallback
    ]
    last = max((step.kept for step in report.fallback), key=len)
    return [
        "layers went back to float:",
        *table([("layers", "in integers", "mAP@0.5:0.95", "drop"), *rows]),
        f"in this order: {', '.join(last)}",
    ]


def _proof_lines(report: ParityReport) -> list[str]:
    measured = report.measured
    if measured is None:
        return _reason(report)
    images, candidates, limits = measured.pictures, measured.candidates, measured.tolerance
    rows = [(name, found.deviation, found.cosine) for name, found in measured.outputs.items()]
    allowed = ("allowed", limits.deviation, limits.cosine)
    if not candidates.count:  # an artifact of `y7edge build`, proved by probes
        compared = f"compared with {measured.reference}, {images.count} probes"
        table_lines = table([("output", "deviation"), *(r[:2] for r in [*rows, allowed])])
        return [*_reason(report), compared, *table_lines, f"computed in {measured.arithmetic}"]
    return [
        *_reason(report),
        f"compared with {measured.reference}, on {images.count} images of",
        images.source,
        *table([("output", "deviation", "cosine"), *rows, allowed]),
        f"{candidates.count} best candidates: smallest IoU {_number(candidates.iou, '.6f')}"
        f"{f' (allowed {limits.iou})' if limits.iou else ''}, largest score difference "
        f"{_number(candidates.score_difference, '.1e')}"
        f"{f' (allowed {limits.score})' if limits.iou else ''}, "
        f"spread of scores {_number(candidates.score_spread, '.2f')}",
        *_detection_lines(measured.detections),
        f"computed in {measured.arithmetic}",
    ]


def _reason(report: ParityReport) -> list[str]:
    return [f"unverified: {report.reason}"] if report.status == "unverified" else []


def _detection_lines(found: DetectionDifference | None) -> list[str]:
    if found is None:
        return []
    return [
        f"{found.boxes} boxes of the Detector on {found.images} images, {found.unmatched} "
        f"unmatched; largest edge difference {_number(found.edge_difference, '.1e')} of the side, "
        f"largest score difference {_number(found.score_difference, '.1e')}"
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
