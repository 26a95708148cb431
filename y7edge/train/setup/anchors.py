"""Fit anchors to a data set.

    anchors, message = choose(samples, spec, imgsz=640)
    spec = replace(spec, anchors=anchors or spec.anchors)

An anchor fits a box if their widths and their heights differ by less than a factor of 4. Boxes that
no anchor fits are not trained. The fraction of boxes that an anchor fits is the *best possible
recall* (BPR). If it is below 98 %, new anchors are searched, as published: by k-means over the
sizes of boxes, then by a thousand random mutations, of which improvements are kept. The same seed
gives the same anchors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from y7edge.data.headers import picture_size
from y7edge.data.sample import Sample
from y7edge.models.spec import Anchors, Spec

ENOUGH = 0.98  # anchors with this best possible recall are kept
SMALLEST = 2.0  # smallest side of an anchor in pixels; boxes with both sides smaller are ignored
_EXAMPLES = 20_000  # boxes used in the search


@dataclass(frozen=True, slots=True)
class Fit:
    """Measures of how well anchors fit boxes."""

    bpr: float  # best possible recall: fraction of boxes that an anchor fits
    aat: float  # anchors above threshold: mean number of anchors that fit a box


def recall(sizes: ArrayLike, anchors: ArrayLike, threshold: float = 4.0) -> Fit:
    """Measure how anchors (..., 2) fit ``sizes`` (n, 2) of boxes: widths and heights in pixels.

    An anchor fits a box if their widths and heights differ by a factor below ``threshold``.
    """
    gap = _gap(_log(sizes), _log(anchors))
    if not len(gap):
        return Fit(0.0, 0.0)
    fits = gap < math.log(threshold)
    return Fit(float(fits.any(axis=1).mean()), float(fits.sum(axis=1).mean()))


def sizes_of(samples: Sequence[Sample], imgsz: int) -> NDArray[np.float64]:
    """Return widths and heights (n, 2) of all boxes, in pixels, for a longer image side ``imgsz``.

    If a sample has no size, the header of its image is read.

    Raises:
        DataError: a header cannot be read.
    """
    found = [np.zeros((0, 2))]
    for sample in samples:
        if len(sample.boxes):
            size = np.array(sample.size or picture_size(sample.path), dtype=np.float64)
            found.append(sample.boxes[:, 2:4] * (size * imgsz / size.max()))
    return np.concatenate(found)


def kmeans(sizes: ArrayLike, count: int, *, seed: int = 0) -> NDArray[np.float64]:
    """Cluster ``sizes`` (n, 2), and return the centres (count, 2), smallest area first.

    The logarithms of the sizes are clustered, because whether an anchor fits a box depends on the
    ratios of their widths and heights. The published training clusters the sizes themselves. All
    sizes must be above 0. Empty clusters keep their centre.
    """
    points = _log(sizes)
    centres = _spread_out(points, count, np.random.default_rng(seed))
    for _ in range(30):
        member = _squared_distances(points, centres).argmin(axis=1)
        members = np.bincount(member, minlength=count)[:, None]
        sums = np.stack([np.bincount(member, axis, minlength=count) for axis in points.T], axis=1)
        moved = np.where(members > 0, sums / np.maximum(members, 1), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return _by_area(np.exp(centres))


def evolve(
    sizes: ArrayLike,
    anchors: ArrayLike,
    *,
    threshold: float = 4.0,
    generations: int = 1000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Improve anchors by random mutations, and return them (k, 2), smallest area first.

    A mutation is kept if the mean fitness of the boxes increases. The fitness of a box of w x h
    pixels is the largest of min(w / W, W / w, h / H, H / h) over all anchors of W x H pixels; it is
    0 if no anchor fits.
    """
    boxes = _log(sizes).astype(np.float32)
    best = np.maximum(np.asarray(anchors, dtype=np.float64).reshape(-1, 2), SMALLEST)
    random = np.random.default_rng(seed)
    shape = (generations, *best.shape)
    step = 0.1 * random.random((generations, 1, 1)) * random.standard_normal(shape)
    factors = np.clip(1 + step * (random.random(shape) < 0.9), 0.3, 3.0)
    fittest = _fitness(boxes, best, threshold)
    for factor in factors:
        mutant = np.maximum(best * factor, SMALLEST)
        fitness = _fitness(boxes, mutant, threshold)
        if fitness > fittest:
            best, fittest = mutant, fitness
    return _by_area(best)


def choose(
    samples: Sequence[Sample], spec: Spec, imgsz: int, threshold: float = 4.0, seed: int = 0
) -> tuple[Anchors | None, str]:
    """Search new anchors for a data set if those of the model do not fit enough boxes.

    ``imgsz`` is the longer side of all images, in pixels; ``threshold`` as for ``recall``.

    Returns:
        The new anchors of each level, finest first, in pixels, or None to keep those of the model;
        and a message for the log.

    Raises:
        DataError: an image's header cannot be read.
    """
    sizes = sizes_of(samples, imgsz)
    have = recall(sizes, spec.anchors, threshold)
    fit = f"best possible recall {have.bpr:.4f}, {have.aat:.2f} anchors per box"
    if not len(sizes):
        return None, "anchors kept: no boxes to fit them to"
    if have.bpr >= ENOUGH:
        return None, f"anchors kept: {fit}"
    examples = sizes[(sizes >= SMALLEST).any(axis=1) & (sizes > 0).all(axis=1)]
    if len(examples) > _EXAMPLES:
        examples = np.random.default_rng(seed).choice(examples, _EXAMPLES, replace=False)
    per_level = len(spec.anchors[0])
    count = spec.levels * per_level
    if len(examples) < count:
        return None, f"anchors kept: {fit}; {len(examples)} boxes are too few for {count} new ones"
    found = kmeans(examples, count, seed=seed)
    found = evolve(examples, found, threshold=threshold, seed=seed).round(2)
    better = recall(sizes, found, threshold)
    if better.bpr <= have.bpr:
        return None, f"anchors kept: {fit}; new ones had no better recall ({better.bpr:.4f})"
    levels = found.reshape(spec.levels, per_level, 2).tolist()
    chosen = tuple(tuple((w, h) for w, h in level) for level in levels)
    return chosen, (
        f"anchors changed: best possible recall {have.bpr:.4f} -> {better.bpr:.4f}, "
        f"{have.aat:.2f} -> {better.aat:.2f} anchors per box; "
        f"{_format(spec.anchors)} -> {_format(chosen)} pixels"
    )


def _log(sides: ArrayLike) -> NDArray[np.float64]:
    """Return logarithms (n, 2) of sides (..., 2); -inf for boxes without area."""
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(sides, dtype=np.float64).reshape(-1, 2))


def _gap(boxes: NDArray[Any], anchors: NDArray[Any]) -> NDArray[Any]:
    """Return the logarithms (n, k) of the factors by which n boxes and k anchors differ.

    The factor is that of the widths or that of the heights, whichever is larger. The arguments are
    logarithms of sides.
    """
    width, height = (np.abs(boxes[:, axis, None] - anchors[:, axis]) for axis in (0, 1))
    return np.asarray(np.maximum(width, height, out=width))


def _fitness(boxes: NDArray[np.float32], anchors: NDArray[np.float64], threshold: float) -> float:
    gap = _gap(boxes, np.log(anchors).astype(np.float32)).min(axis=1)
    alike = np.exp(-gap) * (gap < math.log(threshold))
    return float(alike.mean(dtype=np.float64))


def _squared_distances(
    points: NDArray[np.float64], centres: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the squared distances (n, k) of points (n, 2) to centres (k, 2)."""
    apart = points[:, None] - centres
    return np.asarray(np.einsum("nka,nka->nk", apart, apart))


def _spread_out(
    points: NDArray[np.float64], count: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """Draw initial centres by k-means++ (Arthur and Vassilvitskii, 2007).

    A point is drawn with a probability proportional to its squared distance to the nearest centre.
    """
    centres = points[random.integers(len(points), size=1)]
    nearest = _squared_distances(points, centres)[:, 0]
    while len(centres) < count:
        total = nearest.sum()
        weights = nearest / total if total > 0 else None  # None: all points are centres
        drawn = points[random.choice(len(points), size=1, p=weights)]
        centres = np.concatenate((centres, drawn))
        nearest = np.minimum(nearest, _squared_distances(points, drawn)[:, 0])
    return centres


def _by_area(anchors: NDArray[np.float64]) -> NDArray[np.float64]:
    order = np.argsort(anchors.prod(axis=1), kind="stable")
    return np.take(anchors, order, axis=0)


def _format(anchors: Anchors) -> str:
    """Format anchors as in the published files: ``12,16 19,36 40,28 | ...``."""
    return " | ".join(" ".join(f"{w:.4g},{h:.4g}" for w, h in level) for level in anchors)
