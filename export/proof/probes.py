"""Make probes for the self-test: generated inputs, with samples of the reference's outputs.

Each output is sampled at its largest values, which change most if the scale is wrong, and at evenly
spaced positions. If the output is boxes after NMS, only boxes are sampled that rounding errors
cannot suppress, reorder or move to another class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import InputInfo, Manifest, OutputInfo, Probe, Samples, Thresholds
from y7edge.artifact.reports import ParityReport
from y7edge.boxes import MAX_CANDIDATES, corners, intersections
from y7edge.detect.selftest import (
    RECIPE_8BIT,
    as_input,
    compare_samples,
    dequantised,
    input_crc32,
    probe_input,
    recipe_for,
)
from y7edge.errors import ParityError
from y7edge.export.proof.agreement import Decoded, Floats, decode, sigmoid
from y7edge.export.proof.reference import Answer, Reference
from y7edge.runtimes import registry
from y7edge.runtimes.base import Session, SessionOptions, TensorSpec

Wide = NDArray[np.float64]

PROBES = 2
"""Number of probes for the first batch size; there is one probe for each other batch size."""

VALUES = 96
"""Number of sampled values per output."""

EXTREME = 32
"""Number of samples with the largest magnitudes, included in ``VALUES``."""


INT8_FACTOR = 2.0
"""Tolerance of an int8 artifact's probes, in units of the deviation after a small change of the
input. docs/int8.md has deviations between engines, and those of instructions that saturate."""

INT8_LEAST, INT8_MOST = 1e-3, 0.25
"""Limits of this tolerance."""

ROWS = 12
"""Approximate number of sampled rows (boxes after NMS) of a probe."""

_CHANGES = 2  # changed inputs of each probe
_CHANGED = 0.01  # fraction of the pixels that are changed
_CONSIDERED = 32  # best candidates of a level among which a probe's rows are chosen
_ENOUGH = 3  # rows of an image; with fewer, a probe uses a higher IoU threshold
_OVERLAPS = (0.7, 0.9, 1.0)  # IoU thresholds to try if the manifest's leaves too few rows


def make_probes(manifest: Manifest, reference: Reference, tolerance: float) -> tuple[Probe, ...]:
    """Run the reference on generated inputs, and sample its outputs.

    Args:
        manifest: describes the names, layouts and activations of the artifact's outputs.
        reference: the unfolded model.
        tolerance: the largest deviation that a self-test accepts, as a fraction of the output's
            largest magnitude.
    """
    image, probes = manifest.input, []
    recipe = recipe_for(image)
    for key, batch in _keys(manifest):
        pixels = probe_input(recipe, key, (batch, 3, image.height, image.width))
        answer, thresholds = reference.answer(pixels), None
        if manifest.outputs[0].role == "detections":
            thresholds, taken = sample_rows(decoded_images(answer, manifest), manifest, tolerance)
            samples: tuple[Samples, ...] = (taken,)
        else:
            outputs = outputs_of(answer, manifest)
            samples = tuple(_sample(name, tensor) for name, tensor in outputs.items())
        crc = input_crc32(pixels)
        probes.append(Probe(recipe, key, batch, crc, tolerance, samples, thresholds))
    return tuple(probes)


def own_probes(artifact: Artifact, backend: str, device: str) -> tuple[Probe, ...]:
    """Run an int8 artifact on generated inputs, and sample its own outputs.

    Samples of the reference would need a tolerance that hides errors. Integers give the same
    outputs on each machine, unless a value that is rounded before it is quantised falls on the
    other side of a half: then the difference grows from layer to layer, as if the input had been
    another one. Therefore the tolerance is measured: ``INT8_FACTOR`` times the deviation after a
    change of one grey level in some of the pixels.

    Args:
        artifact: the artifact, with heads as outputs.
        backend: name of the runtime that proves it.
        device: the device.

    Raises:
        ParityError: an output is NaN or infinite.
    """
    manifest, probes = artifact.manifest, []
    image = manifest.input
    options = SessionOptions(device, check_payload=False)
    with closing(registry.open_session(artifact, options, backend)) as session:
        for key, batch in _keys(manifest):
            pixels = probe_input(RECIPE_8BIT, key, (batch, 3, image.height, image.width))
            outputs = _own_outputs(session, image, pixels, key)
            samples = tuple(_sample(name, tensor) for name, tensor in outputs.items())
            probe = Probe(RECIPE_8BIT, key, batch, input_crc32(pixels), INT8_LEAST, samples)
            for seed in range(_CHANGES):
                changed = _own_outputs(session, image, _changed(pixels, seed), key)
                found = compare_samples(probe, changed, tuple(map(_as_float, session.outputs)))
                worst = max(INT8_FACTOR * (value or 0.0) for value in found.values())
                tolerance = min(max(worst, probe.tolerance), INT8_MOST)
                probe = replace(probe, tolerance=float(f"{tolerance:.2g}"))
            probes.append(probe)
    most = max(probe.tolerance for probe in probes)
    return tuple(replace(probe, tolerance=most) for probe in probes)


def _own_outputs(session: Session, image: InputInfo, pixels: Floats, key: str) -> dict[str, Floats]:
    found = session.infer({image.name: as_input(pixels, image)})
    outputs = {
        spec.name: dequantised(found[spec.name], spec).astype(np.float32)
        for spec in session.outputs
    }
    if not all(np.isfinite(tensor).all() for tensor in outputs.values()):
        problem = f"an output is NaN or infinite for {key}"
        raise ParityError(f"the artifact: {problem}", ParityReport("failed", (problem,)))
    return outputs


def _as_float(spec: TensorSpec) -> TensorSpec:
    """Return the description of an output after it was dequantised."""
    return replace(spec, scale=None, zero_point=None)


def _changed(pixels: Floats, seed: int) -> Floats:
    """Change some of the pixels, which are multiples of 1/255, by one grey level."""
    rng = np.random.default_rng(seed)
    grey = np.rint(pixels * 255).astype(np.int16)
    step = rng.choice(np.array([-1, 1], np.int16), grey.shape)
    grey = (grey + step * (rng.random(grey.shape) < _CHANGED)).clip(0, 255)
    changed: Floats = grey.astype(np.float32) / np.float32(255)
    return changed


def _keys(manifest: Manifest) -> list[tuple[str, int]]:
    """Return key and batch size of each probe."""
    batches = proved_batches(manifest)
    numbers = [*enumerate(batches[:1] * PROBES), *((0, b) for b in batches[1:])]
    return [(f"probe{number}-batch{batch}", batch) for number, batch in numbers]


def adapted_probes(before: Manifest, after: Manifest, tolerance: float) -> tuple[Probe, ...]:
    """Convert the probes of ``before`` to the names, layouts and activations in ``after``.

    ``tolerance``: the new tolerance; probes of int8 artifacts keep theirs, which was measured.
    """
    pairs = {
        old.name: (old, new)
        for old in before.outputs
        for new in after.outputs
        if (old.role, old.level) == (new.role, new.level)
    }
    return tuple(
        replace(
            probe,
            tolerance=min(probe.tolerance, INT8_MOST) if after.precision == "int8" else tolerance,
            samples=tuple(_adapted(s, probe.batch, *pairs[s.output]) for s in probe.samples),
        )
        for probe in before.probes
    )


def _adapted(samples: Samples, batch: int, old: OutputInfo, new: OutputInfo) -> Samples:
    """Convert samples of a tensor to another layout or activation."""
    if (old.layout, old.activation) == (new.layout, new.activation):
        return replace(samples, output=new.name)
    old_index = np.arange(batch * math.prod(map(int, old.shape[1:])))
    old_index = old_index.reshape(batch, *old.shape[1:])
    if old.layout != new.layout:
        old_index = old_index.transpose((0, 2, 3, 1) if new.layout == "NHWC" else (0, 3, 1, 2))
    new_index = np.argsort(old_index, axis=None)
    values, scale = np.array(samples.values), samples.scale
    if old.activation != new.activation:
        values, scale = sigmoid(values), 1.0
    return Samples(
        output=new.name,
        scale=scale,
        indices=tuple(int(i) for i in new_index[list(samples.indices)]),
        values=tuple(_rounded(float(v)) for v in values),
    )


def proved_batches(manifest: Manifest) -> tuple[int, ...]:
    """Return the batch sizes of a proof: the fixed batch size, or 1 and 3 for a dynamic one."""
    batch = manifest.input.batch
    return (1, 3) if batch == "dynamic" else (int(batch),)


def outputs_of(answer: Answer, manifest: Manifest) -> dict[str, Floats]:
    """Convert the reference's heads to the kinds and layouts of the artifact's outputs, by name."""
    if manifest.outputs[0].role == "head":
        found = {}
        for output, head in zip(manifest.outputs, answer.heads, strict=True):
            values = sigmoid(head) if output.activation == "sigmoid" else head
            found[output.name] = values.transpose(0, 2, 3, 1) if output.layout == "NHWC" else values
        return found
    images = decoded_images(answer, manifest)
    return {
        output.name: np.stack([getattr(image, output.role) for image in images])
        for output in manifest.outputs
    }


def decoded_images(answer: Answer, manifest: Manifest) -> list[Decoded]:
    """Decode the reference's heads, image by image."""
    return [
        decode([head[i : i + 1] for head in answer.heads], manifest.levels, manifest.nc)
        for i in range(len(answer.heads[0]))
    ]


def decode_outputs(outputs: Mapping[str, Floats], manifest: Manifest) -> Decoded:
    """Decode an artifact's dequantised outputs for one image."""
    if manifest.outputs[0].role != "head":
        boxes, scores = (outputs[output.name][0] for output in manifest.outputs)
        return Decoded(boxes, scores)
    heads = [outputs[output.name] for output in manifest.outputs]
    if manifest.outputs[0].layout == "NHWC":
        heads = [head.transpose(0, 3, 1, 2) for head in heads]
    activated = manifest.outputs[0].activation == "sigmoid"
    return decode(heads, manifest.levels, manifest.nc, activated=activated)


def _sample(name: str, tensor: Floats) -> Samples:
    """Sample an output at its largest magnitudes and at evenly spaced positions."""
    flat = tensor.reshape(-1)
    count = min(VALUES, flat.size)
    extreme = np.argsort(-np.abs(flat), kind="stable")[: min(EXTREME, count)]
    rest = np.linspace(0, flat.size - 1, count - len(extreme)).astype(int)
    indices = np.unique(np.concatenate((extreme, rest)))
    return Samples(
        output=name,
        scale=_rounded(float(np.abs(flat).max())) or 1.0,  # 1 if all values are 0
        indices=tuple(int(i) for i in indices),
        values=tuple(_rounded(float(v)) for v in flat[indices]),
    )


def _rounded(value: float) -> float:
    """Round to seven significant digits, the precision of float32."""
    return float(f"{value:.7g}")


def sample_rows(
    images: Sequence[Decoded], manifest: Manifest, tolerance: float
) -> tuple[Thresholds, Samples]:
    """Sample the reference's boxes after NMS as rows; also return the thresholds of this NMS.

    The IoU threshold is that of the manifest or, if it leaves too few boxes in an image, a higher
    one (``_OVERLAPS``). ``max_det`` is as low as possible: if an artifact fails to suppress boxes,
    they displace sampled boxes, and the self-test notices.

    Raises:
        ParityError: an image has no box with a class that is clearly the best.
    """
    image, iou = manifest.input, manifest.thresholds.iou
    counts = [len(v.anchors) * (image.pixels // v.stride**2) for v in manifest.levels]
    count = -(-ROWS // (len(images) * len(counts)))
    for overlap in (iou, *(o for o in _OVERLAPS if o > iou)):
        found = [_certain(one, counts, overlap, tolerance) for one in images]
        if all(sum(map(len, levels)) >= _ENOUGH for levels, _ in found):
            break
    taken = [np.concatenate([rows[:count] for rows in levels]) for levels, _ in found]
    if not all(map(len, taken)):
        problem = "inconclusive, the scores of a probe's classes are equal within the tolerance"
        raise ParityError(
            f"{problem}: train longer, or export heads", ParityReport("inconclusive", (problem,))
        )
    rows = np.concatenate([np.insert(own, 0, i, axis=1) for i, own in enumerate(taken)])
    conf = float(rows[:, 6].min()) * (1 - _margin(tolerance))
    most = max(int((scores >= conf * (1 - _margin(tolerance))).sum()) for _, scores in found)
    values = tuple(_rounded(float(value)) for value in rows.reshape(-1))
    scale = _rounded(float(np.abs(rows[:, 1:5]).max()))
    samples = Samples(manifest.outputs[0].name, scale, tuple(range(len(values))), values)
    return Thresholds(_rounded(conf), overlap, min(most, MAX_CANDIDATES)), samples


def _certain(
    image: Decoded, counts: Sequence[int], overlap: float, tolerance: float
) -> tuple[list[Wide], Wide]:
    """Return the boxes of one image that NMS certainly keeps, despite rounding errors.

    They are returned by level, best first, as rows (K, 6) x0, y0, x1, y1, class id, score. The
    class of a certain box is the best one by a margin. Within the tolerance, no candidate of the
    same class with a higher score overlaps a certain box by more than the threshold ``overlap``.

    Also return the scores of all candidates that NMS may keep: those that no certain box suppresses
    despite rounding errors. ``counts``: number of candidates of each level.
    """
    least, slack = 1 - _margin(tolerance), 10 * tolerance
    scores, score = image.scores, image.scores.max(axis=1)
    level = np.repeat(np.arange(len(counts)), counts)
    picks = np.concatenate(
        [
            np.flatnonzero(level == number)[_best_first(score[level == number])]
            for number in range(len(counts))
        ]
    )
    every_class = scores.argmax(axis=1)
    class_id = every_class[picks]
    edges = corners(image.boxes[:, :2], image.boxes[:, 2:])
    shared, area = intersections(edges[picks], edges), image.boxes[:, 2:].prod(axis=1)
    shared /= np.maximum(area[picks, None] + area - shared, 1e-9)
    shared[np.arange(len(picks)), picks] = 0
    # [i, j]: candidate j may have the class of pick i, and may be better.
    rivals = (least * score <= scores[:, class_id].T) & (score >= least * score[picks, None])
    lost = (rivals & (shared > overlap - slack)).any(axis=1) & (overlap < 1)
    clear = (scores >= least * score[:, None]).sum(axis=1) == 1
    whole = clear[picks] & ~lost & (score[picks] > 0)
    beaten = clear & whole[:, None] & (class_id[:, None] == every_class)
    beaten &= (score < least * score[picks, None]) & (shared > overlap + slack)
    rows = np.column_stack([edges[picks], class_id, score[picks]]).astype(np.float64)
    levels = [rows[whole & (level[picks] == number)] for number in range(len(counts))]
    return levels, score[~beaten.any(axis=0)]


def _best_first(score: Floats) -> NDArray[np.intp]:
    return np.argsort(-score, kind="stable")[:_CONSIDERED]


def _margin(tolerance: float) -> float:
    """Return the relative error of a score, for outputs that deviate by ``tolerance``."""
    return min(20 * tolerance, 0.5)
