"""Find out why two models differ.

Each cause is found by a test: the models are run or decoded again with one thing changed, and the
results have to agree. If model ``a`` returns the outputs of ``b`` when red and blue of its input
are swapped, then the models expect different channel orders. The size of a deviation matters in one
test only: a difference in precision must be within the tolerance of that precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import numpy as np

from y7edge.artifact.manifest import Letterbox, LevelInfo, Manifest
from y7edge.artifact.reports import Cause
from y7edge.detect.preprocess import letterbox_geometry
from y7edge.errors import ArtifactError, DigestError
from y7edge.export.proof import parity
from y7edge.export.proof.agreement import Floats, sigmoid
from y7edge.export.proof.sides import (
    GREY_LEVELS,
    Frame,
    Limits,
    Opened,
    Outputs,
    agree,
    compare_candidates,
    count_boxes,
    pixels,
    prepared,
)
from y7edge.models.checkpoint import default_names
from y7edge.runtimes import registry


@dataclass(frozen=True)
class Case:
    """Two models that differ, and what they computed for a frame.

    ``fed`` are the inputs (1, 3, H, W) as the engines got them, ``outputs`` the results.
    ``close``: the results agree within the tolerance of the less precise model.
    """

    a: Opened
    b: Opened
    frame: Frame
    fed: tuple[Floats, Floats]
    outputs: tuple[Outputs, Outputs]
    limits: Limits
    close: bool = False

    def gives_b(self, fed: Floats) -> bool:
        """Run ``a`` on another input; return whether its outputs agree with those of ``b``."""
        return agree(self.a.run(fed), self.outputs[1], self.limits)


def of_input(a: Opened, b: Opened, frame: Frame) -> Cause | None:
    """Find the field of the manifests that makes the preprocessed inputs differ."""
    ours, theirs = a.manifest.input, b.manifest.input
    if (ours.height, ours.width) != (theirs.height, theirs.width):
        sizes = f"{ours.height}x{ours.width} and {theirs.height}x{theirs.width}"
        return Cause("input size", f"the manifests have inputs of {sizes} pixels (height x width)")
    expected = pixels(prepared(frame, ours), ours)
    for name in ("letterbox", "levels"):
        changed = replace(theirs, **{name: getattr(ours, name)})
        found = pixels(prepared(frame, changed), changed)
        if np.abs(found - expected).max() <= GREY_LEVELS:
            return Cause(
                name,
                f"the manifests have {_text(getattr(ours, name))} and "
                f"{_text(getattr(theirs, name))}; with the same value the inputs are equal",
            )
    return None


def of_outputs(case: Case) -> Cause | None:
    """Find the cause of different heads or candidates; None if no test succeeds."""
    tests: list[Callable[[Case], Cause | None]] = [_not_a_number, _other_shape]
    tests += [_suppression, _anchors]
    if case.close:
        tests = []
    elif not agree(*case.outputs, case.limits):  # else these tests would succeed too
        tests += [_sigmoid, _order, _input_values, _shift]
    tests += [_precision]
    return next((cause for cause in (test(case) for test in tests) if cause), None)


def of_boxes(a: Opened, b: Opened, frame: Frame) -> Cause | None:
    """Find the field of the manifests that makes the detections differ."""
    ours, theirs = a.manifest.thresholds, b.manifest.thresholds
    if ours != theirs and not (a.is_fixed or b.is_fixed):
        pairs = [
            f"{name} {getattr(ours, name)} and {getattr(theirs, name)}"
            for name in ("conf", "iou", "max_det")
            if getattr(ours, name) != getattr(theirs, name)
        ]
        counts = [count_boxes(b, frame, side.manifest) for side in (a, b)]
        return Cause(
            "thresholds",
            f"the manifests have {', '.join(pairs)}: on this image B returns {counts[0]} boxes "
            f"with the thresholds of A, {counts[1]} with its own",
        )
    named = [m for m in (a.manifest, b.manifest) if m.names != default_names(m.nc)]
    if len(named) == 2 and a.manifest.names != b.manifest.names:
        pairs = [
            f"class {i} is {first!r} and {second!r}"
            for i, (first, second) in enumerate(
                zip(a.manifest.names, b.manifest.names, strict=False)
            )
            if first != second
        ]
        return Cause("class names", f"the manifests differ: {', '.join(pairs[:3])}")
    return None


def of_files(a: Opened, b: Opened) -> Cause | None:
    """Check the payload digests, then compare the digests of the checkpoints."""
    for letter, side in (("A", a), ("B", b)):
        if side.is_checkpoint:
            continue
        try:
            registry.check_payload(registry.load(side.path))
        except DigestError:
            what = (
                "its file was changed"
                if len(registry.load(side.path).files) == 1
                else ("a file was changed, or files of different artifacts were mixed up")
            )
            return Cause("changed files", f"the payload digest of {letter} does not match: {what}")
        except ArtifactError:
            continue  # the file was removed since it was opened
    if a.is_foreign or b.is_foreign:
        return None  # the checkpoint is not known
    digests = _sources(a), _sources(b)
    if not digests[0] & digests[1]:
        shown = " and ".join(side.manifest.source.digest[:16] for side in (a, b))
        return Cause("other checkpoint", f"the models come from different checkpoints: {shown}")
    return None


def _sources(side: Opened) -> set[str]:
    """Return the digests of the model's checkpoint and of the checkpoint before folding."""
    digests = {side.manifest.source.digest}
    if side.is_checkpoint and Path(side.path).suffix:
        from y7edge.models import weights

        origin = weights.load(Path(side.path)).meta.get("folded_from")
        if isinstance(origin, dict):
            digests.add(str(origin.get("digest")))
    return digests


# --- the tests -----------------------------------------------------------------------------------


def _not_a_number(case: Case) -> Cause | None:
    bad = [letter for letter, out in zip("AB", case.outputs, strict=True) if not out.finite]
    return Cause("NaN", f"outputs of {' and '.join(bad)} are NaN or infinite") if bad else None


def _other_shape(case: Case) -> Cause | None:
    first, second = case.a.manifest, case.b.manifest
    for name, ours, theirs in (
        ("number of classes", first.nc, second.nc),
        ("strides", first.strides, second.strides),
        ("number of anchors", _anchor_counts(first), _anchor_counts(second)),
    ):
        if ours != theirs:
            return Cause(name, f"the manifests have {ours} and {theirs}")
        if case.a.is_fixed or case.b.is_fixed:
            break  # the levels of a file of another exporter with NMS are assumed
    return None


def _suppression(case: Case) -> Cause | None:
    """If the candidates agree, but not the boxes after NMS, then the suppression differs."""
    sides = [letter for letter, side in (("A", case.a), ("B", case.b)) if side.is_final]
    if not sides or not agree(*case.outputs, case.limits):
        return None
    if fixed := [letter for letter, side in (("A", case.a), ("B", case.b)) if side.is_fixed]:
        return Cause(
            "thresholds",
            f"the boxes agree, but not which of them are suppressed: {' and '.join(fixed)} was "
            "made by another exporter, and its graph has thresholds of its own",
        )
    return Cause(
        "suppression",
        f"the candidates agree, but not which of them the NMS in the graph of "
        f"{' and '.join(sides)} keeps",
    )


def _anchor_counts(manifest: Manifest) -> list[int]:
    return [len(level.anchors) for level in manifest.levels]


def _anchors(case: Case) -> Cause | None:
    """Decode the heads of B with the anchors of A, or undo the anchors of decoded boxes."""
    (a, b), ours, theirs = case.outputs, case.a.manifest.levels, case.b.manifest.levels
    if ours == theirs:
        return None
    if a.final or b.final:
        # The boxes are decoded in the graph: decode the heads of the other model with its anchors.
        pair = [
            replace(one, manifest=replace(one.manifest, levels=other.manifest.levels))
            for one, other in ((a, b), (b, a))
        ]
        if not agree(pair[0], pair[1], case.limits):
            return None
        return _of_anchors(ours, theirs)
    if b.decoded is None:
        changed = replace(b, manifest=replace(b.manifest, levels=ours))
    else:
        boxes = b.decoded.boxes.copy()
        boxes[:, 2:] *= _sides(case.a.manifest) / _sides(case.b.manifest)
        changed = replace(b, decoded=replace(b.decoded, boxes=boxes))
    if not agree(replace(a, heads=None, decoded=a.candidates), changed, case.limits):
        return None
    return _of_anchors(ours, theirs)


def _of_anchors(ours: Sequence[LevelInfo], theirs: Sequence[LevelInfo]) -> Cause:
    """Name the first level with other anchors."""
    level = next(i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    return Cause(
        "anchors",
        f"level {level} has anchors {_text(ours[level].anchors)} and "
        f"{_text(theirs[level].anchors)}; with the same anchors the boxes agree",
    )


def _sides(manifest: Manifest) -> Floats:
    """Return the anchor's (width, height) of each candidate, (N, 2)."""
    image = manifest.input
    return np.concatenate(
        [
            np.repeat(np.array(level.anchors, np.float32), image.pixels // level.stride**2, axis=0)
            for level in manifest.levels
        ]
    )


def _sigmoid(case: Case) -> Cause | None:
    """Test whether a head has another activation than declared, or one sigmoid too many."""
    pair = case.outputs
    sides = [(0, "A", "B"), (1, "B", "A")]
    for index, letter, _ in sides:
        one, other = pair[index], pair[1 - index]
        probable = all(head.min() >= 0 and head.max() <= 1 for head in one.heads or ())
        if not one.heads or one.activated == probable:
            continue
        if agree(replace(one, activated=probable), other, case.limits):
            found, declared, number = (
                ("logits", "probabilities", "not at all")
                if one.activated
                else ("probabilities", "logits", "twice")
            )
            return Cause(
                "sigmoid",
                f"the heads of {letter} are {found}, but its manifest declares {declared}, so that "
                f"the sigmoid is applied {number}: with the right declaration the outputs agree",
            )
    for index, letter, remaining in sides:
        one, other = pair[index], pair[1 - index]
        again = replace(one, heads=tuple(map(sigmoid, one.heads or ())))
        if one.heads and agree(again, other, case.limits):
            return Cause(
                "sigmoid",
                f"the sigmoid is applied once more in {remaining} than declared: the outputs agree "
                f"if it is applied to the heads of {letter} too",
            )
    return None


def _order(case: Case) -> Cause | None:
    """Reorder the classes of B by their names, then the anchors of each level."""
    a, b = case.outputs
    if a.heads is None or b.heads is None:
        return None
    nc, names = a.manifest.nc, (a.manifest.names, b.manifest.names)
    if names[0] != names[1] and sorted(names[0]) == sorted(names[1]) and len(set(names[0])) == nc:
        fields = [0, 1, 2, 3, 4, *(5 + names[1].index(name) for name in names[0])]
        if agree(a, _reordered(b, lambda count: (range(count), fields)), case.limits):
            return Cause("class order", "with the classes in the order of A's names, B agrees")
    for order in _anchor_orders(_anchor_counts(a.manifest)):
        places = range(5 + nc)
        if agree(a, _reordered(b, lambda _, o=order, p=places: (o, p)), case.limits):  # type: ignore[misc]
            return Cause("anchor order", f"with the anchors of B in the order {order}, B agrees")
    return None


def _anchor_orders(counts: list[int]) -> Iterator[tuple[int, ...]]:
    """Yield all orders but the identity, if all levels have the same few anchors."""
    if len(set(counts)) == 1 and 1 < counts[0] <= 4:
        yield from (
            order for order in permutations(range(counts[0])) if order != tuple(sorted(order))
        )


def _reordered(outputs: Outputs, orders: Callable[[int], tuple[object, object]]) -> Outputs:
    """Reorder the anchors and the fields of each head.

    ``orders``: returns the order of the anchors and that of the fields, for a number of anchors.
    """
    heads = []
    for head, level in zip(outputs.heads or (), outputs.manifest.levels, strict=True):
        anchors, fields = (np.array(order, int) for order in orders(len(level.anchors)))
        values = head.reshape(len(anchors), len(fields), *head.shape[2:])
        heads.append(values[anchors][:, fields].reshape(head.shape))
    return replace(outputs, heads=tuple(heads))


def _input_values(case: Case) -> Cause | None:
    """Feed A with swapped channels, and with values 255 times larger or smaller."""
    fed, (ours, theirs) = case.fed[0], (case.a.manifest.input, case.b.manifest.input)
    colors = f"; the manifests declare {ours.color} and {theirs.color}"
    scales = f"; the manifests declare scales {ours.scale:.4g} and {theirs.scale:.4g}"
    if case.gives_b(np.ascontiguousarray(fed[:, ::-1])):
        text = "fed with red and blue swapped, A returns the outputs of B"
        return Cause("colour order", text + colors * (ours.color != theirs.color))
    if not ours.dtype.startswith("float"):
        return None
    shown = scales * (ours.scale != theirs.scale)
    if case.gives_b(fed / np.float32(255)):
        return Cause(
            "scale",
            "fed with values divided by 255 once more, A returns the outputs of B: the division "
            f"is applied twice in B, or not at all in A{shown}",
        )
    if ours.dtype == "float32" and case.gives_b(fed * np.float32(255)):
        return Cause(
            "scale",
            "fed with values 255 times as large, A returns the outputs of B: the division by 255 "
            f"is missing in B, or applied twice in A{shown}",
        )
    return None


def _shift(case: Case) -> Cause | None:
    """Feed A with the image in another place of the letterbox."""
    image, fed = case.a.manifest.input, case.fed[0]
    frame_hw = case.frame.shape[0], case.frame.shape[1]
    place = letterbox_geometry(frame_hw, (image.height, image.width))
    aligned = {(sign * place.top, sign * place.left) for sign in (-1, 1)}
    for down, right in sorted(aligned | {(-1, 0), (1, 0), (0, -1), (0, 1)}, key=sum):
        pad = image.letterbox.pad * np.float32(image.scale) + image.zero_point
        moved = np.full_like(fed, pad)
        height, width = fed.shape[2:]
        moved[:, :, max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)] = (
            fed[:, :, max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
        )
        if (down, right) != (0, 0) and case.gives_b(moved):
            return Cause(
                "letterbox",
                f"fed with the image moved by {down} rows and {right} columns, A returns the "
                "outputs of B: the models have the padding on different sides",
            )
    return None


def _precision(case: Case) -> Cause | None:
    """If the two models have different precisions or arithmetic, compare with their tolerance."""
    first, second = (
        f"{side.manifest.precision}, computed in {side.session.arithmetic}"
        for side in (case.a, case.b)
    )
    if first.split(" (")[0] == second.split(" (")[0]:  # without engine and device
        return None
    int8 = ["int8"] if "int8" in (case.a.manifest.precision, case.b.manifest.precision) else []
    allowed = {name: parity.comparable(name, 0.0) for name in ("fp16", "bf16", *int8)}
    limits = {name: Limits(one, one) for name, one in allowed.items()}
    agreeing = [name for name in limits if agree(*case.outputs, limits[name])]
    if not agreeing:
        return None
    final = case.close or case.a.is_final or case.b.is_final
    whole = [
        name
        for name in agreeing
        if final or compare_candidates(*case.outputs, limits[name]).status != "differs"
    ]
    found = f"the outputs agree within the tolerance of {(whole or agreeing)[0]}"
    if not whole:
        found = (
            f"the heads agree within the tolerance of {agreeing[0]}, but not the candidates: "
            "measure the mAP of both with `y7edge val`"
        )
    return Cause("precision", f"A is {first}, B is {second}: {found}")


def _text(value: object) -> str:
    return f"pad {value.pad}" if isinstance(value, Letterbox) else str(value)[:80]
