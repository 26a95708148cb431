"""Run two models on the same image, and compare their results stage by stage.

The models can have different engines, layouts, dtypes and outputs. Inputs are compared as pixel
values in RGB order, heads in layout NCHW.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.manifest import InputInfo, Manifest
from y7edge.artifact.reports import Stage, Tolerance
from y7edge.detect.detector import Detector
from y7edge.detect.preprocess import Preprocessor, letterbox_geometry
from y7edge.detect.selftest import dequantised
from y7edge.export.proof.agreement import (
    BEST,
    CandidateAgreement,
    Decoded,
    Floats,
    TensorAgreement,
    candidates_of,
    choose,
    decode,
    sigmoid,
)
from y7edge.export.proof.detections import compare_detections
from y7edge.export.proof.images import ProofImages
from y7edge.export.proof.parity import at_least, at_most
from y7edge.export.proof.probes import proved_batches
from y7edge.runtimes.base import Session

GREY_LEVELS = 0.25
"""Inputs are equal up to this difference, in units of 1/255. Rounding to float16 gives 0.06."""

Frame = NDArray[np.uint8]


@dataclass(frozen=True)
class Limits:
    """Tolerances of two models: ``loose`` of the less precise one, ``strict`` of the other one."""

    loose: Tolerance
    strict: Tolerance


@dataclass(frozen=True)
class Outputs:
    """The outputs of a model for one image.

    Attributes:
        heads: Heads (1, A * (5 + nc), H, W) as the engine returns them; None for decoded outputs.
        activated: Whether the manifest declares that the heads are probabilities.
        decoded: The candidates; None if heads have to be decoded.
        manifest: The manifest of the model, with levels and classes.
    """

    heads: tuple[Floats, ...] | None
    activated: bool
    decoded: Decoded | None
    manifest: Manifest

    @property
    def candidates(self) -> Decoded:
        """All candidates of the image."""
        if self.decoded is not None:
            return self.decoded
        levels, nc = self.manifest.levels, self.manifest.nc
        return decode(self.heads or (), levels, nc, activated=self.activated)

    @property
    def finite(self) -> bool:
        """Whether all outputs are finite."""
        found = self.decoded
        tensors = self.heads if found is None else (found.boxes, found.scores)
        return all(bool(np.isfinite(tensor).all()) for tensor in tensors or ())


@dataclass(frozen=True)
class Opened:
    """A model that was opened in its engine."""

    path: str
    session: Session
    manifest: Manifest

    @property
    def is_checkpoint(self) -> bool:
        """Whether the model is a checkpoint, which torch runs."""
        return self.manifest.target == "checkpoint"

    def run(self, fed: Floats) -> Outputs:
        """Run one input (1, 3, H, W), with the values that the engine expects."""
        image, manifest = self.manifest.input, self.manifest
        given = self.session.infer({image.name: self.as_fed(fed)})
        found: dict[str, Floats] = {
            spec.name: dequantised(given[spec.name][:1], spec).astype(np.float32)
            for spec in self.session.outputs
        }
        first = manifest.outputs[0]
        if first.role != "head":
            boxes, scores = (found[output.name][0] for output in manifest.outputs)
            return Outputs(None, False, Decoded(boxes, scores), manifest)
        heads = tuple(found[output.name] for output in manifest.outputs)
        if first.layout == "NHWC":
            heads = tuple(head.transpose(0, 3, 1, 2) for head in heads)
        return Outputs(heads, first.activation == "sigmoid", None, manifest)

    def as_fed(self, fed: Floats) -> NDArray[Any]:
        """Convert an input (1, 3, H, W) to the engine's layout, dtype and batch size."""
        image = self.manifest.input
        ordered = fed.transpose(0, 2, 3, 1) if image.layout == "NHWC" else fed
        if not image.dtype.startswith("float"):
            ordered = np.rint(ordered).clip(0, np.iinfo(image.dtype).max)
        return np.ascontiguousarray(ordered.repeat(image.images, axis=0), image.dtype)


def prepared(frame: Frame, image: InputInfo) -> Floats:
    """Preprocess a BGR frame as the Detector does; return the values (1, 3, H, W) as float32."""
    preprocess = Preprocessor(image)
    preprocess(frame)
    tensor = preprocess.tensor
    planes = tensor.transpose(0, 3, 1, 2) if image.layout == "NHWC" else tensor
    return np.ascontiguousarray(planes, np.float32)


def pixels(fed: Floats, image: InputInfo) -> Floats:
    """Convert the values of an input (1, 3, H, W) to pixel values 0..255 in RGB order."""
    values: Floats = fed / np.float32(image.scale)
    return values if image.color == "rgb" else values[:, ::-1]


# --- the comparison of each stage -----------------------------------------------------------------


def compare_inputs(a: Opened, b: Opened, frame: Frame, fed: tuple[Floats, Floats]) -> Stage:
    """Compare the pixels that are fed into both models."""
    if fed[0].shape != fed[1].shape:
        sizes = " and ".join(f"{one.shape[2]}x{one.shape[3]}" for one in fed)
        return Stage("input", "differs", {}, f"the inputs have {sizes} pixels")
    first, second = (
        pixels(one, side.manifest.input) for one, side in zip(fed, (a, b), strict=True)
    )
    difference = np.abs(first - second)
    _, channel, row, column = _peak(difference)
    found = float(difference.max())
    geometry = letterbox_geometry((frame.shape[0], frame.shape[1]), fed[0].shape[2:])
    top, left = geometry.top, geometry.left
    rows, columns = geometry.resized_hw
    inside = top <= row < top + rows and left <= column < left + columns
    place = "in the image" if inside else "in the border of the letterbox"
    at = f"{'RGB'[channel]}, row {row}, column {column}, {place}"
    equal = found <= GREY_LEVELS
    measured = {"grey_levels": found}
    return Stage("input", "equal" if equal else "differs", measured, "" if equal else at)


def compare_heads(a: Outputs, b: Outputs, limits: Limits) -> list[Stage]:
    """Compare the heads of each level, as probabilities if their activations differ."""
    if a.heads is None or b.heads is None:
        which = "both models have" if a.heads is b.heads else "one model has"
        return [Stage("heads", "skipped", {}, f"{which} decoded outputs")]
    stages = []
    for level, (first, second) in enumerate(zip(*_alike(a, b), strict=False)):
        name = f"head{level}"
        if first.shape != second.shape:
            shapes = f"the shapes are {first.shape} and {second.shape}"
            stages.append(Stage(name, "differs", {}, shapes))
            continue
        at = _place_in_head(_peak(np.abs(first - second)), a.manifest)
        stages.append(compare_tensors(name, first, second, limits, at))
    return stages


def compare_tensors(name: str, a: Floats, b: Floats, limits: Limits, at: str) -> Stage:
    """Compare two tensors of one shape in layout NCHW."""
    agreement = TensorAgreement(channel_axis=1)
    with np.errstate(invalid="ignore"):
        agreement.add(a, b)
    deviation, cosine = agreement.deviation, agreement.cosine
    # The minimum of the cosine is meant for several images. On one image, a nearly constant head
    # has a low cosine. Then the tolerance of probes decides: a probe is a single image too.
    fits = [
        at_most(deviation, limit.deviation)
        and (at_least(cosine, limit.cosine) or at_most(deviation, limit.probe))
        for limit in (limits.strict, limits.loose)
    ]
    measured = {"deviation": deviation, "cosine": cosine}
    return _stage(name, fits, measured, at)


def compare_candidates(a: Outputs, b: Outputs, limits: Limits) -> Stage:
    """Compare candidates of ``a`` (see ``choose``) with those of ``b`` at the same index."""
    truth, found = a.candidates, b.candidates
    if truth.scores.shape != found.scores.shape:
        at = f"the scores are {truth.scores.shape} and {found.scores.shape}"
        return Stage("decoded", "differs", {}, at)
    total, worst, at = CandidateAgreement(), -1.0, ""
    for rank, candidate in enumerate(choose(candidates_of(0, truth))):
        one = CandidateAgreement()
        for agreement in (total, one):
            agreement.add(candidate, found, is_best=rank < BEST)
        # The size of each difference, as a fraction of what is allowed.
        size = max((1 - one.iou) / (1 - limits.loose.iou), one.score / limits.loose.score)
        if not size <= worst:
            worst, at = size, _place_of(candidate.index, a.manifest)
            at += f", class {a.manifest.names[candidate.class_id]}, score {candidate.score:.3g}"
    fits = [
        at_least(total.iou, limit.iou) and at_most(total.score, limit.score)
        for limit in (limits.strict, limits.loose)
    ]
    return _stage("decoded", fits, {"iou": total.iou, "score_difference": total.score}, at)


def compare_boxes(a: Opened, b: Opened, frame: Frame, truth: Decoded, limits: Limits) -> Stage:
    """Check the boxes of ``b``'s Detector against the candidates and thresholds of ``a``."""
    thresholds = a.manifest.thresholds
    # The threshold is lowered if necessary, so that there are boxes to compare.
    conf = min(thresholds.conf, choose(candidates_of(0, truth))[:BEST][-1].score)
    manifest = replace(b.manifest, thresholds=thresholds)
    images = ProofImages((frame,), (), "")
    found = [
        compare_detections(b.session, manifest, images, [truth], conf, limit)
        for limit in (limits.strict, limits.loose)
    ]
    runs = len(proved_batches(manifest))  # each counts the boxes again
    measured = {"boxes": found[1].boxes / runs, "unmatched": float(found[1].unmatched)}
    return _stage("detections", [not one.unmatched for one in found], measured, "")


def count_boxes(side: Opened, frame: Frame, manifest: Manifest) -> int:
    """Return how many boxes the Detector returns with the thresholds of ``manifest``."""
    described = replace(side.manifest, thresholds=manifest.thresholds)
    return len(Detector.from_session(side.session, described)(frame))


def agree(a: Outputs, b: Outputs, limits: Limits) -> bool:
    """Return whether two outputs are equal within the tolerance of the less precise model."""
    if not (a.finite and b.finite):
        return False
    if a.heads is None or b.heads is None:
        return compare_candidates(a, b, limits).status in ("equal", "close")
    return all(stage.status in ("equal", "close") for stage in compare_heads(a, b, limits))


def _alike(a: Outputs, b: Outputs) -> tuple[Sequence[Floats], Sequence[Floats]]:
    """Return the heads of both models, as probabilities if the declared activations differ."""
    assert a.heads is not None
    assert b.heads is not None
    if a.activated == b.activated:
        return a.heads, b.heads
    first, second = (o.heads if o.activated else tuple(map(sigmoid, o.heads)) for o in (a, b))  # type: ignore[arg-type]
    return first or (), second or ()


def _stage(name: str, fits: Sequence[bool], measured: Mapping[str, float], at: str) -> Stage:
    """Create a stage. ``fits``: whether it is within the strict and within the loose limits."""
    strict, loose = fits
    finite = {key: value if np.isfinite(value) else None for key, value in measured.items()}
    if strict and loose:
        return Stage(name, "equal", finite)
    return Stage(name, "close" if loose else "differs", finite, at)


def _peak(difference: Floats) -> tuple[int, ...]:
    """Return the index of the largest value; of the first NaN if there is one."""
    return tuple(int(i) for i in np.unravel_index(int(difference.argmax()), difference.shape))


def _place_in_head(index: Sequence[int], manifest: Manifest) -> str:
    """Describe an index (0, channel, row, column) of a head."""
    anchor, field = divmod(index[1], 5 + manifest.nc)
    names = ("x", "y", "width", "height", "objectness", *(f"class {n}" for n in manifest.names))
    return f"anchor {anchor}, row {index[2]}, column {index[3]}, {names[field]}"


def _place_of(index: int, manifest: Manifest) -> str:
    """Describe the index of a candidate."""
    for number, level in enumerate(manifest.levels):
        rows = manifest.input.height // level.stride
        columns = manifest.input.width // level.stride
        count = len(level.anchors) * rows * columns
        if index < count:
            anchor, cell = divmod(index, rows * columns)
            row, column = divmod(cell, columns)
            return f"head{number}, anchor {anchor}, row {row}, column {column}"
        index -= count
    return f"candidate {index}"
