"""Prove an artifact: run it in its own engine, and compare it with the unfolded model.

The status is *passed*, *failed* or *inconclusive*. A proof is inconclusive if the unfolded model's
scores are nearly equal, because agreement then means little. An inconclusive proof counts as
failed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np

from y7edge import __version__
from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import LevelInfo, Manifest
from y7edge.artifact.reports import (
    CandidateDifference,
    ImageSource,
    Measured,
    ParityReport,
    Peak,
    Status,
    TensorDifference,
    Tolerance,
)
from y7edge.detect.selftest import as_input, dequantised, run_probe
from y7edge.errors import ConfigError, ParityError
from y7edge.export.proof.agreement import (
    BEST,
    Candidate,
    CandidateAgreement,
    Decoded,
    Floats,
    TensorAgreement,
    candidates_of,
    choose,
    decode,
)
from y7edge.export.proof.detections import compare_detections
from y7edge.export.proof.final_boxes import compare_final_boxes
from y7edge.export.proof.images import ProofImages
from y7edge.export.proof.probes import INT8_MOST, decode_outputs, outputs_of, proved_batches
from y7edge.export.proof.reference import Answer, Reference
from y7edge.runtimes import registry
from y7edge.runtimes.base import Session, SessionOptions

SPREAD = 0.2
"""If the candidates' scores differ by less, the proof is inconclusive."""

_OWN = Tolerance(None, None, iou=0.95, score=0.02, peak=None, probe=INT8_MOST)  # see _own

_LARGEST = {"fp16": 65504.0, "bf16": 3.3895e38}  # largest finite value

Progress = Callable[[str], None]


def tolerance(precision: str, deviation: float) -> Tolerance:
    """Return the limits for a precision; ``deviation`` is the runtime's ``DEVIATION``.

    Outputs and candidates of int8 artifacts have no limits: the mAP decides. Their probes are
    samples of their own outputs.
    """
    if precision == "fp32":
        return Tolerance(deviation, None, iou=0.999, score=1e-3, peak=None, probe=deviation)
    if precision == "int8":
        return Tolerance(None, None, iou=0.0, score=1.0, peak=None, probe=INT8_MOST)
    if precision not in _LARGEST:
        known = " or ".join(("fp32", *_LARGEST, "int8"))
        raise ConfigError(f"cannot prove precision {precision}, expected {known}")
    # Half of the range is reserved for images with larger activations. bfloat16 has three bits less
    # than float16, so its rounding errors are eight times as large.
    peak, probe = _LARGEST[precision] / 2, 0.12 if precision == "bf16" else 0.015
    return Tolerance(None, cosine=0.9995, iou=0.95, score=0.02, peak=peak, probe=probe)


def comparable(precision: str, deviation: float) -> Tolerance:
    """Return the limits within which ``diff`` calls two models close; see ``tolerance``.

    For int8, they are wider than what was measured for models whose mAP drops by 0.01: cosine
    0.99, IoU 0.94, score difference 0.17.
    """
    if precision == "int8":
        return Tolerance(None, cosine=0.95, iou=0.5, score=0.35, peak=None, probe=INT8_MOST)
    return tolerance(precision, deviation)


def prove(
    artifact: Artifact,
    reference: Reference,
    images: ProofImages,
    *,
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> ParityReport:
    """Run an artifact and its reference on the same images, and compare their outputs.

    Args:
        artifact: the artifact.
        reference: the model that it was exported from.
        images: images, letterboxed to the artifact's input.
        backend: a runtime's name; "auto": the runtime that opens the file.
        device: the device to run on.
        threads: number of engine threads; None: the physical cores that this process may use.
        progress: called with one line for each step.

    Raises:
        ConfigError: the backend does not exist or does not read this kind of file.
        RuntimeMissing, DeviceError: the engine cannot be started or fails.
    """
    tell = progress or (lambda _: None)
    manifest, runtime = artifact.manifest, registry.find(artifact.path, backend)
    engine, limits = registry.name_of(runtime), tolerance(manifest.precision, runtime.DEVIATION)
    tell(f"reference: {reference.description}, {len(images.inputs)} images: {images.source}")
    expected = [reference.answer(pixels) for pixels in images.inputs]
    options = SessionOptions(device, threads, check_payload=False)
    session = registry.open_session(artifact, options, backend)
    try:
        tell(f"{engine}: {session.arithmetic}")
        decoded = (decode(answer.heads, manifest.levels, manifest.nc) for answer in expected)
        chosen = choose([one for i, image in enumerate(decoded) for one in candidates_of(i, image)])
        if manifest.outputs[0].role == "detections":
            outputs, candidates = compare_final_boxes(session, manifest, images, chosen, limits)
        else:
            outputs, candidates = _compare(session, manifest, images, expected, chosen)
        spec = reference.checkpoint.spec
        levels = tuple(map(LevelInfo, spec.strides, spec.anchors))
        truth, near = [decode(answer.heads, levels, manifest.nc) for answer in expected], limits
        if manifest.precision == "int8":
            truth, near = _own(session, manifest, images), _OWN
            chosen = choose([c for i, image in enumerate(truth) for c in candidates_of(i, image)])
        # The threshold is lowered if necessary, so that there are boxes to compare.
        conf = min(manifest.thresholds.conf, chosen[:BEST][-1].score)
        detections = compare_detections(session, manifest, images, truth, conf, near)
        probes = tuple(run_probe(probe, session, manifest) for probe in manifest.probes)
    finally:
        session.close()
    peak = max(expected, key=lambda answer: answer.peak)
    measured = Measured(
        reference=reference.description,
        pictures=ImageSource(len(expected), images.source),
        batches=proved_batches(manifest),
        outputs=outputs,
        candidates=candidates,
        probes=probes,
        activations=Peak(peak.peak, peak.peak_at),
        tolerance=limits,
        engine=engine,
        device=session.device,
        arithmetic=session.arithmetic,
        versions={"y7edge": __version__, "numpy": np.__version__, **runtime.versions()},
        detections=detections,
    )
    status, problems = _verdict(measured)
    return ParityReport(status, problems, measured=_finite(measured))


def require_passed(report: ParityReport, subject: str) -> None:
    """Raise ParityError unless the proof passed; ``subject`` begins the message."""
    if report.status == "passed":
        return
    verdict = "could not be proved" if report.status == "inconclusive" else "differs from its model"
    raise ParityError(f"{subject} {verdict}: {'; '.join(report.problems)}", report)


def _run(
    session: Session, manifest: Manifest, images: ProofImages, batch: int
) -> list[dict[str, Floats]]:
    """Return the outputs of each image. The last batch is filled up with the last image."""
    inputs = images.inputs
    results: list[dict[str, Floats]] = []
    for start in range(0, len(inputs), batch):
        taken = [inputs[min(i, len(inputs) - 1)] for i in range(start, start + batch)]
        feed = as_input(np.concatenate(taken), manifest.input)
        given = session.infer({manifest.input.name: feed})
        for i in range(min(batch, len(inputs) - start)):
            one = {spec: given[spec.name][i : i + 1] for spec in session.outputs}
            results.append({s.name: dequantised(v, s).astype(np.float32) for s, v in one.items()})
    return results


def _own(session: Session, manifest: Manifest, images: ProofImages) -> list[Decoded]:
    """Decode the artifact's own outputs for each image, with the code of the proof.

    Boxes of an int8 artifact may differ from the reference's. Compared with its own outputs, they
    show whether the Detector prepares images, decodes and suppresses correctly.
    """
    found = _run(session, manifest, images, proved_batches(manifest)[0])
    return [decode_outputs(one, manifest) for one in found]


def _compare(
    session: Session,
    manifest: Manifest,
    images: ProofImages,
    references: Sequence[Answer],
    chosen: Sequence[Candidate],
) -> tuple[dict[str, TensorDifference], CandidateDifference]:
    """Compare outputs and candidates; return the worst values of all batch sizes."""
    worst: dict[str, tuple[float, float]] = {}
    candidates = CandidateAgreement()
    for batch in proved_batches(manifest):
        agreements = {
            output.name: TensorAgreement(channel_axis=1 if output.layout == "NCHW" else -1)
            for output in manifest.outputs
        }
        found = _run(session, manifest, images, batch)
        for image, (result, answer) in enumerate(zip(found, references, strict=True)):
            expected = outputs_of(answer, manifest)
            for name, agreement in agreements.items():
                agreement.add(expected[name], result[name])
            decoded = decode_outputs(result, manifest)
            for rank, candidate in enumerate(chosen):
                if candidate.image == image:
                    candidates.add(candidate, decoded, is_best=rank < BEST)
        for name, agreement in agreements.items():
            deviation, cosine = worst.get(name, (0.0, 1.0))
            worst[name] = (  # unlike max() and min(), these keep NaN
                float(np.maximum(deviation, agreement.deviation)),
                float(np.minimum(cosine, agreement.cosine)),
            )
    spread = chosen[0].score - chosen[-1].score
    difference = CandidateDifference(len(chosen), candidates.iou, candidates.score, spread)
    return {name: TensorDifference(*values) for name, values in worst.items()}, difference


def _verdict(measured: Measured) -> tuple[Status, tuple[str, ...]]:
    """Return the status and a list of problems; NaN exceeds every limit."""
    limits, candidates, peak = measured.tolerance, measured.candidates, measured.activations
    problems = []
    for name, found in measured.outputs.items():
        if not at_most(found.deviation, limits.deviation):
            problems.append(
                f"{name} deviates by {found.deviation:.2g} of its largest value, tolerance "
                f"{limits.deviation:g}"
            )
        if not at_least(found.cosine, limits.cosine):
            problems.append(f"{name} has cosine {found.cosine:.6f}, minimum {limits.cosine}")
    if not at_least(candidates.iou, limits.iou):
        problems.append(f"a candidate's box has IoU {candidates.iou:.4f}, minimum {limits.iou}")
    if not at_most(candidates.score_difference, limits.score):
        problems.append(
            f"a candidate's score differs by {candidates.score_difference:.2g}, tolerance "
            f"{limits.score:g}"
        )
    detections = measured.detections
    if detections is not None and detections.unmatched:
        problems.append(
            f"{detections.unmatched} boxes differ between Detector and reference; the Detector "
            f"returned {detections.boxes}"
        )
    for probe in measured.probes:
        if not probe.passed:
            problems.append(f"{probe.key} deviates by {probe.deviation}")
        if probe.tolerance > limits.probe:
            problems.append(
                f"tolerance of {probe.key} is {probe.tolerance}, maximum {limits.probe:g}"
            )
    if not at_most(peak.peak, limits.peak):
        problems.append(
            f"an activation of {peak.at} reaches {peak.peak:.3g}, maximum {limits.peak:g} (half of "
            "the range of the precision): use fp32"
        )
    if problems:
        return "failed", tuple(problems)
    int8 = limits.iou == 0  # the mAP shows whether it detects
    if not int8 and not at_least(candidates.score_spread, SPREAD):
        problem = (
            f"inconclusive, the reference's scores have a spread of {candidates.score_spread:.3f}, "
            f"minimum {SPREAD}: use images with objects that the model detects (--images FOLDER), "
            "or train longer"
        )
        return "inconclusive", (problem,)
    return "passed", ()


def at_most(value: float | None, limit: float | None) -> bool:
    """Return whether a measured value is within a limit; a value of None or NaN is not."""
    return limit is None or (value is not None and value <= limit)


def at_least(value: float | None, limit: float | None) -> bool:
    """Return whether a measured value reaches a limit; a value of None or NaN does not."""
    return limit is None or (value is not None and value >= limit)


def _finite(value: Any) -> Any:
    """Round measured numbers to four digits; replace non-finite numbers by None."""
    if is_dataclass(value) and not isinstance(value, type | Tolerance):
        return replace(value, **{f.name: _finite(getattr(value, f.name)) for f in fields(value)})
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_finite(item) for item in value)
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value
