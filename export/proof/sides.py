"""Run two models on the same image, and compare their results stage by stage.

The models can have different engines, layouts, dtypes and outputs. Inputs are compared as pixel
values in RGB order, heads in layout NCHW.

A graph with NMS returns only the boxes after NMS. Its candidates are read with an IoU threshold of
1, which suppresses nothing. They have no fixed order, so that candidates are compared by box, score
and class. Files of other exporters have fixed thresholds: their candidates are not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.foreign import REASON
from y7edge.artifact.manifest import InputInfo, Manifest, Thresholds
from y7edge.artifact.reports import Stage, Tolerance
from y7edge.boxes import MAX_CANDIDATES, centred
from y7edge.detect.detector import Detector
from y7edge.detect.postprocess import threshold_feeds
from y7edge.detect.preprocess import Preprocessor, letterbox_geometry
from y7edge.detect.selftest import dequantised
from y7edge.errors import DataError
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
    iou,
    sigmoid,
)
from y7edge.export.proof.detections import compare_detections
from y7edge.export.proof.images import ProofImages
from y7edge.export.proof.parity import at_least, at_most
from y7edge.export.proof.probes import proved_batches
from y7edge.runtimes.base import Session

GREY_LEVELS = 0.25
"""Inputs are equal up to this difference, in units of 1/255. Rounding to float16 gives 0.06."""

FLOOR = 0.001
"""Confidence threshold for the candidates of a graph with NMS, as in evaluations of mAP."""

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
        final: Whether ``decoded`` was returned by a graph with NMS: the candidates have no fixed
            order, and only the score of the best class.
    """

    heads: tuple[Floats, ...] | None
    activated: bool
    decoded: Decoded | None
    manifest: Manifest
    final: bool = False

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

    @property
    def is_foreign(self) -> bool:
        """Whether another exporter made the file."""
        return self.manifest.parity.get("reason") == REASON

    @property
    def is_final(self) -> bool:
        """Whether the graph has NMS, so that only boxes after NMS are known."""
        return self.manifest.outputs[0].role == "detections"

    @property
    def is_fixed(self) -> bool:
        """Whether the graph has NMS with thresholds of its own, which are not known."""
        return self.is_final and not self.manifest.threshold_inputs

    def run(self, fed: Floats) -> Outputs:
        """Run one input (1, 3, H, W), with the values that the engine expects.

        The thresholds of a graph with NMS are set so that it returns all candidates.

        Raises:
            DataError: a graph with NMS returned a class id that is out of range.
            DeviceError: the engine failed.
        """
        image, manifest = self.manifest.input, self.manifest
        thresholds = threshold_feeds(manifest, Thresholds(FLOOR, 1.0, MAX_CANDIDATES))
        given = self.session.infer({image.name: self.as_fed(fed)} | thresholds)
        if self.is_final:
            rows = given[manifest.outputs[0].name].astype(np.float32)
            decoded = _of_rows(rows, manifest.nc, self.path)
            return Outputs(None, False, decoded, manifest, final=True)
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
            limits = np.iinfo(image.dtype)
            ordered = np.rint(ordered).clip(limits.min, limits.max)
        return np.ascontiguousarray(ordered.repeat(image.images, axis=0), image.dtype)


def _of_rows(rows: Floats, nc: int, path: str) -> Decoded:
    """Convert the rows (K, 7) of the first image of a graph with NMS to candidates.

    If a row is not finite, all values of one candidate are NaN.

    Raises:
        DataError: a class id is out of range, for example because too few names were given.
    """
    own = rows[rows[:, 0] == 0]
    if not np.isfinite(own).all():
        return Decoded(np.full((1, 4), np.nan, np.float32), np.full((1, nc), np.nan, np.float32))
    outside = own[(own[:, 5] < 0) | (own[:, 5] >= nc), 5]
    if len(outside):
        raise DataError(
            f"{path}: a box has class {outside[0]:g}, expected 0 to {nc - 1}: name all classes of "
            "the model with --names"
        )
    scores = np.zeros((len(own), nc), np.float32)
    scores[np.arange(len(own)), own[:, 5].astype(np.intp)] = own[:, 6]
    return Decoded(centred(own[:, 1:5]), scores)


def prepared(frame: Frame, image: InputInfo) -> Floats:
    """Preprocess a BGR frame as the Detector does; return the values (1, 3, H, W) as float32."""
    preprocess = Preprocessor(image)
    preprocess(frame)
    tensor = preprocess.tensor
    planes = tensor.transpose(0, 3, 1, 2) if image.layout == "NHWC" else tensor
    return np.ascontiguousarray(planes, np.float32)


def pixels(fed: Floats, image: InputInfo) -> Floats:
    """Convert the values of an input (1, 3, H, W) to pixel values 0..255 in RGB order."""
    values: Floats = (fed - np.float32(image.zero_point)) / np.float32(image.scale)
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


def compare_final(
    a: Opened, b: Opened, frame: Frame, outputs: tuple[Outputs, Outputs], limits: Limits
) -> list[Stage]:
    """Compare two models of which at least one returns only boxes after NMS.

    The boxes of each graph with NMS are checked against the candidates of the other model.
    """
    which = " and ".join(name for name, side in (("A", a), ("B", b)) if side.is_final)
    at = f"not available in an nms artifact ({which})"
    stages = [Stage(name, "skipped", {}, at) for name in ("heads", "decoded")]
    if a.manifest.nc != b.manifest.nc:
        at = f"the models have {a.manifest.nc} and {b.manifest.nc} classes"
        return [*stages, Stage("detections", "differs", {}, at)]
    if not all(out.finite for out in outputs):
        return [*stages, Stage("detections", "differs", {}, "values are NaN or infinite")]
    thresholds = (b if a.is_fixed else a).manifest.thresholds
    found = []
    for side, other, theirs in ((a, b, outputs[1]), (b, a, outputs[0])):
        if side.is_final:
            conf = _least(theirs.candidates, thresholds.conf, limits, theirs.final)
            if a.is_fixed or b.is_fixed:
                conf = thresholds.conf  # a fixed threshold cannot be lowered
            described = replace(other.manifest, thresholds=thresholds)
            against = replace(other, manifest=described)
            found.append(compare_boxes(against, side, frame, theirs.candidates, limits, conf))
    ranks = ("equal", "close", "differs")
    return [*stages, max(found, key=lambda stage: ranks.index(stage.status))]


def _least(truth: Decoded, conf: float, limits: Limits, final: bool) -> float:
    """Return a confidence threshold of at most ``conf``, above which there are boxes to compare.

    ``final``: the candidates are those above ``FLOOR`` only; the threshold stays above it.
    """
    chosen = choose(candidates_of(0, truth))[:BEST]
    least = min(conf, chosen[-1].score) if chosen else conf
    return max(least, FLOOR + 2 * limits.loose.score) if final else least


def compare_boxes(
    a: Opened,
    b: Opened,
    frame: Frame,
    truth: Decoded,
    limits: Limits,
    conf: float | None = None,
) -> Stage:
    """Check the boxes of ``b``'s Detector against the candidates and thresholds of ``a``.

    ``conf``: confidence threshold; None: that of ``a``, or a lower one if that is necessary to have
    boxes to compare.
    """
    thresholds = a.manifest.thresholds
    if conf is None:
        conf = _least(truth, thresholds.conf, limits, final=False)
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
    if a.final or b.final:
        return _agree_unordered(a, b, limits)
    if a.heads is None or b.heads is None:
        return compare_candidates(a, b, limits).status in ("equal", "close")
    return all(stage.status in ("equal", "close") for stage in compare_heads(a, b, limits))


def _agree_unordered(a: Outputs, b: Outputs, limits: Limits) -> bool:
    """Return whether the best candidates of each graph with NMS are candidates of the other model.

    If a model has fixed thresholds, its candidates are boxes after NMS. Then those of the other
    model need no counterpart.
    """
    compared = 0
    for one, other in ((a, b), (b, a)):
        if other.final and not other.manifest.threshold_inputs:
            continue
        least = FLOOR + 2 * limits.loose.score
        chosen = choose(candidates_of(0, one.candidates))[:BEST]
        chosen = [candidate for candidate in chosen if candidate.score > least]
        compared += len(chosen)
        if not all(_has(candidate, other.candidates, limits) for candidate in chosen):
            return False
    return compared > 0


def _has(candidate: Candidate, found: Decoded, limits: Limits) -> bool:
    """Return whether a model has a candidate with nearly the same box and score of this class."""
    near = np.abs(found.scores[:, candidate.class_id] - candidate.score) <= limits.loose.score
    return any(iou(candidate.box, box) >= limits.loose.iou for box in found.boxes[near])


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
