"""Anchors that fit a data set: measure the present ones, and search better ones if needed.

    anchors, message = choose(samples, spec, imgsz=640)
    spec = replace(spec, anchors=anchors or spec.anchors)

A box that no anchor is within a factor of 4 of, in width and in height, is never trained: the
fraction of the others is the *best possible recall* (BPR). Below 98 % new anchors are searched, as
in the published training: k-means over the boxes' sizes, then a thousand random mutations, each
kept if it is fitter. Here all follows from a seed (the published check draws random scales).

k-means++: Arthur and Vassilvitskii, "The advantages of careful seeding", 2007.
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

ENOUGH = 0.98  # best possible recall from which anchors are left alone
SMALLEST = 2.0  # pixels: no anchor has a smaller side, boxes smaller in both sides are no example

_EXAMPLES = 20_000  # boxes that the search looks at; more only make it slower


@dataclass(frozen=True, slots=True)
class Fit:
    """How well anchors fit boxes."""

    bpr: float  # best possible recall: share of the boxes that some anchor fits
    aat: float  # anchors that fit a box, on average


def recall(sizes: ArrayLike, anchors: ArrayLike, threshold: float = 4.0) -> Fit:
    """How many boxes have an anchor, and how many anchors.

    Args:
        sizes: (n, 2) widths and heights of boxes in pixels.
        anchors: (..., 2) widths and heights in the same pixels.
        threshold: an anchor fits if neither side differs by this factor or more.
    """
    gap = _gap(_log(sizes), _log(anchors))
    if not len(gap):
        return Fit(0.0, 0.0)
    fits = gap < math.log(threshold)
    return Fit(float(fits.any(axis=1).mean()), float(fits.sum(axis=1).mean()))


def sizes_of(samples: Sequence[Sample], imgsz: int) -> NDArray[np.float64]:
    """Widths and heights (n, 2) of all boxes, in pixels, with pictures' longer side at ``imgsz``.

    Reads the header of each labelled picture whose size the samples don't tell.

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
    """Centres (count, 2) of clusters of sizes (n, 2), by area; Lloyd's steps from k-means++.

    Logarithms are clustered, because ratios of sides decide whether an anchor fits (the published
    training clusters the sizes themselves). A cluster without members stays. Sides must be above 0.
    """
    points = _log(sizes)
    centres = _spread_out(points, count, np.random.default_rng(seed))
    for _ in range(30):
        member = _squares(points, centres).argmin(axis=1)
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
    """Fitter anchors (k, 2) than those given, by area: random mutations, kept if they help.

    The fitness is the mean over boxes (n, 2) of how alike the best anchor is, which is the smaller
    of the two ratios of sides (at most 1), and 0 where none fits.
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
    """Anchors for a data set, if those of the model leave boxes out and others do better.

    Args:
        samples: pictures to train on.
        spec: the model.
        imgsz: training size in pixels, the longer side of every picture.
        threshold: largest ratio of sides between a box and its anchors.
        seed: of the search.

    Returns:
        The new anchors of each level, finest first, in pixels, or None to keep the model's; and
        one line about what was found.

    Raises:
        DataError: a picture's header cannot be read.
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
        return None, f"anchors kept: {fit}; {len(examples)} boxes are too few for {count} others"
    found = kmeans(examples, count, seed=seed)
    found = evolve(examples, found, threshold=threshold, seed=seed).round(2)
    better = recall(sizes, found, threshold)
    if better.bpr <= have.bpr:
        return None, f"anchors kept: {fit}; others had no better recall ({better.bpr:.4f})"
    levels = found.reshape(spec.levels, per_level, 2).tolist()
    chosen = tuple(tuple((w, h) for w, h in level) for level in levels)
    return chosen, (
        f"anchors changed: best possible recall {have.bpr:.4f} -> {better.bpr:.4f}, "
        f"{have.aat:.2f} -> {better.aat:.2f} anchors per box; "
        f"{_shown(spec.anchors)} -> {_shown(chosen)} pixels"
    )


def _log(sides: ArrayLike) -> NDArray[np.float64]:
    """Logarithms (n, 2) of widths and heights (..., 2); boxes without area are infinitely far."""
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(sides, dtype=np.float64).reshape(-1, 2))


def _gap(boxes: NDArray[Any], anchors: NDArray[Any]) -> NDArray[Any]:
    """(n, k): logarithm of the larger ratio of sides, from logarithms of sides."""
    width, height = (np.abs(boxes[:, axis, None] - anchors[:, axis]) for axis in (0, 1))
    larger: NDArray[Any] = np.maximum(width, height, out=width)
    return larger


def _fitness(boxes: NDArray[np.float32], anchors: NDArray[np.float64], threshold: float) -> float:
    gap = _gap(boxes, np.log(anchors).astype(np.float32)).min(axis=1)
    alike = np.exp(-gap) * (gap < math.log(threshold))
    return float(alike.mean(dtype=np.float64))


def _squares(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, k) squared distances."""
    apart = points[:, None] - centres
    squares: NDArray[np.float64] = np.einsum("nka,nka->nk", apart, apart)
    return squares


def _spread_out(
    points: NDArray[np.float64], count: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """k-means++: points drawn in proportion to the squared distance to those drawn before."""
    centres = points[random.integers(len(points), size=1)]
    nearest = _squares(points, centres)[:, 0]
    while len(centres) < count:
        total = nearest.sum()
        weights = nearest / total if total > 0 else None  # None: all points are centres already
        drawn = points[random.choice(len(points), size=1, p=weights)]
        centres = np.concatenate((centres, drawn))
        nearest = np.minimum(nearest, _squares(points, drawn)[:, 0])
    return centres


def _by_area(anchors: NDArray[np.float64]) -> NDArray[np.float64]:
    order = np.argsort(anchors.prod(axis=1), kind="stable")
    return np.take(anchors, order, axis=0)


def _shown(anchors: Anchors) -> str:
    """Anchors as the published files write them: ``12,16 19,36 40,28 | ...``."""
    return " | ".join(" ".join(f"{w:.4g},{h:.4g}" for w, h in level) for level in anchors)
