"""The gate: an artifact, run in its own engine, against the unfolded model that it came from.

A proof is made on pictures, not on noise: 8 of the user's, of the data set, or made scenes. It says
*passed*, *failed*, or *inconclusive* when the reference's scores hardly differ, so that agreement
would mean nothing; inconclusive is not passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge import __version__
from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Manifest
from y7edge.detect.selftest import dequantised, run_probe
from y7edge.errors import ParityError
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
from y7edge.export.proof.images import Pictures
from y7edge.export.proof.probes import outputs_of, proved_batches
from y7edge.export.proof.reference import Answer, Reference
from y7edge.runtimes import registry
from y7edge.runtimes.base import Session, SessionOptions, TensorSpec

SPREAD = 0.2
"""The candidates' scores must differ by this much, or nothing is proved."""

_LARGEST = {"fp16": 65504.0, "bf16": 3.3895e38}

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Tolerance:
    """Limits of one precision; None: reported, not judged.

    ``deviation`` (largest difference over largest magnitude) and ``cosine`` are those of each
    output; ``iou`` and ``score`` those of the worst candidate; ``peak`` limits any activation;
    ``probe`` is what a self-test accepts.
    """

    deviation: float | None
    cosine: float | None
    iou: float
    score: float
    peak: float | None
    probe: float


def tolerance(precision: str, deviation: float) -> Tolerance:
    """The limits for a precision; ``deviation`` is the runtime's, for fp32."""
    if precision == "fp32":
        return Tolerance(deviation, None, 0.999, 1e-3, None, deviation)
    # Half of the range is left to pictures brighter than those of the proof.
    return Tolerance(None, 0.9995, 0.95, 0.02, _LARGEST[precision] / 2, 0.015)


def prove(
    artifact: Artifact,
    reference: Reference,
    pictures: Pictures,
    *,
    backend: str = "auto",
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run an artifact and its reference on the same pictures and compare.

    Args:
        artifact: the file as it will be used.
        reference: the model that it came from.
        pictures: prepared for the artifact's input.
        backend: a runtime's name, or "auto".
        device: of the engine.
        progress: told what happens, one line each.

    Returns:
        The report, JSON-able: ``status`` ("passed", "failed", "inconclusive"), ``problems``,
        ``reference``, ``pictures``, ``batches``, ``outputs`` (deviation and cosine of each, the
        worst of all batch sizes), ``candidates``, ``probes``, ``activations``, ``tolerance``,
        ``engine``, ``device``, ``arithmetic``, ``versions``. A number is None where it is not
        finite.

    Raises:
        RuntimeMissing, DeviceError: the engine cannot be started or fails.
    """
    tell = progress or (lambda _: None)
    manifest, runtime = artifact.manifest, registry.find(artifact.path, backend)
    engine = registry.name_of(runtime)
    limits = tolerance(manifest.precision, runtime.DEVIATION)
    tell(f"reference: {reference.description}, {len(pictures.inputs)} pictures: {pictures.source}")
    answers = [reference.answer(pixels) for pixels in pictures.inputs]
    session = registry.open_session(artifact, SessionOptions(device, check_payload=False), backend)
    try:
        tell(f"{engine}: {session.arithmetic}")
        measured = _measure(session, manifest, pictures, answers)
        ran = {"device": session.device, "arithmetic": session.arithmetic}
    finally:
        session.close()
    peak = max(answers, key=lambda answer: answer.peak)
    versions = runtime.versions()
    report = {
        "reference": reference.description,
        "pictures": {"count": len(answers), "source": pictures.source},
        "batches": list(proved_batches(manifest)),
        **measured,
        "activations": {"peak": peak.peak, "at": peak.peak_at},
        "engine": engine,
        **ran,
        "versions": {"y7edge": __version__, "numpy": np.__version__, **versions},
    }
    return {**_judge(report, limits), **_finite(report), "tolerance": asdict(limits)}


def require_passed(report: Mapping[str, Any], subject: str) -> None:
    """Raise ParityError with the report unless the proof passed; ``subject`` begins the message."""
    if report["status"] == "passed":
        return
    verdict = "cannot be proved" if report["status"] == "inconclusive" else "differs from its model"
    raise ParityError(f"{subject} {verdict}: {'; '.join(report['problems'])}", report)


def _choose(answers: Sequence[Answer], manifest: Manifest) -> list[Candidate]:
    """The reference's candidates that are compared, best first."""
    found: list[Candidate] = []
    for picture, answer in enumerate(answers):
        found += candidates_of(picture, decode(answer.heads, manifest.levels, manifest.nc))
    return choose(found)


def _run(session: Session, pictures: Pictures, batch: int) -> list[dict[str, Floats]]:
    """Outputs for each picture, run ``batch`` at a time; the last batch is filled by repeating."""
    (image,) = session.inputs
    inputs = pictures.inputs
    results: list[dict[str, Floats]] = []
    for start in range(0, len(inputs), batch):
        taken = [inputs[min(i, len(inputs) - 1)] for i in range(start, start + batch)]
        given = session.infer({image.name: np.concatenate(taken)})
        for i in range(min(batch, len(inputs) - start)):
            results.append(
                {spec.name: _real(given[spec.name][i : i + 1], spec) for spec in session.outputs}
            )
    return results


def _real(values: NDArray[Any], spec: TensorSpec) -> Floats:
    real = values if spec.scale is None else dequantised(values, spec)
    return real.astype(np.float32, copy=False)


def _measure(
    session: Session, manifest: Manifest, pictures: Pictures, answers: Sequence[Answer]
) -> dict[str, Any]:
    """``outputs``, ``candidates`` and ``probes`` of the report, over all batch sizes."""
    chosen = _choose(answers, manifest)
    outputs: dict[str, dict[str, float]] = {}
    candidates = CandidateAgreement()
    for batch in proved_batches(manifest):
        found = _run(session, pictures, batch)
        _compare(found, answers, chosen, manifest, outputs, candidates)
    return {
        "outputs": outputs,
        "candidates": {
            "count": len(chosen),
            "iou": candidates.iou,
            "score_difference": candidates.score,
            "score_spread": chosen[0].score - chosen[-1].score,
        },
        "probes": [run_probe(probe, session, manifest) for probe in manifest.probes],
    }


def _compare(
    found: Sequence[Mapping[str, Floats]],
    answers: Sequence[Answer],
    chosen: Sequence[Candidate],
    manifest: Manifest,
    outputs: dict[str, dict[str, float]],
    candidates: CandidateAgreement,
) -> None:
    """Take one batch size's results into ``outputs`` and ``candidates``: the worst is kept."""
    heads = manifest.outputs[0].role == "head"
    agreements = {
        output.name: TensorAgreement(channel_axis=1 if heads else 2) for output in manifest.outputs
    }
    for picture, (result, answer) in enumerate(zip(found, answers, strict=True)):
        expected = outputs_of(answer, manifest)
        for name, agreement in agreements.items():
            agreement.add(expected[name], result[name])
        decoded = (
            decode(list(result.values()), manifest.levels, manifest.nc)
            if heads
            else Decoded(result["boxes"][0], result["scores"][0])
        )
        for rank, candidate in enumerate(chosen):
            if candidate.picture == picture:
                candidates.add(candidate, decoded, is_best=rank < BEST)
    for name, agreement in agreements.items():
        worst = outputs.setdefault(name, {"deviation": 0.0, "cosine": 1.0})
        worst["deviation"] = float(np.maximum(worst["deviation"], agreement.deviation))
        worst["cosine"] = float(np.minimum(worst["cosine"], agreement.cosine))


def _judge(report: Mapping[str, Any], limits: Tolerance) -> dict[str, Any]:
    """``status`` and ``problems``. Comparisons are negated: what is not a number fails."""
    problems = []
    for name, measured in report["outputs"].items():
        if limits.deviation is not None and not measured["deviation"] <= limits.deviation:
            problems.append(
                f"{name} deviates by {measured['deviation']:.2g} of its largest value, tolerance "
                f"{limits.deviation:g}"
            )
        if limits.cosine is not None and not measured["cosine"] >= limits.cosine:
            problems.append(f"{name} has cosine {measured['cosine']:.6f}, at least {limits.cosine}")
    candidates = report["candidates"]
    if not candidates["iou"] >= limits.iou:
        problems.append(f"a candidate has IoU {candidates['iou']:.4f}, at least {limits.iou}")
    if not candidates["score_difference"] <= limits.score:
        problems.append(
            f"a candidate's score differs by {candidates['score_difference']:.2g}, tolerance "
            f"{limits.score:g}"
        )
    for probe in report["probes"]:
        if not probe["passed"]:
            problems.append(f"{probe['key']} deviates by {probe['deviation']}")
    peak = report["activations"]
    if limits.peak is not None and not peak["peak"] <= limits.peak:
        problems.append(
            f"an activation of {peak['at']} reaches {peak['peak']:.3g}, more than half of what "
            f"the format holds ({limits.peak:g}): use fp32"
        )
    if problems:
        return {"status": "failed", "problems": problems}
    if not candidates["score_spread"] >= SPREAD:
        problem = (
            f"inconclusive, the reference's scores spread over {candidates['score_spread']:.3f} "
            f"only, at least {SPREAD} is needed: give pictures with objects that it knows "
            "(--images FOLDER), or train longer"
        )
        return {"status": "inconclusive", "problems": [problem]}
    return {"status": "passed", "problems": []}


def _finite(value: Any) -> Any:
    """The same with four digits of every number, None where it is not finite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value
