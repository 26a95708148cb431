"""Measure the cost of the code around the engine, and compare it with a budget.

The unit is the time of one ``cv2.resize`` of the same image to its letterboxed size, on one thread,
so that the same budget can be used on every machine.

Other programs slow the measured code down: they take the processor, empty its caches and use the
memory. Three measures keep their influence small. The CPU time of the thread is measured. The unit
and the stages are measured alternately, on the same images. The calls are divided into groups
(``blocks``), and the median of each group is computed, for the unit and for each stage; the least
median counts. If the budget is exceeded, more groups are measured. Only a load that lasts for all
groups, many seconds, still has an influence: it slows the stages down more than the unit, because
the stages use more memory.

``Session.infer`` is measured in the same way, relative to the engine's own API on the same input.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.manifest import Manifest, expected_shapes, in_layout
from y7edge.detect.detections import Timing
from y7edge.detect.detector import Detector
from y7edge.detect.postprocess import Criteria, Postprocessor
from y7edge.detect.preprocess import letterbox_geometry
from y7edge.runtimes.base import Session

FRAME_HW = (720, 1280)  # height and width of the images
FRAMES = 8  # images that are used in turn, since a single one would stay in the CPU cache
BUDGET = {"pre": 1.7, "post": 1.8, "rest": 0.2}
"""Budget in units: letterbox, decoding and NMS, and the rest of ``detector(frame)``."""

PRE_UINT8 = 1.2  # budget of the letterbox for a uint8 input
POST_DECODED = 2.5  # budget of NMS for decoded outputs; reading all scores takes one unit of it
REST_MS = 0.1  # least budget of the rest in milliseconds, because a unit may be very short

TOLERANCE = 1.1  # the gate fails if a stage costs more than budget x this factor

OVERHEAD = 1.03  # largest time of ``Session.infer``, relative to the engine's own API
OVERHEAD_MS = 0.1  # difference that is accepted anyway, because the time of an engine may be short

GATE_SIZE, GATE_NC = 640, 80
OBJECTS, CANDIDATES = 100, 8
"""Number of objects in the prepared outputs, and of candidates per object before NMS."""

_MIN_BLOCKS = 40  # number of groups of calls; a group has one call for each image
_MAX_BLOCKS = 400  # number if the budget is exceeded, because other programs may be the cause
_PAIRS = 4  # number of pairs of calls in a group, of ``Session.infer`` and the engine's own API
_MIN_PAIR_BLOCKS, _MAX_PAIR_BLOCKS = 8, 100  # numbers of groups of pairs, as above


@dataclass(frozen=True)
class Gate:
    """Cost of the code around the engine, in units of one ``cv2.resize``.

    ``model`` is the time of ``Session.infer`` relative to the engine's own API; None: not measured.
    """

    unit_ms: float  # milliseconds of one unit
    pre: float
    post: float
    rest: float
    budget: Mapping[str, float] = field(default_factory=lambda: dict(BUDGET))
    model: float | None = None
    model_limit: float = OVERHEAD

    def beyond(self) -> list[str]:
        """Return a description of each stage that exceeds its budget x ``TOLERANCE``."""
        found = [
            f"{stage} costs {getattr(self, stage):.2f} times one cv2.resize of the same image, "
            f"budget {units:.3g} and a tenth more"
            for stage, units in self.budget.items()
            if not getattr(self, stage) <= units * TOLERANCE
        ]
        if self.model is not None and not self.model <= self.model_limit:
            found.append(
                f"Session.infer takes {self.model:.3f} times as long as the engine's own API, "
                f"expected at most {self.model_limit:.3f} times"
            )
        return found


def measure_gate(manifest: Manifest, blocks: int = _MAX_BLOCKS) -> Gate:
    """Measure the code around the engine for a model with this manifest's levels and outputs.

    The budget is for 640 x 640 pixels and 80 classes, so the manifest is changed to these. Instead
    of an engine, a session returns prepared outputs of 100 objects with 8 candidates each.

    Args:
        manifest: description of the model.
        blocks: largest number of groups of calls; fewer are measured if the budget is kept.
    """
    model = _at_gate_size(manifest)
    image, clock = model.input, time.thread_time_ns
    detector = Detector.from_session(_Replay(model), model, conf=0.25, iou=0.45, clock=clock)
    frames = images()
    height, width = letterbox_geometry(FRAME_HW, (image.height, image.width)).resized_hw
    resized = np.empty((height, width, 3), np.uint8)

    def block() -> NDArray[np.float64]:
        """Measure one group of calls; return the median milliseconds of unit, pre, post, rest."""
        costs = np.empty((FRAMES, 4))
        for index, cost in enumerate(costs):
            started = clock()
            cv2.resize(frames[index], (width, height), dst=resized)
            unit = clock() - started
            # Use another image than the one just resized, which is still in the CPU cache.
            frame = frames[(index + FRAMES // 2) % FRAMES]
            started = clock()
            timing = detector(frame).timing or Timing()
            whole = (clock() - started) / 1e6
            rest = whole - timing.pre - timing.infer - timing.post
            cost[:] = unit / 1e6, timing.pre, timing.post, rest
        return np.asarray(np.median(costs, axis=0))

    with opencv_threads(1):
        block()  # warm-up
        least = block()
        for count in range(1, blocks):
            if count >= _MIN_BLOCKS and not _gate(model, least).beyond():
                break
            least = np.minimum(least, block())
    return _gate(model, least)


def measure_overhead(
    ours: Callable[[], object],
    engine: Callable[[], object],
    *,
    threads: int | None = 1,
    limit: float = OVERHEAD,
    blocks: int = _MAX_PAIR_BLOCKS,
) -> tuple[float, float]:
    """Measure how much longer one call takes than another one that does the same work.

    With one engine thread, the CPU time of the process is measured, else the elapsed time: the CPU
    time of several threads hides what only one of them does.

    Args:
        ours: a call, such as that of ``Session.infer``.
        engine: the call that it is compared with, such as that of the engine's own API.
        threads: number of engine threads; None: unknown.
        limit: largest accepted ratio; more groups of calls are measured while it is exceeded.
        blocks: largest number of groups of calls.

    Returns:
        The time of ``ours`` divided by that of ``engine``, and the time of ``engine`` in
        milliseconds: the least median of all groups for both.
    """
    clock = time.process_time_ns if threads == 1 else time.perf_counter_ns

    def timed(call: Callable[[], object]) -> float:
        started = clock()
        result = call()
        cost = (clock() - started) / 1e6
        del result  # outside the measurement, as freed memory is used again by the next call
        return cost

    def block() -> NDArray[np.float64]:
        """Return the median milliseconds of ``ours`` and ``engine`` in one group of pairs."""
        costs = np.empty((_PAIRS, 2))
        for index in range(_PAIRS):
            for which in (0, 1) if index % 2 else (1, 0):
                costs[index, which] = timed((ours, engine)[which])
        return np.asarray(np.median(costs, axis=0))

    block()  # warm-up
    least = block()
    for count in range(1, blocks):
        if count >= _MIN_PAIR_BLOCKS and least[0] <= least[1] * limit:
            break
        least = np.minimum(least, block())
    return float(least[0] / least[1]), float(least[1])


def with_model(gate: Gate, ratio: float, engine_ms: float) -> Gate:
    """Return the gate with the result of ``measure_overhead`` for ``Session.infer``."""
    limit = max(OVERHEAD, 1 + OVERHEAD_MS / engine_ms)
    return replace(gate, model=round(ratio, 4), model_limit=round(limit, 4))


def _gate(model: Manifest, milliseconds: NDArray[np.float64]) -> Gate:
    """Return the costs in units, from the milliseconds of the unit, pre, post and rest."""
    unit_ms, *stages = milliseconds.tolist()
    pre, post, rest = (round(stage / unit_ms, 3) for stage in stages)
    budget = {**BUDGET, "rest": round(max(BUDGET["rest"], REST_MS / unit_ms), 3)}
    if model.input.dtype in ("uint8", "int8"):
        budget["pre"] = PRE_UINT8
    if model.outputs[0].role != "head":
        budget["post"] = POST_DECODED
    return Gate(round(unit_ms, 4), pre, post, rest, budget)


def _at_gate_size(manifest: Manifest) -> Manifest:
    """Return the manifest with an input of 640 x 640, a batch of 1 and 80 classes."""
    image = replace(manifest.input, batch=1, height=GATE_SIZE, width=GATE_SIZE)
    shapes = expected_shapes(image, manifest.levels, GATE_NC)
    keys = [out.role if out.level is None else f"head{out.level}" for out in manifest.outputs]
    outputs = tuple(
        replace(out, shape=in_layout(shapes[key], out.layout))
        for out, key in zip(manifest.outputs, keys, strict=True)
    )
    names = tuple(str(index) for index in range(GATE_NC))
    return replace(manifest, input=image, outputs=outputs, nc=GATE_NC, names=names)


class _Replay(Session):
    """A session that returns copies of prepared outputs."""

    ENGINE = "none"

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(
            manifest.model, manifest, device="none", arithmetic="prepared outputs", versions={}
        )
        self._answers = [busy_outputs(manifest, seed) for seed in range(FRAMES)]
        self._calls = 0

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self._calls += 1
        answer = self._answers[self._calls % FRAMES]
        return {name: array.copy() for name, array in answer.items()}

    def _close(self) -> None:
        self._answers = []


def busy_outputs(manifest: Manifest, seed: int) -> dict[str, NDArray[Any]]:
    """Generate network outputs, by their names in the manifest: 100 objects, 8 candidates for each.

    Objects are on a lattice with a spacing of 64 pixels, on the two finest levels. As in a trained
    network, candidates are in the cell of the object and in the nearest neighbouring cells in x and
    in y, for all anchors.
    """
    rng = np.random.default_rng(seed)
    heads = []
    for level in manifest.levels:
        rows, columns = GATE_SIZE // level.stride, GATE_SIZE // level.stride
        shape = (len(level.anchors), 5 + manifest.nc, rows, columns)
        heads.append(rng.normal(-9, 1, shape).astype(np.float32))
    side = round(OBJECTS**0.5)
    for place in range(OBJECTS):
        index = int(rng.integers(min(2, len(heads))))
        level, head = manifest.levels[index], heads[index]
        lattice = np.array([place % side, place // side]) + 0.5
        centre = (lattice * GATE_SIZE / side + rng.uniform(-8, 8, 2)) / level.stride
        own = np.floor(centre).astype(int)
        step = np.where(centre - own < 0.5, -1, 1)
        cells = [own, own + step * (1, 0), own + step * (0, 1)]
        kind, size = int(rng.integers(manifest.nc)), np.array(level.anchors[0]) * 1.5
        pairs = [(cell, anchor) for cell in cells for anchor in range(len(level.anchors))]
        for (x, y), anchor in pairs[:CANDIDATES]:
            # The inverse of decoding, with some noise so that candidates differ.
            offset = (centre + rng.normal(0, 0.05, 2) - (x, y) + 0.5) / 2
            extent = np.sqrt(size * rng.uniform(0.9, 1.1, 2) / level.anchors[anchor]) / 2
            inside = np.clip(np.concatenate([offset, extent]), 0.01, 0.99)
            head[anchor, :4, y, x] = np.log(inside / (1 - inside))
            head[anchor, 4, y, x] = rng.uniform(1, 4)
            head[anchor, 5 + kind, y, x] = rng.uniform(1, 4)
    return _as_outputs(heads, manifest)


def _as_outputs(heads: list[NDArray[np.float32]], manifest: Manifest) -> dict[str, NDArray[Any]]:
    """Convert heads (A, 5 + nc, H, W), finest first, to the manifest's outputs."""
    if manifest.outputs[0].role == "head":
        found = {}
        for output, head in zip(manifest.outputs, heads, strict=True):
            values = _sigmoid(head) if output.activation == "sigmoid" else head
            planes = values.reshape(1, -1, *head.shape[2:])
            planes = np.moveaxis(planes, 1, -1) if output.layout == "NHWC" else planes
            if output.scale is not None:
                limits = np.iinfo(output.dtype)
                steps = np.rint(planes / output.scale) + (output.zero_point or 0)
                planes = steps.clip(limits.min, limits.max)
            found[output.name] = np.ascontiguousarray(planes, output.dtype)
        return found
    if manifest.outputs[0].role == "detections":
        post = Postprocessor(manifest.levels, manifest.nc)
        (boxes_found,) = post.heads(
            [head.reshape(1, -1, *head.shape[2:]) for head in heads], Criteria()
        )
        image = np.zeros(len(boxes_found.score))
        parts = (image, boxes_found.xyxy, boxes_found.class_id, boxes_found.score)
        return {manifest.outputs[0].name: np.column_stack(parts).astype(np.float32)}
    boxes, scores = [], []
    for head, level in zip(heads, manifest.levels, strict=True):
        activated = _sigmoid(head)
        rows, columns = np.indices(head.shape[2:])
        centre = (2 * activated[:, :2] - 0.5 + np.stack([columns, rows])) * level.stride
        size = (2 * activated[:, 2:4]) ** 2 * np.array(level.anchors)[:, :, None, None]
        boxes.append(np.concatenate([centre, size], 1).transpose(0, 2, 3, 1).reshape(-1, 4))
        score = activated[:, 4:5] * activated[:, 5:]
        scores.append(score.transpose(0, 2, 3, 1).reshape(-1, manifest.nc))
    return {
        output.name: np.concatenate(parts)[None].astype(output.dtype)
        for output, parts in zip(manifest.outputs, (boxes, scores), strict=True)
    }


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(1 / (1 + np.exp(-logits)), np.float32)


def images() -> list[NDArray[np.uint8]]:
    """Generate smooth images (720, 1280, 3) uint8, the same in every run."""
    rng = np.random.default_rng(0)
    height, width = FRAME_HW
    coarse = rng.integers(0, 256, (FRAMES, height // 20, width // 20, 3), dtype=np.uint8)
    return [
        np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
        for image in coarse
    ]


@contextmanager
def opencv_threads(threads: int | None) -> Iterator[None]:
    """Set OpenCV's number of threads inside a ``with`` statement; None leaves it unchanged."""
    before = cv2.getNumThreads()
    try:
        if threads is not None:
            cv2.setNumThreads(threads)
        yield
    finally:
        cv2.setNumThreads(before)
