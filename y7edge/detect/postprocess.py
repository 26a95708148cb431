"""Convert network outputs to boxes with numpy: decoding, selection of candidates, NMS.

Decoding (YOLOv7, arXiv 2207.02696) of the logits t of an anchor (aw, ah) at cell (gx, gy) of a
level with stride s gives, in pixels of the network's input::

    x = (2 sigmoid(tx) - 0.5 + gx) s        w = (2 sigmoid(tw))^2 aw
    y = (2 sigmoid(ty) - 0.5 + gy) s        h = (2 sigmoid(th))^2 ah

A candidate has objectness > conf and score = objectness x class probability > conf. With one class
the score is the objectness, because the class logit is not trained.

Nearly all cells are background. Therefore a first scan compares the raw objectness outputs (logits,
probabilities or quantised integers) with a threshold slightly below conf. Only the remaining cells
are dequantised, activated and compared exactly. NaN is never selected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.bounds import MAX_DET
from y7edge.artifact.manifest import THRESHOLD_INPUTS, LevelInfo, Manifest, Thresholds
from y7edge.artifact.schema import require_fit
from y7edge.boxes import MAX_CANDIDATES, best_first, corners, nms
from y7edge.errors import ConfigError, DataError


class Boxes(NamedTuple):
    """Boxes of one image, in pixels of the network's input."""

    xyxy: NDArray[np.float32]  # (N, 4) corners
    score: NDArray[np.float32]  # (N,)
    class_id: NDArray[np.int32]  # (N,)


@dataclass(frozen=True, slots=True)
class Criteria:
    """Which boxes to keep.

    Raises:
        ConfigError: a number is out of its range.
    """

    conf: float = 0.25  # keep boxes with a greater score
    class_conf: tuple[float, ...] | None = None  # thresholds by class id, in addition to ``conf``
    iou: float = 0.45  # remove boxes whose IoU with a better box is greater
    max_det: int = 300  # boxes per image
    classes: tuple[int, ...] | None = None  # class ids to keep, before suppression; None: all
    agnostic: bool = False  # in NMS, compare boxes of different classes too
    multi_label: bool = False  # one box for every class above conf, not only the best; for mAP

    def __post_init__(self) -> None:
        require_fit(Criteria, {f.name: getattr(self, f.name) for f in fields(self)})
        for name, values in (
            ("conf", (self.conf, *(self.class_conf or ()))),
            ("iou", (self.iou,)),
        ):
            for value in values:
                if not 0 <= value <= 1:
                    raise ConfigError(f"{name} is {value!r}, expected a number from 0 to 1")
        if not 1 <= self.max_det <= MAX_DET:
            raise ConfigError(f"max_det is {self.max_det!r}, expected 1 to {MAX_DET}")


EVALUATION = Criteria(conf=0.001, iou=0.65, max_det=300, multi_label=True)
"""Thresholds for measuring mAP."""


Quantization = tuple[float, int]  # (scale, zero point): real value = (value - zero point) x scale


class Postprocessor:
    """Convert the outputs of one model to boxes. Stateless and thread-safe.

    Args:
        levels: stride and anchors of each head, finest first.
        nc: number of classes.
        activation: "logit", or "sigmoid" if the heads are probabilities.
        quantization: scale and zero point of each head; None for float heads.
        layout: layout of the heads, "NCHW" or "NHWC".

    Raises:
        ConfigError: activation or layout is unknown.
    """

    def __init__(
        self,
        levels: Sequence[LevelInfo],
        nc: int,
        activation: str = "logit",
        quantization: Sequence[Quantization | None] | None = None,
        layout: str = "NCHW",
    ) -> None:
        if activation not in ("logit", "sigmoid"):
            raise ConfigError(f'activation is {activation!r}, expected "logit" or "sigmoid"')
        if layout not in ("NCHW", "NHWC"):
            raise ConfigError(f'the layout of the heads is {layout!r}, expected "NCHW" or "NHWC"')
        self._nc = nc
        self._logits = activation == "logit"
        self._channels_last = layout == "NHWC"
        self._quantization = list(quantization or [None] * len(levels))
        self._counts = [len(level.anchors) for level in levels]
        # Stride, width and height of each anchor, finest level first, in pixels of the input.
        known = [(level.stride, *anchor) for level in levels for anchor in level.anchors]
        self._anchors = np.array(known, np.float32).reshape(-1, 3).T.copy()

    def heads(self, heads: Sequence[NDArray[Any]], criteria: Criteria) -> list[Boxes]:
        """Return the detected boxes of each image of a batch, from raw heads.

        ``heads``: one array per level, (B, anchors x (5 + nc), H, W), or in layout NHWC
        (B, H, W, anchors x (5 + nc)); float32 or float16, or integers if quantised.

        Raises:
            DataError: a head has the wrong shape or dtype.
        """
        if self._channels_last:
            heads = [np.moveaxis(head, -1, 1) for head in heads]
        self._check_heads(heads)
        return [
            suppress(self.candidates([head[index] for head in heads], criteria), criteria)
            for index in range(len(heads[0]))
        ]

    def decoded(self, boxes: NDArray[Any], scores: NDArray[Any], criteria: Criteria) -> list[Boxes]:
        """Return the detected boxes of each image of a batch, from decoded outputs.

        ``boxes``: (B, N, 4) centre x, centre y, width, height in pixels of the input. ``scores``:
        (B, N, nc) objectness x class probability (with one class: the objectness).

        Raises:
            DataError: an array has the wrong shape.
        """
        expected = (*boxes.shape[:2], self._nc)
        if boxes.ndim != 3 or boxes.shape[2] != 4 or scores.shape != expected:
            raise DataError(
                f"boxes are {boxes.shape} and scores {scores.shape}, expected (B, N, 4) and "
                f"(B, N, {self._nc})"
            )
        return [
            suppress(decoded_candidates(box, score, criteria), criteria)
            for box, score in zip(boxes, scores, strict=True)
        ]

    def detections(self, rows: NDArray[Any], count: int, criteria: Criteria) -> list[Boxes]:
        """Return the boxes of ``count`` images from the result of a graph with NMS.

        ``rows``: (K, 7) batch index, x0, y0, x1, y1 in input pixels, class id, score. Rows of other
        images are ignored. ``conf``, ``classes`` and ``max_det`` are applied; ``iou`` is not,
        because suppression is part of the graph.

        Raises:
            DataError: the array has the wrong shape, or a class id is out of range.
        """
        if rows.ndim != 2 or rows.shape[1] != 7:
            raise DataError(f"detections are {rows.shape}, expected (K, 7)")
        rows = rows[np.isfinite(rows).all(axis=1)]
        boxes = Boxes(
            rows[:, 1:5].astype(np.float32), rows[:, 6].astype(np.float32), rows[:, 5].astype(int)
        )
        if (bad := (boxes.class_id < 0) | (boxes.class_id >= self._nc)).any():
            found = int(boxes.class_id[bad][0])
            raise DataError(f"detections have class {found}, expected 0 to {self._nc - 1}")
        wanted = boxes.score > np.float32(criteria.conf)
        if criteria.classes is not None:
            wanted &= np.isin(boxes.class_id, criteria.classes)
        if criteria.class_conf is not None:
            wanted &= boxes.score > np.array(criteria.class_conf, np.float32)[boxes.class_id]
        results = []
        for image in range(count):
            own = np.flatnonzero(wanted & (rows[:, 0] == image))
            own = own[best_first(boxes.score[own], MAX_DET)[: criteria.max_det]]
            class_id = boxes.class_id[own].astype(np.int32)
            results.append(Boxes(boxes.xyxy[own], boxes.score[own], class_id))
        return results

    def candidates(self, heads: Sequence[NDArray[Any]], criteria: Criteria) -> Boxes:
        """Return the candidates of one image, ordered by level, anchor, row, column, class.

        ``heads``: one array per level, (anchors x (5 + nc), H, W).
        """
        conf = np.float32(criteria.conf)
        values, anchor, row, column = self._gather(heads, criteria.conf)
        activated = self._activate(values[:5])
        objectness = activated[4]
        class_id: NDArray[Any]
        if self._nc == 1:
            found = np.flatnonzero(objectness > conf)
            score, class_id = objectness[found], np.zeros(len(found), np.int32)
        elif criteria.multi_label:
            matrix = objectness[:, None] * self._activate(np.ascontiguousarray(values[5:].T))
            found, class_id = np.nonzero(matrix > conf)
            score = matrix[found, class_id]
        else:
            class_id, best = _best_of_columns(values[5:])
            score = objectness * self._activate(best)
            found = np.flatnonzero(score > conf)
            score, class_id = score[found], class_id[found]
        chosen = _choose(score, class_id, criteria)
        found = found[chosen]
        doubled = 2 * activated[:4].take(found, axis=1)
        stride, *known = self._anchors.take(anchor[found], axis=1)
        xyxy = np.empty((len(found), 4), np.float32)
        # One axis at a time: numpy is slow on arrays of two columns.
        for axis, cell in enumerate((column, row)):
            centre = (doubled[axis] - np.float32(0.5) + cell[found].astype(np.float32)) * stride
            half = np.square(doubled[2 + axis]) * known[axis] / 2
            np.subtract(centre, half, out=xyxy[:, axis])
            np.add(centre, half, out=xyxy[:, 2 + axis])
        return _finite(xyxy, score[chosen], class_id[chosen])

    def _activate(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return _sigmoid(values) if self._logits else values

    def _gather(self, heads: Sequence[NDArray[Any]], conf: float) -> tuple[NDArray[Any], ...]:
        """Select the K pairs (anchor, cell) whose objectness may be above ``conf``.

        Returns:
            The dequantised outputs of each pair (5 + nc, K) float32, and three index arrays (K,):
            the anchor (counted over all levels), the row and the column.
        """
        values = [np.empty((5 + self._nc, 0), np.float32)]
        places, counts, widths = [], [], []
        levels = zip(heads, self._counts, self._quantization, strict=True)
        for head, anchors, quantization in levels:
            fields = head.reshape(anchors, 5 + self._nc, -1)
            least = _least(conf, head.dtype, self._logits, quantization)
            # numpy's nonzero is several times faster in one dimension.
            flat = (fields[:, 4] >= least).reshape(-1).nonzero()[0]
            area = fields.shape[2]
            ends = flat.searchsorted(np.arange(anchors + 1) * area).tolist()
            for index, (start, stop) in enumerate(pairwise(ends)):
                if start < stop:
                    cells = flat[start:stop]
                    cells -= index * area
                    values.append(_dequantised(_cells(fields[index], cells), quantization))
                    places.append(cells)
                counts.append(stop - start)
                widths.append(head.shape[2])
        place = np.concatenate([np.empty(0, np.intp), *places])
        anchor = np.repeat(np.arange(len(counts)), counts)
        width = np.array(widths).take(anchor)
        row = place // width  # np.divmod takes several times longer
        return np.concatenate(values, axis=1), anchor, row, place - row * width

    def _check_heads(self, heads: Sequence[NDArray[Any]]) -> None:
        if len(heads) != len(self._counts):
            raise DataError(f"there are {len(heads)} heads, expected {len(self._counts)}")
        levels = zip(heads, self._counts, self._quantization, strict=True)
        for level, (head, count, quantization) in enumerate(levels):
            channels = count * (5 + self._nc)
            if head.ndim != 4 or head.shape[1] != channels or len(head) != len(heads[0]):
                raise DataError(f"head{level} is {head.shape}, expected (B, {channels}, H, W)")
            real = head.dtype in (np.float32, np.float16)
            if real if quantization else not real:
                expected = "integers" if quantization else "float32 or float16"
                raise DataError(f"head{level} is {head.dtype}, expected {expected}")


def _cells(fields: NDArray[Any], cells: NDArray[np.intp]) -> NDArray[Any]:
    """Return the outputs of one anchor (5 + nc, H x W) in K cells, as an array (5 + nc, K)."""
    if not fields.flags.c_contiguous:  # channels last: the values of a cell are contiguous
        return fields.T[cells].T
    # Channel by channel, because the values of neighbouring cells share cache lines.
    return fields.take(cells, axis=1, mode="clip")  # the default mode is slower


def _indices(sparse: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the indices of the few true values in a vector, like ``nonzero`` but faster."""
    # Eight values at a time: nonzero reads its input twice.
    eighths = np.packbits(sparse).astype(np.bool_).nonzero()[0]
    flat = (eighths[:, None] * 8 + np.arange(8)).reshape(-1)
    flat = flat[: len(flat) - max(0, int(flat[-1:].sum()) + 1 - len(sparse))]  # bits beyond the end
    found: NDArray[np.intp] = flat[sparse[flat]]
    return found


def decoded_candidates(boxes: NDArray[Any], scores: NDArray[Any], criteria: Criteria) -> Boxes:
    """Return the candidates of one image from boxes (N, 4) cx, cy, w, h and scores (N, nc)."""
    conf = np.float32(criteria.conf)
    flat = _indices(scores.reshape(-1) >= _below(criteria.conf, scores.dtype))
    rows, class_id = np.divmod(flat, scores.shape[1])
    if not criteria.multi_label:
        rows = rows[np.flatnonzero(np.diff(rows, prepend=-1))]
        class_id, score = _best(scores[rows].astype(np.float32, copy=False))
    else:
        score = scores[rows, class_id].astype(np.float32, copy=False)
    above = np.flatnonzero(score > conf)
    rows, class_id, score = rows[above], class_id[above], score[above]
    chosen = _choose(score, class_id, criteria)
    picked: NDArray[Any] = boxes[rows[chosen]].astype(np.float32, copy=False)
    return _finite(corners(picked[:, :2], picked[:, 2:]), score[chosen], class_id[chosen])


def threshold_feeds(manifest: Manifest, criteria: Criteria | Thresholds) -> dict[str, NDArray[Any]]:
    """Return the values for the threshold inputs of a graph with NMS; {} for other graphs."""
    values = {"conf": criteria.conf, "iou": criteria.iou, "max_det": criteria.max_det}
    # Classes and their thresholds are applied to the result, so the graph must not limit it.
    if isinstance(criteria, Criteria) and (
        criteria.classes is not None or criteria.class_conf is not None
    ):
        values["max_det"] = MAX_CANDIDATES
    dtypes = THRESHOLD_INPUTS
    return {name: np.array(values[name], dtypes[name]) for name in manifest.threshold_inputs}


def detected(candidates: Boxes, criteria: Criteria) -> Boxes:
    """Return the detected boxes of one image from its candidates, best score first.

    ``candidates``: boxes with a score above ``criteria.conf``, in the order of
    ``Postprocessor.candidates``, for example selected on a GPU.
    """
    chosen = _choose(candidates.score, candidates.class_id, criteria)
    xyxy, score, class_id = candidates
    return suppress(Boxes(xyxy[chosen], score[chosen], class_id[chosen]), criteria)


def suppress(boxes: Boxes, criteria: Criteria) -> Boxes:
    """Apply non-maximum suppression; return the kept boxes, best score first."""
    kept = nms(*boxes, criteria.iou, criteria.max_det, agnostic=criteria.agnostic)
    return Boxes(boxes.xyxy.take(kept, axis=0), boxes.score[kept], boxes.class_id[kept])


def _choose(
    score: NDArray[np.float32], class_id: NDArray[Any], criteria: Criteria
) -> NDArray[np.intp] | slice:
    """Select candidates of the wanted classes, at most ``MAX_CANDIDATES``."""
    if criteria.classes is criteria.class_conf is None and len(score) <= MAX_CANDIDATES:
        return slice(None)
    chosen = np.arange(len(score))
    if criteria.classes is not None:
        chosen = np.flatnonzero(np.isin(class_id, criteria.classes))
    if criteria.class_conf is not None:
        least = np.array(criteria.class_conf, np.float32)
        chosen = chosen[score[chosen] > least[class_id[chosen]]]
    if len(chosen) > MAX_CANDIDATES:
        # Limit the number before decoding: boxes of all classes and cells could fill the memory.
        chosen = chosen[best_first(score[chosen], MAX_CANDIDATES)]
    return chosen


def _best(values: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return the column and the value of the largest number in each row, ignoring NaN."""
    column = values.argmax(axis=1)
    largest = values[np.arange(len(values)), column]
    if np.isnan(largest).any():  # argmax returns the first NaN
        return _best(np.where(np.isnan(values), np.float32(-np.inf), values))
    return column, largest


def _best_of_columns(values: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return the row and the value of the largest number in each column, ignoring NaN.

    It returns what ``_best`` returns for ``values.T``, and is faster if rows are contiguous.
    """
    largest = values.max(axis=0)
    if np.isnan(largest).any():
        return _best(values.T)
    # Of equal values, the first has the greatest weight. (np.argmax takes twice as long.)
    count = len(values)
    weights = np.arange(count, 0, -1, dtype=np.min_scalar_type(count))[:, None]
    return count - ((values == largest) * weights).max(axis=0).astype(np.intp), largest


def _finite(xyxy: NDArray[Any], score: NDArray[np.float32], class_id: NDArray[Any]) -> Boxes:
    """Return the boxes without NaN and infinity."""
    if not np.isfinite(xyxy).all():
        finite = np.isfinite(xyxy).all(axis=1)
        xyxy, score, class_id = xyxy[finite], score[finite], class_id[finite]
    return Boxes(xyxy, score, class_id.astype(np.int32, copy=False))


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # exp(100) overflows float32; the result 0 is correct
        probability: NDArray[np.float32] = np.reciprocal(1 + np.exp(-logits))
        return probability


@lru_cache
def _least(
    conf: float, dtype: np.dtype[Any], logits: bool, quantization: Quantization | None
) -> Any:
    """Return the threshold of the first scan in the ``dtype`` of the raw outputs.

    It is lower than ``conf`` by more than the rounding error, so that no box is missed. The
    rounding error of a probability p is about 2^-24. The error of its logit is larger by the factor
    1 / (p (1 - p)), because p (1 - p) is the slope of the sigmoid.
    """
    cut = conf * (1 - 2**-20)
    if logits:
        if not 0 < conf < 1:
            cut = -math.inf if conf <= 0 else math.inf
        else:
            cut = math.log(conf / (1 - conf)) - 1e-3 - 2**-21 / (conf * (1 - conf))
    if quantization is None:
        return _below(cut, dtype)
    scale, zero_point = quantization
    limits = np.iinfo(dtype)
    return dtype.type(np.clip(np.floor(cut / scale) + zero_point, limits.min, limits.max))


def _below(value: float, dtype: np.dtype[Any]) -> Any:
    """Return a number of ``dtype`` slightly below ``value``."""
    return np.nextafter(dtype.type(value), dtype.type(-math.inf))


def _dequantised(values: NDArray[Any], quantization: Quantization | None) -> NDArray[np.float32]:
    real = values.astype(np.float32, copy=False)
    if quantization is None:
        return real
    scale, zero_point = quantization
    return (real - np.float32(zero_point)) * np.float32(scale)
